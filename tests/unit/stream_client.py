"""A client of WS /v1/stream without a network, and models of known answers behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from fastapi import FastAPI
from starlette.types import Message

from deployments.answers import LiveAnswer, ServedModel
from deployments.api.routes import create_app
from deployments.auth import ApiKeys
from deployments.settings import AppArgs, IngressConfig, LiveSettings
from soundstage import sample
from soundstage.errors import ServiceError
from soundstage.live import local
from soundstage.live.events import Job, StreamOptions, TranscribeJob
from soundstage.live.session import LiveSession
from soundstage.models.registry import ModelCard
from soundstage.params import EventParams
from soundstage.types import AudioBlock, FrameScores, Segment, Waveform, Word

Event = dict[str, Any]

RATE = 48_000
EARS = ModelCard(name="ears", version="1", kind="sound", description="d", licence="l", source="s")
PEN = ModelCard(name="pen", version="2", kind="speech", description="d", licence="l", source="s")
START: Event = {"type": "start", "encoding": "pcm_s16le", "sample_rate": RATE, "n_channels": 2}


@cache
def clip() -> bytes:
    """The sample clip's first 22 s, in stereo: horn, speech, knocks, and speech to the end."""
    samples, _ = sample.mix()
    return (np.clip(samples[: 22 * RATE], -1, 1) * 32767).astype("<i2").tobytes()


