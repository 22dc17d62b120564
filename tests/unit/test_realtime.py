"""Transcription sessions with the real `openai` package, over a network, in front of models of known answers."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import openai
import pytest
import uvicorn
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from websockets.exceptions import ConnectionClosed

from deployments.auth import ApiKeys, hash_key
from deployments.settings import LiveSettings
from soundstage import sample
from tests.unit.stream_client import KnownEngine, application

RATE = 24_000
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"


def speech() -> bytes:
    """The sample clip's first 22 s: horn, speech, knocks, and speech to the end."""
    samples, _ = sample.mix()
    mono = samples[: 22 * 48_000].mean(axis=1)
    pcm: bytes = (np.clip(mono[::2], -1, 1) * 32767).astype("<i2").tobytes()
    return pcm


@contextmanager
def serving(keys: ApiKeys | None = None, live: LiveSettings | None = None) -> Iterator[str]:
    """The base URL of the application, as client libraries want it."""
    config = uvicorn.Config(
        lambda: application(KnownEngine(), keys=keys, live=live), factory=True, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as url:
        yield url


def asked(audio_input: dict[str, Any]) -> Any:
    return {"type": "transcription", "audio": {"input": audio_input}}


@asynccontextmanager
async def session(url: str, **audio_input: Any) -> AsyncIterator[AsyncRealtimeConnection]:
    """A session as the documentation of the package opens it."""
    client = openai.AsyncOpenAI(base_url=url, api_key="anything")
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert (await connection.recv()).type == "session.created"
        await connection.session.update(session=asked(audio_input))
        updated = await connection.recv()
        assert updated.type == "session.updated"
        assert updated.session.type == "transcription"
        yield connection


async def append(connection: AsyncRealtimeConnection, audio: bytes) -> None:
    for start in range(0, len(audio), RATE):
        await connection.input_audio_buffer.append(audio=base64.b64encode(audio[start : start + RATE]).decode())


async def until(connection: AsyncRealtimeConnection, kind: str, n: int = 1) -> list[Any]:
    events: list[Any] = []
    while sum(event.type == kind for event in events) < n:
        events.append(await connection.recv())
    return events


async def test_utterances_become_items_with_deltas_and_a_transcript(url: str) -> None:
    async with session(url, transcription={"model": "whisper-1", "language": "en"}) as connection:
        await append(connection, speech())
        await connection.input_audio_buffer.commit()
        events = await until(connection, "conversation.item.done", 2)
    completed = [event for event in events if event.type == COMPLETED]
    assert len(completed) == 2
    assert all(event.transcript and event.usage.seconds > 0 for event in completed)
    for event in completed:
        of_item = [e for e in events if getattr(e, "item_id", None) == event.item_id]
        kinds = list(dict.fromkeys(e.type for e in of_item if e.type != DELTA))
        assert kinds == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            COMPLETED,
        ]
        told = "".join(e.delta for e in of_item if e.type == DELTA)
        assert event.transcript.startswith(told)
        assert told
    started = next(event for event in events if event.type == "input_audio_buffer.speech_started")
    stopped = next(event for event in events if event.type == "input_audio_buffer.speech_stopped")
    assert 4_000 < started.audio_start_ms < stopped.audio_end_ms < 22_000
    done = [event.item for event in events if event.type == "conversation.item.done"]
    assert [item.content[0].transcript for item in done] == [event.transcript for event in completed]
    committed = [event for event in events if event.type == "input_audio_buffer.committed"]
    assert [event.previous_item_id for event in committed] == [None, committed[0].item_id]


async def test_without_turn_detection_an_item_is_what_is_committed(url: str) -> None:
    async with session(url, turn_detection=None) as connection:
        for _ in range(2):
            await append(connection, speech())
            await connection.input_audio_buffer.commit()
            events = await until(connection, "conversation.item.done")
            assert not [event for event in events if "speech" in event.type]
            completed = next(event for event in events if event.type == COMPLETED)
            assert len(completed.transcript.split()) > 10
            assert completed.usage.seconds == pytest.approx(22.0)


async def test_what_was_cleared_is_not_heard(url: str) -> None:
    async with session(url, turn_detection=None) as connection:
        await append(connection, speech())
        await connection.input_audio_buffer.clear()
        await until(connection, "input_audio_buffer.cleared")
        await append(connection, bytes(2 * RATE))
        await connection.input_audio_buffer.commit()
        events = await until(connection, COMPLETED)
    assert (events[-1].transcript, events[-1].usage.seconds) == ("", 1.0)


@pytest.mark.parametrize(
    ("audio_input", "code"),
    [
        ({"transcription": {"model": "gpt-9"}}, "not_found"),
        ({"transcription": {"language": "tlh"}}, "invalid_request"),
        ({"format": {"type": "audio/pcmu"}}, "invalid_request"),
    ],
)
async def test_what_there_is_not_is_an_error_and_the_session_goes_on(
    url: str, audio_input: dict[str, Any], code: str
) -> None:
    async with session(url) as connection:
        await connection.session.update(session=asked(audio_input), event_id="mine")
        event = (await until(connection, "error"))[-1]
        assert (event.error.code, event.error.event_id) == (code, "mine")
        await connection.response.create()
        event = (await until(connection, "error"))[-1]
        assert event.error.type == "invalid_request_error"
        await connection.input_audio_buffer.commit()
        event = (await until(connection, "error"))[-1]
        assert "no audio" in event.error.message


async def test_a_session_needs_the_key() -> None:
    with serving(ApiKeys({"me": hash_key("open sesame")})) as url:
        client = openai.AsyncOpenAI(base_url=url, api_key="guess", max_retries=0)
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            event: Any = await connection.recv()
            assert (event.type, event.error.code) == ("error", "not_authorized")
            with pytest.raises(ConnectionClosed) as closed:
                await connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        client = openai.AsyncOpenAI(base_url=url, api_key="open sesame")
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            assert (await connection.recv()).type == "session.created"


async def test_more_sessions_than_there_may_be_are_told() -> None:
    with serving(live=LiveSettings(max_streams=0)) as url:
        async with session(url) as connection:
            await append(connection, bytes(RATE))
            event = (await until(connection, "error"))[-1]
    assert (event.error.type, event.error.code) == ("server_error", "overloaded")
