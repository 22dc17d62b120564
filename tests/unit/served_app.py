"""The real HTTP application on a free port, over an engine of known answers; and servers that misbehave."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import uvicorn

from deployments.answers import LiveAnswer, ServedModel
from deployments.api.routes import create_app
from deployments.auth import ApiKeys
from deployments.settings import AppArgs, IngressConfig
from soundstage.errors import ServiceError
from soundstage.live.events import Job
from soundstage.models.registry import ModelCard
from soundstage.pipeline import AnalysisOptions, Task
from soundstage.types import (
    ChunkAnalysis,
    ClipSummary,
    EncodedAudio,
    Levels,
    Region,
    Segment,
    SoundEvent,
    Tag,
    Word,
)

CARD = ModelCard(name="ears", version="1", kind="sound", description="d", licence="l", source="s")

# A line separator inside the text, which JSON may leave as it is and which str.splitlines takes for a line's end.
TEXT = "Is anybody\u2028home? Ça va?"
CHUNKS = (
    ChunkAnalysis(
        index=0,
        is_last=False,
        start_s=0.0,
        end_s=5.00049,
        segments=(
            Segment(
                start_s=1.10049,
                end_s=2.6,
                text=TEXT,
                words=(Word(text="Is", start_s=1.10049, end_s=1.3, confidence=0.912345),),
                avg_logprob=-0.2123456,
                no_speech_prob=0.0212345,
            ),
        ),
        events=(SoundEvent(label="dog", score=0.9712345, start_s=3.2, end_s=4.8),),
        tags=(Tag(label="dog", score=0.9712345), Tag(label="wind", score=0.1)),
    ),
    ChunkAnalysis(index=1, is_last=True, start_s=5.00049, end_s=9.0, tags=(Tag(label="dog", score=0.5),)),
)
SUMMARY = ClipSummary(
    duration_s=9.0,
    levels=Levels(
        integrated_lufs=-23.12345,
        loudness_range_lu=None,
        true_peak_dbtp=-3.456,
        sample_peak_dbfs=-3.567,
        n_clipped_samples=0,
        silence=(Region(start_s=5.0, end_s=9.0),),
        n_channels=2,
        sample_rate=48_000,
    ),
    model_versions=(("ears", "1"),),
)


class KnownEngine:
    """Answers CHUNKS and SUMMARY; fails as it is told, one entry a request.

    Attributes:
        errors: Raised before the first chunk.
        late_errors: Raised after the first chunk.
        refused: Media types that are always refused, and with what.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what it was told and asked."""
        self.errors: list[ServiceError] = []
        self.late_errors: list[ServiceError] = []
        self.refused: dict[str, ServiceError] = {}
        self.requests: list[tuple[str, int, AnalysisOptions]] = []

    async def analyze(
        self, audio: EncodedAudio, options: AnalysisOptions
    ) -> AsyncIterator[ChunkAnalysis | ClipSummary]:
        self.requests.append((audio.media_type, len(audio.data), options))
        if audio.media_type in self.refused:
            raise self.refused[audio.media_type]
        if self.errors:
            raise self.errors.pop(0)
        yield CHUNKS[0]
        if self.late_errors:
            raise self.late_errors.pop(0)
        yield CHUNKS[1]
        yield SUMMARY if Task.LEVELS in options.tasks else ClipSummary(duration_s=SUMMARY.duration_s)

    async def run(self, job: Job) -> LiveAnswer:
        raise NotImplementedError("no live stream is asked for")

    async def models(self) -> list[ServedModel]:
        if self.errors:
            raise self.errors.pop(0)
        return [ServedModel(CARD)]


@contextmanager
def serving(engine: KnownEngine, keys: ApiKeys | None = None) -> Iterator[str]:
    """The URL of the application, as long as the context lasts."""
    app = create_app(engine, AppArgs(), keys or ApiKeys({}), IngressConfig)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive(), "the server died while it started"
                assert time.monotonic() < deadline, "the server did not start within 30 s"
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def answering(*answers: Answer) -> Iterator[str]:
    """The URL of a server that gives one answer after the other, the last one for ever."""
    n_requests = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal n_requests
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = answers[min(n_requests, len(answers) - 1)]
            n_requests += 1
            answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(status: int, body: bytes, *, missing_bytes: int = 0, **headers: str) -> Answer:
    """An answer of which `missing_bytes` are promised and never sent."""

    def give(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Connection", "close")
        handler.send_header("Content-Length", str(len(body) + missing_bytes))
        handler.end_headers()
        handler.wfile.write(body)

    return give


def unused_url() -> str:
    """A URL at which nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
