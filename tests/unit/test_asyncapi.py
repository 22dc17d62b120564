"""docs/asyncapi.yaml is what the service speaks, and docs/api.md tells all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from deployments.api import asyncapi
from deployments.api.stream_messages import ANY_SERVER_MESSAGE, WarningCode
from soundstage.errors import ERRORS
from tests.unit.stream_client import START, KnownEngine, application, clip, connected

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))
    return read


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings within."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(part)


def validate(document: dict[str, Any], name: str, message: dict[str, Any]) -> None:
    """Hold a message to its schema."""
    payload = document["components"]["messages"][name]["payload"]
    jsonschema.Draft202012Validator({**payload, "components": document["components"]}).validate(message)


def test_the_document_is_up_to_date() -> None:
    assert (DOCS / "asyncapi.yaml").read_text(encoding="utf-8") == asyncapi.text(version("soundstage")), (
        "run `python -m deployments.api.asyncapi`"
    )


def test_what_it_refers_to_is_there(document: dict[str, Any]) -> None:
    references = [part["$ref"] for part in parts(document) if "$ref" in part]
    assert len(references) > 40
    for reference in references:
        place: Any = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


async def test_a_stream_speaks_it(document: dict[str, Any]) -> None:
    """From its start to its end, with a resumption and an error."""
    app, told = application(KnownEngine()), []
    validate(document, "start", START)
    async with connected(app) as wire:
        await wire.send(START)
        sender = asyncio.create_task(wire.send_audio(clip()))
        await wire.until("final")
        sender.cancel()
        told += wire.events
    resume = {"type": "resume", "stream_id": told[0]["stream_id"], "last_seq": told[-1]["seq"]}
    validate(document, "resume", resume)
    async with connected(app) as wire:
        await wire.send(resume)
        ready = await wire.until("ready")
        await wire.send_audio(clip()[ready["received_bytes"] :] + b"\0")
        await wire.send({"type": "end"})
        told += await wire.rest()
    async with connected(app) as wire:
        await wire.send({**resume, "stream_id": "none"})
        told += await wire.rest()
    assert {event["type"] for event in told} == {asyncapi.message_name(model) for model in ANY_SERVER_MESSAGE}
    for event in told:
        validate(document, event["type"], event)
    with pytest.raises(jsonschema.ValidationError):
        validate(document, "final", {**told[-1], "type": "final"})


def test_every_close_code_is_told(document: dict[str, Any]) -> None:
    codes = {str(error.ws_code) for error in ERRORS}
    assert codes <= document["channels"]["stream"]["x-close-codes"].keys()


def test_the_reader_is_told_of_every_message(document: dict[str, Any]) -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    text = text[text.index("## WS /v1/stream") :]
    names = [*document["components"]["messages"].keys() - {"audio"}, *get_args(WarningCode)]
    names += [error.code for error in ERRORS]
    names += document["components"]["schemas"]["StartMessage"]["properties"]
    assert [name for name in names if f"`{name}`" not in text] == []
    assert [code for code in document["channels"]["stream"]["x-close-codes"] if code not in text] == []
