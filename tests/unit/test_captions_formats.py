"""Every file is read back by a reader that we did not write."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from dataclasses import replace

import opentimelineio as otio
import pytest
import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from timecode.timecode import Timecode

from soundstage.captions.formats import FORMATS, CaptionOptions, captions, render, sdh_captions
from soundstage.captions.sdh import NEVER_SHOWN
from soundstage.captions.timecode import FRAME_RATES, Timebase
from soundstage.errors import InvalidRequest
from soundstage.types import Analysis, Segment, SoundEvent

ANALYSIS = Analysis(
    request_id="r",
    duration_s=30.0,
    segments=(
        Segment(start_s=1.0, end_s=3.0, text="Is <i>that</i> R&D --> or not?"),
        Segment(start_s=10.0, end_s=13.5, text='Say "when", then {\\an8} stop \\N here | now.'),
    ),
    events=(
        SoundEvent(label="dog", score=0.91, start_s=5.0, end_s=6.25),
        SoundEvent(label="glass_breaking", score=0.8, start_s=10.0, end_s=10.5),
    ),
)
EMPTY = Analysis(request_id="r", duration_s=0.0)
OPTIONS = CaptionOptions()
nasty = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("<>&{}\\-\n\t|=+\"',;nNh"), max_size=80
)


def plain(text: str) -> str:
    return text.replace("\u2060", "")


@pytest.mark.parametrize("name", ["srt", "sdh_srt"])
def test_srt_is_read_back(name: str) -> None:
    text = render(ANALYSIS, name, OPTIONS)
    expected = (captions if name == "srt" else sdh_captions)(ANALYSIS, OPTIONS)
    cues = list(srt.parse(text, ignore_errors=False))
    assert [plain(cue.content) for cue in cues] == ["\n".join(caption.lines) for caption in expected]
    for cue, caption in zip(cues, expected, strict=True):
        assert cue.start.total_seconds() == pytest.approx(caption.start_s, abs=0.0006)
        assert cue.end.total_seconds() == pytest.approx(caption.end_s, abs=0.0006)
    assert [cue.index for cue in cues] == list(range(1, len(cues) + 1))
    assert "\r" not in text


@pytest.mark.parametrize("name", ["vtt", "sdh_vtt"])
def test_webvtt_is_read_back(name: str) -> None:
    text = render(ANALYSIS, name, OPTIONS)
    expected = (captions if name == "vtt" else sdh_captions)(ANALYSIS, OPTIONS)
    cues = webvtt.from_string(text).captions
    assert len(cues) == len(expected)
    for cue, caption in zip(cues, expected, strict=True):
        # webvtt-py takes tags out and leaves entities: what is left, unescaped, is what a player draws.
        assert plain(html.unescape(cue.text)) == "\n".join(caption.lines)
        start, end = (webvtt.models.Timestamp.from_string(time) for time in (cue.start, cue.end))
        assert start.in_milliseconds() == round(1000 * caption.start_s)
        assert end.in_milliseconds() == round(1000 * caption.end_s)
    assert "&lt;i&gt;that&lt;/i&gt; R&amp;D --&gt; or" in text
    assert text.startswith("WEBVTT\n\n")
    assert "\r" not in text


@settings(deadline=None)
@given(st.lists(nasty.filter(str.strip), min_size=1, max_size=4))
def test_no_text_can_break_a_caption_file(texts: list[str]) -> None:
    segments = tuple(Segment(start_s=9.0 * i, end_s=9.0 * i + 5, text=text) for i, text in enumerate(texts))
    analysis = Analysis(request_id="r", duration_s=60, segments=segments)
    expected = captions(analysis, OPTIONS)
    blocks = [block.split("\n") for block in render(analysis, "srt", OPTIONS).rstrip("\n").split("\n\n")]
    assert len(blocks) == len(expected)
    for block, caption in zip(blocks, expected, strict=True):
        assert [plain(line) for line in block[2:]] == [plain(line) for line in caption.lines]
        assert not any("-->" in line or re.search(r"<[a-zA-Z/]", line) for line in block[2:])
    vtt = render(analysis, "vtt", OPTIONS)
    assert vtt.count("-->") == len(expected)
    assert "<" not in vtt


@settings(deadline=None)
@given(nasty.filter(lambda label: label not in NEVER_SHOWN), nasty.filter(str.strip))
def test_no_text_can_break_a_cue_list(label: str, text: str) -> None:
    analysis = Analysis(
        request_id="r",
        duration_s=60,
        segments=(Segment(start_s=1, end_s=2, text=text),),
        events=(SoundEvent(label=label, score=1, start_s=3, end_s=4),),
    )
    options = CaptionOptions(title=label)
    rows = list(csv.reader(io.StringIO(render(analysis, "csv", options), newline="")))
    assert [len(row) for row in rows] == [7, 7, 7]
    assert not any(row[5].startswith(("=", "+", "-", "@")) for row in rows)
    assert all(line.count("\t") == 2 for line in render(analysis, "audacity", options).split("\n")[:-1])
    assert otio.adapters.read_from_string(render(analysis, "otio", options), "otio_json").find_clips()
    assert len(re.findall(r"^\d{3}  ", render(analysis, "edl", options), re.MULTILINE)) == 2


def test_audacity_labels_are_tab_separated_seconds() -> None:
    rows = [line.split("\t") for line in render(ANALYSIS, "audacity", OPTIONS).splitlines()]
    assert [(float(start), float(end)) for start, end, _ in rows] == [(1, 3), (5, 6.25), (10, 10.5), (10, 13.5)]
    assert [text for _, _, text in rows][1:3] == ["[dog barking]", "[glass shatters]"]


def test_csv_carries_seconds_and_timecode() -> None:
    text = render(ANALYSIS, "csv", CaptionOptions(start_timecode="10:00:00:00", frame_rate=25))
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["type"] for row in rows] == ["speech", "sound", "sound", "speech"]
    assert rows[1] == {
        "type": "sound",
        "start_s": "5.000",
        "end_s": "6.250",
        "start_timecode": "10:00:05:00",
        "end_timecode": "10:00:06:06",
        "label_or_text": "dog",
        "score": "0.910",
    }
    assert rows[3]["label_or_text"] == ANALYSIS.segments[1].text


def test_csv_runs_no_formula() -> None:
    segment = Segment(start_s=0, end_s=1, text='=HYPERLINK("http://example.com")')
    rows = list(csv.DictReader(io.StringIO(render(replace(ANALYSIS, segments=(segment,)), "csv", OPTIONS), newline="")))
    assert rows[0]["label_or_text"] == '\'=HYPERLINK("http://example.com")'


def test_otio_is_a_clip_with_a_marker_for_each_cue() -> None:
    options = CaptionOptions(start_timecode="01:00:00:00", frame_rate=24, title="scene 7")
    timeline = otio.adapters.read_from_string(render(ANALYSIS, "otio", options), "otio_json")
    (clip,) = timeline.find_clips()
    assert clip.name == "scene 7"
    assert otio.opentime.to_timecode(timeline.global_start_time) == "01:00:00:00"
    assert otio.opentime.to_timecode(clip.source_range.start_time) == "01:00:00:00"
    assert clip.duration() == otio.opentime.RationalTime(720, 24)
    assert [otio.opentime.to_timecode(marker.marked_range.start_time) for marker in clip.markers] == [
        "01:00:01:00",
        "01:00:05:00",
        "01:00:10:00",
        "01:00:10:00",
    ]
    dog = clip.markers[1]
    assert dog.name == "[dog barking]"
    assert dog.marked_range.duration == otio.opentime.RationalTime(30, 24)
    assert dict(dog.metadata["soundstage"]) == {"type": "sound", "label": "dog", "score": 0.91}


def test_edl_is_read_by_opentimelineio() -> None:
    options = CaptionOptions(start_timecode="01:00:00:00", frame_rate=25)
    timeline = otio.adapters.read_from_string(render(ANALYSIS, "edl", options), "cmx_3600", rate=25)
    markers = [marker for clip in timeline.find_clips() for marker in clip.markers]
    assert [otio.opentime.to_timecode(marker.marked_range.start_time, 25) for marker in markers] == [
        "01:00:01:00",
        "01:00:05:00",
        "01:00:10:00",
        "01:00:10:01",  # on the same frame; readers refuse events that overlap
    ]
    assert [marker.name for marker in markers][1:3] == ["[dog barking]", "[glass shatters]"]


def test_edl_markers_are_those_of_davinci_resolve() -> None:
    text = render(ANALYSIS, "edl", CaptionOptions(start_timecode="01:00:00;00", frame_rate=29.97))
    assert "FCM: DROP FRAME\n" in text
    assert (
        "002  001      V     C        01:00:05;00 01:00:05;01 01:00:05;00 01:00:05;01\n"
        " |C:ResolveColorYellow |M:[dog barking] |D:37\n"
    ) in text
    assert "stop \\N here / now. |D:" in text


def test_captions_start_at_the_programmes_zero_whatever_the_timecode() -> None:
    shifted = CaptionOptions(start_timecode="10:00:00:00", frame_rate=25)
    for name in ("srt", "vtt", "sdh_srt", "sdh_vtt", "audacity"):
        assert render(ANALYSIS, name, shifted) == render(ANALYSIS, name, OPTIONS)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_heard_gives_a_valid_empty_file(name: str) -> None:
    text = render(EMPTY, name, OPTIONS)
    if name.endswith("srt"):
        assert list(srt.parse(text)) == []
    elif name.endswith("vtt"):
        assert text == "WEBVTT\n\n"
        assert webvtt.from_string(text).captions == []
    elif name == "csv":
        assert len(list(csv.reader(io.StringIO(text, newline="")))) == 1
    elif name == "otio":
        assert [list(clip.markers) for clip in otio.adapters.read_from_string(text, "otio_json").find_clips()] == [[]]
    elif name == "edl":
        assert text == "TITLE: Soundstage\nFCM: NON-DROP FRAME\n"
    else:
        assert text == ""


def test_formats_say_how_they_are_served() -> None:
    assert {name: item.suffix for name, item in FORMATS.items()} == {
        "srt": ".srt",
        "vtt": ".vtt",
        "sdh_srt": ".sdh.srt",
        "sdh_vtt": ".sdh.vtt",
        "otio": ".otio",
        "edl": ".edl",
        "audacity": ".labels.txt",
        "csv": ".csv",
    }
    assert all(name == item.name and "/" in item.media_type for name, item in FORMATS.items())
    assert json.loads(render(ANALYSIS, "otio", OPTIONS))["OTIO_SCHEMA"] == "Timeline.1"


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="'docx' is not one of srt, vtt"):
        render(ANALYSIS, "docx", OPTIONS)


@pytest.mark.parametrize(
    ("start_timecode", "frame_rate", "message"),
    [
        ("1:00:00:00", 25, "HH:MM:SS:FF"),
        ("01:00:00.5", 25, "HH:MM:SS:FF"),
        ("01:00:00:25", 25, "does not exist at 25"),
        ("01:60:00:00", 25, "does not exist"),
        ("24:00:00:00", 24, "does not exist"),
        ("00:01:00;00", 29.97, "does not exist at 29.97"),  # one of the labels that are dropped
        ("01:00:00;00", 25, "drop-frame, which 25"),
        ("01:00:00;00", 30, "drop-frame, which 30"),
        ("01:00:00:00", 26, "frame_rate 26 is not one of 23.976, 24"),
        ("01:00:00:00", float("nan"), "frame_rate nan"),
    ],
)
def test_wrong_timecode_is_refused_with_what_to_do(start_timecode: str, frame_rate: float, message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        CaptionOptions(start_timecode=start_timecode, frame_rate=frame_rate)


@pytest.mark.parametrize("frame_rate", [23.98, 24000 / 1001, 29.97, 30000 / 1001, 59.94])
def test_rates_go_by_several_names(frame_rate: float) -> None:
    assert abs(float(Timebase.of("01:00:00:00", frame_rate).rate) - frame_rate) < 0.005


@pytest.mark.parametrize(
    ("name", "separator"), [*((name, ":") for name in FRAME_RATES), ("29.97", ";"), ("59.94", ";")]
)
def test_timecode_agrees_with_an_independent_implementation(name: str, separator: str) -> None:
    timebase = Timebase.of(f"00:00:00{separator}00", float(name))
    nominal = round(FRAME_RATES[name])
    day = 24 * 3600 * nominal
    for frame in [
        *range(0, 20 * nominal * 60, 97),
        17981,
        17982,
        17983,
        107_892,
        1_799,
        1_800,
        3_599,
        3_600,
        day - 9000,
    ]:
        theirs = Timecode(
            name if separator == ";" else str(nominal), frames=frame + 1, force_non_drop_frame=separator == ":"
        )
        assert timebase.timecode(frame) == str(theirs), frame


@settings(deadline=None)
@given(
    st.sampled_from(list(FRAME_RATES)), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 23)
)
def test_a_programme_starts_at_its_start_timecode(name: str, h: int, m: int, s: int, f: int) -> None:
    start = f"{h:02}:{m:02}:{s:02}:{f:02}"
    timebase = Timebase.of(start, float(name))
    assert timebase.timecode(timebase.frame(0.0)) == start


def test_timecode_starts_anew_at_midnight() -> None:
    timebase = Timebase.of("23:59:59:29", 29.97)
    assert timebase.timecode(timebase.start_frame + 1) == "00:00:00:00"


def test_drop_frame_keeps_up_with_the_clock() -> None:
    timebase = Timebase.of("00:00:00;00", 29.97)
    assert timebase.timecode(timebase.frame(3600.0)) == "01:00:00;00"
    assert Timebase.of("00:00:00:00", 29.97).timecode(timebase.frame(3600.0)) == "00:59:56:12"
