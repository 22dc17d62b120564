"""The HTTP application; it knows an Engine, and neither Ray nor the models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from deployments.api import openai
from deployments.api.engine import Engine, before, collect
from deployments.api.middleware import Gate, RequestMeter
from deployments.api.realtime import add_realtime
from deployments.api.requests import read_upload
from deployments.api.responses import (
    EVENT_STREAM,
    NDJSON,
    analysis_response,
    document_bodies,
    error_response,
    ndjson,
    server_sent,
)
from deployments.api.schemas import (
    DOCUMENT_FORMATS,
    RESPONSE_FORMATS,
    AnalysisBody,
    AnalyzeQuery,
    ChunkBody,
    DocumentBody,
    ErrorBody,
    ModelBody,
    ModelListBody,
    StatusBody,
    SummaryBody,
)
from deployments.api.stream import Elsewhere, IsDraining, add_stream
from deployments.auth import ApiKeys
from deployments.live import LiveMeter, Streams
from deployments.settings import AppArgs, IngressConfig
from soundstage.captions.choice import TimecodeChoice
from soundstage.captions.formats import FORMATS, CaptionOptions
from soundstage.errors import (
    ERRORS,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    TooLarge,
)
from soundstage.pipeline import AnalysisCollector, AnalysisOptions, Task, parse_tasks, without_faint
from soundstage.speech.hints import hints_of_prompt, parse_hints
from soundstage.types import Analysis, ChunkAnalysis, ClipSummary

FORM_OVERHEAD_BYTES = 64 * 1024
"""What a form may add to the file: boundaries, part headers and the other fields."""

_log = logging.getLogger(__name__)

_AUDIO_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "audio/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


def create_app(
    engine: Engine,
    args: AppArgs,
    keys: ApiKeys,
    config: Callable[[], IngressConfig],
    *,
    meter: RequestMeter | None = None,
    live_meter: LiveMeter | None = None,
    is_draining: IsDraining | None = None,
    elsewhere: Elsewhere | None = None,
) -> FastAPI:
    """The application.

    Args:
        engine: What analyses.
        args: Limits and deadlines.
        keys: Who may call.
        config: What may change while the service runs; asked at each request.
        meter: Counts requests and streams; None counts nothing.
        live_meter: Counts what is told of streams; None counts nothing.
        is_draining: Whether the replica goes away; None where it never does.
        elsewhere: Where other replicas have streams; None where there are none.

    Returns:
        It; `state.streams` are its live streams.
    """
    app = FastAPI(
        title="Soundstage",
        description="What is said, what is heard, how loud, and when.",
        version=version("soundstage"),
        responses={error.status_code: {"model": ErrorBody, "description": _first_line(error)} for error in ERRORS},
    )
    app.add_middleware(
        Gate,
        keys=keys,
        max_concurrent_requests=args.max_concurrent_requests,
        max_body_bytes=args.reading.limits.max_upload_bytes + FORM_OVERHEAD_BYTES,
        too_large=_too_large(args),
        meter=meter,
    )
    _add_error_handlers(app)
    _add_health(app, engine)
    _add_models(app, engine)
    _add_analyze(app, engine, args, config)
    _add_transcriptions(app, engine, args, config)
    streams = Streams(engine, args, config, meter=live_meter, ended=partial(_stream_ended, meter))
    app.state.streams = streams
    add_stream(app, engine, args, keys, streams, is_draining=is_draining, elsewhere=elsewhere)
    add_realtime(app, keys, streams)
    return app


def _stream_ended(meter: RequestMeter | None, code: str, seconds: float) -> None:
    if meter is not None:
        meter.done("/v1/stream", code, seconds)


def _too_large(args: AppArgs) -> TooLarge:
    limit = args.reading.limits.max_upload_bytes
    return TooLarge(f"the upload has more than {limit} bytes; send a shorter or a compressed file")


def _first_line(error: type[ServiceError]) -> str:
    return (error.__doc__ or "").partition("\n")[0]


def _add_error_handlers(app: FastAPI) -> None:
    async def on_service_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        if isinstance(error, InternalError) or type(error) is ServiceError:
            _log.error("request %s failed", request.state.request_id, exc_info=error)
        return error_response(error, request.state.request_id)

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, (RequestValidationError, ValidationError))
        problems = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
        return error_response(InvalidRequest(problems), request.state.request_id)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known: dict[int, ServiceError] = {
            404: NotFound(f"no route {request.method} {request.url.path}; see /docs"),
            405: MethodNotAllowed(f"{request.url.path} does not take {request.method}; see /docs"),
        }
        answer = known.get(error.status_code, InvalidRequest(str(error.detail)))
        return error_response(answer, request.state.request_id)

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(ValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)


def _add_health(app: FastAPI, engine: Engine) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> StatusBody:
        """The server is alive."""
        return StatusBody(status="ok")

    @app.get("/readyz", tags=["health"])
    async def readyz() -> StatusBody:
        """Every stage is able to answer."""
        await engine.models()
        return StatusBody(status="ready")


def _add_models(app: FastAPI, engine: Engine) -> None:
    @app.get("/v1/models", tags=["models"])
    async def list_models() -> ModelListBody:
        """The models that are being served: versions, labels, licence, measured accuracy."""
        return ModelListBody(data=ModelBody.of_each(await engine.models()))

    @app.get("/v1/models/{name}", tags=["models"])
    async def get_model(name: str) -> ModelBody:
        """One of the models that are being served, in the version of most replicas."""
        bodies = ModelBody.of_each(await engine.models())
        found = next((body for body in bodies if body.id == name), None)
        if found is None:
            raise NotFound(f"model {name!r} is not served; choose from {', '.join(sorted({b.id for b in bodies}))}")
        return found


def _add_analyze(app: FastAPI, engine: Engine, args: AppArgs, config: Callable[[], IngressConfig]) -> None:
    @app.post(
        "/v1/analyze",
        tags=["analysis"],
        response_model=AnalysisBody,
        openapi_extra=_AUDIO_BODY,
        responses={
            200: {
                "content": {
                    NDJSON: {"description": "One line a chunk as it is done, then a line of type summary."},
                    **{form.media_type: {"description": name} for name, form in FORMATS.items()},
                }
            }
        },
    )
    async def analyze(request: Request, query: Annotated[AnalyzeQuery, Query()]) -> Response:
        """What is said, what is heard, how loud, and when."""
        deadline_s = asyncio.get_running_loop().time() + args.deadlines.request_s
        # Said before the body is read: a client that misspelt a format need not upload an hour to learn of it.
        timecode = _check(query, config())
        async with _reading_until(deadline_s):
            upload = await read_upload(request)
        if upload.fields:
            query = AnalyzeQuery.model_validate({**request.query_params, **upload.fields})
            timecode = _check(query, config())
        options = _options(query)
        min_score = config().min_score if query.min_score is None else query.min_score
        audio = upload.as_audio(sample_rate=query.sample_rate, n_channels=query.channels, encoding=query.encoding)
        parts = before(_audible(engine.analyze(audio, options), min_score), deadline_s)
        request_id = request.state.request_id
        if query.response_format == "ndjson":
            documents = partial(_documents, names=_document_names(query), timecode=timecode, title=upload.filename)
            lines = _ndjson_lines(parts, request_id, options, documents)
            return StreamingResponse(ndjson(await _started(lines), request.state), media_type=NDJSON)
        analysis, summary = await collect(parts, request_id=request_id, language=options.language)
        captions = timecode.options(summary, title=upload.filename)
        # Captions of four hours take seconds to lay out.
        return await asyncio.to_thread(analysis_response, analysis, query.response_format, captions)


def _add_transcriptions(app: FastAPI, engine: Engine, args: AppArgs, config: Callable[[], IngressConfig]) -> None:
    form = {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file", "model"],
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            **openai.TranscriptionFields.model_json_schema()["properties"],
                        },
                    }
                }
            },
        }
    }

    @app.post("/v1/audio/transcriptions", tags=["analysis"], openapi_extra=form)
    async def transcribe(request: Request) -> Response:
        """What is said, in the shape of OpenAI's API."""
        deadline_s = asyncio.get_running_loop().time() + args.deadlines.request_s
        async with _reading_until(deadline_s):
            upload = await read_upload(request)
        fields = openai.parse_fields(upload.fields)
        hints = hints_of_prompt(fields.prompt or "")
        options = AnalysisOptions(tasks=frozenset({Task.SPEECH}), language=fields.language, hints=hints)
        parts = before(engine.analyze(upload.as_audio(), options), deadline_s)
        request_id = request.state.request_id
        if fields.stream:
            events = await _started(openai.events(parts))
            return StreamingResponse(server_sent(events, request.state), media_type=EVENT_STREAM)
        analysis, _ = await collect(parts, request_id=request_id, language=options.language)
        match fields.response_format:
            case "json":
                return JSONResponse(openai.json_body(analysis))
            case "verbose_json":
                return JSONResponse(openai.verbose_body(analysis, fields.granularities))
            case "text":
                return PlainTextResponse(openai.json_body(analysis)["text"] + "\n")
            case subtitles:
                return await asyncio.to_thread(analysis_response, analysis, subtitles, CaptionOptions())


