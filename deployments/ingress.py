"""The front: HTTP in, the graph behind."""

from __future__ import annotations

import asyncio
import builtins
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import httpx
from fastapi import FastAPI
from ray import serve
from ray.serve._private import logging_utils
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments import logs
from deployments.answers import LiveAnswer, Scores, ServedModel, Transcripts
from deployments.api.routes import create_app
from deployments.auth import ApiKeys, is_loopback
from deployments.graph_calls import call, call_all, stream
from deployments.live import Streams
from deployments.metrics import LiveMetrics, RequestMetrics
from deployments.settings import AppArgs, IngressConfig, changed
from soundstage.live.events import Job, TranscribeJob
from soundstage.pipeline import AnalysisOptions
from soundstage.types import ChunkAnalysis, ClipSummary, EncodedAudio, Waveform

_DROPPED = LiveAnswer(None, None)


class GraphEngine:
    """Analyses files through the Preprocessor deployment, and asks the model stages themselves for live streams."""

    def __init__(
        self,
        preprocessor: DeploymentHandle[Any],
        voice: DeploymentHandle[Any],
        sounds: DeploymentHandle[Any],
        args: AppArgs,
    ) -> None:
        self._preprocessor = preprocessor
        self._voice = voice
        self._sounds = sounds
        self._args = args

    def analyze(
        self, audio: EncodedAudio, options: AnalysisOptions
    ) -> AsyncGenerator[ChunkAnalysis | ClipSummary, None]:
        """Each chunk as it is done, in order, then the summary."""
        return stream(
            self._preprocessor,
            "analyze",
            audio,
            options,
            n_bytes=len(audio.data),
            max_inline_bytes=self._args.max_inline_bytes,
        )

    async def run(self, job: Job) -> LiveAnswer:
        """Have a model do a job of a live stream."""
        if isinstance(job, TranscribeJob):
            written: Transcripts | None = await self._ask(
                self._voice, "transcribe_live", job.waveform, job.hints, job.draft, job.is_final
            )
            return _DROPPED if written is None else LiveAnswer(written.segments[0], written.model)
        heard: Scores | None = await self._ask(self._sounds, "listen_live", job.waveform, job.is_final)
        return _DROPPED if heard is None else LiveAnswer(heard.scores, heard.model, heard.events)

    async def _ask(self, stage: DeploymentHandle[Any], method: str, waveform: Waveform, *more: object) -> Any:
        return await call(
            stage,
            method,
            waveform,
            *more,
            n_bytes=waveform.samples.nbytes,
            max_inline_bytes=self._args.max_inline_bytes,
            timeout_s=self._args.deadlines.chunk_s,
        )

    async def models(self) -> list[ServedModel]:
        """What each replica of the model stages serves."""
        # Twice: a stage in which one replica hangs is asked again for another one.
        served: list[ServedModel] = await call(self._preprocessor, "models", timeout_s=2 * self._args.deadlines.probe_s)
        return served


