"""A client of live streams: audio goes to WS /v1/stream piece by piece, events come back as they are told.

A connection that breaks is made again and the stream resumed: nothing that was said is lost or doubled. Where the
service has forgotten the stream, a new one begins behind the last final, and its times go on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from soundstage.client import ServiceUnreachable, checked_url, retry_after_s, service_error
from soundstage.errors import ERRORS, DeadlineExceeded, InternalError, NotFound, Overloaded, ServiceError, TooLarge
from soundstage.live.events import StreamOptions
from soundstage.params import LiveClientParams
from soundstage.pipeline import Task
from soundstage.types import JsonObject

_SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4}
_MESSAGE_S = 0.5
"""Of audio in one message, at most."""
_LONG_S = 60.0
"""A stream that was as long as this is not too long for the service from the start: another one may follow it."""
_TIMES = ("start_s", "end_s")
_PASSING = (InternalError, DeadlineExceeded, Overloaded)
"""Errors that a new attempt may not meet."""

# Handshakes hold the key, and at level DEBUG websockets logs them.
_websockets_log = logging.getLogger(f"{__name__}.websockets")
_websockets_log.setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRequest:
    """What is asked of a live stream.

    Attributes:
        sample_rate: Hz, of the audio.
        n_channels: Of the audio, interleaved.
        encoding: Of one sample.
        options: What is to be told.
    """

    sample_rate: int
    n_channels: int = 1
    encoding: Literal["pcm_s16le", "pcm_f32le"] = "pcm_s16le"
    options: StreamOptions = field(default_factory=StreamOptions)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return _SAMPLE_BYTES[self.encoding] * self.n_channels

    @property
    def message(self) -> JsonObject:
        """The first message of a stream. Levels are always asked for: they tell how far the service has heard."""
        options = self.options
        message: JsonObject = {
            "type": "start",
            "sample_rate": self.sample_rate,
            "encoding": self.encoding,
            "n_channels": self.n_channels,
            "tasks": sorted(options.tasks | {Task.LEVELS}),
            "partials": options.partials,
            "captions": options.captions,
            "min_score": options.min_score,
            "hints": list(options.hints),
            "profanity": options.profanity,
        }
        return message if options.language is None else {**message, "language": options.language}


class LiveClient:
    """Opens live streams at one service, any number of them side by side.

    Args:
        url: Of the service, such as "http://127.0.0.1:8000".
        api_key: Sent as a bearer token; None where the service is open.
        params: How it holds on to a stream.
        sleep: Waits this many seconds between attempts.

    Raises:
        ValueError: The URL is not one of HTTP.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        params: LiveClientParams | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.url = checked_url(url)
        self._stream_url = f"ws{self.url.removeprefix('http')}/v1/stream"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
        self.params = params or LiveClientParams()
        self.sleep = sleep

    def stream(
        self, audio: AsyncIterable[bytes], request: LiveRequest, *, can_wait: bool = True
    ) -> AsyncGenerator[JsonObject]:
        """What the service tells of some audio, event by event as in docs/api.md, until all is told.

        Times, utterances, sounds and sequence numbers go on where one stream had to be followed by another. The
        client's own warnings are `reconnecting`, `resumed` and `restarted`.

        Args:
            audio: Raw samples in pieces of any size, as they come. An error of it ends the stream; it is raised once
                all that was sent is told.
            request: What is asked.
            can_wait: The audio may be taken as late as the service has room for it. One that is being recorded cannot
                wait: what is too old is left out, and times go on.

        Raises:
            ServiceUnreachable: Nothing answers.
            ServiceError: What the service answered, as the class of its code.
        """
        return _Stream(self, request, can_wait=can_wait).events(audio)

    def connect(self) -> connect:
        """A connection to be opened."""
        return _Connect(
            self._stream_url,
            additional_headers=self._headers,
            open_timeout=self.params.connect_timeout_s,
            ping_interval=self.params.ping_s,
            ping_timeout=self.params.ping_s,
            close_timeout=1.0,
            compression=None,  # samples hardly shrink
            logger=_websockets_log,
        )


