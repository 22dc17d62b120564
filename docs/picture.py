"""Draw what Soundstage gives for a clip, as the timeline of an audio editor: the picture of the README.

    soundstage sample clip.wav
    soundstage analyze clip.wav --local --format json --output DIR
    python docs/picture.py DIR/clip.json clip.wav docs/sample.svg

The picture brings its own background, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

import sys
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from soundstage.audio.decode import decode
from soundstage.captions.formats import CaptionOptions, sdh_captions
from soundstage.params import Limits
from soundstage.types import Analysis, AudioBlock, Caption, Segment, SoundEvent

# All lengths are in pixels of the picture.
WIDTH = 1200
LEFT, RIGHT = 104, 1176
"""Where the clip begins and ends."""
HEADER_HEIGHT = 54
AXIS_HEIGHT = 26
WAVEFORM_HEIGHT = 84
ROW_GAP = 5
LANE_GAP = 12
SPEECH_HEIGHT = 44
SOUND_HEIGHT = 24
CAPTION_HEIGHT = 46
PADDING = 8
COLUMN_WIDTH = 2
"""Of one column of the waveform: half the columns are half the bytes, and look the same."""

FONT = "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
BACKGROUND, LANE, LINE = "#12161c", "#191f27", "#2b333e"
TEXT, FAINT, MUTED = "#e8ecf1", "#c0c9d4", "#98a4b3"
SPEECH = "#5b9dd9"
PALETTE = ("#e0913f", "#57b394", "#a98be0", "#d9667b", "#cdb64c", "#5fb7c9", "#c97fb4", "#8fae5a")
"""Kinds of sound take these in order of their first appearance; speech has a colour of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What the eye sees of a waveform.

    Attributes:
        low: float32 (n_columns,), the least sample of each column.
        high: float32 (n_columns,), the greatest.
        sample_rate: Hz.
        n_channels: Of the source.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    sample_rate: int
    n_channels: int


def envelope(blocks: Sequence[AudioBlock], n_columns: int) -> Envelope:
    """The envelope over all channels.

    Args:
        blocks: All of a clip, of one rate; at least n_columns samples.
        n_columns: Of the envelope, each of about the same duration.
    """
    samples = np.concatenate([block.samples for block in blocks])
    columns = np.array_split(samples, n_columns)
    return Envelope(
        low=np.array([column.min() for column in columns]),
        high=np.array([column.max() for column in columns]),
        sample_rate=blocks[0].sample_rate,
        n_channels=samples.shape[1],
    )


GLYPH_WIDTHS = (("ijl'|", 0.24), (" .,:;!()[]/ftrI", 0.31), ("ckszvxyJ", 0.5), ("mM", 0.85), ("wW@%♪…", 0.9))
"""In ems, of Helvetica and Arial, rounded up; capitals 0.72, all else 0.56.

Source: the font metrics of Helvetica, Adobe Core 14 AFM files.
"""


def text_width(text: str, size: float) -> float:
    """The width of a text in the fonts in use, about; boxes have padding for wider ones."""
    ems = (
        next((width for chars, width in GLYPH_WIDTHS if char in chars), 0.72 if char.isupper() else 0.56)
        for char in text
    )
    return size * sum(ems)


def wrapped(text: str, width: float, size: float, n_lines: int) -> list[str]:
    """As much of a text as fits; what was left out is marked by an ellipsis."""
    for n_chars in range(len(text), 3, -1):
        lines = textwrap.wrap(text, n_chars, max_lines=n_lines, placeholder="…")
        if all(text_width(line, size) <= width for line in lines):
            return lines
    return []


def rows(spans: Sequence[tuple[float, float]], gap: float) -> list[int]:
    """The row of each span, so that none touches another: the first one that has room."""
    ends: list[float] = []
    chosen = []
    for start, end in spans:
        row = next((i for i, taken in enumerate(ends) if taken + gap <= start), len(ends))
        ends[row : row + 1] = [end]
        chosen.append(row)
    return chosen


def label_left(bar: tuple[float, float], width: float) -> float:
    """Where a label of a width begins: in its bar, else behind it, else before it."""
    left, right = bar
    if left + width <= right:
        return left
    return right if right + width <= RIGHT else left - width


def colours(events: Sequence[SoundEvent]) -> dict[str, str]:
    """A colour for each label."""
    labels = [label for label in dict.fromkeys(event.label for event in events) if label != "speech"]
    return {"speech": SPEECH} | {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}


