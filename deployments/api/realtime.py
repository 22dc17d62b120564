"""WS /v1/realtime: live streams in the shape that OpenAI's client libraries speak, as transcription sessions.

What there is of it: session.update of a transcription session, input_audio_buffer.append, commit and clear; and back
session.created and updated, input_audio_buffer.speech_started, speech_stopped, committed and cleared,
conversation.item.added and done, and conversation.item.input_audio_transcription.delta and completed. With
turn_detection, an item is an utterance; without, it is what lies between two commits.

Source: the types of the `openai` package, openai/types/realtime, version 3.54.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from deployments.api.openai import MODEL_ALIASES
from deployments.api.stream_messages import StartMessage, told
from deployments.auth import ApiKeys
from deployments.live import Listener, LiveStream, Streams
from soundstage.errors import InternalError, InvalidRequest, NotFound, ServiceError
from soundstage.pipeline import LANGUAGES, SPEECH_MODEL, Task
from soundstage.speech.hints import hints_of_prompt
from soundstage.types import JsonObject

_log = logging.getLogger(__name__)


class _Lenient(BaseModel):
    """Fields that mean nothing here are passed over: client libraries send what the original knows."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Format(_Lenient):
    type: Literal["audio/pcm"] = "audio/pcm"
    rate: int = Field(24_000, ge=8_000, le=192_000)


class _Transcription(_Lenient):
    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    keywords: tuple[str, ...] = ()


class _TurnDetection(_Lenient):
    type: Literal["server_vad", "semantic_vad"] = "server_vad"


class _Input(_Lenient):
    format: _Format = _Format()
    transcription: _Transcription | None = None
    turn_detection: _TurnDetection | None = _TurnDetection()


class _Audio(_Lenient):
    input: _Input = _Input()


class _Session(_Lenient):
    type: Literal["transcription"] = "transcription"
    audio: _Audio = _Audio()


class _SessionUpdate(_Lenient):
    type: Literal["session.update"]
    session: _Session


class _Append(_Lenient):
    type: Literal["input_audio_buffer.append"]
    audio: str


class _Commit(_Lenient):
    type: Literal["input_audio_buffer.commit"]


class _Clear(_Lenient):
    type: Literal["input_audio_buffer.clear"]


_CLIENT_EVENT: TypeAdapter[_SessionUpdate | _Append | _Commit | _Clear] = TypeAdapter(
    Annotated[_SessionUpdate | _Append | _Commit | _Clear, Field(discriminator="type")]
)


def add_realtime(app: FastAPI, keys: ApiKeys, streams: Streams) -> None:
    """Add the route.

    Args:
        app: The application.
        keys: Who may call.
        streams: Of this replica.
    """

    @app.websocket("/v1/realtime")
    async def realtime(websocket: WebSocket) -> None:
        """What is said, while it is, in the shape of OpenAI's Realtime API."""
        await RealtimeSession(websocket, keys, streams).serve()


