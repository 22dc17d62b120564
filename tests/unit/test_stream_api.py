"""The protocol of WS /v1/stream, with clients that behave and clients that do not; no network, no Ray, no models."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from deployments.api.stream_messages import PartialMessage
from deployments.auth import ApiKeys, hash_key
from deployments.live import MAX_INBOX_BYTES, Outbox
from deployments.settings import LiveSettings
from soundstage.errors import InternalError, InvalidRequest, NotFound, Overloaded
from soundstage.live.events import Final, LiveEvent
from tests.unit.stream_client import (
    RATE,
    START,
    Event,
    KnownEngine,
    Wire,
    application,
    by_kind,
    clip,
    connected,
    expected_finals,
    finals,
    until,
)

BYTES_PER_S = 4 * RATE
TOLD_FOR_GOOD = ("final", "caption", "done")


@pytest.fixture
def engine() -> KnownEngine:
    return KnownEngine()


async def whole(wire: Wire, audio: bytes, piece_bytes: int = 19_200, **start: Any) -> list[Event]:
    """All events of a stream from its start to its end."""

    async def send() -> None:
        await wire.send({**START, **start})
        await wire.send_audio(audio, piece_bytes)
        await wire.send({"type": "end"})

    sender = asyncio.create_task(send())
    events = await wire.rest()
    sender.cancel()  # it may still hold audio that nobody takes any more
    return events


def confirmed(events: list[Event]) -> list[tuple[Any, ...]]:
    return [
        (event["label"], event["score"], event["start_s"], event["end_s"])
        for event in events
        if event["type"] == "sound" and event["state"] == "confirmed"
    ]


# What is promised


async def test_a_stream_tells_all_and_counts_it(engine: KnownEngine) -> None:
    async with connected(application(engine)) as wire:
        events = await whole(wire, clip())
    assert wire.close_code == 1000
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    ready, done = events[0], events[-1]
    assert (ready["type"], ready["received_bytes"], ready["resume_within_s"]) == ("ready", 0, 30.0)
    assert ready["models"] == {"pen": "2", "ears": "1"}
    assert finals(events) == expected_finals(clip())
    assert len(finals(events)) >= 2
    assert done["type"] == "done"
    assert done["duration_s"] == 22.0
    assert done["n_finals"] == len(finals(events))
    assert done["n_words"] == sum(len(text.split()) for text, _, _ in finals(events))
    assert done["n_sounds"] == len(confirmed(events)) > 0
    assert done["levels"]["n_channels"] == 2
    assert done["models"] == {"pen": "2", "ears": "1"}
    levels = [event for event in events if event["type"] == "levels"]
    assert [event["end_s"] for event in levels] == list(range(1, 23))
    assert {"partial", "caption", "sound"} <= {event["type"] for event in events}


async def test_the_sizes_of_messages_change_nothing(engine: KnownEngine) -> None:
    told = []
    for piece_bytes in (1_777, 200_001, len(clip())):
        async with connected(application(engine)) as wire:
            events = await whole(wire, clip(), piece_bytes)
        told.append((by_kind(events, *TOLD_FOR_GOOD), confirmed(events)))
    assert told[0] == told[1] == told[2]


async def test_only_what_was_asked_for_is_told(engine: KnownEngine) -> None:
    async with connected(application(engine)) as wire:
        events = await whole(wire, clip(), tasks=["speech"], partials=False, captions=False)
    assert {event["type"] for event in events} == {"ready", "final", "done"}
    async with connected(application(engine)) as wire:
        events = await whole(wire, clip()[: 6 * BYTES_PER_S], tasks=["levels"])
    assert {event["type"] for event in events} == {"ready", "levels", "done"}
    async with connected(application(engine)) as wire:
        events = await whole(wire, clip()[: 6 * BYTES_PER_S], tasks=["sounds"], min_score=0.95)
    assert not by_kind(events, "sound")


async def test_the_type_of_the_first_message_may_be_left_out(engine: KnownEngine) -> None:
    async with connected(application(engine)) as wire:
        await wire.send({name: value for name, value in START.items() if name != "type"})
        assert (await wire.until("ready"))["seq"] == 1


async def test_no_partial_takes_back_what_was_committed(engine: KnownEngine) -> None:
    async with connected(application(engine)) as wire:
        events = await whole(wire, clip())
    committed: dict[int, str] = {}
    for event in by_kind(events, "partial"):
        assert event["committed"].startswith(committed.get(event["utterance"], ""))
        committed[event["utterance"]] = event["committed"]
    assert any(committed.values())


async def test_flush_ends_what_is_being_said(engine: KnownEngine) -> None:
    async with connected(application(engine)) as wire:
        await wire.send(START)
        await wire.send_audio(clip()[: 8 * BYTES_PER_S])
        await wire.send({"type": "flush"})
        final = await wire.until("final")
        assert 7.5 < final["end_s"] <= 8.0


async def test_opus_is_a_stream_too(engine: KnownEngine) -> None:
    from tests.unit.test_live_decode import opus

    async with connected(application(engine)) as wire:
        await wire.send({"encoding": "opus", "tasks": ["levels"]})
        await wire.send_audio(opus("webm", 2.0, live="1"), 100)
        await wire.send({"type": "end"})
        done = (await wire.rest())[-1]
    assert (done["type"], done["duration_s"], done["levels"]["n_channels"]) == ("done", 2.0, 1)


async def test_an_empty_stream_is_a_success_with_nothing_in_it(engine: KnownEngine) -> None:
    async with connected(application(engine)) as wire:
        done = (await whole(wire, b""))[-1]
    assert (done["type"], done["duration_s"], done["n_finals"], done["levels"]) == ("done", 0.0, 0, None)


# Bad messages


@pytest.mark.parametrize(
    ("message", "code", "ws_code", "said"),
    [
        ("no json", "invalid_request", 1007, "JSON"),
        ("[1]", "invalid_request", 1007, "first message"),
        ({"type": "hello"}, "invalid_request", 1007, "hello"),
        ({"type": "end"}, "invalid_request", 1007, "end"),
        ({**START, "sample_rat": 1}, "invalid_request", 1007, "sample_rat"),
        ({**START, "encoding": "mp3"}, "invalid_request", 1007, "encoding"),
        ({**START, "sample_rate": None}, "invalid_request", 1007, "sample_rate"),
        ({**START, "sample_rate": 4000}, "invalid_request", 1007, "4000"),
        ({**START, "n_channels": 65}, "too_large", 1009, "65"),
        ({**START, "n_channels": 0}, "invalid_request", 1007, "n_channels"),
        ({**START, "language": "xx"}, "invalid_request", 1007, "xx"),
        ({**START, "tasks": []}, "invalid_request", 1007, "task"),
        ({**START, "tasks": ["smells"]}, "invalid_request", 1007, "tasks"),
        ({**START, "min_score": 2}, "invalid_request", 1007, "min_score"),
        ({**START, "hints": ["x" * 1000]}, "invalid_request", 1007, "hints"),
        (b"\x00\x00", "invalid_request", 1007, "start"),
        ({"type": "resume", "stream_id": "nobody's", "last_seq": 0}, "not_found", 1008, "no such stream"),
        ({"type": "resume"}, "invalid_request", 1007, "stream_id"),
    ],
)
async def test_a_bad_first_message_is_answered_by_name(
    engine: KnownEngine, message: Event | str | bytes, code: str, ws_code: int, said: str
) -> None:
    async with connected(application(engine)) as wire:
        await wire.send(message)
        events = await wire.rest()
    assert [event["type"] for event in events] == ["error"]
    assert events[0]["code"] == code
    assert said in events[0]["message"]
    assert wire.close_code == ws_code


@pytest.mark.parametrize("message", ["no json", {"type": "pause"}, {"type": "end", "now": True}, START])
async def test_a_bad_later_message_ends_the_stream(engine: KnownEngine, message: Event | str) -> None:
    async with connected(application(engine)) as wire:
        await wire.send(START)
        await wire.until("ready")
        await wire.send(message)
        assert (await wire.until("error"))["code"] == "invalid_request"
        await wire.rest()
    assert wire.close_code == 1007


async def test_audio_after_the_end_is_refused(engine: KnownEngine) -> None:
    engine.is_free.clear()
    async with connected(application(engine)) as wire:
        await wire.send(START)
        await wire.send_audio(clip()[: 8 * BYTES_PER_S])
        await wire.send({"type": "end"})
        await wire.send(clip()[:4])
        assert (await wire.until("error"))["code"] == "invalid_request"


async def test_who_says_nothing_at_all_is_let_go(engine: KnownEngine) -> None:
    async with connected(application(engine, live=LiveSettings(start_s=0.01))) as wire:
        assert (await wire.rest())[0]["code"] == "deadline_exceeded"
    assert wire.close_code == 1011


async def test_half_a_sample_at_the_end_is_told_and_harms_nothing(engine: KnownEngine) -> None:
    async with connected(application(engine)) as wire:
        events = await whole(wire, clip()[: 8 * BYTES_PER_S + 3])
    assert by_kind(events, "warning")[0]["code"] == "odd_length"
    assert events[-1]["duration_s"] == 8.0


async def test_audio_that_breaks_ends_the_stream_after_what_was_said(engine: KnownEngine) -> None:
    async with connected(application(engine)) as wire:
        await wire.send({**START, "encoding": "pcm_f32le"})
        audio = np.frombuffer(clip()[: 14 * BYTES_PER_S], "<i2").astype("<f4") / 32768
        await wire.send_audio(audio.tobytes())
        await wire.send(np.full(2, np.nan, "<f4").tobytes())
        events = await wire.rest()
    assert len(finals(events)) == 1
    assert events[-1]["code"] == "unusable_audio"
    assert wire.close_code == 1007


async def test_a_stream_lasts_no_longer_than_it_may(engine: KnownEngine) -> None:
    async with connected(application(engine, live=LiveSettings(max_duration_s=3.0))) as wire:
        await wire.send(START)
        sender = asyncio.create_task(wire.send_audio(clip()))
        events = await wire.rest()
        sender.cancel()
    assert events[-1]["code"] == "too_large"
    assert wire.close_code == 1009


# Keys


@pytest.mark.parametrize(
    ("headers", "token", "code"),
    [
        ({"Authorization": "Bearer right"}, None, None),
        ({}, "right", None),
        ({}, None, "not_authenticated"),
        ({}, "wrong", "not_authorized"),
        ({"Authorization": "Bearer wrong"}, None, "not_authorized"),
        # The header is what proxies check and log; a token beside it does not open what the header does not.
        ({"Authorization": "Bearer wrong"}, "right", "not_authorized"),
    ],
)
async def test_a_key_comes_in_the_header_or_in_the_first_message(
    engine: KnownEngine, headers: dict[str, str], token: str | None, code: str | None
) -> None:
    keys = ApiKeys({"studio": hash_key("right")})
    for first in (START, {"type": "resume", "stream_id": "x", "last_seq": 0}):
        async with connected(application(engine, keys=keys), **headers) as wire:
            await wire.send(first if token is None else {**first, "token": token})
            event = await wire.receive()
            assert event is not None
            if code is not None:
                assert (event["type"], event["code"]) == ("error", code)
                assert await wire.receive() is None
                assert wire.close_code == 1008
            else:
                assert event["type"] == "ready" or event["code"] == "not_found"


async def test_a_key_is_never_told(engine: KnownEngine) -> None:
    async with connected(application(engine)) as wire:
        await wire.send({**START, "token": ["secret"], "n_channels": "secret"})
        assert "secret" not in json.dumps(await wire.rest())


# Clients that do not behave


async def test_a_burst_waits_at_its_sender(engine: KnownEngine) -> None:
    engine.is_free.clear()
    audio = clip() * 20
    # On a busy machine results are late as well, which is no matter here.
    async with connected(application(engine, live=LiveSettings(lag_warning_s=600))) as wire:
        await wire.send(START)
        sender = asyncio.create_task(wire.send_audio(audio, 100_000))
        warning = await wire.until("warning")
        assert warning["code"] == "audio_ahead"
        n_waiting = wire.n_sent_bytes
        await asyncio.sleep(0.05)
        assert wire.n_sent_bytes == n_waiting
        assert n_waiting < MAX_INBOX_BYTES + 200_000 + 65 * BYTES_PER_S
        engine.is_free.set()
        await wire.until("final", utterance=6)
        assert wire.n_sent_bytes > n_waiting
        sender.cancel()
        assert [event["code"] for event in by_kind(wire.events, "warning")] == ["audio_ahead"]


async def test_a_silent_client_is_warned_then_its_stream_ends_with_all_that_was_said(engine: KnownEngine) -> None:
    settings = LiveSettings(idle_warning_s=0.3, idle_s=0.6)
    async with connected(application(engine, live=settings)) as wire:
        await wire.send(START)
        await wire.send_audio(clip()[: 8 * BYTES_PER_S])
        events = await wire.rest()
    assert [event["code"] for event in by_kind(events, "warning")] == ["silent_client"]
    assert len(finals(events)) == 1
    assert events[-1]["code"] == "deadline_exceeded"
    assert wire.close_code == 1011


async def test_a_client_that_waits_for_its_results_is_not_silent(engine: KnownEngine) -> None:
    engine.is_free.clear()
    async with connected(application(engine, live=LiveSettings(idle_warning_s=0.05, idle_s=0.1))) as wire:
        await wire.send(START)
        await wire.send_audio(clip()[: 8 * BYTES_PER_S])
        await wire.send({"type": "end"})
        await asyncio.sleep(0.3)
        engine.is_free.set()
        assert (await wire.rest())[-1]["type"] == "done"


async def test_a_slow_reader_is_warned_then_sent_away_and_misses_nothing_when_it_comes_back(
    engine: KnownEngine,
) -> None:
    app = application(engine, live=LiveSettings(max_unread_bytes=6_000))
    async with connected(app) as wire:
        await wire.send(START)
        ready = await wire.until("ready")
        wire.is_reading.clear()
        sender = asyncio.create_task(wire.send_audio(clip() * 4))
        # Its last word finds no reader either.
        await wire.done()
        sender.cancel()
        wire.is_reading.set()
    assert wire.n_sent_bytes < len(clip() * 4)
    received = wire.events
    async with connected(app) as again:
        await again.send({"type": "resume", "stream_id": ready["stream_id"], "last_seq": received[-1]["seq"]})
        n_bytes = (await again.until("ready"))["received_bytes"]
        sender = asyncio.create_task(send_rest(again, clip() * 2, n_bytes))
        events = received + (await again.rest())[1:]
        await sender
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert "slow_reader" in [event.get("code") for event in events]
    assert finals(events) == expected_finals(clip() * 2)


async def send_rest(wire: Wire, audio: bytes, n_bytes: int) -> None:
    await wire.send_audio(audio[n_bytes:])
    await wire.send({"type": "end"})


def test_of_partials_only_the_newest_waits_and_a_final_ends_them() -> None:
    outbox = Outbox(LiveSettings())
    for i in range(100):
        outbox.push(PartialMessage(utterance=i // 50, start_s=0, end_s=i, committed="", tentative=f"{i}", text=f"{i}"))
    texts = [outbox.next(), outbox.next(), outbox.next()]
    assert [text and json.loads(text)["text"] for text in texts] == ["49", "99", None]


def test_what_was_sent_is_kept_up_to_a_limit() -> None:
    outbox = Outbox(LiveSettings(max_log_bytes=2_000))
    for i in range(100):
        outbox.push(PartialMessage(utterance=i, start_s=0, end_s=i, committed="", tentative="", text=f"{i}"))
        outbox.next()
    outbox.go_back(95)
    assert [json.loads(outbox.next() or "")["seq"] for _ in range(5)] == [96, 97, 98, 99, 100]
    assert outbox.next() is None
    with pytest.raises(NotFound, match="not kept"):
        outbox.go_back(1)
    with pytest.raises(InvalidRequest, match="never sent"):
        outbox.go_back(101)


# Resuming


@pytest.mark.parametrize("n_lost", [0, 7])
@pytest.mark.parametrize("cut_s", [3.0, 9.0, 13.0, 21.9])
async def test_a_cut_loses_and_doubles_nothing(engine: KnownEngine, cut_s: float, n_lost: int) -> None:
    app = application(engine)
    async with connected(app) as wire:
        await wire.send(START)
        await wire.send_audio(clip()[: int(cut_s * RATE) * 4 + 2])
        while (await wire.until("levels"))["end_s"] < int(cut_s) - 1:
            pass
        await wire.cut()
    received = wire.events[: len(wire.events) - n_lost]
    async with connected(app) as again:
        first = {"type": "resume", "stream_id": received[0]["stream_id"], "last_seq": received[-1]["seq"]}
        await again.send(first)
        ready = await again.receive()
        assert ready is not None
        assert ready["seq"] is None
        assert ready["stream_id"] == received[0]["stream_id"]
        sender = asyncio.create_task(send_rest(again, clip(), ready["received_bytes"]))
        await again.rest()
        await sender
    events = received + again.events[1:]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert finals(events) == expected_finals(clip())
    assert events[-1]["duration_s"] == 22.0


async def test_a_stream_that_ended_while_nobody_listened_can_still_be_asked(engine: KnownEngine) -> None:
    app = application(engine)
    engine.is_free.clear()
    async with connected(app) as wire:
        await wire.send(START)
        await wire.send_audio(clip())
        await wire.send({"type": "end"})
        ready = await wire.until("ready")
        await wire.cut()
    engine.is_free.set()
    for _ in range(2):
        async with connected(app) as again:
            await again.send({"type": "resume", "stream_id": ready["stream_id"], "last_seq": 1})
            events = await again.rest()
        assert finals(events) == expected_finals(clip())
        assert events[-1]["type"] == "done"
        assert again.close_code == 1000


async def test_who_comes_back_too_late_starts_anew(engine: KnownEngine) -> None:
    app = application(engine, live=LiveSettings(resume_s=0.01))
    async with connected(app) as wire:
        await wire.send(START)
        ready = await wire.until("ready")
    await asyncio.sleep(0.05)
    async with connected(app) as again:
        await again.send({"type": "resume", "stream_id": ready["stream_id"], "last_seq": 1})
        assert (await again.rest())[0]["code"] == "not_found"
    assert again.close_code == 1008


async def test_a_client_that_comes_back_need_not_wait_until_the_server_notices(engine: KnownEngine) -> None:
    app = application(engine)
    async with connected(app) as half_open, connected(app) as again:
        await half_open.send(START)
        ready = await half_open.until("ready")
        await again.send({"type": "resume", "stream_id": ready["stream_id"], "last_seq": 1})
        await again.until("ready")
        assert (await half_open.rest())[-1]["code"] == "not_found"
        sender = asyncio.create_task(send_rest(again, clip(), 0))
        events = await again.rest()
        await sender
    assert finals(events) == expected_finals(clip())


@pytest.mark.parametrize("n_before", [1, 2, 3, 40])
async def test_what_the_connection_before_still_brings_is_not_heard_twice(engine: KnownEngine, n_before: int) -> None:
    app = application(engine)
    async with connected(app) as before, connected(app) as again:
        await before.send(START)
        ready = await before.until("ready")
        await again.send({"type": "resume", "stream_id": ready["stream_id"], "last_seq": 1})
        late = asyncio.create_task(before.send_audio(clip()))
        while before.n_sent_bytes < n_before * 19_200 and not again.has_news:
            await asyncio.sleep(0)
        ready = await again.until("ready")
        sender = asyncio.create_task(send_rest(again, clip(), ready["received_bytes"]))
        events = await again.rest()
        await sender
        late.cancel()
    assert finals(events) == expected_finals(clip())
    assert events[-1]["duration_s"] == 22.0


# A service that is busy, breaks, or goes away


async def test_more_streams_than_there_may_be_are_answered_overloaded(engine: KnownEngine) -> None:
    app = application(engine, live=LiveSettings(max_streams=1))
    async with connected(app) as wire, connected(app) as other, connected(app) as third:
        await wire.send(START)
        await wire.until("ready")
        await other.send(START)
        assert (await other.rest())[0]["code"] == "overloaded"
        assert other.close_code == 1013
        await wire.send({"type": "end"})
        await wire.rest()
        await third.send(START)
        await third.until("ready")


async def test_no_stage_no_stream(engine: KnownEngine) -> None:
    engine.start_errors = [Overloaded("no replica")]
    async with connected(application(engine)) as wire:
        await wire.send(START)
        assert (await wire.rest())[0]["code"] == "overloaded"
    assert wire.close_code == 1013


async def test_a_busy_stage_costs_partials_and_no_final(engine: KnownEngine) -> None:
    engine.errors = [Overloaded("busy"), Overloaded("busy")]
    engine.hypothesis_error = Overloaded("busy")
    async with connected(application(engine)) as wire:
        events = await whole(wire, clip())
    assert finals(events) == expected_finals(clip())


@pytest.mark.parametrize("error", [InternalError("division by zero"), ZeroDivisionError("division by zero")])
async def test_a_bug_of_ours_is_not_explained_to_strangers(engine: KnownEngine, error: Exception) -> None:
    engine.errors = [error]
    async with connected(application(engine)) as wire:
        events = await whole(wire, clip())
    assert events[-1]["code"] == "internal_error"
    assert "zero" not in json.dumps(events)
    assert wire.close_code == 1011


async def test_a_replica_that_goes_away_says_so_and_ends_its_streams_properly(engine: KnownEngine) -> None:
    goes_away = False

    async def is_draining(server: tuple[str, int]) -> bool:
        assert server == ("127.0.0.1", 1)
        return goes_away

    app = application(engine, live=LiveSettings(draining_s=0.05), is_draining=is_draining)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deployments.api.stream.DRAIN_POLL_S", 0.01)
        async with connected(app) as wire:
            await wire.send(START)
            await wire.send_audio(clip()[: 8 * BYTES_PER_S])
            await wire.until("partial")
            goes_away = True
            assert (await wire.until("warning"))["code"] == "draining"
            events = await wire.rest()
    assert len(finals(events)) == 1
    assert events[-1]["type"] == "done"
    assert wire.close_code == 1012


class Tally:
    """Counts."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self.open: list[int] = []
        self.delays: dict[str, list[float]] = {}
        self.audio_s = 0.0
        self.finals = 0

    def done(self, path: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.ended.append((path, code))

    def streams(self, n_streams: int) -> None:
        self.open.append(n_streams)

    def _delay(self, name: str, seconds: float) -> None:
        self.delays.setdefault(name, []).append(seconds)

    def stream_lag(self, seconds: float) -> None:
        self._delay("lag", seconds)

    def first_partial(self, seconds: float) -> None:
        self._delay("first_partial", seconds)

    def final_delay(self, seconds: float) -> None:
        self._delay("final", seconds)

    def sound_delay(self, seconds: float) -> None:
        self._delay("sound", seconds)

    def audio(self, seconds: float) -> None:
        self.audio_s += seconds

    def heard(self, event: LiveEvent) -> None:
        self.finals += isinstance(event, Final)


async def test_streams_are_counted_and_their_delays_measured(engine: KnownEngine) -> None:
    tally = Tally()
    app = application(engine, meter=tally, live_meter=tally)
    async with connected(app) as wire:
        await whole(wire, clip())
    async with connected(app) as wire:
        await wire.send(START)
        await wire.send("no json")
        await wire.rest()
    await until(lambda: len(tally.ended) == 2)
    assert tally.ended == [("/v1/stream", "ok"), ("/v1/stream", "invalid_request")]
    assert tally.open == [0, 1, 0, 1, 0]
    assert len(tally.delays["first_partial"]) == tally.finals, "of each phrase"
    assert len(tally.delays["final"]) == tally.finals == len(expected_finals(clip()))
    assert tally.audio_s == pytest.approx(len(clip()) / BYTES_PER_S, abs=0.1)
    assert all(0 <= delay < 20 for delays in tally.delays.values() for delay in delays)
