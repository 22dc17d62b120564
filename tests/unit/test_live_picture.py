"""The picture of a terminal shows what the command itself draws, each run of letters in its columns."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from docs import live_picture

SVG = "{http://www.w3.org/2000/svg}"
COMMITTED = Path(live_picture.__file__).with_name("live.svg")

LEVELS = {"type": "levels", "momentary_lufs": -20.0, "short_term_lufs": -20.0, "sample_peak_dbfs": -30.0}
EVENTS: list[dict[str, Any]] = [
    {"type": "sound", "sound": 0, "state": "started", "label": "car_horn", "score": 1, "start_s": 0.5, "end_s": None},
    {"type": "caption", "start_s": 0.5, "end_s": 2.0, "lines": ["[car horn honks]"], "is_sound": True},
    {"type": "final", "utterance": 0, "start_s": 3.0, "end_s": 9.0, "text": "word " * 30 + "end <&>."},
    {"type": "partial", "utterance": 1, "start_s": 10.0, "end_s": 11.0, "committed": "It was", "tentative": "the"},
    {**LEVELS, "start_s": 11.0, "end_s": 12.0},
    {"type": "final", "utterance": 1, "start_s": 10.0, "end_s": 11.0, "text": "Not yet."},
]


@pytest.fixture(scope="module")
def svg(tmp_path_factory: pytest.TempPathFactory) -> ET.Element:
    folder = tmp_path_factory.mktemp("picture")
    events, target = folder / "take.ndjson", folder / "take.svg"
    events.write_text("".join(f"{json.dumps(event)}\n" for event in EVENTS), encoding="utf-8")
    live_picture.main([str(events), "soundstage live take.wav", "12", str(target)])
    return ET.fromstring(target.read_text(encoding="utf-8"))


def test_what_was_told_until_then_can_be_read(svg: ET.Element) -> None:
    written = [text.text or "" for text in svg.iter(f"{SVG}text")]
    assert "$ soundstage live take.wav" in written
    for run in ("[car horn honks]", "It was", "the", "0:00:12", "-20.0 LUFS", "car horn"):
        assert run in written
    assert "end <&>." in " ".join(written)
    assert "Not yet." not in " ".join(written)


def test_each_run_of_letters_lies_in_its_columns(svg: ET.Element) -> None:
    width = float(svg.attrib["width"])
    ends: dict[str, float] = {}
    for text in svg.iter(f"{SVG}text"):
        left, length = float(text.attrib["x"]), float(text.attrib["textLength"])
        assert length == pytest.approx(live_picture.GLYPH * len(text.text or ""))
        assert ends.get(text.attrib["y"], 0) <= left + 0.01
        ends[text.attrib["y"]] = left + length
        assert left + length <= width - live_picture.PADDING + 0.01
    assert len(ends) == 6, "the command, a sound, two lines of what was said, what is being said, the meter"


def test_half_a_meter_is_half_drawn(svg: ET.Element) -> None:
    bars = [rect for rect in svg.iter(f"{SVG}rect") if rect.attrib["height"] == "4"]
    assert [float(bar.attrib["width"]) for bar in bars] == [pytest.approx(12 * live_picture.GLYPH)] * 2


def test_the_committed_picture_loads_nothing_and_stays_small() -> None:
    text = COMMITTED.read_text(encoding="utf-8")
    assert len(text.encode()) <= 20_000
    assert {element.tag.removeprefix(SVG) for element in ET.fromstring(text).iter()} <= {
        "svg", "title", "desc", "rect", "circle", "text",
    }  # fmt: skip
    assert "href" not in text
    assert "url(" not in text
