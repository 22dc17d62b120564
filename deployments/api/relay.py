"""A connection that came to another replica than the one that has its stream: both ways, message by message."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from soundstage.errors import Overloaded

OPEN_S = 5.0
"""Until the other replica answers."""

_log = logging.getLogger(__name__)


async def relay(websocket: WebSocket, address: str, first: str) -> None:
    """Be the client of another replica for a client of this one, until one of both closes.

    What one side does not take waits at the other.

    Args:
        websocket: Of the client, accepted.
        address: Host and port of the other replica.
        first: The first message, which was taken from the client already.

    Raises:
        Overloaded: The other replica cannot be reached.
    """
    authorization = websocket.headers.get("authorization")
    headers = {"Authorization": authorization} if authorization is not None else None
    try:
        other = await connect(
            f"ws://{address}/v1/stream",
            additional_headers=headers,
            open_timeout=OPEN_S,
            compression=None,
            max_size=None,
            proxy=None,
        )
    except (OSError, WebSocketException) as e:
        _log.warning("a stream is at %s, which cannot be reached: %s", address, e)
        raise Overloaded("the replica that has the stream does not answer; resume it again") from e
    async with other:
        await other.send(first)
        up, down = asyncio.create_task(_up(websocket, other)), asyncio.create_task(_down(other, websocket))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        if other.close_code is not None:
            with suppress(WebSocketDisconnect, RuntimeError):
                # 1006 and the like say that there was no close, and must not be sent.
                code = other.close_code if other.close_code not in (1005, 1006, 1015) else Overloaded.ws_code
                await websocket.close(code)
        else:
            # As the client did it: without a word, so that the stream waits for it.
            other.transport.abort()


async def _up(websocket: WebSocket, other: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("bytes")
            await other.send(data if data is not None else message["text"])


async def _down(other: ClientConnection, websocket: WebSocket) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):
        async for message in other:
            await (websocket.send_text(message) if isinstance(message, str) else websocket.send_bytes(message))
