"""WS /v1/stream: one connection, from its first message to its close. The protocol is told in docs/api.md."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from deployments.api.engine import Engine
from deployments.api.relay import relay
from deployments.api.stream_messages import (
    ResumeMessage,
    StartMessage,
    error_message,
    parse_control,
    parse_first,
    told,
)
from deployments.auth import ApiKeys
from deployments.live import LiveStream, Streams
from deployments.settings import AppArgs, LiveSettings
from soundstage.errors import DeadlineExceeded, InternalError, InvalidRequest, NotFound, ServiceError

SERVICE_RESTART = 1012
"""Close code of a stream that ended since its replica goes away. Source: the IANA registry of close codes."""
LAST_WORD_S = 2.0
"""For an error and the close, where the client may not read any more."""
DRAIN_POLL_S = 2.0

IsDraining = Callable[[tuple[str, int]], Awaitable[bool]]
"""Whether the server at an address, which is this one, goes away."""
Elsewhere = Callable[[str], Awaitable[str | None]]
"""Host and port of the replica that has a stream; None where none has it."""

_log = logging.getLogger(__name__)


def add_stream(
    app: FastAPI,
    engine: Engine,
    args: AppArgs,
    keys: ApiKeys,
    streams: Streams,
    *,
    is_draining: IsDraining | None = None,
    elsewhere: Elsewhere | None = None,
) -> None:
    """Add the route.

    Args:
        app: The application.
        engine: Runs the models.
        args: Limits.
        keys: Who may call.
        streams: Of this replica.
        is_draining: None where a replica never goes away.
        elsewhere: Finds streams of other replicas; None where there are none.
    """

    @app.websocket("/v1/stream")
    async def stream(websocket: WebSocket) -> None:
        """What is said and heard, while it is."""
        connection = Connection(
            websocket,
            engine=engine,
            settings=args.live,
            keys=keys,
            streams=streams,
            is_draining=is_draining,
            elsewhere=elsewhere,
        )
        await connection.serve()


class Connection:
    """One WebSocket.

    Args:
        websocket: Not accepted yet.
        engine: Runs the models.
        settings: Limits.
        keys: Who may call.
        streams: Of this replica.
        is_draining: See add_stream.
        elsewhere: See add_stream.
    """

    def __init__(
        self,
        websocket: WebSocket,
        *,
        engine: Engine,
        settings: LiveSettings,
        keys: ApiKeys,
        streams: Streams,
        is_draining: IsDraining | None,
        elsewhere: Elsewhere | None,
    ) -> None:
        self._websocket = websocket
        self._engine = engine
        self._settings = settings
        self._keys = keys
        self._streams = streams
        self._is_draining = is_draining
        self._elsewhere = elsewhere
        self._away: asyncio.Future[ServiceError] = asyncio.get_running_loop().create_future()
        self._reader: asyncio.Task[None] | None = None

    def send_away(self, error: ServiceError) -> None:
        """Close the connection; the stream goes on without it, and takes nothing more from it."""
        if not self._away.done():
            self._away.set_result(error)
        if self._reader is not None:
            # Whoever comes next is told how much was taken: what is still on its way here comes again from there.
            self._reader.cancel()

    async def serve(self) -> None:
        """From the handshake to the close."""
        await self._websocket.accept()
        try:
            stream = await self._begun()
        except ServiceError as e:
            await self._close(e)
            return
        except WebSocketDisconnect:
            return
        except Exception:  # noqa: BLE001  # as for any other request, see Gate
            _log.exception("a stream could not begin")
            await self._close(InternalError("unexpected"))
            return
        if stream is None:
            return
        try:
            await self._follow(stream)
        finally:
            stream.detach(self)

    async def _begun(self) -> LiveStream | None:
        """The stream that the first message asks for, attached; None where another replica had it, and it is over.

        Raises:
            ServiceError: The message is none, or the answer to it.
            WebSocketDisconnect: The client has gone.
        """
        first = await self._first_message()
        authorization = self._websocket.headers.get("authorization")
        if authorization is None and first.token is not None:
            authorization = f"Bearer {first.token}"
        self._keys.check(authorization)
        if isinstance(first, ResumeMessage):
            try:
                stream = self._streams.find(first.stream_id)
            except NotFound:
                address = None if self._elsewhere is None else await self._elsewhere(first.stream_id)
                if address is None:
                    raise
                await relay(self._websocket, address, first.model_dump_json())
                return None
            stream.attach(self, first.last_seq)
            await self._send(stream.ready(await self._models()).model_dump_json())
            return stream
        models = await self._models()
        stream = self._streams.open(first, self._websocket.scope.get("server"))
        stream.tell(stream.ready(models))
        stream.attach(self)
        return stream

    async def _first_message(self) -> StartMessage | ResumeMessage:
        try:
            async with asyncio.timeout(self._settings.start_s):
                message = await self._websocket.receive()
        except TimeoutError as e:
            raise DeadlineExceeded(f"no message came within {self._settings.start_s:g} s; send start first") from e
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        text = message.get("text")
        if text is None:
            raise InvalidRequest("audio came before the first message; send start as JSON in a text message")
        try:
            return parse_first(text)
        except ValidationError as e:
            raise InvalidRequest(f"first message: {told(e)}") from e

    async def _models(self) -> dict[str, str]:
        return {served.card.name: served.card.version for served in await self._engine.models()}

    async def _follow(self, stream: LiveStream) -> None:
        """Read and send until one of both has come to its end."""
        if self._away.done():
            await self._close(self._away.result())
            return
        reader = self._reader = asyncio.create_task(self._read(stream))
        sender = asyncio.create_task(self._send_all(stream))
        guard = asyncio.create_task(self._guard(stream))
        try:
            first: set[asyncio.Future[Any]] = {reader, sender, self._away}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if self._away.done():
                await self._close(self._away.result())
            elif sender.done() and sender.exception() is None:
                await self._close(stream.error, code=stream.close_code)
            elif reader.done() and isinstance(error := reader.exception(), ServiceError):
                stream.abandon(error)
                await self._close(error)
            elif reader.done() and (error := reader.exception()) is not None:
                raise error
        finally:
            for task in (reader, sender, guard):
                task.cancel()
            await asyncio.gather(reader, sender, guard, return_exceptions=True)

    async def _read(self, stream: LiveStream) -> None:
        """Take what the client sends, until it goes.

        Raises:
            InvalidRequest: What it sends is no message.
        """
        loop, settings = asyncio.get_running_loop(), self._settings
        heard_s, has_warned = loop.time(), False
        while True:
            patience_s = settings.idle_s if has_warned else settings.idle_warning_s
            try:
                async with asyncio.timeout_at(None if stream.has_end else heard_s + patience_s):
                    message = await self._websocket.receive()
            except TimeoutError:
                if has_warned:
                    stream.end(DeadlineExceeded(f"no audio came for {settings.idle_s:g} s; the stream has ended"))
                else:
                    has_warned = True
                    stream.warn(
                        "silent_client",
                        f"no audio came for {settings.idle_warning_s:g} s; after {settings.idle_s:g} s the stream ends",
                    )
                continue
            if message["type"] == "websocket.disconnect":
                return
            if data := message.get("bytes"):
                await stream.feed(data)
                heard_s, has_warned = loop.time(), False
                stream.is_over("silent_client")
            elif text := message.get("text"):
                self._obey(stream, text)

    @staticmethod
    def _obey(stream: LiveStream, text: str) -> None:
        try:
            message = parse_control(text)
        except ValidationError as e:
            raise InvalidRequest(f"message: {told(e)}") from e
        if message.type == "flush":
            stream.flush()
        else:
            stream.end()

    async def _send_all(self, stream: LiveStream) -> None:
        async for text in stream.messages(self):
            await self._send(text)

    async def _send(self, text: str) -> None:
        await self._websocket.send_text(text)

    async def _guard(self, stream: LiveStream) -> None:
        """Warn where the replica goes away, and end the stream before it is cut off."""
        server: tuple[str, int] | None = self._websocket.scope.get("server")
        if self._is_draining is None or server is None:
            return
        while not await self._is_draining(server):  # noqa: ASYNC110  # Serve tells no other way
            await asyncio.sleep(DRAIN_POLL_S)
        stream.warn(
            "draining",
            f"this server goes away; send end and start another stream; it ends in {self._settings.draining_s:g} s",
        )
        await asyncio.sleep(self._settings.draining_s)
        stream.close_code = SERVICE_RESTART
        stream.end()

    async def _close(self, error: ServiceError | None, code: int = 1000) -> None:
        """Say why, and close; the client may be gone, or not read."""
        if self._websocket.application_state is not WebSocketState.CONNECTED:
            return
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(LAST_WORD_S):
                if error is not None:
                    await self._send(error_message(error).model_dump_json())
                await self._websocket.close(code if error is None else error.ws_code)
