"""Spans of a request reach a real OTLP receiver as one trace through every stage, and none come unasked."""

from __future__ import annotations

import gzip
import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from soundstage import sample
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


def ask(observed: Observed, trace_id: str, client_span: str, flags: str, clip: bytes) -> str:
    headers = {"Content-Type": "audio/wav", "traceparent": f"00-{trace_id}-{client_span}-{flags}"}
    answer = observed.client.post("/v1/analyze", content=clip, headers=headers).raise_for_status()
    return str(answer.headers["x-request-id"])


def test_one_trace_a_request_from_the_client_through_every_stage(observed: Observed, tmp_path: Path) -> None:
    clip = clip_of(tmp_path)
    trace_id, client_span = secrets.token_hex(16), secrets.token_hex(8)
    request_id = ask(observed, trace_id, client_span, "01", clip)

    def stages() -> set[str]:
        found = spans_of(trace_id, observed.spans)
        return {name for name in STAGES for span in found if span.name.startswith(f"replica_handle_request {name}")}

    poll(lambda: stages() == STAGES, 60, lambda: f"only {stages()} of {spans_of(trace_id, observed.spans)}")
    spans = spans_of(trace_id, observed.spans)
    assert {span.service for span in spans} == {"soundstage"}
    # One tree, whose root is the client's own span.
    known = {client_span, *(span.id for span in spans)}
    assert len({span.id for span in spans}) == len(spans)
    assert all(span.parent in known for span in spans)
    roots = [span for span in spans if span.parent == client_span]
    assert [span.name for span in roots if span.name.startswith("replica_handle_request Ingress")]
    # Found again by the id that the client was given, and in the log.
    assert request_id in {span.attributes.get("request_id") for span in roots}
    poll(lambda: trace_id in logged(observed), 30, "no line of the log has the trace's id")
    # Nobody's audio, text or key.
    held = json.dumps([span.attributes for span in spans]).lower()
    assert "authorization" not in held
    assert not [word for word in ("best of times", "worst of times") if word in held]


def test_no_spans_of_requests_that_were_not_sampled(observed: Observed, tmp_path: Path) -> None:
    clip = clip_of(tmp_path)
    silent, heard = secrets.token_hex(16), secrets.token_hex(16)
    ask(observed, silent, secrets.token_hex(8), "00", clip)
    ask(observed, heard, secrets.token_hex(8), "01", clip)
    # What was asked later has come: so would what was asked before.
    poll(lambda: len(spans_of(heard, observed.spans)) >= len(STAGES), 60, "no spans at all")
    assert spans_of(silent, observed.spans) == []


def clip_of(folder: Path) -> bytes:
    sample.write(folder / "sample.wav")
    return (folder / "sample.wav").read_bytes()


def logged(observed: Observed) -> str:
    """What replicas of the ingress have written."""
    return "".join(path.read_text(encoding="utf-8") for path in observed.logs_dir.glob("replica_*Ingress*.log"))


def test_a_slow_request_of_the_canary_leads_from_its_histogram_to_its_trace(observed: Observed) -> None:
    def exemplars() -> list[str]:
        now = time.time()
        query = {"query": "soundstage_canary_latency_seconds_bucket", "start": now - 120, "end": now}
        series = observed.prometheus("query_exemplars", **query)
        return [exemplar["labels"]["trace_id"] for entry in series for exemplar in entry["exemplars"]]

    poll(exemplars, 60, "Prometheus holds no exemplar")
    poll(lambda: any(spans_of(trace_id, observed.spans) for trace_id in exemplars()), 60, "none of them has a trace")
