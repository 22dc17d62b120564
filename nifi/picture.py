"""Draws the flow from its definition, group by group, as it lies on NiFi's canvas: docs/nifi.svg.

`python -m nifi export` draws it anew. The picture brings its own background, so that it reads the same on a light and
on a dark page.
"""

from __future__ import annotations

import math
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nifi.flow import COL, ROW

PICTURE = Path(__file__).parents[1] / "docs" / "nifi.svg"

# Pixels of the picture.
STEP_X, STEP_Y = 206.0, 86.0
"""From column to column and from row to row of the canvas."""
BOX_W, BOX_H = 158.0, 48.0
PORT_W, PORT_H = 116.0, 26.0
MARGIN, HEADER = 28.0, 66.0
GAP = 26.0
MIN_WIDTH = 1180.0

FONT = "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
BACKGROUND, PANEL, LINE = "#12161c", "#191f27", "#5b6675"
TEXT, FAINT, MUTED = "#e8ecf1", "#c0c9d4", "#98a4b3"
FILLS = {"reason": "#4a2a30", "outside": "#24425f", "route": "#3b3a2a", "step": "#27313d", "port": "#1d3b36"}
OUTSIDE = frozenset(
    {
        "ListFile",
        "FetchFile",
        "GetFile",
        "PutFile",
        "DeleteFile",
        "InvokeHTTP",
        "HandleHttpRequest",
        "HandleHttpResponse",
    }
)
"""Types that reach beyond NiFi."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A part in the picture; x and y are of its centre."""

    x: float
    y: float
    width: float
    height: float
    title: str
    note: str
    kind: str

    def edge(self, x: float, y: float) -> tuple[float, float]:
        """Where the line from the centre to a point leaves the box."""
        dx, dy = x - self.x, y - self.y
        scale = min(
            self.width / 2 / abs(dx) if dx else math.inf,
            self.height / 2 / abs(dy) if dy else math.inf,
        )
        return self.x + dx * scale, self.y + dy * scale


def draw(definition: Mapping[str, Any]) -> str:
    """The picture of a flow definition, as the text of an SVG."""
    top = definition["flowContents"]
    groups = sorted(top["processGroups"], key=lambda group: str(group["name"]))
    panels = [_panel(top, top["name"], top.get("comments", ""), overview=True)]
    panels += [_panel(group, group["name"], group.get("comments", "")) for group in groups]
    width = max(MIN_WIDTH, *(panel_width for _, panel_width, _ in panels)) + 2 * MARGIN
    height = MARGIN + sum(panel_height + GAP for _, _, panel_height in panels)
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width:.0f} {height:.0f}",
            "width": f"{width:.0f}",
            "font-family": FONT,
            "role": "img",
        },
    )
    ET.SubElement(svg, "title").text = "The flow that carries rushes to captions"
    defs = ET.SubElement(svg, "defs")
    marker = ET.SubElement(
        defs, "marker",
        {"id": "arrow", "viewBox": "0 0 8 8", "refX": "7", "refY": "4", "markerWidth": "7", "markerHeight": "7",
         "orient": "auto-start-reverse"},
    )  # fmt: skip
    ET.SubElement(marker, "path", {"d": "M0 0.8 L7.5 4 L0 7.2 z", "fill": LINE})
    _rect(svg, 0, 0, width, height, fill=BACKGROUND, radius=0)
    y = MARGIN
    for panel, _, panel_height in panels:
        holder = ET.SubElement(svg, "g", {"transform": f"translate({MARGIN:.0f} {y:.0f})"})
        _rect(holder, 0, 0, width - 2 * MARGIN, panel_height, fill=PANEL, radius=8)
        holder.extend(panel)
        y += panel_height + GAP
    ET.indent(svg, space=" ")
    return ET.tostring(svg, encoding="unicode") + "\n"


def _panel(
    group: Mapping[str, Any], title: str, comments: str, *, overview: bool = False
) -> tuple[list[ET.Element], float, float]:
    """The elements of one group, and how wide and high they are."""
    boxes = dict(_overview_boxes(group) if overview else _boxes(group))
    left = min(box.x - box.width / 2 for box in boxes.values())
    top = min(box.y - box.height / 2 for box in boxes.values())
    right = max(box.x + box.width / 2 for box in boxes.values())
    bottom = max(box.y + box.height / 2 for box in boxes.values())
    holder = ET.Element("g")
    _text(holder, 18, 28, title, size=17, fill=TEXT, weight="600")
    _text(holder, 18, 48, comments, size=12.5, fill=MUTED)
    inner = ET.SubElement(holder, "g", {"transform": f"translate({24 - left:.1f} {HEADER + 8 - top:.1f})"})
    lines = ET.SubElement(inner, "g")
    for box in boxes.values():
        _draw_box(inner, box)
    labels = ET.SubElement(inner, "g")
    for connection in group["connections"]:
        _draw_connection(lines, labels, boxes, connection, overview=overview)
    return list(holder), right - left + 90, bottom - top + HEADER + 34


