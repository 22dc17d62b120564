"""Where somebody speaks, from probabilities and from real recordings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundstage.audio.resample import decode_mono
from soundstage.audio.voice_activity import FRAME_LENGTH, SpeechTracker, VoiceActivity, n_frames_in, speech_spans
from soundstage.params import Limits, VoiceActivityParams

PARAMS = VoiceActivityParams(min_speech_s=0.256, min_silence_s=0.64, padding_s=0.192, min_peak=0.5)
"""8, 20 and 6 frames."""


def spans(*runs: tuple[float, int], goes_on: bool = False, in_speech: bool = False) -> list[tuple[int, int]]:
    probs = np.concatenate([np.full(n_frames, prob, np.float32) for prob, n_frames in runs])
    return speech_spans(probs, SpeechTracker(PARAMS, in_speech=in_speech), goes_on=goes_on)


def test_speech_is_padded_on_both_sides() -> None:
    assert spans((0, 50), (0.9, 30), (0, 50)) == [(44, 86)]


def test_padding_stays_within_the_audio() -> None:
    assert spans((0, 2), (0.9, 30), (0, 2)) == [(0, 34)]


def test_a_short_pause_stays_inside_and_a_long_one_parts() -> None:
    assert spans((0.9, 30), (0, 19), (0.9, 30)) == [(0, 79)]
    assert spans((0.9, 30), (0, 20), (0.9, 30)) == [(0, 36), (44, 80)]


def test_hysteresis_speech_begins_high_and_goes_on_lower() -> None:
    assert spans((0.4, 50)) == []
    assert spans((0.6, 10), (0.4, 50), (0, 30)) == [(0, 66)]


def test_a_click_is_no_speech_unless_it_is_part_of_more() -> None:
    assert spans((0, 30), (0.9, 7), (0, 30)) == []
    assert spans((0, 30), (0.9, 7)) == []
    assert spans((0, 30), (0.9, 7), goes_on=True) == [(24, 37)]
    assert spans((0.9, 7), (0, 30), in_speech=True) == [(0, 13)]


def test_what_only_resembles_a_voice_is_no_speech() -> None:
    sure = PARAMS.model_copy(update={"min_peak": 0.97})
    probs = np.array([0.9] * 30 + [0.0] * 30 + [0.9] * 15 + [0.98] + [0.9] * 15 + [0.0] * 30, np.float32)
    assert speech_spans(probs, SpeechTracker(sure)) == [(54, 97)]
    begun = speech_spans(probs, SpeechTracker(sure, in_speech=True))
    assert begun == [(0, 36), (54, 97)]


@given(st.lists(st.floats(0, 1, width=32), max_size=300), st.booleans(), st.booleans())
def test_spans_are_in_order_apart_and_hold_all_certain_speech(
    probs: list[float], in_speech: bool, goes_on: bool
) -> None:
    params = PARAMS.model_copy(update={"min_speech_s": 0.0, "min_peak": 0.0})
    found = speech_spans(np.array(probs, np.float32), SpeechTracker(params, in_speech=in_speech), goes_on=goes_on)
    edges = [edge for span in found for edge in span]
    assert edges == sorted(edges)
    assert all(0 <= first < last <= len(probs) for first, last in found)
    for i, prob in enumerate(probs):
        if prob >= params.threshold:
            assert any(first <= i < last for first, last in found)


def test_pieces_of_any_size_give_the_same_probabilities() -> None:
    samples = (np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32)
    whole_activity = VoiceActivity()
    whole = np.concatenate([whole_activity.push(samples), whole_activity.finish()])
    assert len(whole) == -(-len(samples) // FRAME_LENGTH)
    for n_piece in (17, 509, 44_100):
        activity = VoiceActivity()
        parts = [activity.push(samples[i : i + n_piece]) for i in range(0, len(samples), n_piece)]
        assert np.array_equal(np.concatenate([*parts, activity.finish()]), whole)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="SKIPPED, NOT PROVEN: threads are counted on Linux")
def test_listening_takes_one_thread() -> None:
    code = """
import os, numpy as np
before = len(os.listdir("/proc/self/task"))
from soundstage.audio.voice_activity import VoiceActivity
VoiceActivity().push(np.zeros(16000, np.float32))
assert len(os.listdir("/proc/self/task")) == before, "the detector started threads"
assert "OMP_THREAD_LIMIT" not in os.environ
"""
    env = {"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.shared_data
def test_speech_is_told_from_other_sounds(shared_data: Path) -> None:
    def speech_ratio(path: Path) -> float:
        samples = decode_mono(path, Limits()).samples
        found = speech_spans(VoiceActivity().push(samples), SpeechTracker(VoiceActivityParams()))
        return sum(last - first for first, last in found) * FRAME_LENGTH / len(samples)

    sentences = sorted((shared_data / "ljspeech/audio").glob("*.flac"))[:10]
    assert min(speech_ratio(path) for path in sentences) > 0.8
    rows = (shared_data / "esc50/meta.csv").read_text().splitlines()
    rain = [row.split(",")[0] for row in rows if ",rain," in row][:10]
    assert len(rain) == 10
    assert np.mean([speech_ratio(shared_data / "esc50/audio" / name) for name in rain]) < 0.1


def test_durations_are_rounded_up_to_frames() -> None:
    assert [n_frames_in(duration_s) for duration_s in (0.0, 0.01, 0.032, 0.25)] == [0, 1, 1, 8]