class Timeline:
    """The picture of one clip, drawn lane by lane from the top."""

    def __init__(self, analysis: Analysis, name: str) -> None:
        self._analysis = analysis
        self._name = name
        self._bottom = 0.0
        self._svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "font-family": FONT})
        ET.SubElement(self._svg, "title").text = f"What Soundstage gives for {name}"
        ET.SubElement(self._svg, "desc").text = " ".join(
            " ".join(caption.lines) for caption in sdh_captions(analysis, CaptionOptions())
        )
        self._ground = self._rect(0.5, 0.5, WIDTH - 1, 0, fill=BACKGROUND, stroke=LINE, rx=10)

    def draw(self, sound: Envelope) -> str:
        """All of it, as SVG."""
        self._draw_header(sound)
        grid = ET.SubElement(self._svg, "g")
        self._bottom = HEADER_HEIGHT + AXIS_HEIGHT
        self._draw_waveform(sound)
        self._draw_speech(self._analysis.segments)
        self._draw_sounds(sorted(self._analysis.events, key=lambda event: event.start_s))
        self._draw_captions(sdh_captions(self._analysis, CaptionOptions()))
        self._draw_axis(grid)
        height = self._bottom + 4
        self._ground.set("height", _number(height - 1))
        self._svg.attrib |= {
            "viewBox": f"0 0 {WIDTH} {_number(height)}",
            "width": str(WIDTH),
            "height": _number(height),
        }
        ET.indent(self._svg, " ")
        return ET.tostring(self._svg, encoding="unicode") + "\n"

    def _draw_header(self, sound: Envelope) -> None:
        channels = {1: "mono", 2: "stereo"}.get(sound.n_channels, f"{sound.n_channels} channels")
        title = self._text(20, 35, "", size=18)
        ET.SubElement(title, "tspan", {"font-weight": "600"}).text = self._name
        facts = f"{self._analysis.duration_s:.1f} s · {sound.sample_rate / 1000:g} kHz · {channels}"
        ET.SubElement(title, "tspan", {"dx": "14", "font-size": "14", "fill": MUTED}).text = facts
        levels = self._analysis.levels
        if levels is None:
            return
        right = RIGHT
        for name, value, unit in (
            ("True peak", levels.true_peak_dbtp, "dBTP"),
            ("Range", levels.loudness_range_lu, "LU"),
            ("Integrated", levels.integrated_lufs, "LUFS"),
        ):
            figure = "none" if value is None else f"{value:.1f} {unit}".replace("-", "\N{MINUS SIGN}")
            self._text(right, 22, name, size=12, fill=MUTED, anchor="end")
            self._text(right, 42, figure, size=16, anchor="end", weight="600")
            right -= 130

    def _draw_axis(self, grid: ET.Element) -> None:
        """Seconds above the lanes, and a line through them at each; in a group of its own, below all else."""
        step_s = next((step for step in (1, 2, 5, 10, 30, 60, 300) if self._analysis.duration_s / step <= 12), 600)
        for time_s in range(0, int(self._analysis.duration_s) + 1, step_s):
            x = self._x(time_s)
            line = {"x1": x, "x2": x, "y1": HEADER_HEIGHT + AXIS_HEIGHT - 6, "y2": self._bottom - LANE_GAP}
            ET.SubElement(grid, "line", {key: _number(v) for key, v in line.items()} | {"stroke": LINE})
            self._text(x, HEADER_HEIGHT + 14, f"{time_s} s", size=12, fill=MUTED, anchor="middle")

    def _draw_waveform(self, sound: Envelope) -> None:
        top = self._lane(["Audio"], WAVEFORM_HEIGHT)
        middle, scale = (
            top + WAVEFORM_HEIGHT / 2,
            (WAVEFORM_HEIGHT / 2 - 4) / max(1e-9, float(sound.high.max()), -float(sound.low.min())),
        )
        x = np.linspace(LEFT, RIGHT, len(sound.high))
        outline = [*zip(x, middle - scale * sound.high, strict=True)]
        outline += reversed([*zip(x, middle - scale * sound.low, strict=True)])
        points = " ".join(f"{_number(px)},{_number(py)}" for px, py in outline)
        ET.SubElement(
            self._svg, "polygon", {"points": points, "fill": "#8ea3ba", "stroke": "#8ea3ba", "stroke-width": "0.6"}
        )

    def _draw_speech(self, segments: Sequence[Segment]) -> None:
        top = self._lane(["Speech"], SPEECH_HEIGHT)
        for segment in segments:
            x, width = self._x(segment.start_s), self._width(segment)
            self._rect(x, top, width, SPEECH_HEIGHT, fill=SPEECH, opacity=0.22, rx=4)
            self._rect(x, top, 3, SPEECH_HEIGHT, fill=SPEECH, rx=1.5)
            lines = wrapped(segment.text, width - 2 * PADDING - 3, 13, 2)
            self._lines(x + PADDING + 3, top, SPEECH_HEIGHT, lines, size=13)

    def _draw_sounds(self, events: Sequence[SoundEvent]) -> None:
        """Bars with their label and score, which stand beside a bar that is too short for them."""
        names = [event.label.replace("_", " ") for event in events]
        needed = [PADDING + 3 + text_width(name, 13) + 5 + text_width("0.00", 11) + 3 for name in names]
        bars = [(self._x(event.start_s), self._x(event.end_s)) for event in events]
        labels = [label_left(bar, width) for bar, width in zip(bars, needed, strict=True)]
        spans = [
            (min(left, x), max(right, x + width)) for (left, right), x, width in zip(bars, labels, needed, strict=True)
        ]
        chosen = rows(spans, 0)
        pitch = SOUND_HEIGHT + ROW_GAP
        top = self._lane(["Sounds"], pitch * (max(chosen, default=0) + 1) - ROW_GAP)
        colour = colours(events)
        for event, name, (left, right), x, row in zip(events, names, bars, labels, chosen, strict=True):
            y = top + row * pitch
            self._rect(left, y, right - left, SOUND_HEIGHT, fill=colour[event.label], opacity=0.35, rx=4)
            self._rect(left, y, min(3, right - left), SOUND_HEIGHT, fill=colour[event.label], rx=1.5)
            text = self._text(x + PADDING + (3 if x == left else 0), y + SOUND_HEIGHT / 2 + 4.7, name + " ", size=13)
            ET.SubElement(text, "tspan", {"fill": FAINT, "dx": "1", "font-size": "11"}).text = f"{event.score:.2f}"

    def _draw_captions(self, captions: Sequence[Caption]) -> None:
        """Boxes as wide as their text, each with a bar as long as it is on screen."""
        size = 13
        boxes = []
        for caption in captions:
            left = self._x(caption.start_s)
            needed = max(text_width(line, size) for line in caption.lines) + 2 * PADDING
            width = max(needed, self._width(caption))
            left = min(left, RIGHT - width)
            boxes.append((left, left + width))
        chosen = rows(boxes, ROW_GAP)
        pitch = CAPTION_HEIGHT + ROW_GAP
        top = self._lane(["SDH", "captions"], pitch * (max(chosen, default=0) + 1) - ROW_GAP)
        for caption, (left, right), row in zip(captions, boxes, chosen, strict=True):
            y = top + row * pitch
            self._rect(left, y, right - left, CAPTION_HEIGHT, fill="#05070a", stroke="#3a4450", rx=4)
            self._rect(self._x(caption.start_s), y, self._width(caption), 3, fill=TEXT, rx=1.5)
            self._lines((left + right) / 2, y + 2, CAPTION_HEIGHT - 2, caption.lines, size=size, anchor="middle")

    def _lane(self, name: Sequence[str], height: float) -> float:
        """The top of a new lane, with its name beside it."""
        top = self._bottom
        self._bottom += height + LANE_GAP
        self._rect(LEFT, top, RIGHT - LEFT, height, fill=LANE, opacity=0.6, rx=4)
        self._lines(20, top, height, name, size=14, fill=MUTED)
        return top

    def _x(self, time_s: float) -> float:
        return LEFT + (RIGHT - LEFT) * time_s / self._analysis.duration_s

    def _width(self, span: Segment | SoundEvent | Caption) -> float:
        return self._x(span.end_s) - self._x(span.start_s)

    def _rect(self, x: float, y: float, width: float, height: float, **style: str | float) -> ET.Element:
        box: dict[str, str | float] = {"x": x, "y": y, "width": width, "height": height, **style}
        return ET.SubElement(self._svg, "rect", {key: _number(value) for key, value in box.items()})

    def _lines(
        self,
        x: float,
        top: float,
        height: float,
        lines: Sequence[str],
        *,
        size: float,
        fill: str = TEXT,
        anchor: str = "start",
    ) -> None:
        """Lines of text, in the middle of a height."""
        pitch = 1.35 * size
        first = top + height / 2 - pitch * (len(lines) - 1) / 2 + 0.36 * size
        for i, line in enumerate(lines):
            self._text(x, first + i * pitch, line, size=size, fill=fill, anchor=anchor)

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        fill: str = TEXT,
        anchor: str = "start",
        weight: str = "400",
    ) -> ET.Element:
        style: dict[str, str | float] = {
            "x": x,
            "y": y,
            "font-size": size,
            "fill": fill,
            "text-anchor": anchor,
            "font-weight": weight,
        }
        element = ET.SubElement(self._svg, "text", {key: _number(value) for key, value in style.items()})
        element.text = text
        return element


def _number(value: str | float) -> str:
    """A tenth of a pixel is as fine as anybody sees; words as they are."""
    return value if isinstance(value, str) else f"{round(float(value), 2 if value < 1 else 1):g}"


def picture(analysis: Analysis, audio: Path) -> str:
    """The SVG of a clip and what was found in it.

    Raises:
        ServiceError: The audio cannot be read.
    """
    n_columns = (RIGHT - LEFT) // COLUMN_WIDTH
    return Timeline(analysis, audio.name).draw(envelope(list(decode(audio, Limits())), n_columns))


def main(arguments: Sequence[str]) -> None:
    """Read the analysis and the clip, write the picture."""
    if len(arguments) != 3:
        sys.exit("usage: python docs/picture.py ANALYSIS.json CLIP.wav PICTURE.svg")
    analysis, audio, target = map(Path, arguments)
    drawn = picture(TypeAdapter(Analysis).validate_json(analysis.read_bytes()), audio)
    target.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