class RealtimeSession:
    """One WebSocket.

    Args:
        websocket: Not accepted yet.
        keys: Who may call.
        streams: Of this replica.
    """

    def __init__(self, websocket: WebSocket, keys: ApiKeys, streams: Streams) -> None:
        self._websocket = websocket
        self._keys = keys
        self._streams = streams
        self._id = _new_id("sess")
        self._input = _Input()
        self._stream: LiveStream | None = None
        self._tellers: set[asyncio.Task[None]] = set()
        self._last_item: str | None = None
        self._sending = asyncio.Lock()
        self._gone = asyncio.Event()

    def send_away(self, error: ServiceError) -> None:
        """The events are not read."""
        _log.info("session %s: %s", self._id, error.code)
        self._gone.set()

    async def serve(self) -> None:
        """From the handshake to the close."""
        await self._websocket.accept()
        reading = asyncio.create_task(self._read())
        away = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait((reading, away), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        except ServiceError as e:
            await self._close(e)
        except WebSocketDisconnect:
            pass
        except Exception:  # noqa: BLE001  # as for any other request, see Gate
            _log.exception("session %s failed", self._id)
            await self._close(InternalError("unexpected"))
        finally:
            for task in (reading, away, *self._tellers):
                task.cancel()
            await asyncio.gather(reading, away, *self._tellers, return_exceptions=True)
            if self._stream is not None:
                self._stream.abandon()

    async def _read(self) -> None:
        """Do what the client says, until it goes.

        Raises:
            ServiceError: It may not.
            WebSocketDisconnect: It has gone.
        """
        self._keys.check(self._websocket.headers.get("authorization"))
        await self._send("session.created", session=self._session)
        while True:
            text = await self._websocket.receive_text()
            try:
                await self._obey(text)
            except ServiceError as e:  # the session stays open, as the original's does
                await self._send_error(e, text)

    async def _obey(self, text: str) -> None:
        try:
            event = _CLIENT_EVENT.validate_json(text)
        except ValidationError as e:
            raise InvalidRequest(told(e)) from e
        match event:
            case _SessionUpdate():
                self._update(event.session.audio.input)
                await self._send("session.updated", session=self._session)
            case _Append():
                await self._append(event.audio)
            case _Commit():
                await self._commit()
            case _Clear():
                await self._clear()

    def _update(self, new: _Input) -> None:
        transcription = new.transcription or _Transcription()
        if transcription.model is not None and transcription.model not in MODEL_ALIASES:
            raise NotFound(f"model {transcription.model!r}: choose from {', '.join(sorted(MODEL_ALIASES))}")
        if transcription.language is not None and transcription.language not in LANGUAGES:
            raise InvalidRequest(f"language {transcription.language!r}: choose from {', '.join(LANGUAGES)}")
        if self._stream is not None and new != self._input:
            raise InvalidRequest("audio has come already; change the session before it does, or commit the audio first")
        self._input = new

    async def _append(self, audio: str) -> None:
        try:
            data = base64.b64decode(audio, validate=True)
        except binascii.Error as e:
            raise InvalidRequest("audio is not base64") from e
        if self._stream is None:
            self._open()
        assert self._stream is not None
        await self._stream.feed(data)

    def _open(self) -> None:
        transcription = self._input.transcription or _Transcription()
        start = StartMessage(
            encoding="pcm_s16le",
            sample_rate=self._input.format.rate,
            language=transcription.language,
            tasks=(Task.SPEECH,),
            captions=False,
            hints=(*transcription.keywords, *hints_of_prompt(transcription.prompt or "")),
        )
        stream = self._stream = self._streams.open(start)
        stream.attach(self)
        tell = self._tell_utterances if self._input.turn_detection is not None else self._tell_item
        teller = asyncio.create_task(tell(stream))
        self._tellers.add(teller)
        teller.add_done_callback(self._teller_ended)

    def _teller_ended(self, teller: asyncio.Task[None]) -> None:
        self._tellers.discard(teller)
        if not teller.cancelled() and (error := teller.exception()) is not None:
            if not isinstance(error, (WebSocketDisconnect, RuntimeError)):  # the client has gone
                _log.error("session %s failed", self._id, exc_info=error)
            self._gone.set()

    async def _commit(self) -> None:
        if self._stream is None:
            raise InvalidRequest("there is no audio to commit")
        if self._input.turn_detection is not None:
            self._stream.flush()
            return
        stream, self._stream = self._stream, None
        stream.end()

    async def _clear(self) -> None:
        if self._stream is not None and self._input.turn_detection is not None:
            raise InvalidRequest("what was heard with turn_detection cannot be cleared")
        if self._stream is not None:
            self._stream.abandon()
            self._stream = None
        await self._send("input_audio_buffer.cleared")

    # What is told

    async def _tell_utterances(self, stream: LiveStream) -> None:
        """Each utterance is an item."""
        items: dict[int, _Item] = {}
        async for event in _events(stream, self):
            if event["type"] not in {"partial", "final"}:
                continue
            utterance = event["utterance"]
            if utterance not in items:
                items[utterance] = _Item()
                start_ms = round(1000 * event["start_s"])
                await self._send(
                    "input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=items[utterance].id
                )
            if event["type"] == "partial":
                await self._send_delta(items[utterance], event["committed"])
                continue
            for number in sorted(number for number in items if number < utterance):  # nothing was said after all
                await self._end_utterance(items.pop(number), "", event["start_s"], event["start_s"])
            await self._end_utterance(items.pop(utterance), event["text"], event["start_s"], event["end_s"])
        await self._ended(stream)

    async def _end_utterance(self, item: _Item, text: str, start_s: float, end_s: float) -> None:
        await self._send("input_audio_buffer.speech_stopped", audio_end_ms=round(1000 * end_s), item_id=item.id)
        await self._send_committed(item)
        await self._send_delta(item, text)
        await self._send_completed(item, text, end_s - start_s)

    async def _tell_item(self, stream: LiveStream) -> None:
        """The whole stream is an item."""
        item, duration_s = _Item(), 0.0
        texts: list[str] = []
        async for event in _events(stream, self):
            if event["type"] == "partial":
                await self._send_delta(item, " ".join(filter(None, (*texts, event["committed"]))))
            elif event["type"] == "final":
                texts.append(event["text"])
                await self._send_delta(item, " ".join(texts))
            elif event["type"] == "done":
                duration_s = event["duration_s"]
        if stream.error is None:
            await self._send_committed(item)
            await self._send_completed(item, " ".join(texts), duration_s)
        await self._ended(stream)

    async def _ended(self, stream: LiveStream) -> None:
        if stream.error is not None and self._stream is stream:
            self._stream = None
            await self._send_error(stream.error)

    async def _send_delta(self, item: _Item, text: str) -> None:
        """What is new of the text; nothing where it was written otherwise before, which `completed` puts right."""
        if len(text) > len(item.told) and text.startswith(item.told):
            delta, item.told = text[len(item.told) :], text
            kind = "conversation.item.input_audio_transcription.delta"
            await self._send(kind, item_id=item.id, content_index=0, delta=delta)

    async def _send_committed(self, item: _Item) -> None:
        previous, self._last_item = self._last_item, item.id
        await self._send("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous)
        await self._send("conversation.item.added", item=item.body(None), previous_item_id=previous)
        item.previous = previous

    async def _send_completed(self, item: _Item, text: str, duration_s: float) -> None:
        await self._send(
            "conversation.item.input_audio_transcription.completed",
            item_id=item.id,
            content_index=0,
            transcript=text,
            usage={"type": "duration", "seconds": round(duration_s, 3)},
        )
        await self._send("conversation.item.done", item=item.body(text), previous_item_id=item.previous)

    @property
    def _session(self) -> JsonObject:
        transcription = (self._input.transcription or _Transcription()).model_dump(exclude_defaults=True)
        return {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "id": self._id,
            "audio": {
                "input": {
                    **self._input.model_dump(),
                    "transcription": {"model": SPEECH_MODEL, **transcription},
                    "noise_reduction": None,
                }
            },
        }

    async def _send(self, kind: str, **fields: Any) -> None:
        async with self._sending:
            await self._websocket.send_text(json.dumps({"type": kind, "event_id": _new_id("event"), **fields}))

    async def _send_error(self, error: ServiceError, text: str = "{}") -> None:
        caused_by = None
        with suppress(ValueError, AttributeError):
            caused_by = json.loads(text).get("event_id")
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        fields = {"type": kind, "code": error.code, "message": error.detail, "param": None, "event_id": caused_by}
        await self._send("error", error=fields)

    async def _close(self, error: ServiceError) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            await self._send_error(error)
            await self._websocket.close(error.ws_code)


class _Item:
    """What was said, on its way to be an item of the conversation."""

    def __init__(self) -> None:
        self.id = _new_id("item")
        self.told = ""
        self.previous: str | None = None

    def body(self, transcript: str | None) -> JsonObject:
        """As the conversation holds it."""
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "role": "user",
            "status": "in_progress" if transcript is None else "completed",
            "content": [{"type": "input_audio", "transcript": transcript}],
        }


async def _events(stream: LiveStream, listener: Listener) -> AsyncIterator[JsonObject]:
    async for text in stream.messages(listener):
        yield json.loads(text)


def _new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(10)}"
