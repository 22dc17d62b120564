"""The picture of the README shows what was found, where it was found, and nothing runs over anything else."""

from __future__ import annotations

import wave
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from docs import picture
from soundstage.types import Analysis, AudioBlock, Levels, Segment, SoundEvent

SVG = "{http://www.w3.org/2000/svg}"
COMMITTED = Path(picture.__file__).with_name("sample.svg")

ANALYSIS = Analysis(
    request_id="",
    duration_s=20.0,
    segments=(Segment(start_s=6.0, end_s=9.0, text="Less <than> nothing & more, he said, again and again and again."),),
    events=(
        SoundEvent(label="door_knock", score=0.97, start_s=1.0, end_s=4.0),
        SoundEvent(label="dog", score=0.88, start_s=3.9, end_s=4.2),
        SoundEvent(label="siren", score=0.99, start_s=17.0, end_s=20.0),
    ),
    levels=Levels(
        integrated_lufs=-23.04,
        loudness_range_lu=None,
        true_peak_dbtp=-1.26,
        sample_peak_dbfs=-1.5,
        n_clipped_samples=0,
        silence=(),
        n_channels=1,
        sample_rate=8000,
    ),
)


@pytest.fixture(scope="module")
def svg(tmp_path_factory: pytest.TempPathFactory) -> ET.Element:
    folder = tmp_path_factory.mktemp("picture")
    analysis, audio, target = folder / "a.json", folder / "take.wav", folder / "a.svg"
    analysis.write_bytes(TypeAdapter(Analysis).dump_json(ANALYSIS))
    with wave.open(str(audio), "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(8000)
        wav.writeframes(np.zeros(8000 * 20, "<i2").tobytes())
    picture.main([str(analysis), str(audio), str(target)])
    return ET.fromstring(target.read_text(encoding="utf-8"))


def x_at(time_s: float) -> float:
    return picture.LEFT + (picture.RIGHT - picture.LEFT) * time_s / ANALYSIS.duration_s


def boxes(svg: ET.Element, **style: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom."""
    found = []
    for rect in svg.iter(f"{SVG}rect"):
        if all(rect.get(key) == value for key, value in style.items()):
            x, y, width, height = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
            found.append((x, y, x + width, y + height))
    return found


def test_all_that_was_found_can_be_read(svg: ET.Element) -> None:
    written = " ".join("".join(text.itertext()) for text in svg.iter(f"{SVG}text"))
    for words in ("door knock 0.97", "dog 0.88", "siren 0.99", "[knocking on door]", "[siren wailing]", "Less <than>"):
        assert words in written
    for words in ("take.wav", "20.0 s · 8 kHz · mono", "\N{MINUS SIGN}23.0 LUFS", "none", "\N{MINUS SIGN}1.3 dBTP"):
        assert words in written


def test_sounds_lie_at_their_times(svg: ET.Element) -> None:
    colour = picture.colours(ANALYSIS.events)
    assert len(set(colour.values())) == 4, "three kinds of sound, and speech"
    for event in ANALYSIS.events:
        left, _, right, _ = boxes(svg, fill=colour[event.label], opacity="0.35")[0]
        assert (left, right) == pytest.approx((x_at(event.start_s), x_at(event.end_s)), abs=0.2)


def test_caption_boxes_stay_apart_and_in_the_picture(svg: ET.Element) -> None:
    captions = boxes(svg, fill="#05070a")
    assert len(captions) >= 3
    assert all(left >= picture.LEFT and right <= picture.RIGHT + 0.2 for left, _, right, _ in captions)
    assert max(bottom for *_, bottom in captions) < float(svg.attrib["height"])
    for i, (left, top, right, _) in enumerate(captions):
        for other_left, other_top, other_right, _ in captions[:i]:
            assert top != other_top or right <= other_left or other_right <= left


def test_nothing_shares_a_row_with_what_it_would_touch() -> None:
    assert picture.rows([(0, 10), (5, 8), (9, 12), (20, 30)], 1) == [0, 1, 1, 0]


def test_a_label_stands_in_its_bar_or_beside_it_but_in_the_picture() -> None:
    assert picture.label_left((200, 300), 90) == 200
    assert picture.label_left((200, 250), 90) == 250
    assert picture.label_left((picture.RIGHT - 50, picture.RIGHT), 90) == picture.RIGHT - 140


def test_long_texts_are_cut_at_a_word_and_say_so() -> None:
    lines = picture.wrapped("one two three four five six seven", 90, 13, 2)
    assert len(lines) == 2
    assert lines[-1].endswith("…")
    assert "one two three four five six seven".startswith(" ".join(lines)[:-1])
    assert all(picture.text_width(line, 13) <= 90 for line in lines)
    assert picture.wrapped("short", 90, 13, 2) == ["short"]
    assert picture.wrapped("impossible", 5, 13, 2) == []


def test_the_envelope_is_the_least_and_greatest_sample_of_any_channel() -> None:
    samples = np.zeros((100, 2), np.float32)
    samples[25, 1], samples[74, 0] = 0.5, -0.75
    blocks = [AudioBlock(samples=part, sample_rate=8000) for part in np.split(samples, 4)]
    drawn = picture.envelope(blocks, 10)
    assert drawn.high.tolist() == [0, 0, 0.5, 0, 0, 0, 0, 0, 0, 0]
    assert drawn.low.tolist() == [0, 0, 0, 0, 0, 0, 0, -0.75, 0, 0]


def test_the_committed_picture_loads_nothing_and_stays_small() -> None:
    text = COMMITTED.read_text(encoding="utf-8")
    assert len(text.encode()) <= 60_000
    assert {element.tag.removeprefix(SVG) for element in ET.fromstring(text).iter()} <= {
        "svg", "title", "desc", "g", "rect", "line", "polygon", "text", "tspan",
    }  # fmt: skip
    assert "href" not in text
    assert "url(" not in text