def _options(query: AnalyzeQuery) -> AnalysisOptions:
    return AnalysisOptions(
        tasks=parse_tasks(query.tasks),
        language=query.language,
        hints=parse_hints(query.hints),
        profanity=query.profanity,
    )


def _check(query: AnalyzeQuery, config: IngressConfig) -> TimecodeChoice:
    """Refuse what cannot be done, and return what was chosen for caption files."""
    _options(query)
    if query.response_format not in RESPONSE_FORMATS:
        raise InvalidRequest(f"response_format={query.response_format!r}: choose from {', '.join(RESPONSE_FORMATS)}")
    names = _document_names(query)
    if names and query.response_format != "ndjson":
        raise InvalidRequest("documents go with response_format=ndjson")
    if unknown := [name for name in names if name not in DOCUMENT_FORMATS]:
        raise InvalidRequest(f"documents: {unknown[0][:32]!r} is not one of {', '.join(DOCUMENT_FORMATS)}")
    return TimecodeChoice(start_timecode=query.start_timecode, frame_rate=query.frame_rate, sdh=config.sdh)


def _document_names(query: AnalyzeQuery) -> list[str]:
    """Formats that the last line carries, each once, in the order asked for."""
    return list(dict.fromkeys(name.strip() for name in query.documents.split(",") if name.strip()))


