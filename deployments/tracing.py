"""Spans to an OpenTelemetry collector.

Ray Serve makes a span of every call between deployments, and carries the trace of a client's `traceparent` header
through them, once `tracing_config` in serve_config.yaml names `deployments.tracing:otlp`. Without it nothing here is
imported, and nothing is measured.
"""

from __future__ import annotations

import logging

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def otlp() -> list[SpanProcessor]:
    """Sends spans in batches, from a thread of its own, to where OTEL_EXPORTER_OTLP_ENDPOINT says.

    The variables of the OpenTelemetry specification hold, such as OTEL_EXPORTER_OTLP_HEADERS and OTEL_SERVICE_NAME;
    set them where Ray starts.
    """
    # Serve 2.60 names spans that have ended, and OpenTelemetry would say so at every call.
    logging.getLogger("opentelemetry.sdk.trace").setLevel(logging.ERROR)
    return [BatchSpanProcessor(OTLPSpanExporter())]
