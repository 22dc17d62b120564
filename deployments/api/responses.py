"""Turns analyses into HTTP responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

from starlette.datastructures import State
from starlette.responses import JSONResponse, Response

from deployments.api.schemas import AnalysisBody, DocumentBody, ErrorBody, ErrorDetail
from soundstage.captions.formats import FORMATS, CaptionOptions, render
from soundstage.errors import ServiceError
from soundstage.types import Analysis

NDJSON = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The body of an error; a bug of ours is not explained to strangers."""
    message = error.detail if error.code != ServiceError.code else "something went wrong on our side; it was logged"
    return ErrorBody(error=ErrorDetail(code=error.code, message=message, request_id=request_id)).model_dump()


def error_response(error: ServiceError, request_id: str) -> JSONResponse:
    """The answer to a request that failed."""
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else None
    return JSONResponse(error_body(error, request_id), error.status_code, headers)


def analysis_response(analysis: Analysis, response_format: str, options: CaptionOptions) -> Response:
    """The whole analysis in one body, in any format but ndjson."""
    document = document_body(analysis, response_format, options)
    return Response(document.text, media_type=document.media_type)


def document_body(analysis: Analysis, name: str, options: CaptionOptions) -> DocumentBody:
    """The whole analysis in any format but ndjson."""
    if name == "json":
        text, media_type, suffix = AnalysisBody.of(analysis).model_dump_json(), "application/json", ".json"
    else:
        text, media_type, suffix = render(analysis, name, options), FORMATS[name].media_type, FORMATS[name].suffix
    return DocumentBody(format=name, media_type=media_type, suffix=suffix, text=text)


def document_bodies(analysis: Analysis, names: Iterable[str], options: CaptionOptions) -> list[DocumentBody]:
    """The whole analysis in each of some formats."""
    return [document_body(analysis, name, options) for name in names]


async def ndjson(lines: AsyncIterator[str], state: State) -> AsyncIterator[bytes]:
    """Each line as it comes; an error after the first byte was sent becomes the last line, and the request's code."""
    try:
        async for line in lines:
            yield line.encode() + b"\n"
    except ServiceError as e:
        state.code = e.code
        yield json.dumps({"type": "error", **error_body(e, state.request_id)}).encode() + b"\n"


async def server_sent(events: AsyncIterator[str], state: State) -> AsyncIterator[bytes]:
    """Server-sent events as OpenAI's clients read them; an error as above."""
    try:
        async for event in events:
            yield b"data: " + event.encode() + b"\n\n"
    except ServiceError as e:
        state.code = e.code
        yield b"event: error\ndata: " + json.dumps(error_body(e, state.request_id)).encode() + b"\n\n"
