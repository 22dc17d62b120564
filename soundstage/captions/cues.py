"""Cue lists: every segment and every sound with its times, for editors, sound departments and spreadsheets.

Captions leave out what a reader does not need; cue lists hold all that was heard, but for the sound model's speech
and silence: the one stands there as text, the other is no cue. Sounds stand in brackets with the
words that a captioner would use, so that they are told from speech; CSV and OpenTimelineIO also hold the model's
own label and score. Where a format counts in timecode, the programme starts at `start_timecode`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import opentimelineio as otio

from soundstage.captions.sdh import NEVER_SHOWN, sound_line
from soundstage.captions.timecode import Timebase
from soundstage.types import Analysis, Segment, SoundEvent

_SPREADSHEET_TRIGGERS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")  # noqa: RUF001
"""A cell that begins so is run as a formula. Source: OWASP, CSV Injection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cue:
    kind: str
    start_s: float
    end_s: float
    name: str
    """For people."""
    label: str
    """What was said, or the model's label."""
    score: float | None


def _cues(analysis: Analysis) -> list[_Cue]:
    return sorted([*_speech(analysis.segments), *_sounds(analysis.events)], key=lambda cue: (cue.start_s, cue.end_s))


def _speech(segments: tuple[Segment, ...]) -> Iterator[_Cue]:
    for segment in segments:
        text = " ".join(segment.text.split())
        yield _Cue(kind="speech", start_s=segment.start_s, end_s=segment.end_s, name=text, label=text, score=None)


def _sounds(events: tuple[SoundEvent, ...]) -> Iterator[_Cue]:
    for event in events:
        if event.label not in NEVER_SHOWN:
            yield _Cue(
                kind="sound",
                start_s=event.start_s,
                end_s=event.end_s,
                name=sound_line(event.label, 80),
                label=" ".join(event.label.split()),
                score=event.score,
            )


def audacity(analysis: Analysis) -> str:
    """An Audacity label track: start, end and text, parted by tabs, in seconds.

    Source: Audacity manual, Importing and Exporting Labels.
    """
    return "".join(f"{cue.start_s:.6f}\t{cue.end_s:.6f}\t{cue.name}\n" for cue in _cues(analysis))


def cue_csv(analysis: Analysis, timebase: Timebase) -> str:
    """A table by RFC 4180, with seconds from the programme's start and timecode.

    Text that a spreadsheet would run as a formula is preceded by an apostrophe.
    """
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["type", "start_s", "end_s", "start_timecode", "end_timecode", "label_or_text", "score"])
    for cue in _cues(analysis):
        writer.writerow(
            [
                cue.kind,
                f"{cue.start_s:.3f}",
                f"{cue.end_s:.3f}",
                timebase.timecode(timebase.frame(cue.start_s)),
                timebase.timecode(timebase.frame(cue.end_s)),
                f"'{cue.label}" if cue.label.startswith(_SPREADSHEET_TRIGGERS) else cue.label,
                "" if cue.score is None else f"{cue.score:.3f}",
            ]
        )
    return file.getvalue()


def otio_json(analysis: Analysis, timebase: Timebase, title: str) -> str:
    """An OpenTimelineIO timeline: one clip as long as the programme, with a marker for each cue.

    Markers lie in the clip's own time, which starts at the start timecode. Their metadata, under "soundstage", hold
    type, label and score.
    """
    rate = float(timebase.rate)

    def span(start_frame: int, end_frame: int) -> otio.opentime.TimeRange:
        start, end = (otio.opentime.RationalTime(frame, rate) for frame in (start_frame, end_frame))
        return otio.opentime.range_from_start_end_time(start, end)

    start_frame = timebase.start_frame
    end_frame = start_frame + math.ceil(analysis.duration_s * timebase.rate)
    source_range = span(start_frame, end_frame)
    clip = otio.schema.Clip(
        name=title,
        media_reference=otio.schema.MissingReference(name=title, available_range=source_range),
        source_range=source_range,
    )
    for cue in _cues(analysis):
        metadata = {"type": cue.kind, "label" if cue.kind == "sound" else "text": cue.label}
        clip.markers.append(
            otio.schema.Marker(
                name=cue.name,
                marked_range=span(timebase.frame(cue.start_s), timebase.frame(cue.end_s)),
                color=otio.schema.MarkerColor.CYAN if cue.kind == "speech" else otio.schema.MarkerColor.YELLOW,
                metadata={"soundstage": metadata if cue.score is None else {**metadata, "score": cue.score}},
            )
        )
    timeline = otio.schema.Timeline(name=title, global_start_time=source_range.start_time)
    timeline.tracks.append(otio.schema.Track(name="A1", kind=otio.schema.TrackKind.Audio, children=[clip]))
    return str(timeline.to_json_string()) + "\n"


def edl(analysis: Analysis, timebase: Timebase, title: str) -> str:
    """A CMX 3600 list of markers: one event of one frame for each cue.

    Each event carries its name twice: as the comment by which DaVinci Resolve writes and reads timeline markers, with
    the length in frames behind D, and as the locator (LOC) that Avid and OpenTimelineIO read. Two events never begin
    on one frame, which readers take for an overlap: the second comes a frame later.

    The list is written here because the writer of otio-cmx3600-adapter 1.0 counts record times from zero, knows
    29.97 as drop-frame only and has no place for a marker's length; its reader reads this list.

    Source: DaVinci Resolve Reference Manual, Exporting Timeline Markers to EDL; Avid EDL Manager, locators.
    """
    lines = [f"TITLE: {title[:70]}", f"FCM: {'DROP FRAME' if timebase.drop_frame else 'NON-DROP FRAME'}", ""]
    free_frame = timebase.start_frame
    for number, cue in enumerate(_cues(analysis), 1):
        frame = max(timebase.frame(cue.start_s), free_frame)
        free_frame = frame + 1
        n_frames = max(1, timebase.frame(cue.end_s) - frame)
        start, end = timebase.timecode(frame), timebase.timecode(frame + 1)
        color, avid_color = ("Cyan", "CYAN") if cue.kind == "speech" else ("Yellow", "YELLOW")
        name = cue.name.replace("|", "/")
        lines += [
            f"{number:03d}  001      V     C        {start} {end} {start} {end}",
            f" |C:ResolveColor{color} |M:{name} |D:{n_frames}",
            f"* LOC: {start} {avid_color:7} {name}",
            "",
        ]
    return "\n".join(lines) + ("" if lines[-1] == "" else "\n")
