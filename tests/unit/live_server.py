"""A small server of live streams that misbehaves on demand, and audio that it understands.

Each second of the audio holds its own number as its sample value, and is "recognised" as that number: a test sees at
once what was lost or doubled.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from soundstage.errors import DeadlineExceeded, InvalidRequest, NotFound, ServiceError

RATE = 1_000
"""Hz of the audio of tests; the protocol does not mind."""

Event = dict[str, Any]


def numbered_audio(n_seconds: int, first: int = 0) -> bytes:
    """PCM, s16le mono: each second holds its number."""
    return np.repeat(np.arange(first, first + n_seconds, dtype="<i2"), RATE).tobytes()


async def pieces(audio: bytes, n_bytes: int = 500) -> AsyncIterator[bytes]:
    """The audio as a source gives it."""
    for start in range(0, len(audio), n_bytes):
        yield audio[start : start + n_bytes]
        await asyncio.sleep(0)


@dataclass
class ServedStream:
    """One stream as the server knows it."""

    hello: Event
    audio: bytearray = field(default_factory=bytearray)
    events: list[Event] = field(default_factory=list)
    n_seconds: int = 0
    n_sent: int = 0
    is_ended: bool = False

    def say(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": kind, "seq": len(self.events) + 1, **fields})

    def hear(self, piece: bytes) -> None:
        """A partial, a final with its caption, and levels for each second; a sound in each fourth."""
        self.audio += piece
        n_second = 2 * self.hello["n_channels"] * self.hello["sample_rate"]
        while len(self.audio) >= (self.n_seconds + 1) * n_second:
            i = self.n_seconds
            self.n_seconds += 1
            number = int.from_bytes(self.audio[i * n_second + n_second // 2 // 2 * 2 :][:2], "little")
            words = [
                {"text": "second", "start_s": i + 0.1, "end_s": i + 0.5, "confidence": 0.9},
                {"text": f"{number}.", "start_s": i + 0.5, "end_s": i + 0.9, "confidence": 0.8},
            ]
            text = f"second {number}."
            if self.hello.get("partials", True):
                self.say("partial", utterance=i, start_s=i + 0.1, end_s=i + 0.5, committed="sec", tentative="on",
                         text="sec on")  # fmt: skip
            if i % 4 == 1:
                self.say("sound", sound=i // 4, state="started", label="dog", score=0.8, start_s=i + 0.2, end_s=None)
            self.say("final", utterance=i, start_s=i + 0.1, end_s=i + 0.9, text=text, words=words)
            if self.hello.get("captions", True):
                self.say("caption", start_s=i + 0.1, end_s=i + 0.9, lines=[text], is_sound=False)
            if i % 4 == 3:
                self.say("sound", sound=i // 4, state="confirmed", label="dog", score=0.9, start_s=i - 1.8, end_s=i - 1)
                self.say("caption", start_s=i - 1.8, end_s=i - 0.3, lines=["[dog barking]"], is_sound=True)
            self.say("levels", start_s=float(i), end_s=i + 1.0, momentary_lufs=-20.0, short_term_lufs=-21.0,
                     sample_peak_dbfs=-6.0)  # fmt: skip

    def end(self) -> None:
        self.is_ended = True
        if self.n_seconds % 4 in {2, 3}:
            i = self.n_seconds // 4
            self.say("sound", sound=i, state="confirmed", label="dog", score=0.9, start_s=4 * i + 1.2, end_s=4 * i + 2)
        n_second = 2 * self.hello["n_channels"] * self.hello["sample_rate"]
        finals = [event for event in self.events if event["type"] == "final"]
        self.say("done", duration_s=len(self.audio) / n_second, n_finals=len(finals), n_words=2 * len(finals),
                 n_sounds=self.n_seconds // 4, levels={"integrated_lufs": -20.0}, models={"ears": "1"})  # fmt: skip


class LiveServer:
    """Speaks the protocol of WS /v1/stream.

    Attributes:
        refusals: One a connection, before it begins: an HTTP status, or an error.
        cuts: Bytes of a stream after which its connection is cut, before what they gave is told; each once.
        late_errors: The same with an error.
        is_forgetful: It knows no stream that is to be resumed.
        is_deaf: It tells of nothing, and reads on.
        drains_after: Bytes of the first stream after which it says that it is going down.
        idle_s: Without audio, after which it warns and then ends a stream.
    """

    def __init__(self) -> None:
        self.refusals: list[int | ServiceError] = []
        self.cuts: list[int] = []
        self.late_errors: list[tuple[int, ServiceError]] = []
        self.is_forgetful = False
        self.is_deaf = False
        self.drains_after: int | None = None
        self.idle_s: float | None = None
        self.has_idled = False
        self.streams: dict[str, ServedStream] = {}
        self.hellos: list[Event] = []
        self.requests: list[Request] = []

    def greet(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        if self.refusals and isinstance(self.refusals[0], int):
            status = self.refusals.pop(0)
            assert isinstance(status, int)
            response = connection.respond(HTTPStatus(status), "")
            if 300 <= status < 400:
                response.headers["Location"] = "ws://127.0.0.1:9/elsewhere"
            return response
        if request.path != "/v1/stream":
            return connection.respond(HTTPStatus.NOT_FOUND, "")
        return None

    async def handle(self, connection: ServerConnection) -> None:
        try:
            hello = json.loads(await connection.recv())
            self.hellos.append(hello)
            if self.refusals:
                error = self.refusals.pop(0)
                assert isinstance(error, ServiceError)
                raise error
            stream_id, stream = self._opened(hello)
            received = {"received_s": 0.0, "received_bytes": len(stream.audio), "resume_within_s": 30}
            ready = {"type": "ready", "stream_id": stream_id, "models": {"ears": "1"}, **received}
            if hello["type"] == "resume":
                stream.n_sent = hello["last_seq"]
                await connection.send(json.dumps({**ready, "seq": None}))
            else:
                stream.events.append({**ready, "seq": 1})
            await self._tell(connection, stream)
            while True:
                message = await self._heard(connection, stream)
                if isinstance(message, bytes):
                    stream.hear(message)
                    await self._misbehave(connection, stream)
                elif json.loads(message)["type"] == "end":
                    stream.end()
                else:
                    raise InvalidRequest(f"unknown message {message[:80]}")
                await self._tell(connection, stream)
                if stream.is_ended:
                    break
        except ServiceError as e:
            await connection.send(json.dumps({"type": "error", "code": e.code, "message": e.detail}))
            await connection.close(e.ws_code)
        except ConnectionClosed:
            pass

    async def _heard(self, connection: ServerConnection, stream: ServedStream) -> str | bytes:
        try:
            async with asyncio.timeout(self.idle_s):
                return await connection.recv()
        except TimeoutError:
            self.has_idled = True
            stream.say("warning", code="silent_client", message="no audio came")
            await self._tell(connection, stream)
            raise DeadlineExceeded("no audio came; the stream has ended") from None

    def _opened(self, hello: Event) -> tuple[str, ServedStream]:
        if hello["type"] == "start":
            stream_id = f"s{len(self.streams)}"
            self.streams[stream_id] = ServedStream(hello)
            return stream_id, self.streams[stream_id]
        if self.is_forgetful or hello["stream_id"] not in self.streams:
            raise NotFound("no such stream")
        return hello["stream_id"], self.streams[hello["stream_id"]]

    async def _misbehave(self, connection: ServerConnection, stream: ServedStream) -> None:
        if self.cuts and len(stream.audio) >= self.cuts[0]:
            self.cuts.pop(0)
            connection.transport.abort()
            await connection.wait_closed()
        if self.late_errors and len(stream.audio) >= self.late_errors[0][0]:
            raise self.late_errors.pop(0)[1]
        if self.drains_after is not None and len(stream.audio) >= self.drains_after:
            self.drains_after = None
            stream.say("warning", code="draining", message="going down")

    async def _tell(self, connection: ServerConnection, stream: ServedStream) -> None:
        if self.is_deaf and stream.n_sent:
            return
        while stream.n_sent < len(stream.events):
            await connection.send(json.dumps(stream.events[stream.n_sent]))
            stream.n_sent += 1

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """The URL of the server, as long as the context lasts."""
        async with serve(self.handle, "127.0.0.1", 0, process_request=self.greet, close_timeout=0.2) as server:
            yield f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


@contextmanager
def running(live: LiveServer) -> Iterator[str]:
    """The URL of the server, which runs in a thread of its own as long as the context lasts."""
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()
    started: list[str] = []
    is_up = threading.Event()

    async def main() -> None:
        async with live.serving() as url:
            started.append(url)
            is_up.set()
            await stopped.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert is_up.wait(10)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
