"""Draw the terminal of `soundstage live` as it stood at one moment of a stream: the picture of docs/live.md.

    soundstage live take.wav --json > take.ndjson
    python -m docs.live_picture take.ndjson "soundstage live take.wav" 24.0 docs/live.svg

The lines are those that the command itself prints for these events. The picture brings its own background, so that it
reads the same on a light and on a dark page.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.style import Style
from rich.text import Text

from docs.picture import BACKGROUND, LINE, MUTED, TEXT
from soundstage.commands.live import Bottom, line_of
from soundstage.types import JsonObject

# All lengths are in pixels of the picture.
SIZE, GLYPH, PITCH = 14, 8.4, 22
"""Of a letter of a fixed width, and from line to line."""
PADDING = 20
BAR_HEIGHT = 34
N_COLUMNS = 92
BAR = "━"
"""What a meter is made of; drawn, since not every font of a fixed width has it."""
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
COLOURS = {"cyan": "#5fb7c9", "green": "#57b394", "yellow": "#cdb64c", "red": "#d9667b", "bright_black": "#3a4450"}
"""Of the terminal's own names; a terminal chooses its own."""


def screen_at(events: Iterable[JsonObject], end_s: float) -> list[Text]:
    """The lines on the screen once the level at a time of the stream was told."""
    scrolled: list[Text] = []
    bottom = Bottom()
    for event in events:
        bottom.heed(event)
        if (line := line_of(event)) is not None:
            scrolled.append(line)
        if event["type"] == "levels" and event["end_s"] >= end_s:
            break
    return [*(wrapped for line in scrolled for wrapped in _wrapped(line)), Text(), *bottom.lines]


def _wrapped(line: Text) -> list[Text]:
    lines: list[Text] = []
    rest = line
    while len(rest) > N_COLUMNS:
        at = rest.plain.rfind(" ", 0, N_COLUMNS + 1)
        first, rest = rest.divide([at])
        lines.append(first)
        rest = rest[1:]
    return [*lines, rest]


def picture(lines: Sequence[Text], command: str) -> str:
    """The SVG of a terminal that shows the lines."""
    width = 2 * PADDING + round(N_COLUMNS * GLYPH)
    height = BAR_HEIGHT + 2 * PADDING + PITCH * len(lines)
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "role": "img",
            "font-family": FONT,
            "font-size": str(SIZE),
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
        },
    )
    ET.SubElement(svg, "title").text = f"The terminal of `{command}`"
    ET.SubElement(svg, "desc").text = " / ".join(line.plain for line in lines if line.plain.strip())
    box = {"x": "0.5", "y": "0.5", "width": str(width - 1), "height": str(height - 1), "rx": "10"}
    ET.SubElement(svg, "rect", {**box, "fill": BACKGROUND, "stroke": LINE})
    for i, colour in enumerate(("#d9667b", "#cdb64c", "#57b394")):
        ET.SubElement(svg, "circle", {"cx": str(PADDING + 18 * i), "cy": "18", "r": "5", "fill": colour})
    _text(svg, PADDING + 64, 23, Text(f"$ {command}"), MUTED)
    for i, line in enumerate(lines):
        _text(svg, PADDING, BAR_HEIGHT + PADDING + PITCH * i + SIZE, line, TEXT)
    ET.indent(svg, " ")
    return ET.tostring(svg, encoding="unicode") + "\n"


def _text(svg: ET.Element, x: float, y: float, line: Text, colour: str) -> None:
    """Each run of one style where its columns are, whatever the font."""
    column = 0
    for run in _runs(line):
        style = run.spans[0].style if run.spans else ""
        parsed = Style.parse(style) if isinstance(style, str) else style
        if run.plain.strip(BAR) == "" and run.plain:
            top = {"x": f"{x + GLYPH * column:g}", "y": f"{y - 7:g}", "height": "4", "rx": "1"}
            name = parsed.color.name if parsed.color else ""
            ET.SubElement(svg, "rect", {**top, "width": f"{GLYPH * len(run):g}", "fill": COLOURS.get(name, colour)})
        elif run.plain.strip():
            n_before = len(run.plain) - len(run.plain.lstrip())
            name = parsed.color.name if parsed.color else ""
            attributes = {
                "x": f"{x + GLYPH * (column + n_before):g}",
                "y": f"{y:g}",
                "fill": COLOURS.get(name, MUTED if parsed.dim else colour),
                "textLength": f"{GLYPH * len(run.plain.strip()):g}",
                "lengthAdjust": "spacingAndGlyphs",
            }
            ET.SubElement(svg, "text", attributes).text = run.plain.strip()
        column += len(run.plain)


def _runs(line: Text) -> list[Text]:
    edges = sorted({edge for span in line.spans for edge in (span.start, span.end) if 0 < edge < len(line)})
    return list(line.divide(edges))


def main(arguments: Sequence[str]) -> None:
    """Read the events, write the picture."""
    if len(arguments) != 4:
        sys.exit("usage: python -m docs.live_picture EVENTS.ndjson COMMAND SECONDS PICTURE.svg")
    events, command, end_s, target = arguments
    told = [json.loads(line) for line in Path(events).read_text(encoding="utf-8").splitlines()]
    Path(target).write_text(picture(screen_at(told, float(end_s)), command), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
