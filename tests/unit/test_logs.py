"""What is in a log line, and what is not; the loggers are those of a replica, without Ray running."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from ray._common.formatters import JSONFormatter

from deployments import logs
from soundstage.errors import InternalError, UnsupportedMedia
from tests.conftest import ROOT


class ReplicaLog:
    """The file of a replica, as Serve sets it up when it is tuned for throughput."""

    def __init__(self, path: Path, formatter: logging.Formatter) -> None:
        self._path = path
        self.file = logging.FileHandler(path)
        self.file.setFormatter(formatter)
        self.memory = MemoryHandler(1000, target=self.file)
        self.memory.addFilter(self._add_context)

    @staticmethod
    def _add_context(record: logging.LogRecord) -> bool:
        record.request_id, record.deployment, record.replica = "r-1", "soundstage_Ingress", "abc"
        record.worker_id = record.node_id = record.actor_name = "Ray's own"
        return True

    @property
    def lines(self) -> list[str]:
        return self._path.read_text(encoding="utf-8").splitlines()


@pytest.fixture(params=["json", "text"])
def replica_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReplicaLog]:
    formatter = JSONFormatter() if request.param == "json" else logging.Formatter("%(levelname)s %(message)s")
    log = ReplicaLog(tmp_path / "replica.log", formatter)
    serve = logging.getLogger(logs.SERVE)
    before = serve.handlers[:], serve.level, serve.propagate
    parents = {name: (logging.getLogger(name).parent, logging.getLogger(name).level) for name in logs.OURS}
    serve.handlers, serve.propagate = [log.memory], False
    serve.setLevel(logging.INFO)
    logs.take_over()
    try:
        yield log
    finally:
        serve.handlers, serve.level, serve.propagate = before
        for name, (parent, level) in parents.items():
            logging.getLogger(name).parent = parent
            logging.getLogger(name).setLevel(level)
        log.file.close()


def is_json(log: ReplicaLog) -> bool:
    return isinstance(log.file.formatter, logs.EcsFormatter)


def test_our_lines_are_there_at_once(replica_log: ReplicaLog) -> None:
    logging.getLogger("deployments.api.middleware").info("POST %s", "/v1/analyze", extra={"event.action": "request"})
    logging.getLogger("soundstage.models.registry").warning("slow")
    assert len(replica_log.lines) == 2
    if not is_json(replica_log):
        assert replica_log.lines == ["INFO POST /v1/analyze", "WARNING slow"]


@pytest.mark.parametrize("replica_log", ["json"], indirect=True)
def test_a_line_is_ecs_with_request_and_trace(replica_log: ReplicaLog) -> None:
    with TracerProvider().get_tracer("tests").start_as_current_span("request") as span:
        fields = {"event.duration": 12, "soundstage.models": ["ears@1"], "http.response.status_code": 200}
        logging.getLogger("deployments.preprocess").info("done", extra=fields)
    (line,) = replica_log.lines
    document: dict[str, Any] = json.loads(line)
    assert document["http"] == {"request": {"id": "r-1"}, "response": {"status_code": 200}}
    assert document["soundstage"] == {"models": ["ears@1"], "stage": "Ingress"}
    assert document["service"] == {"name": "soundstage", "node": {"name": "abc"}}
    assert document["trace"] == {"id": f"{span.get_span_context().trace_id:032x}"}
    assert document["span"] == {"id": f"{span.get_span_context().span_id:016x}"}
    assert document["ecs.version"]
    assert document["@timestamp"].endswith("Z")
    assert "Ray's own" not in line


@pytest.mark.parametrize("replica_log", ["json"], indirect=True)
def test_every_field_is_known_to_the_index(replica_log: ReplicaLog) -> None:
    template = json.loads((ROOT / "cluster/logging/elasticsearch/mappings.json").read_text(encoding="utf-8"))
    logger = logging.getLogger("deployments.ingress")
    logger.error("it broke", exc_info=raised(RuntimeError("a bug")), stack_info=True, extra={"secret": "key"})
    known = {name for name, _ in flat(template["template"]["mappings"]["properties"], inside="properties")}
    found = {name for name, _ in flat(json.loads(replica_log.lines[0]))}
    assert {"error.type", "error.message", "error.stack_trace"} <= found <= known


def flat(tree: dict[str, Any], prefix: str = "", inside: str | None = None) -> Iterator[tuple[str, Any]]:
    """Names of all leaves with their dots."""
    for name, value in tree.items():
        children = value.get(inside) if inside and isinstance(value, dict) else value
        if isinstance(children, dict):
            yield from flat(children, f"{prefix}{name}.", inside)
        else:
            yield prefix + name, value


def raised(error: Exception) -> Exception:
    """The error with a trace."""
    try:
        raise error  # noqa: TRY301  # a trace is what it is for
    except Exception as e:  # noqa: BLE001  # whatever a handler may raise
        return e


def test_errors_that_clients_were_told_leave_no_trace_and_bugs_do(replica_log: ReplicaLog) -> None:
    serve = logging.getLogger(logs.SERVE)
    for error in (UnsupportedMedia("no audio"), InternalError("a bug"), KeyError("a bug")):
        serve.error("Request failed.", exc_info=raised(error))
    assert "\n".join(replica_log.lines).count("Traceback" if not is_json(replica_log) else "stack_trace") == 2
    assert "UnsupportedMedia" not in "\n".join(replica_log.lines)
