"""Draws the flow from its definition, group by group, as it lies on NiFi's canvas: docs/nifi.svg.

`python -m nifi export` draws it anew. The picture brings its own background, so that it reads the same on a light and
on a dark page.
"""

from __future__ import annotations

import math
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nifi.flow import COL, ROW

PICTURE = Path(__file__).parents[1] / "docs" / "nifi.svg"

# Pixels of the picture.
STEP_X, STEP_Y = 212.0, 88.0
"""From column to column and from row to row of the canvas."""
BOX_W, BOX_H = 148.0, 46.0
PORT_W, PORT_H = 112.0, 26.0
MARGIN, HEADER = 24.0, 66.0
GAP = 20.0
WIDTH = 1600.0
"""Of all panels of a shelf."""
LINE_H = 12.0
LETTER_W = 5.2
"""Of a label, on average."""

CANVAS_SIZES = {"PROCESSOR": (352.0, 128.0), "PORT": (240.0, 48.0), "GROUP": (384.0, 176.0)}
"""How NiFi draws them; positions are of the upper left corner."""

FONT = "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
BACKGROUND, PANEL, LINE = "#12161c", "#191f27", "#6d7a8c"
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
LEGEND = (
    ("port", "way in or out of a group"),
    ("outside", "reaches disks or the network"),
    ("route", "decides"),
    ("reason", "gives the reason; then → refused"),
    ("step", "anything else"),
)


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

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies in the box or close to it."""
        return abs(x - self.x) < self.width / 2 + 4 and abs(y - self.y) < self.height / 2 + 4


def draw(definition: Mapping[str, Any]) -> str:
    """The picture of a flow definition, as the text of an SVG."""
    top = definition["flowContents"]
    groups = sorted(top["processGroups"], key=lambda group: str(group["name"]))
    panels = [_panel(top, overview=True), *(_panel(group) for group in groups)]
    inner_width = max(WIDTH, *(panel.width for panel in panels))
    shelves = list(_shelves(panels, inner_width))
    height = MARGIN * 2 + sum(max(panel.height for panel in shelf) + GAP for shelf in shelves) - GAP
    width = inner_width + 2 * MARGIN
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
    for shelf in shelves:
        x, shelf_height = MARGIN, max(panel.height for panel in shelf)
        # What room is left goes to the panels of the shelf alike.
        spare = (inner_width - sum(panel.width for panel in shelf) - GAP * (len(shelf) - 1)) / len(shelf)
        for panel in shelf:
            holder = ET.SubElement(svg, "g", {"transform": f"translate({x:.1f} {y:.1f})"})
            _rect(holder, 0, 0, panel.width + spare, shelf_height, fill=PANEL, radius=8)
            holder.extend(panel.elements)
            x += panel.width + spare + GAP
        y += shelf_height + GAP
    ET.indent(svg, space=" ")
    return ET.tostring(svg, encoding="unicode") + "\n"


@dataclass(frozen=True, slots=True)
class _Panel:
    """One group, drawn."""

    elements: Sequence[ET.Element]
    width: float
    height: float


def _shelves(panels: Sequence[_Panel], width: float) -> Iterator[list[_Panel]]:
    """Panels in their order, as many beside each other as there is room for."""
    shelf: list[_Panel] = []
    for panel in panels:
        if shelf and sum(each.width + GAP for each in shelf) + panel.width > width:
            yield shelf
            shelf = []
        shelf.append(panel)
    yield shelf


def _panel(group: Mapping[str, Any], *, overview: bool = False) -> _Panel:
    """The elements of one group, and how wide and high they are."""
    boxes = dict(_overview_boxes(group) if overview else _boxes(group))
    top = min(box.y - box.height / 2 for box in boxes.values())
    bottom = max(box.y + box.height / 2 for box in boxes.values())
    holder = ET.Element("g")
    _text(holder, 18, 28, group["name"], size=17, fill=TEXT, weight="600")
    _text(holder, 18, 48, group.get("comments", ""), size=12.5, fill=MUTED)
    inner = ET.SubElement(holder, "g")
    lines = ET.SubElement(inner, "g")
    for box in boxes.values():
        _draw_box(inner, box)
    labels = ET.SubElement(inner, "g")
    for connection in group["connections"]:
        _draw_connection(lines, labels, boxes, connection, group["connections"], overview=overview)
    sides = [*_sides(labels), *((box.x - box.width / 2, box.x + box.width / 2) for box in boxes.values())]
    left, right = min(side for side, _ in sides), max(side for _, side in sides)
    inner.set("transform", f"translate({24 - left:.1f} {HEADER + 10 - top:.1f})")
    width, height = right - left + 108, bottom - top + HEADER + 32
    if overview:
        for number, (kind, meaning) in enumerate(LEGEND):
            y = HEADER + 12 + number * 22
            _rect(holder, width + 20, y, 26, 15, fill=FILLS[kind], radius=6 if kind == "port" else 3)
            _text(holder, width + 54, y + 12, meaning, size=11.5, fill=MUTED)
        width += 260
    return _Panel(list(holder), width, height)


def _sides(labels: ET.Element) -> Iterator[tuple[float, float]]:
    """About where each label begins and ends."""
    for label in labels:
        x, width = float(label.attrib["x"]), len(label.text or "") * LETTER_W
        start = x - width / 2 if label.attrib["text-anchor"] == "middle" else x
        yield start, start + width


def _overview_boxes(group: Mapping[str, Any]) -> Iterator[tuple[str, Box]]:
    for child in group["processGroups"]:
        yield (
            child["identifier"],
            Box(
                x=child["position"]["x"] / COL * 208,
                y=child["position"]["y"] / ROW * 104,
                width=164,
                height=54,
                title=child["name"],
                note=f"{len(child['processors'])} processors",
                kind="step",
            ),
        )
    for port in group["inputPorts"]:
        width, height = CANVAS_SIZES["PORT"]
        group_width, group_height = CANVAS_SIZES["GROUP"]
        yield (
            port["identifier"],
            Box(
                x=(port["position"]["x"] + (width - group_width) / 2) / COL * 208,
                y=(port["position"]["y"] + (height - group_height) / 2) / ROW * 104,
                width=PORT_W,
                height=PORT_H,
                title=f"{port['name']} →",
                note="",
                kind="port",
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
        x, y = _place(processor, "PROCESSOR")
        note = processor["properties"]["reason"] if kind == "reason" else type_name
        if kind == "reason" and "$" in note:
            note = "as the service says"
        title = "Say why" if kind == "reason" else processor["name"]
        yield processor["identifier"], Box(x=x, y=y, width=BOX_W, height=BOX_H, title=title, note=note, kind=kind)
    for port in [*group["inputPorts"], *group["outputPorts"]]:
        x, y = _place(port, "PORT")
        arrow = "→ " if port["type"] == "OUTPUT_PORT" else ""
        after = " →" if port["type"] == "INPUT_PORT" else ""
        yield (
            port["identifier"],
            Box(x=x, y=y, width=PORT_W, height=PORT_H, title=f"{arrow}{port['name']}{after}", note="", kind="port"),
        )


def _place(part: Mapping[str, Any], kind: str) -> tuple[float, float]:
    """Centre of a part in the picture."""
    width, height = CANVAS_SIZES[kind]
    return (part["position"]["x"] + width / 2) / COL * STEP_X, (part["position"]["y"] + height / 2) / ROW * STEP_Y


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
    lines: ET.Element,
    labels: ET.Element,
    boxes: Mapping[str, Box],
    connection: Mapping[str, Any],
    connections: Sequence[Mapping[str, Any]],
    *,
    overview: bool,
) -> None:
    source, destination = (boxes[_box_of(connection[end], boxes)] for end in ("source", "destination"))
    stroke = {"stroke": LINE, "fill": "none", "stroke-width": "1.3", "marker-end": "url(#arrow)"}
    if overview:
        relationships: Sequence[str] = [] if source.kind == "port" else [connection["source"]["name"]]
    else:
        relationships = [name for name in connection["selectedRelationships"] if name not in {"", "success"}]
    label = [connection["name"]] if connection.get("name") else relationships
    if source == destination:
        x, y = source.x + source.width / 2, source.y - source.height / 2
        ET.SubElement(lines, "path", {**stroke, "d": f"M{x - 20:.1f} {y:.1f} c0 -15 36 -16 20.5 11"})
        return  # its label would say "failure" each time
    if source.kind == "reason" and destination.kind == "port":
        return  # the legend says where reasons go
    has_way_back = any(
        boxes[_box_of(each["source"], boxes)] == destination and boxes[_box_of(each["destination"], boxes)] == source
        for each in connections
    )
    (x1, y1), (bx, by), (x2, y2) = _way(source, destination, boxes.values(), part=24.0 if has_way_back else 0.0)
    dx = x2 - x1
    ET.SubElement(lines, "path", {**stroke, "d": f"M{x1:.1f} {y1:.1f} Q{bx:.1f} {by:.1f} {x2:.1f} {y2:.1f}"})
    middle_x, middle_y = (x1 + x2 + 2 * bx) / 4, (y1 + y2 + 2 * by) / 4
    if abs(dx) < 20:  # beside a line that goes down
        _label(labels, middle_x + 6, middle_y, label, anchor="start")
    else:
        _label(labels, middle_x, middle_y, label)


def _way(source: Box, destination: Box, boxes: Iterable[Box], *, part: float) -> tuple[tuple[float, float], ...]:
    """Start, control point and end of a line that goes around the boxes between.

    Args:
        source: Where it starts.
        destination: Where it ends.
        boxes: All.
        part: How far it bends where nothing is between.
    """
    dx, dy = destination.x - source.x, destination.y - source.y
    length = math.hypot(dx, dy) or 1.0
    others = [box for box in boxes if box not in {source, destination}]
    found: tuple[tuple[float, float], ...] = ()
    for bend in (part, -60.0, 60.0, -120.0, 120.0, -190.0, 190.0):
        bx, by = source.x + dx / 2 - dy / length * bend, source.y + dy / 2 + dx / length * bend
        way = (source.edge(bx, by), (bx, by), destination.edge(bx, by))
        found = found or way
        if not any(box.holds(*_along(way, step / 24)) for step in range(25) for box in others):
            return way
    return found


def _along(way: tuple[tuple[float, float], ...], t: float) -> tuple[float, float]:
    """A point of a quadratic curve."""
    (x1, y1), (bx, by), (x2, y2) = way
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return a * x1 + b * bx + c * x2, a * y1 + b * by + c * y2


def _box_of(end: Mapping[str, Any], boxes: Mapping[str, Box]) -> str:
    """A part's own box, or that of its group."""
    identifier: str = end["id"] if end["id"] in boxes else end["groupId"]
    return identifier


def _label(holder: ET.Element, x: float, y: float, names: Sequence[str], anchor: str = "middle") -> None:
    first = y + 3.5 - (len(names) - 1) * LINE_H / 2
    for number, name in enumerate(names):
        line = textwrap.shorten(name, 30, placeholder="…")
        # The halo is a text of its own: not every viewer knows paint-order.
        for colours in ({"fill": PANEL, "stroke": PANEL, "stroke-width": "4"}, {"fill": FAINT}):
            _text(holder, x, first + number * LINE_H, line, size=10, anchor=anchor, **colours)


def _text(
    holder: ET.Element, x: float, y: float, text: str, *, size: float, anchor: str = "start", **style: str
) -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "font-size": f"{size}", "text-anchor": anchor}
    style = {{"weight": "font-weight"}.get(name, name): value for name, value in style.items()}
    ET.SubElement(holder, "text", {**attributes, **style}).text = text


def _rect(holder: ET.Element, x: float, y: float, width: float, height: float, *, fill: str, radius: float) -> None:
    ET.SubElement(
        holder, "rect",
        {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}", "rx": f"{radius}",
         "fill": fill},
    )  # fmt: skip