class _Connect(connect):
    """A connection to the service that was named and to no other: the key is meant for it alone."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class _Lost(Exception):
    """The connection is gone, and another may do.

    Attributes:
        was_open: It had been there.
    """

    def __init__(self, reason: str, *, was_open: bool) -> None:
        super().__init__(reason)
        self.was_open = was_open


class _Busy(Overloaded):
    """An Overloaded that knows how long the service asked to wait."""

    wait_s: float = 0.0


class _Buffer:
    """Audio by its position in bytes; the oldest of it is forgotten."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.first = 0

    @property
    def end(self) -> int:
        return self.first + len(self._data)

    def append(self, piece: bytes) -> None:
        self._data += piece

    def read(self, position: int, n_bytes: int) -> bytes:
        start = position - self.first
        return bytes(self._data[start : start + n_bytes])

    def forget(self, position: int) -> None:
        n_bytes = min(position - self.first, len(self._data))
        if n_bytes > 0:
            del self._data[:n_bytes]
            self.first += n_bytes


class _Teller:
    """Events of one stream after another as those of one: numbers and times go on, nothing is told twice."""

    def __init__(self, request: LiveRequest) -> None:
        self._hides_levels = Task.LEVELS not in request.options.tasks
        self._seq = 0
        self._utterances = _Numbers()
        self._sounds = _Numbers()
        self._open: dict[int, JsonObject] = {}
        self._passed_over: set[int] = set()
        self._counts = dict.fromkeys(("n_finals", "n_words", "n_sounds"), 0)
        self._n_streams = 0
        self._offset_s = 0.0
        self._told_until_s = 0.0
        self.heard_s = 0.0
        self.final_s = 0.0

    def begin(self, offset_s: float) -> list[JsonObject]:
        """A new stream begins at this time; what the last one leaves open is closed."""
        left = [
            self.numbered({**sound, "state": "confirmed", "end_s": sound["end_s"] or max(sound["start_s"], offset_s)})
            for sound in self._open.values()
        ]
        self._open.clear()
        self._passed_over.clear()
        self._utterances.begin()
        self._sounds.begin()
        self._n_streams += 1
        self._offset_s = offset_s
        # The new stream hears again what the last one had told sounds and levels of.
        self._told_until_s = max(self._told_until_s, self.heard_s)
        self.heard_s = offset_s
        return left

    def numbered(self, event: JsonObject) -> JsonObject:
        self._seq += 1
        return {**event, "seq": self._seq}

    def tell(self, event: JsonObject) -> JsonObject | None:
        """An event of the current stream as the caller sees it; None where it is none of the caller's business."""
        event = self._shifted(event)
        kind = event["type"]
        if kind == "levels":
            self.heard_s = max(self.heard_s, event["end_s"])
        is_old = event.get("start_s", self._told_until_s) < self._told_until_s
        match kind:
            case "partial" | "final":
                event["utterance"] = self._utterances.of(event["utterance"])
                if kind == "final":
                    self.final_s = max(self.final_s, event["end_s"])
                    self._counts["n_finals"] += 1
                    self._counts["n_words"] += len(event.get("words", ()))
            case "sound":
                number = event["sound"] = self._sounds.of(event["sound"])
                if is_old and number not in self._open:
                    self._passed_over.add(number)
                if number in self._passed_over:
                    return None
                self._note_sound(number, event)
            case "levels" if is_old or self._hides_levels:
                return None
            case "caption" if is_old and event.get("is_sound"):
                return None
            case "done":
                event.update(self._totals(event))
        return self.numbered(event)

    def done(self) -> JsonObject:
        """The end of all streams, where the last one had ended before."""
        return self.numbered({"type": "done", "duration_s": self.heard_s, **self._counts, "levels": None, "models": {}})

    def _shifted(self, event: JsonObject) -> JsonObject:
        shifted = {**event, **{key: event[key] + self._offset_s for key in _TIMES if event.get(key) is not None}}
        if "words" in event:
            shifted["words"] = [
                {**word, **{key: word[key] + self._offset_s for key in _TIMES}} for word in event["words"]
            ]
        return shifted

    def _note_sound(self, number: int, event: JsonObject) -> None:
        if event["state"] in {"started", "ended"}:
            self._open[number] = event
            return
        self._open.pop(number, None)
        self._counts["n_sounds"] += event["state"] == "confirmed"

    def _totals(self, done: JsonObject) -> JsonObject:
        totals: JsonObject = {"duration_s": done["duration_s"] + self._offset_s}
        if self._hides_levels or self._n_streams > 1:  # those of the last stream say nothing of the whole
            totals["levels"] = None
        return {**totals, **self._counts} if self._n_streams > 1 else totals