async def _documents(
    analysis: Analysis, summary: ClipSummary, *, names: list[str], timecode: TimecodeChoice, title: str
) -> list[DocumentBody]:
    if not names:
        return []
    # As in analyze: captions of four hours take seconds to lay out.
    return await asyncio.to_thread(document_bodies, analysis, names, timecode.options(summary, title=title))


@asynccontextmanager
async def _reading_until(deadline_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline_s):
            yield
    except TimeoutError as e:
        raise DeadlineExceeded("the upload took longer than a request may; send it faster or in parts") from e


async def _audible(
    parts: AsyncIterator[ChunkAnalysis | ClipSummary], min_score: float
) -> AsyncIterator[ChunkAnalysis | ClipSummary]:
    async for part in parts:
        yield part if isinstance(part, ClipSummary) else without_faint(part, min_score)


async def _ndjson_lines(
    parts: AsyncIterator[ChunkAnalysis | ClipSummary],
    request_id: str,
    options: AnalysisOptions,
    documents: Callable[[Analysis, ClipSummary], Awaitable[list[DocumentBody]]],
) -> AsyncIterator[str]:
    collector = AnalysisCollector()
    async for part in parts:
        if isinstance(part, ClipSummary):
            analysis = collector.finish(part, request_id=request_id, language=options.language)
            yield SummaryBody.of(analysis, await documents(analysis, part)).model_dump_json()
        else:
            collector.push(part)
            yield ChunkBody.of(part).model_dump_json()


async def _started(items: AsyncIterator[str]) -> AsyncIterator[str]:
    """Wait for the first item, so that an error until then has its own status code."""
    first = await anext(items, None)

    async def all_items() -> AsyncIterator[str]:
        if first is not None:
            yield first
        async for item in items:
            yield item

    return all_items()
