"""What replicas write into their log files: text for people, or JSON in the Elastic Common Schema.

Serve's own setting decides, `logging_config.encoding` in serve_config.yaml: TEXT or JSON. With JSON, Serve would write
names of its own; here they become ECS. A line holds no audio, no text that was said, no key and no query of a URL.

Source of the field names: Elastic Common Schema, elastic.co/docs/reference/ecs.
"""

from __future__ import annotations

import logging
from logging.handlers import MemoryHandler
from typing import Any

import ecs_logging
from opentelemetry import trace
from ray._common.formatters import JSONFormatter

from soundstage.errors import ServiceError

SERVE = "ray.serve"
"""The logger that Serve gives a replica's file. Source: Ray Serve's documentation of monitoring."""
BUG = 500
"""Status codes from here on are worth a trace."""
OURS = ("deployments", "soundstage")
"""Loggers whose lines belong into the replica's file; Ray leaves them to a root logger that drops what is below a
warning."""

_ECS_NAMES = {"request_id": "http.request.id", "replica": "service.node.name"}
"""What Serve calls what ECS has a name for."""
_EXTRAS = ("error", "event", "http", "soundstage", "url")
"""The first parts of the names under which our own lines add to ECS; cluster/logging/index_template.json knows each."""


class EcsFormatter(ecs_logging.StdlibFormatter):
    """One JSON object a line, with nothing in it that the index template does not know."""

    def __init__(self) -> None:
        super().__init__(
            exclude_fields=("log.original", "process.thread", "process.name"), extra={"service.name": "soundstage"}
        )

    def format_to_ecs(self, record: logging.LogRecord) -> dict[str, Any]:
        """The fields of a record."""
        known = {
            name: value
            for name, value in record.__dict__.items()
            if name in self._LOGRECORD_DICT or name.partition(".")[0] in _EXTRAS
        }
        known.update((ours, record.__dict__[name]) for name, ours in _ECS_NAMES.items() if name in record.__dict__)
        if "deployment" in record.__dict__:
            # Serve puts the name of the application before it.
            known["soundstage.stage"] = record.__dict__["deployment"].rpartition("_")[2]
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            known["trace.id"] = trace.format_trace_id(span.trace_id)
            known["span.id"] = trace.format_span_id(span.span_id)
        result: dict[str, Any] = super().format_to_ecs(logging.makeLogRecord(known))
        result.pop("_ray_timestamp_ns", None)  # Ray's own, on every record that is made
        return result


def _is_news(record: logging.LogRecord) -> bool:
    """Not what Serve writes, with its trace, about errors that clients were answered: those are in one line already."""
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name == SERVE and isinstance(error, ServiceError) and error.status_code < BUG)


def take_over() -> None:
    """Have this replica's own modules write into its Serve log file, in ECS where that is JSON, at once.

    Serve keeps up to a thousand lines back when it is tuned for throughput; a replica writes one line a request.
    """
    serve_logger = logging.getLogger(SERVE)
    for handler in serve_logger.handlers:
        if isinstance(handler, MemoryHandler) and handler.target is not None:
            handler.capacity = 1
            handler.addFilter(_is_news)
            if isinstance(handler.target.formatter, JSONFormatter):
                handler.target.setFormatter(EcsFormatter())
    for name in OURS:
        logger = logging.getLogger(name)
        logger.parent = serve_logger
        logger.setLevel(serve_logger.level)