class _Numbers:
    """Numbers that each stream counts from 0, as numbers over all of them."""

    def __init__(self) -> None:
        self._base = 0
        self._next = 0

    def begin(self) -> None:
        self._base = self._next

    def of(self, number: int) -> int:
        self._next = max(self._next, self._base + number + 1)
        return self._base + number


class _Stream:
    """One stream as its caller sees it, over as many connections and streams of the service as it takes."""

    def __init__(self, client: LiveClient, request: LiveRequest, *, can_wait: bool) -> None:
        self._client = client
        self._url = client.url
        self._params = client.params
        self._request = request
        self._can_wait = can_wait

        self._buffer = _Buffer()
        self._teller = _Teller(request)
        self._audio_ended = False
        self._changed = asyncio.Event()
        """Something came that somebody may wait for."""

        self._stream_id: str | None = None
        self._last_seq = 0
        self._first = 0
        """Position of the stream's first byte."""
        self._sent = 0
        self._is_idle = False
        self._is_draining = False
        self._is_handing_over = False
        self._is_done = False

        self._has_begun = False
        self._is_connected = False
        self._n_failures = 0
        self._n_unknown = 0
        self._failed_at_s = 0.0
        self._lost_at: float | None = None
        self._resume_within_s = 0.0

    async def events(self, audio: AsyncIterable[bytes]) -> AsyncGenerator[JsonObject]:
        feeding = asyncio.create_task(self._feed(audio))
        try:
            while not self._is_done:
                await self._has_something_to_say()
                if (
                    self._audio_ended
                    and self._stream_id is None
                    and self._has_begun
                    and self._first >= self._buffer.end
                ):
                    yield self._teller.done()
                    break
                try:
                    async with aclosing(self._converse()) as told:
                        async for event in told:
                            yield event
                except (_Lost, ServiceError) as e:
                    if self._is_idle and isinstance(e, DeadlineExceeded):  # all was told, until there is more to hear
                        self._next_stream(self._sent)
                        continue
                    for event in self._note_failure(e):
                        yield event
                    await self._pause(e)
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    # Audio

    async def _has_something_to_say(self) -> None:
        """Before a stream that follows another one: the service ends streams that stay silent."""
        while self._stream_id is None and self._has_begun and self._first >= self._buffer.end and not self._audio_ended:
            await self._change()

    async def _feed(self, audio: AsyncIterable[bytes]) -> None:
        """Take the audio as it comes, as long as there is room."""
        max_bytes = self._bytes(self._params.max_unsent_s)
        try:
            async for piece in audio:
                self._buffer.append(piece)
                self._changed.set()
                if not self._can_wait:
                    self._buffer.forget(self._whole(self._buffer.end - max_bytes))
                    continue
                while self._buffer.end - self._heard > max_bytes:
                    await self._change()
        finally:
            self._audio_ended = True
            self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _send(self, connection: ClientConnection) -> None:
        """Send what there is, no further ahead of the service's ears than allowed, then say that it ends."""
        max_ahead = self._bytes(self._params.max_ahead_s)
        while not self._is_handing_over:
            n_allowed = min(self._buffer.end, self._heard + max_ahead) - self._sent
            if self._sent < self._buffer.first:
                await connection.close()  # what comes next is no longer there: a new stream has to begin
                return
            if n_allowed > 0:
                piece = self._buffer.read(self._sent, min(n_allowed, self._bytes(_MESSAGE_S)))
                self._sent += len(piece)
                self._is_idle = False
                await connection.send(piece)
            elif self._audio_ended and self._sent == self._buffer.end:
                break
            else:
                await self._change()
        await connection.send('{"type":"end"}')

    @property
    def _heard(self) -> int:
        """Position up to which the service has told of the audio."""
        return max(self._first, self._bytes(self._teller.heard_s))

    def _bytes(self, duration_s: float) -> int:
        return round(duration_s * self._request.sample_rate) * self._request.frame_bytes

    def _seconds(self, position: int) -> float:
        return position / self._request.frame_bytes / self._request.sample_rate

    def _whole(self, position: int) -> int:
        """The next position at which a sample begins."""
        return -(-position // self._request.frame_bytes) * self._request.frame_bytes

    # Conversation

    async def _converse(self) -> AsyncGenerator[JsonObject]:
        """Events of one connection.

        Raises:
            _Lost: It ended before its time.
            ServiceError: The service said so.
        """
        connection = await self._opened()
        sending: asyncio.Task[None] | None = None
        try:
            is_resumed = self._stream_id is not None
            await connection.send(json.dumps(self._first_message()))
            ready = await self._next(connection)
            if ready["type"] != "ready":
                raise ServiceError(f"{self._url} answered {ready['type']!r} where its stream should begin")
            for event in self._begun(ready, is_resumed=is_resumed):
                yield event
            if self._stream_id is not None:
                sending = asyncio.create_task(self._send(connection))
            while not self._is_done and self._stream_id is not None:
                for event in self._heed(await self._next(connection)):
                    yield event
        except (ConnectionClosed, OSError) as e:
            raise _lost(e, was_open=True) from e
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            await connection.close()

    async def _opened(self) -> ClientConnection:
        try:
            return await self._client.connect()
        except InvalidStatus as e:
            raise self._refusal(e) from e
        except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as e:
            raise _lost(e, was_open=False) from e

    def _refusal(self, error: InvalidStatus) -> ServiceError:
        """What an answer says that opens no stream."""
        response = error.response
        try:
            return service_error(json.loads(response.body or b"")["error"])
        except (ValueError, KeyError, TypeError):
            pass
        text = f"{self._url} answered {response.status_code} {response.reason_phrase}"
        if response.status_code == 404:
            return NotFound(f"{text}: it has no live streams")
        if response.status_code in {502, 503, 504}:
            busy = _Busy(text)
            busy.wait_s = retry_after_s(response.headers.get("Retry-After"))
            return busy
        return next((e for e in ERRORS if e.status_code == response.status_code), ServiceError)(text)

    def _first_message(self) -> JsonObject:
        if self._stream_id is None:
            return self._request.message
        return {"type": "resume", "stream_id": self._stream_id, "last_seq": self._last_seq}

    async def _next(self, connection: ClientConnection) -> JsonObject:
        message = await connection.recv()
        try:
            event: JsonObject = json.loads(message)
            if event["type"] == "error":
                raise service_error(event)
        except (ValueError, KeyError, TypeError) as e:
            raise ServiceError(f"{self._url} sent what this version of soundstage does not understand") from e
        return event

    def _begun(self, ready: JsonObject, *, is_resumed: bool) -> list[JsonObject]:
        """A stream has begun or goes on."""
        self._stream_id = ready["stream_id"]
        self._resume_within_s = ready.get("resume_within_s", 0.0)
        self._n_unknown = 0
        self._lost_at = None
        self._is_connected = True
        self._is_draining = self._is_handing_over = False
        if is_resumed:
            self._sent = self._first + ready["received_bytes"]
            if self._sent < self._buffer.first:
                self._forget_stream()
                return []
            return [self._warning("resumed", "the connection is back; nothing was lost")]
        self._last_seq = ready["seq"]
        heard_s, begins_s = self._teller.heard_s, self._seconds(self._first)
        told = self._teller.begin(begins_s)
        if not self._has_begun:
            self._has_begun = True
            return [*told, self._teller.numbered(ready)]
        missed = f"; {begins_s - heard_s:.1f} s before it were lost" if begins_s > heard_s + _MESSAGE_S else ""
        return [*told, self._warning("restarted", f"a new stream goes on at {begins_s:.1f} s{missed}")]

    def _heed(self, event: JsonObject) -> list[JsonObject]:
        """Take note of an event; what the caller is to see of it."""
        seq = event.get("seq")
        if seq is not None:
            if seq <= self._last_seq:
                return []
            self._last_seq = seq
        kind = event["type"]
        told: JsonObject | None = None
        if kind != "done":
            told = self._teller.tell(event)
        elif self._sent == self._buffer.end and self._audio_ended:
            told = self._teller.tell(event)
            self._is_done = True
        else:  # the next stream goes on where this one ended
            self._next_stream(self._sent if self._is_handing_over else self._first + self._bytes(event["duration_s"]))
        if kind == "warning" and event["code"] == "silent_client":
            self._is_idle = True
        elif kind == "warning" and event["code"] == "draining":
            self._is_draining = True
            asyncio.get_running_loop().call_later(self._params.handover_s, self._hand_over, self._stream_id)
        elif kind == "final" and self._is_draining:
            self._hand_over(self._stream_id)
        self._note_progress()
        return [] if told is None else [told]

    def _hand_over(self, stream_id: str | None) -> None:
        """End the service's stream here; another one goes on."""
        if stream_id == self._stream_id:
            self._is_handing_over = True
            self._changed.set()

    def _note_progress(self) -> None:
        heard_s = self._teller.heard_s
        if heard_s > self._failed_at_s + self._params.progress_s:
            self._n_failures = 0
        keep_s = max(min(self._teller.final_s, heard_s), heard_s - self._params.max_history_s)
        self._buffer.forget(self._bytes(keep_s))
        self._changed.set()

    def _warning(self, code: str, message: str) -> JsonObject:
        return self._teller.numbered({"type": "warning", "code": code, "message": message})

    # Failures

    def _note_failure(self, error: _Lost | ServiceError) -> list[JsonObject]:
        """What the caller is to see of it.

        Raises:
            ServiceUnreachable: Enough attempts were made, and nothing answered.
            ServiceError: Enough attempts were made, or no attempt would do better.
        """
        is_unknown = self._stream_id is not None and isinstance(error, NotFound)
        is_over = isinstance(error, TooLarge) and self._teller.heard_s > self._seconds(self._first) + _LONG_S
        if isinstance(error, ServiceError) and not (isinstance(error, _PASSING) or is_unknown or is_over):
            raise error
        self._lost_at = self._lost_at or time.monotonic()
        self._n_failures += 1
        self._n_unknown += is_unknown
        self._failed_at_s = self._teller.heard_s
        if self._n_failures >= (self._params.n_attempts if self._has_begun else self._params.n_first_attempts):
            raise self._given_up(error) from error
        told = [self._warning("reconnecting", str(error))] if self._is_connected else []
        self._is_connected = False
        return told

    async def _pause(self, error: _Lost | ServiceError) -> None:
        """Wait until it is time for another attempt, and decide what it is to be."""
        wait_s = self._params.first_wait_s * 2.0 ** min(self._n_failures - 1, 16)
        # Spread, so that streams that broke together do not all come back at once.
        wait_s = max(getattr(error, "wait_s", 0.0), wait_s * random.uniform(0.75, 1.25))  # noqa: S311
        await self._client.sleep(min(wait_s, self._params.max_wait_s))
        is_late = self._lost_at is not None and time.monotonic() - self._lost_at > self._resume_within_s
        is_broken = isinstance(error, (InternalError, DeadlineExceeded, TooLarge))
        if self._stream_id is not None and (is_late or is_broken or self._n_unknown >= self._params.n_resumes):
            self._forget_stream()

    def _forget_stream(self) -> None:
        """The service cannot go on with the stream: what was not final is to be heard anew."""
        self._next_stream(max(self._buffer.first, self._bytes(self._teller.final_s)))

    def _next_stream(self, position: int) -> None:
        self._stream_id = None
        self._first = self._sent = self._whole(position)
        self._n_unknown = 0

    def _given_up(self, error: _Lost | ServiceError) -> Exception:
        n_times = f"{self._n_failures} times"
        if isinstance(error, _Lost) and not error.was_open:
            return ServiceUnreachable(
                f"no service answers at {self._url} ({error}, tried {n_times}); start one, or name another with --url"
            )
        if isinstance(error, _Lost):
            return ServiceError(f"{self._url} hung up {n_times} ({error})")
        return type(error)(f"{error.detail} (asked {n_times})")


def _lost(error: Exception, *, was_open: bool) -> _Lost | ServiceError:
    """What an exception of a connection means. Source: the error table, and RFC 6455, 7.4.1."""
    if isinstance(error, ConnectionClosed) and error.rcvd is not None:
        code, reason = error.rcvd.code, error.rcvd.reason or f"the service closed the stream ({error.rcvd.code})"
        meant = next((e for e in ERRORS if e.ws_code == code and code != InternalError.ws_code), None)
        return _Lost(reason, was_open=True) if meant is None else meant(reason)
    return _Lost(str(error) or type(error).__name__, was_open=was_open)