@serve.ingress()
class Ingress:
    """Takes requests, checks them, and answers in the format that was asked for."""

    def __init__(
        self,
        preprocessor: DeploymentHandle[Any],
        voice: DeploymentHandle[Any],
        sounds: DeploymentHandle[Any],
        args: AppArgs,
    ) -> None:
        _mend_print()
        logs.take_over()
        self._args = args
        self._engine = GraphEngine(preprocessor, voice, sounds, args)
        self._keys = _read_keys(args)
        self._config: IngressConfig | None = None
        self._streams: Streams | None = None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over new thresholds; requests that are under way keep the old ones."""
        self._config = changed(self._config, IngressConfig, user_config)

    async def address_of(self, stream_id: str) -> str | None:
        """Host and port of this replica, if it has a live stream of this id."""
        return self._streams.address_of(stream_id) if self._streams is not None else None

    async def _elsewhere(self, stream_id: str) -> str | None:
        """Where a live stream is that this replica does not have."""
        own = serve.get_replica_context()
        replicas: DeploymentHandle[Any] = serve.get_deployment_handle(own.deployment, own.app_name)
        answers = await call_all(replicas, "address_of", stream_id, timeout_s=self._args.deadlines.probe_s)
        return next((address for address in answers if address is not None), None)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(
            self._engine,
            self._args,
            self._keys,
            lambda: self._config or IngressConfig(),
            meter=RequestMetrics(),
            live_meter=LiveMetrics(),
            is_draining=Draining(),
            elsewhere=self._elsewhere,
        )
        self._streams = app.state.streams
        app.add_middleware(HeldBack)
        return app


class HeldBack:
    """Reads of a WebSocket no more than the application takes.

    Serve reads all that a client sends into a queue without bound, whether anybody takes it or not
    (ray/serve/_private/direct_ingress_http_util.py, ASGIDIReceiveProxy): an hour of audio sent at once would be in
    memory at once, instead of waiting at its sender.
    """

    MAX_WAITING = 2
    """Messages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through."""
        if scope["type"] == "websocket" and isinstance(receive, ASGIDIReceiveProxy):
            receive = self._hold_back(receive)
        await self._app(scope, receive, send)

    def _hold_back(self, proxy: ASGIDIReceiveProxy) -> Receive:
        room = asyncio.Event()
        read, serve_loop = proxy._receive, None

        async def read_where_there_is_room() -> Message:
            nonlocal serve_loop
            serve_loop = asyncio.get_running_loop()
            while proxy.queue.qsize() >= self.MAX_WAITING:
                room.clear()
                await room.wait()
            return await read()

        async def receive() -> Message:
            message = await proxy()
            if serve_loop is not None:
                serve_loop.call_soon_threadsafe(room.set)
            return message

        proxy._receive = read_where_there_is_room
        return receive


class Draining:
    """Whether Serve is about to end this replica: it tells its proxy, at the replica's own address."""

    POLL_S = 2.0

    def __init__(self) -> None:
        self._is_draining = False
        self._asked_s = float("-inf")

    async def __call__(self, server: tuple[str, int]) -> bool:
        """Ask again, but not for each of many streams.

        Args:
            server: Address at which a client was connected to.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s - self._asked_s > self.POLL_S:
            self._asked_s = now_s
            host, port = server
            with suppress(httpx.HTTPError):
                async with httpx.AsyncClient(timeout=self.POLL_S) as client:
                    answer = await client.get(f"http://{host}:{port}/-/healthz")
                    is_away = answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
                    self._is_draining = is_away and "DRAINING" in answer.text
        return self._is_draining


def _mend_print() -> None:
    """Give files their text back.

    Ray 2.60 replaces `print` in replicas by one that writes to any file but the terminal's the tuple of its arguments
    (ray/serve/_private/logging_utils.py, redirected_print); pysubs2 prints its subtitles into a file.
    """
    replaced = builtins.print

    def mended(*objects: object, file: Any = None, **options: Any) -> None:
        to_terminal = file in (None, sys.stdout, sys.stderr)
        (replaced if to_terminal else logging_utils.buildin_print)(*objects, file=file, **options)

    builtins.print = mended


def _read_keys(args: AppArgs) -> ApiKeys:
    """The keys that open the service.

    Raises:
        RuntimeError: There are none, and the service is to listen beyond this machine.
    """
    if args.auth.api_keys_file is not None:
        return ApiKeys.read(args.auth.api_keys_file)
    # Serve tells a replica nothing of where the proxy listens; its client is the one place that knows.
    client = _get_global_client()
    host = client.http_config.host if client is not None else None
    if not is_loopback(host):
        raise RuntimeError(
            f"the service listens on {host} without API keys: set args.auth.api_keys_file, or http_options.host to "
            "127.0.0.1"
        )
    return ApiKeys({})
