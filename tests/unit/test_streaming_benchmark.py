"""How delays of live streams are measured: against what was put into the audio, not against what was heard in it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.streaming import Programme, Stretch, Told, summary, trimmed
from soundstage.types import SAMPLE_RATE, JsonObject

SAID = (Stretch("Is anybody home?", 2.0, 4.0), Stretch("Nobody.", 6.0, 7.0))
HEARD = (Stretch("dog", 9.0, 11.0), Stretch("rain", 13.0, 15.0))
PROGRAMME = Programme(np.zeros(20 * SAMPLE_RATE, np.float32), SAID, HEARD)


def final(came_s: float, start_s: float, end_s: float, text: str) -> tuple[float, JsonObject]:
    return came_s, {"type": "final", "start_s": start_s, "end_s": end_s, "text": text}


def partial(came_s: float, start_s: float) -> tuple[float, JsonObject]:
    return came_s, {"type": "partial", "start_s": start_s, "end_s": start_s + 0.5}


def sound(came_s: float, number: int, state: str, label: str, start_s: float) -> tuple[float, JsonObject]:
    return came_s, {"type": "sound", "sound": number, "state": state, "label": label, "start_s": start_s}


TOLD = Told(
    events=[
        partial(2.6, 1.9),
        partial(3.1, 1.9),
        final(4.5, 1.9, 4.1, "Is anybody home"),
        final(7.9, 5.9, 7.1, "Somebody."),
        sound(9.4, 0, "started", "cat", 9.1),
        sound(9.9, 1, "started", "dog", 9.1),
        sound(10.3, 0, "withdrawn", "cat", 9.1),
        sound(13.2, 2, "started", "rain", 12.9),
        sound(13.6, 2, "withdrawn", "rain", 12.9),
        sound(14.5, 3, "started", "rain", 13.0),
        (20.0, {"type": "levels", "start_s": 18.0, "end_s": 19.0}),
    ]
)


def test_delays_count_from_what_is_in_the_audio() -> None:
    assert TOLD.first_partials_s(SAID) == [pytest.approx(0.6), pytest.approx(1.9)], "a final is a text too"
    assert TOLD.finals_s(SAID) == [pytest.approx(0.5), pytest.approx(0.9)]
    assert TOLD.sounds_s(HEARD) == [pytest.approx(0.9), pytest.approx(1.5)], "what was taken back was not told"
    assert TOLD.lags_s == [pytest.approx(0.4), pytest.approx(0.8), pytest.approx(1.0)]


def test_a_sentence_whose_end_was_not_told_is_counted_as_such() -> None:
    cut = Told(events=[final(3.0, 1.9, 2.4, "Is")])
    assert cut.finals_s(SAID) == []
    figures, detail = summary([PROGRAMME], [cut], wer_offline=0.0, memory_mb=[], n_bulk=0, load=[])
    assert detail["n_sentences_without_final"] == 2
    assert detail["n_sentences_without_partial"] == 1
    assert detail["n_sounds_not_recognised"] == 2
    assert figures["final_p95_ms"] is None


def test_all_streams_count_together() -> None:
    figures, _ = summary([PROGRAMME] * 2, [TOLD] * 2, wer_offline=0.25, memory_mb=[100, 104, 110], n_bulk=0, load=[1.0])
    assert figures["n_streams"] == 2
    assert figures["wer_live"] == pytest.approx(1 / 4)
    assert figures["max_lag_s"] == 1.0
    assert figures["memory_per_stream_mb"] == 5.0
    assert 850 <= figures["final_p95_ms"] <= 900


def test_clips_begin_and_end_where_they_are_loud() -> None:
    clip = np.zeros(2 * SAMPLE_RATE, np.float32)
    clip[SAMPLE_RATE // 2 : SAMPLE_RATE] = np.random.default_rng(0).uniform(-0.5, 0.5, SAMPLE_RATE // 2)
    kept = trimmed(clip, 30.0)
    assert len(kept) == pytest.approx(SAMPLE_RATE // 2, abs=600)
    assert abs(kept[0]) < 1e-6
    assert abs(kept[-1]) < 1e-6
