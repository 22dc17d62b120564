"""A scene as a deaf viewer reads it, word for word and frame for frame. Changed only on purpose, after reading it."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from soundstage.captions.formats import CaptionOptions, render, sdh_captions
from soundstage.types import Analysis, Segment, SoundEvent

HERE = Path(__file__).parent


def said(start_s: float, end_s: float, text: str) -> Segment:
    return Segment(start_s=start_s, end_s=end_s, text=text)


def heard(label: str, start_s: float, end_s: float, score: float) -> SoundEvent:
    return SoundEvent(label=label, score=score, start_s=start_s, end_s=end_s)


SCENE = Analysis(
    request_id="scene",
    duration_s=125.0,
    segments=(
        said(2.0, 4.3, "I left the keys on the kitchen table."),
        said(8.6, 9.0, "Rex!"),
        said(9.7, 10.5, "Quiet, boy."),
        said(
            14.0,
            21.6,
            "Somebody must have moved them while we were out in the garden, and nobody thought to tell me about it.",
        ),
        said(22.4, 23.2, "What was that?"),
        said(24.5, 27.4, "It came from the kitchen. Stay here, and don't move."),
        said(36.0, 39.5, "It has been raining like this since Dr. Moreau left."),
        said(
            58.0, 64.8, "They say that the river will be over its banks by the morning, and that the bridge won't hold."
        ),
        said(66.0, 67.1, "You should've told me that before we ever set foot in this house."),
        said(95.0, 98.2, "Listen. Do you hear it, too?"),
        said(112.0, 115.4, "It's the piano. Nobody's played it in thirty years."),
    ),
    events=(
        heard("speech", 2.0, 4.3, 0.99),
        heard("silence", 0.0, 2.0, 0.98),
        heard("dog", 5.2, 5.7, 0.93),  # barks in a pause
        heard("dog", 6.1, 6.6, 0.88),
        heard("dog", 7.4, 7.9, 0.90),
        heard("mouse_click", 11.5, 11.6, 0.55),  # faint
        heard("glass_breaking", 19.6, 20.8, 0.87),  # under speech
        heard("footsteps", 28.2, 32.0, 0.74),
        heard("rain", 33.0, 61.0, 0.82),  # a minute of it, with a hole
        heard("thunderstorm", 44.0, 48.0, 0.91),
        heard("rain", 64.0, 93.0, 0.79),
        heard("breathing", 70.0, 72.0, 0.6),  # faint
        heard("door_knock", 96.5, 97.4, 0.81),
        heard("music", 104.0, 124.0, 0.85),
        heard("clock_alarm", 113.5, 114.0, 0.52),  # not certain under speech
        heard("distant_gunshot", 120.0, 120.4, 0.7),  # a label of a user's own model
    ),
)


@pytest.mark.parametrize("name", ["scene.srt", "scene.vtt", "scene.sdh.srt", "scene.sdh.vtt"])
def test_the_scene_reads_as_it_was_approved(name: str) -> None:
    response_format = {"srt": "srt", "vtt": "vtt", "sdh.srt": "sdh_srt", "sdh.vtt": "sdh_vtt"}[name.partition(".")[2]]
    approved = (HERE / name).read_text(encoding="utf-8")
    assert render(SCENE, response_format, CaptionOptions()) == approved


@pytest.mark.parametrize(("name", "demuxer"), [("scene.sdh.srt", "srt"), ("scene.sdh.vtt", "webvtt")])
def test_ffmpeg_reads_the_scene_as_players_do(name: str, demuxer: str) -> None:
    with av.open(str(HERE / name), format=demuxer) as container:
        cues = [(float((p.pts or 0) * p.time_base), bytes(p).decode()) for p in container.demux() if p.size]
    expected = sdh_captions(SCENE, CaptionOptions())
    assert [text for _, text in cues] == ["\n".join(caption.lines) for caption in expected]
    assert [start_s for start_s, _ in cues] == pytest.approx([caption.start_s for caption in expected], abs=0.0006)
