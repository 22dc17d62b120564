"""Spans of a request reach a real OTLP receiver as one trace through every stage, and none come unasked."""

from __future__ import annotations

import gzip
import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.observability.conftest import Observed, Receiver, poll

STAGES = {"Ingress", "Preprocessor", "VoiceRecognizer", "SoundClassifier"}


@dataclass(frozen=True)
class Span:
    id: str
    parent: str
    name: str
    service: str
    seconds: float
    attributes: dict[str, str]


def spans_of(trace_id: str, received: Receiver) -> list[Span]:
    """Those of one trace that were exported so far."""
    found = []
    for encoding, body in list(received.bodies):
        export = ExportTraceServiceRequest.FromString(gzip.decompress(body) if encoding == "gzip" else body)
        for resource_spans in export.resource_spans:
            resource = {entry.key: entry.value.string_value for entry in resource_spans.resource.attributes}
            found += [
                Span(
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    name=span.name,
                    service=resource["service.name"],
                    seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    attributes={entry.key: text_of(entry.value) for entry in span.attributes},
                )
                for scope in resource_spans.scope_spans
                for span in scope.spans
                if span.trace_id.hex() == trace_id
            ]
    return found


def text_of(value: AnyValue) -> str:
    return str(getattr(value, value.WhichOneof("value") or "string_value"))


@dataclass(frozen=True)
class Asked:
    """A request whose client was traced, and all its spans."""

    trace_id: str
    client_span: str
    request_id: str
    spans: list[Span]

    @property
    def stages(self) -> set[str]:
        """Deployments in which a replica handled a part of it."""
        heads = [span.name.split() for span in self.spans if span.name.startswith("replica_handle_request ")]
        return {name for _, name, *_ in heads}

    @property
    def orphans(self) -> list[Span]:
        """Spans of whose parent nothing is known."""
        known = {self.client_span, *(span.id for span in self.spans)}
        return [span for span in self.spans if span.parent not in known]


def ask(observed: Observed, clip: bytes, trace_id: str, client_span: str, *, is_sampled: bool) -> str:
    headers = {"Content-Type": "audio/wav", "traceparent": f"00-{trace_id}-{client_span}-0{int(is_sampled)}"}
    answer = observed.client.post("/v1/analyze", content=clip, headers=headers).raise_for_status()
    return str(answer.headers["x-request-id"])


@pytest.fixture(scope="module")
def clip(sample_clip: Path) -> bytes:
    return sample_clip.read_bytes()


@pytest.fixture(scope="module")
def asked(observed: Observed, clip: bytes) -> Asked:
    trace_id, client_span = secrets.token_hex(16), secrets.token_hex(8)
    request_id = ask(observed, clip, trace_id, client_span, is_sampled=True)

    def found() -> Asked:
        return Asked(trace_id, client_span, request_id, spans_of(trace_id, observed.spans))

    # Each process sends its spans by itself, every few seconds.
    poll(lambda: found().stages >= STAGES and not found().orphans, 180, lambda: f"not whole: {found()}")
    return found()


def test_one_trace_a_request_from_the_client_through_every_stage(asked: Asked) -> None:
    assert asked.stages == STAGES
    assert {span.service for span in asked.spans} == {"soundstage"}
    assert len({span.id for span in asked.spans}) == len(asked.spans)
    roots = [span.name for span in asked.spans if span.parent == asked.client_span]
    assert [name for name in roots if name.startswith("replica_handle_request Ingress")]


def test_a_trace_is_found_by_the_id_that_the_client_was_given_and_in_the_log(observed: Observed, asked: Asked) -> None:
    assert asked.request_id in {span.attributes.get("request_id") for span in asked.spans}
    poll(lambda: asked.trace_id in logged(observed), 90, "no line of the log has the trace's id")


def test_a_trace_holds_nobodys_text_or_key(asked: Asked) -> None:
    held = json.dumps([span.attributes for span in asked.spans]).lower()
    assert "authorization" not in held
    assert not [word for word in ("best of times", "worst of times") if word in held]


def test_no_spans_of_requests_that_were_not_sampled(observed: Observed, clip: bytes) -> None:
    silent, heard = secrets.token_hex(16), secrets.token_hex(16)
    ask(observed, clip, silent, secrets.token_hex(8), is_sampled=False)
    ask(observed, clip, heard, secrets.token_hex(8), is_sampled=True)
    # What was asked later has come: so would what was asked before.
    poll(lambda: len(spans_of(heard, observed.spans)) >= len(STAGES), 180, "no spans at all")
    assert spans_of(silent, observed.spans) == []


def logged(observed: Observed) -> str:
    """What replicas of the ingress have written."""
    return "".join(path.read_text(encoding="utf-8") for path in observed.logs_dir.glob("replica_*Ingress*.log"))


def test_a_slow_request_of_the_canary_leads_from_its_histogram_to_its_trace(observed: Observed) -> None:
    def exemplars() -> list[str]:
        now = time.time()
        query = {"query": "soundstage_canary_latency_seconds_bucket", "start": now - 120, "end": now}
        series = observed.prometheus("query_exemplars", **query)
        return [exemplar["labels"]["trace_id"] for entry in series for exemplar in entry["exemplars"]]

    poll(exemplars, 180, "Prometheus holds no exemplar")
    poll(lambda: any(spans_of(trace_id, observed.spans) for trace_id in exemplars()), 180, "none of them has a trace")
