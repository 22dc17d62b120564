"""The client of live streams, against a server that cuts, forgets, refuses and goes down."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from soundstage.client import ServiceUnreachable
from soundstage.errors import (
    InternalError,
    InvalidRequest,
    NotAuthenticated,
    NotAuthorized,
    NotFound,
    Overloaded,
    ServiceError,
    TooLarge,
    UnusableAudio,
)
from soundstage.live.events import StreamOptions
from soundstage.live_client import LiveClient, LiveRequest
from soundstage.params import LiveClientParams
from soundstage.pipeline import Task
from tests.unit.live_server import RATE, Event, LiveServer, numbered_audio, pieces, unused_port

SECOND = 2 * RATE
REQUEST = LiveRequest(sample_rate=RATE)
PATIENT = LiveClientParams(max_history_s=8.0)


class Waits(list[float]):
    """Stands in for sleeping: notes how long it would have been."""

    async def __call__(self, wait_s: float) -> None:
        self.append(wait_s)
        await asyncio.sleep(0)


async def told(
    server: LiveServer,
    audio: AsyncIterator[bytes],
    *,
    request: LiveRequest = REQUEST,
    waits: Waits | None = None,
    **kwargs: Any,
) -> list[Event]:
    """Everything that a client is told."""
    can_wait = kwargs.pop("can_wait", True)
    kwargs.setdefault("params", PATIENT)
    async with server.serving() as url:
        client = LiveClient(url, sleep=Waits() if waits is None else waits, **kwargs)
        return [event async for event in client.stream(audio, request, can_wait=can_wait)]


def of(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["type"] == kind]


def assert_whole(events: list[Event], n_seconds: int) -> None:
    """Each second was said once, when it was said, and events are counted without a gap."""
    finals = of(events, "final")
    assert [final["text"] for final in finals] == [f"second {i}." for i in range(n_seconds)]
    for i, final in enumerate(finals):
        assert final["start_s"] == pytest.approx(i + 0.1, abs=0.5)
        assert final["words"][1]["end_s"] == pytest.approx(final["end_s"])
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [final["utterance"] for final in finals] == sorted({final["utterance"] for final in finals})
    assert events[-1]["type"] == "done"
    assert events[-1]["duration_s"] == pytest.approx(n_seconds)
    assert (events[-1]["n_finals"], events[-1]["n_words"]) == (n_seconds, 2 * n_seconds)


async def test_a_stream_is_told_from_ready_to_done() -> None:
    server = LiveServer()
    events = await told(server, pieces(numbered_audio(6)))
    assert_whole(events, 6)
    assert events[0]["type"] == "ready"
    assert len(of(events, "levels")) == 6
    assert [(sound["state"], sound["start_s"]) for sound in of(events, "sound")][:2] == [
        ("started", 1.2),
        ("confirmed", 1.2),
    ]
    assert bytes(server.streams["s0"].audio) == numbered_audio(6)


async def test_what_is_asked_for_is_sent_first_and_nothing_else() -> None:
    server = LiveServer()
    options = StreamOptions(
        tasks=frozenset({Task.SPEECH}), language="en", partials=False, min_score=0.4, hints=("Elsinore",)
    )
    request = LiveRequest(sample_rate=RATE, n_channels=2, options=options)
    events = await told(server, pieces(numbered_audio(4)), request=request)
    assert server.hellos == [
        {
            "type": "start",
            "sample_rate": RATE,
            "encoding": "pcm_s16le",
            "n_channels": 2,
            "tasks": ["levels", "speech"],
            "partials": False,
            "captions": True,
            "min_score": 0.4,
            "hints": ["Elsinore"],
            "profanity": "keep",
            "language": "en",
        }
    ]
    assert not of(events, "levels"), "they were asked for by the client alone, to know how far the service has heard"
    assert events[-1]["levels"] is None


@pytest.mark.parametrize("n_bytes", [1, 17, 509, 44_100])
async def test_pieces_of_any_size_are_the_same_stream(n_bytes: int) -> None:
    server = LiveServer()
    assert_whole(await told(server, pieces(numbered_audio(5), n_bytes)), 5)


@pytest.mark.parametrize("cuts", [[1], [SECOND], [2 * SECOND + 600], [SECOND, 2 * SECOND, 2 * SECOND, 5 * SECOND]])
async def test_a_broken_connection_loses_and_doubles_nothing(cuts: list[int]) -> None:
    server = LiveServer()
    server.cuts = list(cuts)
    waits = Waits()
    events = await told(server, pieces(numbered_audio(8)), waits=waits)
    assert_whole(events, 8)
    assert list(server.streams) == ["s0"]
    assert bytes(server.streams["s0"].audio) == numbered_audio(8)
    assert [hello["type"] for hello in server.hellos] == ["start", *["resume"] * len(cuts)]
    codes = [warning["code"] for warning in of(events, "warning")]
    assert codes == ["reconnecting", "resumed"] * len(cuts)
    assert len(waits) == len(cuts)


async def test_a_stream_that_the_service_forgot_is_followed_by_another_whose_times_go_on() -> None:
    server = LiveServer()
    server.cuts = [6 * SECOND]
    server.is_forgetful = True
    events = await told(server, pieces(numbered_audio(12)))
    assert_whole(events, 12)
    assert [hello["type"] for hello in server.hellos] == ["start", *["resume"] * PATIENT.n_resumes, "start"]
    assert [warning["code"] for warning in of(events, "warning")] == ["reconnecting", "restarted"]
    sounds = of(events, "sound")
    lasts = {sound["sound"]: sound["state"] for sound in sounds}
    assert set(lasts.values()) == {"confirmed"}, "a sound that the first stream had begun is closed"
    starts = [sound["start_s"] for sound in sounds if sound["state"] == "started"]
    assert len(starts) == len(lasts)
    assert all(after - before > 1 for before, after in itertools.pairwise(starts)), "no sound is told twice"
    levels = [event["end_s"] for event in of(events, "levels")]
    assert levels == sorted(levels)


async def test_a_stream_is_not_resumed_later_than_the_service_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    server = LiveServer()
    server.cuts = [6 * SECOND]
    clock = [0.0]

    class Jumps(Waits):
        async def __call__(self, wait_s: float) -> None:
            clock[0] += 31
            await super().__call__(wait_s)

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    events = await told(server, pieces(numbered_audio(9)), waits=Jumps())
    assert_whole(events, 9)
    assert [hello["type"] for hello in server.hellos] == ["start", "start"]


async def test_a_busy_service_is_asked_again() -> None:
    server = LiveServer()
    server.refusals = [Overloaded("256 streams are open"), 503, Overloaded("256 streams are open")]
    waits = Waits()
    assert_whole(await told(server, pieces(numbered_audio(3)), waits=waits), 3)
    assert [round(wait_s / 0.5 / 2**i) for i, wait_s in enumerate(waits)] == [1, 1, 1]


async def test_a_service_that_stays_busy_is_given_up() -> None:
    server = LiveServer()
    server.refusals = [Overloaded("256 streams are open") for _ in range(20)]
    with pytest.raises(Overloaded, match=r"256 streams are open.*asked 6 times"):
        await told(server, pieces(numbered_audio(3)))


async def test_nothing_at_the_url_is_found_out_after_several_tries() -> None:
    waits = Waits()
    client = LiveClient(f"http://127.0.0.1:{unused_port()}", sleep=waits)
    with pytest.raises(ServiceUnreachable, match="tried 6 times"):
        _ = [event async for event in client.stream(pieces(numbered_audio(1)), REQUEST)]
    assert len(waits) == 5


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (NotAuthorized("wrong key"), NotAuthorized),
        (InvalidRequest("no such language"), InvalidRequest),
        (401, NotAuthenticated),
        (403, NotAuthorized),
        (404, NotFound),
        (302, ServiceError),
    ],
)
async def test_a_refusal_is_told_at_once(refusal: int | ServiceError, error: type[ServiceError]) -> None:
    server = LiveServer()
    server.refusals = [refusal]
    waits = Waits()
    with pytest.raises(error) as caught:
        await told(server, pieces(numbered_audio(1)), waits=waits)
    assert type(caught.value) is error
    assert waits == []
    assert len(server.requests) == 1, "no redirect is followed: the key is meant for this service alone"


@pytest.mark.parametrize("error", [UnusableAudio("not finite"), TooLarge("a stream lasts 4 h at most")])
async def test_an_error_in_the_middle_ends_the_stream(error: ServiceError) -> None:
    server = LiveServer()
    server.late_errors = [(3 * SECOND, error)]
    with pytest.raises(type(error), match=error.detail):
        await told(server, pieces(numbered_audio(6)))


async def test_after_a_bug_of_the_service_a_new_stream_goes_on() -> None:
    server = LiveServer()
    server.late_errors = [(6 * SECOND, InternalError("a bug"))]
    events = await told(server, pieces(numbered_audio(10)))
    assert_whole(events, 10)
    assert [hello["type"] for hello in server.hellos] == ["start", "start"]


async def test_audio_that_the_service_always_fails_at_is_given_up() -> None:
    server = LiveServer()
    server.late_errors = [(2 * SECOND, InternalError("a bug")) for _ in range(200)]
    params = LiveClientParams(n_attempts=5)
    with pytest.raises(InternalError, match="asked 5 times"):
        await told(server, pieces(numbered_audio(6)), params=params)


async def test_the_key_is_in_the_header_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = LiveServer()
    server.cuts = [SECOND]
    logging.getLogger("websockets.server").setLevel(logging.WARNING)  # the test's own server logs what it gets
    await told(server, pieces(numbered_audio(3)), api_key="open sesame")
    assert [request.headers["Authorization"] for request in server.requests] == ["Bearer open sesame"] * 2
    assert all("sesame" not in request.path for request in server.requests)
    assert all("sesame" not in str(hello) for hello in server.hellos)
    assert "sesame" not in caplog.text


async def test_a_server_that_goes_down_is_left_at_a_pause() -> None:
    server = LiveServer()
    server.drains_after = 4 * SECOND
    events = await told(server, pieces(numbered_audio(9)))
    assert_whole(events, 9)
    assert [warning["code"] for warning in of(events, "warning")] == ["draining", "restarted"]
    first, second = server.streams.values()
    assert first.is_ended
    assert bytes(first.audio + second.audio) == numbered_audio(9)


@pytest.mark.parametrize("n_later", [0, 4])
async def test_a_source_that_falls_silent_may_go_on_later(n_later: int) -> None:
    server = LiveServer()
    server.idle_s = 0.05

    async def halting() -> AsyncIterator[bytes]:
        async for piece in pieces(numbered_audio(4)):
            yield piece
        async with asyncio.timeout(10):
            while server.idle_s is not None and not server.has_idled:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        async for piece in pieces(numbered_audio(n_later, first=4)):
            yield piece

    waits = Waits()
    events = await told(server, halting(), waits=waits)
    assert_whole(events, 4 + n_later)
    assert len(server.hellos) == (2 if n_later else 1), "no stream is opened for nothing"
    assert waits == []


async def test_a_stream_that_lasts_longer_than_the_service_allows_is_followed_by_another() -> None:
    server = LiveServer()
    server.late_errors = [(70 * SECOND, TooLarge("24 hours"))]
    events = await told(server, pieces(numbered_audio(80)))
    assert_whole(events, 80)
    assert len(server.streams) == 2


async def test_no_more_is_sent_than_the_service_hears() -> None:
    server = LiveServer()
    server.is_deaf = True
    params = LiveClientParams(max_ahead_s=5.0, max_unsent_s=10.0)
    n_given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal n_given
        async for piece in pieces(numbered_audio(60)):
            n_given += len(piece)
            yield piece

    task = asyncio.create_task(told(server, endless(), params=params))
    async with asyncio.timeout(10):
        while not server.streams or len(server.streams["s0"].audio) < 5 * SECOND or n_given < 10 * SECOND:
            await asyncio.sleep(0.005)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(server.streams["s0"].audio) == 5 * SECOND
    assert n_given <= 10 * SECOND + 500, "a source that can wait does"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_source_that_cannot_wait_goes_on_and_what_is_too_old_is_left_out() -> None:
    server = LiveServer()
    server.cuts = [6 * SECOND]
    is_away = asyncio.Event()
    is_back = asyncio.Event()

    class Outage(Waits):
        async def __call__(self, wait_s: float) -> None:
            is_away.set()
            await is_back.wait()
            await super().__call__(wait_s)

    async def microphone() -> AsyncIterator[bytes]:
        async for piece in pieces(numbered_audio(20)):
            yield piece
        await is_away.wait()
        async for piece in pieces(numbered_audio(30, first=20)):
            yield piece
        is_back.set()

    params = LiveClientParams(max_unsent_s=10.0, max_history_s=5.0)
    events = await told(server, microphone(), waits=Outage(), params=params, can_wait=False)
    finals = {final["text"]: final["start_s"] for final in of(events, "final")}
    assert {"second 4.", "second 41.", "second 49."} <= set(finals)
    assert "second 30." not in finals
    assert finals["second 49."] == pytest.approx(49.1, abs=0.5)
    assert events[-1]["duration_s"] == pytest.approx(50)
    assert "were lost" in of(events, "warning")[-1]["message"]


async def test_a_source_that_breaks_ends_the_stream_with_all_that_was_said() -> None:
    server = LiveServer()

    async def breaking() -> AsyncIterator[bytes]:
        async for piece in pieces(numbered_audio(4)):
            yield piece
        raise OSError("the cable was pulled")

    events: list[Event] = []

    async def listen(url: str) -> None:
        async for event in LiveClient(url, params=PATIENT).stream(breaking(), REQUEST):
            events.append(event)  # noqa: PERF401  # what came before the error counts

    async with server.serving() as url:
        with pytest.raises(OSError, match="cable"):
            await listen(url)
    assert_whole(events, 4)


async def test_a_connection_that_is_half_open_is_found_out() -> None:
    server = LiveServer()
    params = LiveClientParams(ping_s=0.1, max_history_s=8.0)
    connections: list[Any] = []
    greet = server.greet

    def remember(connection: Any, request: Any) -> Any:
        connections.append(connection)
        return greet(connection, request)

    server.greet = remember  # type: ignore[method-assign]

    async def pulled() -> AsyncIterator[bytes]:
        async for piece in pieces(numbered_audio(3)):
            yield piece
        connections[0].transport.pause_reading()
        async for piece in pieces(numbered_audio(3, first=3)):
            yield piece

    events = await told(server, pulled(), params=params)
    assert_whole(events, 6)
    assert [hello["type"] for hello in server.hellos] == ["start", "resume"]


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ws://host", "http://", "http://host:port"])
def test_a_url_of_no_service_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        LiveClient(url)