def _overview_boxes(group: Mapping[str, Any]) -> Iterator[tuple[str, Box]]:
    for child in group["processGroups"]:
        yield (
            child["identifier"],
            Box(
                x=child["position"]["x"] / COL * 224,
                y=child["position"]["y"] / ROW * 96,
                width=176,
                height=56,
                title=child["name"],
                note=f"{len(child['processors'])} processors",
                kind="step",
            ),
        )


def _boxes(group: Mapping[str, Any]) -> Iterator[tuple[str, Box]]:
    for processor in group["processors"]:
        type_name = processor["type"].rpartition(".")[2]
        if processor["name"].startswith("Say why"):
            kind = "reason"
        elif type_name in OUTSIDE:
            kind = "outside"
        else:
            kind = "route" if type_name in {"RouteOnAttribute", "DetectDuplicate"} else "step"
        x, y = _place(processor)
        note = processor["properties"]["reason"] if kind == "reason" else type_name
        if kind == "reason" and "$" in note:
            note = "as the service says"
        title = "Say why" if kind == "reason" else processor["name"]
        yield processor["identifier"], Box(x=x, y=y, width=BOX_W, height=BOX_H, title=title, note=note, kind=kind)
    for port in [*group["inputPorts"], *group["outputPorts"]]:
        x, y = _place(port)
        arrow = "→ " if port["type"] == "OUTPUT_PORT" else ""
        after = " →" if port["type"] == "INPUT_PORT" else ""
        yield (
            port["identifier"],
            Box(x=x, y=y, width=PORT_W, height=PORT_H, title=f"{arrow}{port['name']}{after}", note="", kind="port"),
        )


def _place(part: Mapping[str, Any]) -> tuple[float, float]:
    return part["position"]["x"] / COL * STEP_X, part["position"]["y"] / ROW * STEP_Y


def _draw_box(holder: ET.Element, box: Box) -> None:
    x, y = box.x - box.width / 2, box.y - box.height / 2
    _rect(holder, x, y, box.width, box.height, fill=FILLS[box.kind], radius=13 if box.kind == "port" else 5)
    if not box.note:
        _text(holder, box.x, box.y + 4, box.title, size=12, fill=TEXT, anchor="middle")
        return
    _text(
        holder,
        box.x,
        box.y - 2,
        textwrap.shorten(box.title, 25, placeholder="…"),
        size=12.5,
        fill=TEXT,
        anchor="middle",
    )
    _text(holder, box.x, box.y + 14, box.note, size=10.5, fill=MUTED, anchor="middle")


def _draw_connection(
    lines: ET.Element, labels: ET.Element, boxes: Mapping[str, Box], connection: Mapping[str, Any], *, overview: bool
) -> None:
    key = "groupId" if overview else "id"
    source, destination = boxes[connection["source"][key]], boxes[connection["destination"][key]]
    stroke = {"stroke": LINE, "fill": "none", "stroke-width": "1.3", "marker-end": "url(#arrow)"}
    if overview:
        relationships: Sequence[str] = [connection["source"]["name"]]
    else:
        relationships = [name for name in connection["selectedRelationships"] if name not in {"", "success"}]
    label = connection.get("name") or ", ".join(relationships)
    if source == destination:
        x, y = source.x + source.width / 2, source.y
        ET.SubElement(lines, "path", {**stroke, "d": f"M{x:.1f} {y - 9:.1f} c26 -12 26 30 1.5 18"})
        _label(labels, x + 22, y + 3, label, anchor="start")
        return
    x1, y1 = source.edge(destination.x, destination.y)
    x2, y2 = destination.edge(source.x, source.y)
    # A queue and its way back part a little; the bend goes to the right of the way.
    length = math.hypot(x2 - x1, y2 - y1) or 1.0
    bend = 10.0 if length < 130 else 24.0
    bx, by = (x1 + x2) / 2 - (y2 - y1) / length * bend, (y1 + y2) / 2 + (x2 - x1) / length * bend
    ET.SubElement(lines, "path", {**stroke, "d": f"M{x1:.1f} {y1:.1f} Q{bx:.1f} {by:.1f} {x2:.1f} {y2:.1f}"})
    if label:
        _label(labels, (x1 + x2 + 2 * bx) / 4, (y1 + y2 + 2 * by) / 4 + 3, label)


def _label(holder: ET.Element, x: float, y: float, text: str, anchor: str = "middle") -> None:
    text = textwrap.shorten(text, 30, placeholder="…")
    _text(holder, x, y, text, size=10, fill=FAINT, anchor=anchor, halo=True)


def _text(
    holder: ET.Element, x: float, y: float, text: str, *, size: float, fill: str, anchor: str = "start",
    weight: str = "400", halo: bool = False,
) -> None:  # fmt: skip
    attributes = {
        "x": f"{x:.1f}", "y": f"{y:.1f}", "font-size": f"{size}", "fill": fill, "text-anchor": anchor,
        "font-weight": weight,
    }  # fmt: skip
    if halo:
        attributes |= {"stroke": PANEL, "stroke-width": "3.5", "paint-order": "stroke"}
    ET.SubElement(holder, "text", attributes).text = text


def _rect(holder: ET.Element, x: float, y: float, width: float, height: float, *, fill: str, radius: float) -> None:
    ET.SubElement(
        holder, "rect",
        {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}", "rx": f"{radius}",
         "fill": fill},
    )  # fmt: skip
