"""AsyncAPI document of WS /v1/stream, from the messages themselves: `python -m deployments.api.asyncapi`.

Source: asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deployments.api.stream_messages import ANY_SERVER_MESSAGE, EndMessage, FlushMessage, ResumeMessage, StartMessage
from soundstage.errors import ERRORS
from soundstage.types import JsonObject

PATH = Path(__file__).parents[2] / "docs" / "asyncapi.yaml"
CLIENT_MESSAGES: tuple[type[BaseModel], ...] = (StartMessage, ResumeMessage, FlushMessage, EndMessage)

_HEAD = "# Written by `python -m deployments.api.asyncapi`.\n"
_DESCRIPTION = (
    "Audio goes in, what is said and heard comes out while it is. docs/api.md tells the protocol with an example "
    "session. The first message of a connection is `start` or `resume`; audio follows in binary messages of any size, "
    "`flush` and `end` in text messages. Messages of the server count on in `seq`, over all connections of a stream, "
    "but for `ready` after a resumption, and `error`."
)
_CLOSE_CODES = {
    "1000": "all was told",
    "1003": "container or codec that is not accepted",
    "1007": "a message that is none, or unusable audio",
    "1008": "no or a wrong key; no such stream; resumed by another connection",
    "1009": "too long, or too many channels",
    "1011": "a bug of ours, or a stage's or the client's time is up",
    "1012": "the server went away; start another stream",
    "1013": "full, or a reader that is too slow; come back, or resume",
}


def document(version: str) -> JsonObject:
    """The document.

    Args:
        version: Of the service.
    """
    schemas = _schemas((*CLIENT_MESSAGES, *ANY_SERVER_MESSAGE))
    messages: JsonObject = {message_name(model): _message(model) for model in (*CLIENT_MESSAGES, *ANY_SERVER_MESSAGE)}
    messages["audio"] = {
        "title": "Audio",
        "summary": "A binary message: the next piece of the stream, of any size, as `start` says it is written.",
        "contentType": "application/octet-stream",
        "payload": {"type": "string", "format": "binary"},
    }
    from_client = [message_name(model) for model in CLIENT_MESSAGES] + ["audio"]
    from_server = [message_name(model) for model in ANY_SERVER_MESSAGE]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Soundstage, live",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "local": {
                "host": "127.0.0.1:8000",
                "protocol": "ws",
                "description": "What `make run` starts.",
                "security": [{"$ref": "#/components/securitySchemes/key"}],
            }
        },
        "channels": {
            "stream": {
                "address": "/v1/stream",
                "description": "One live stream, over as many connections as it takes.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "x-close-codes": _CLOSE_CODES,
            }
        },
        "operations": {
            "tell": _operation("receive", from_client, "What a client sends."),
            "hear": _operation("send", from_server, "What the service sends."),
        },
        "components": {
            "messages": messages,
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Or `token` in the first message."}
            },
        },
    }


def _operation(action: str, names: Sequence[str], summary: str) -> JsonObject:
    return {
        "action": action,
        "channel": {"$ref": "#/channels/stream"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/stream/messages/{name}"} for name in names],
    }


def message_name(model: type[BaseModel]) -> str:
    """What its `type` says."""
    return model.__name__.removesuffix("Message").lower()


def _message(model: type[BaseModel]) -> JsonObject:
    assert model.__doc__ is not None
    return {
        "title": message_name(model),
        "summary": " ".join(model.__doc__.split()),
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
    }


def _schemas(models: Sequence[type[BaseModel]]) -> JsonObject:
    """JSON Schema of the models and all that they refer to, without the titles that pydantic makes of names."""
    _, found = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas: JsonObject = _untitled(found["$defs"])
    for model in models:
        # A message always says what it is; `start` alone may be told by the rest.
        schema = schemas[model.__name__]
        if model is not StartMessage and "type" not in schema.setdefault("required", []):
            schema["required"] = ["type", *schema["required"]]
    codes = schemas["ErrorMessage"]["properties"]["code"]
    codes["enum"] = sorted({error.code for error in ERRORS})
    return schemas


def _untitled(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _untitled(part) for name, part in value.items() if not (name == "title" and isinstance(part, str))
        }
    return [_untitled(part) for part in value] if isinstance(value, list) else value


def text(version: str) -> str:
    """The document as it is kept."""
    return _HEAD + yaml.safe_dump(document(version), sort_keys=False, width=100, allow_unicode=True)


if __name__ == "__main__":
    from importlib.metadata import version as version_of

    PATH.write_text(text(version_of("soundstage")), encoding="utf-8")