class KnownModels:
    """Write the time of each half second of speech, and hear a dog wherever it is loud."""

    params = SimpleNamespace(events=EventParams())

    def transcribe(self, waveforms: Sequence[Waveform], *_: object) -> list[Segment | None]:
        return [self._written(waveform) for waveform in waveforms]

    @staticmethod
    def _written(waveform: Waveform) -> Segment | None:
        numbers = range(int(np.ceil(2 * waveform.start_s)), int(2 * waveform.end_s - 0.2))
        words = [Word(text=f"t{n}", start_s=n / 2, end_s=n / 2 + 0.1, confidence=0.9) for n in numbers]
        if not words:
            return None
        text = " ".join(word.text for word in words)
        return Segment(start_s=waveform.start_s, end_s=waveform.end_s, text=text, words=tuple(words))

    def listen(self, waveforms: Sequence[Waveform]) -> list[FrameScores]:
        return [self._heard(waveform) for waveform in waveforms]

    @staticmethod
    def _heard(waveform: Waveform) -> FrameScores:
        hop = round(0.32 * waveform.sample_rate)
        n_frames = max(1, -(-len(waveform.samples) // hop))
        padded = np.pad(waveform.samples, (0, n_frames * hop - len(waveform.samples))).reshape(n_frames, hop)
        loud = (np.sqrt(np.mean(padded**2, axis=1)) > 0.05).astype(np.float32)
        scores = np.stack([0.9 * loud, 0.1 * loud], axis=1)
        return FrameScores(
            scores=scores,
            labels=("dog", "wind"),
            start_s=waveform.start_s + 0.16,
            hop_s=0.32,
            window_s=0.32,
            tags=scores.max(axis=0),
        )


class KnownEngine:
    """Answers jobs, and misbehaves as it is told.

    Attributes:
        is_free: Clear it, and finals wait.
        errors: Raised one a final job.
        hypothesis_error: Raised for every other job.
        n_asked: Jobs so far.
    """

    def __init__(self) -> None:
        self.is_free = asyncio.Event()
        self.is_free.set()
        self.errors: list[Exception] = []
        self.start_errors: list[ServiceError] = []
        self.hypothesis_error: Exception | None = None
        self.n_asked = 0
        self._models = KnownModels()

    def analyze(self, *_: object) -> Any:
        raise NotImplementedError

    async def models(self) -> list[ServedModel]:
        if self.start_errors:
            raise self.start_errors.pop(0)
        return [ServedModel(PEN), ServedModel(EARS)]

    async def run(self, job: Job) -> LiveAnswer:
        self.n_asked += 1
        if not job.is_final:
            if self.hypothesis_error is not None:
                raise self.hypothesis_error
        else:
            await self.is_free.wait()
            if self.errors:
                raise self.errors.pop(0)
        if isinstance(job, TranscribeJob):
            return LiveAnswer(self._models.transcribe([job.waveform])[0], ("pen", "2"))
        return LiveAnswer(self._models.listen([job.waveform])[0], ("ears", "1"), EventParams())


@dataclass
class Wire:
    """One connection, as the server behind an application makes it: it cancels the application when the client goes."""

    app: FastAPI
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._to_app: asyncio.Queue[Message] = asyncio.Queue(1)
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self.is_reading = asyncio.Event()
        self.is_reading.set()
        self.events: list[Event] = []
        self.close_code: int | None = None
        self.n_sent_bytes = 0
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "path": "/v1/stream",
            "raw_path": b"/v1/stream",
            "query_string": b"",
            "root_path": "",
            "scheme": "ws",
            "server": ("127.0.0.1", 1),
            "headers": [(name.lower().encode(), value.encode()) for name, value in self.headers.items()],
            "subprotocols": [],
        }
        self._task = asyncio.create_task(self.app(scope, self._to_app.get, self._take))
        self._to_app.put_nowait({"type": "websocket.connect"})

    async def _take(self, message: Message) -> None:
        if message["type"] == "websocket.send":
            await self.is_reading.wait()
        await self._from_app.put(message)

    async def send(self, message: Event | str | bytes) -> None:
        """A message; waits while the application takes none."""
        if isinstance(message, bytes):
            await self._to_app.put({"type": "websocket.receive", "bytes": message})
            self.n_sent_bytes += len(message)
        else:
            text = message if isinstance(message, str) else json.dumps(message)
            await self._to_app.put({"type": "websocket.receive", "text": text})

    async def send_audio(self, audio: bytes, piece_bytes: int = 19_200) -> None:
        """Audio in pieces."""
        for start in range(0, len(audio), piece_bytes):
            await self.send(audio[start : start + piece_bytes])

    @property
    def has_news(self) -> bool:
        """An event waits to be received."""
        return self._from_app.qsize() > 1  # the first message accepts the connection

    async def receive(self) -> Event | None:
        """The next event; None where the connection was closed, with `close_code`."""
        async with asyncio.timeout(20):
            message = await self._from_app.get()
        if message["type"] == "websocket.accept":
            return await self.receive()
        if message["type"] == "websocket.close":
            self.close_code = message.get("code", 1000)
            return None
        event: Event = json.loads(message["text"])
        self.events.append(event)
        return event

    async def until(self, kind: str, **fields: Any) -> Event:
        """The next event of a kind."""
        while (event := await self.receive()) is not None:
            if event["type"] == kind and all(event[name] == value for name, value in fields.items()):
                return event
        raise AssertionError(f"closed with {self.close_code} before {kind}: {self.events[-3:]}")

    async def rest(self) -> list[Event]:
        """All events until the close."""
        while await self.receive() is not None:
            pass
        return self.events

    async def cut(self) -> None:
        """The connection breaks."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def done(self) -> None:
        """The application has no more to do for this connection."""
        async with asyncio.timeout(20):
            await asyncio.gather(self._task, return_exceptions=True)


def application(
    engine: KnownEngine,
    *,
    keys: ApiKeys | None = None,
    live: LiveSettings | None = None,
    **more: Any,
) -> FastAPI:
    return create_app(engine, AppArgs(live=live or LiveSettings()), keys or ApiKeys({}), IngressConfig, **more)


@asynccontextmanager
async def connected(app: FastAPI, **headers: str) -> AsyncIterator[Wire]:
    """A connection that is cut in the end, if it was not closed."""
    wire = Wire(app, headers)
    try:
        yield wire
    finally:
        await wire.cut()


def by_kind(events: Sequence[Event], *kinds: str) -> list[Event]:
    """Events of some kinds, without their numbers."""
    return [{k: v for k, v in event.items() if k != "seq"} for event in events if event["type"] in kinds]


def expected_finals(audio: bytes) -> list[tuple[str, float, float]]:
    """What the same session gives in this process, audio pushed all at once."""
    models: Any = KnownModels()
    samples = np.frombuffer(audio, "<i2").reshape(-1, 2).astype(np.float32) / np.float32(32768)
    block = AudioBlock(samples=samples, sample_rate=RATE)
    events = local.run(LiveSession(StreamOptions()), [block], models, models)
    return [
        (event.segment.text, round(event.segment.start_s, 3), round(event.segment.end_s, 3))
        for event in events
        if hasattr(event, "segment")
    ]


def finals(events: Sequence[Event]) -> list[tuple[str, float, float]]:
    """Text and times."""
    return [(event["text"], event["start_s"], event["end_s"]) for event in events if event["type"] == "final"]


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that comes by itself."""
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.002)
