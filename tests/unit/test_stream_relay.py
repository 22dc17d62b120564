"""A stream that is resumed at another replica than the one that has it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from deployments.auth import ApiKeys, hash_key
from deployments.live import Streams
from soundstage.errors import NotFound
from tests.unit.stream_client import START, Event, KnownEngine, application, clip, expected_finals, finals, until

HEADERS = {"Authorization": "Bearer k"}


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """Host and port of an application on this machine."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="websockets-sansio"))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            await until(lambda: server.started)
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


class Replicas:
    """Two of them, of which each finds what the other has."""

    def __init__(self) -> None:
        self.streams: list[Streams] = []
        self.unreachable: str | None = None

    def app(self) -> FastAPI:
        app = application(KnownEngine(), keys=ApiKeys({"k": hash_key("k")}), elsewhere=self.find)
        self.streams.append(app.state.streams)
        return app

    async def find(self, stream_id: str) -> str | None:
        addresses = [streams.address_of(stream_id) for streams in self.streams]
        return self.unreachable or next((address for address in addresses if address), None)


async def received(connection: ClientConnection) -> list[Event]:
    events: list[Event] = []
    try:
        while True:
            async with asyncio.timeout(20):
                events.append(json.loads(await connection.recv()))
    except ConnectionClosed:
        return events


async def send(connection: ClientConnection, audio: bytes) -> None:
    for start in range(0, len(audio), 19_200):
        await connection.send(audio[start : start + 19_200])


async def test_nothing_is_lost_or_doubled_where_another_replica_resumes() -> None:
    """Twice: the second time at the replica that has it, while the first one still listens."""
    replicas = Replicas()
    audio = clip()
    async with served(replicas.app()) as one, served(replicas.app()) as other:
        events: list[Event] = []
        async with connect(f"ws://{one}/v1/stream", additional_headers=HEADERS) as connection:
            await connection.send(json.dumps(START))
            await send(connection, audio[: 3 * len(audio) // 4])
            while not events or events[-1]["type"] != "final":
                events.append(json.loads(await connection.recv()))
            connection.transport.abort()
        first = {"type": "resume", "stream_id": events[0]["stream_id"], "last_seq": events[-2]["seq"], "token": "k"}
        events = events[:-1]
        async with connect(f"ws://{other}/v1/stream") as connection:
            await connection.send(json.dumps(first))
            ready = json.loads(await connection.recv())
            assert ready["seq"] is None
            n_taken = ready["received_bytes"]
            await send(connection, audio[n_taken : n_taken + len(audio) // 8])
            events.append(json.loads(await connection.recv()))
            last = {**first, "last_seq": events[-1]["seq"]}
            async with connect(f"ws://{one}/v1/stream", additional_headers=HEADERS) as third:
                await third.send(json.dumps(last))
                # The other one is sent away, with all that it was told meanwhile.
                assert (await received(connection))[-1]["code"] == NotFound.code
                assert connection.close_code == NotFound.ws_code
                ready = json.loads(await third.recv())
                await send(third, audio[ready["received_bytes"] :])
                await third.send('{"type": "end"}')
                events += await received(third)
                assert third.close_code == 1000
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert finals(events) == expected_finals(audio)


async def test_a_connection_that_breaks_at_the_other_replica_leaves_the_stream_to_be_resumed() -> None:
    replicas = Replicas()
    async with served(replicas.app()) as one, served(replicas.app()) as other:
        resume: Event = {}
        for address in (one, other, other):
            async with connect(f"ws://{address}/v1/stream", additional_headers=HEADERS) as connection:
                await connection.send(json.dumps(resume or START))
                ready = json.loads(await connection.recv())
                assert ready["type"] == "ready"
                resume = {"type": "resume", "stream_id": ready["stream_id"], "last_seq": 1}
                connection.transport.abort()
        assert [streams.n_open for streams in replicas.streams] == [1, 0]


async def test_what_no_replica_has_is_not_found(unused_address: str) -> None:
    replicas = Replicas()
    async with served(replicas.app()) as one:
        for address, code in ((None, "not_found"), (unused_address, "overloaded")):
            replicas.unreachable = address
            async with connect(f"ws://{one}/v1/stream", additional_headers=HEADERS) as connection:
                await connection.send(json.dumps({"type": "resume", "stream_id": "none", "last_seq": 0}))
                assert [event["code"] for event in await received(connection)] == [code]


async def test_a_stream_elsewhere_needs_a_key_too() -> None:
    replicas = Replicas()
    async with served(replicas.app()) as one, served(replicas.app()) as other:
        async with connect(f"ws://{one}/v1/stream", additional_headers=HEADERS) as connection:
            await connection.send(json.dumps(START))
            stream_id = json.loads(await connection.recv())["stream_id"]
        async with connect(f"ws://{other}/v1/stream") as connection:
            await connection.send(json.dumps({"type": "resume", "stream_id": stream_id, "last_seq": 0}))
            assert [event["code"] for event in await received(connection)] == ["not_authenticated"]


@pytest.fixture
def unused_address() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"
