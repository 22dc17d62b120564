"""Panels and dashboards as plain values, and what Grafana wants made of them.

A dashboard is rows of panels; where each lies on the grid follows from its width. Every panel says what it shows, in
which unit, where to go from there, and who feeds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from grafana_foundation_sdk.builders import bargauge, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard as builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

GRID_COLUMNS = 24
WIDE = 12
"""Columns."""
DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "soundstage"
SCRAPE_INTERVAL = "15s"

Kind = Literal["lines", "stack", "stat", "heatmap", "bars"]
Feed = Literal["service", "live", "canary", "shadow", "gpu", "nifi", "haproxy"]
"""Who must be there for the panel to show anything: the service alone, or something beside it."""

_FEEDS: dict[Feed, str] = {
    "service": "",
    "live": "Empty until there is a live stream.",
    "canary": "Empty without the canary (`make monitor` starts it).",
    "shadow": "Empty unless a candidate is tried out.",
    "gpu": "Empty on machines without a GPU.",
    "nifi": "Empty without NiFi and `python -m nifi metrics`.",
    "haproxy": "Empty where HAProxy is not scraped.",
}


@dataclass(frozen=True, slots=True)
class Query:
    """A question to Prometheus.

    Attributes:
        expr: PromQL with Grafana's macros.
        legend: Of each series, with labels in double braces.
        is_instant: The value now, not over time.
        has_exemplars: Single observations are drawn too; each opens its trace.
    """

    expr: str
    legend: str
    is_instant: bool = False
    has_exemplars: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Where to go from a panel."""

    title: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        kind: How it is drawn.
        title: What it shows.
        description: What it means, and what is good.
        unit: Grafana's name of the unit; `suffix:` before one of our own, without a space.
        queries: At least one.
        link: Where to go from here.
        width: Of 24 columns.
        height: Of 30 pixels each.
        feed: Who must be there.
        warn: From here on it is orange; below here where `is_low_bad`.
        alarm: From here on it is red.
        is_low_bad: The less the worse.
        minimum: Of the axis; None lets Grafana choose.
        maximum: The same.
        decimals: None lets Grafana choose.
    """

    kind: Kind
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    link: Link
    width: int = 8
    height: int = 8
    feed: Feed = "service"
    warn: float | None = None
    alarm: float | None = None
    is_low_bad: bool = False
    minimum: float | None = 0
    maximum: float | None = None
    decimals: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One person's question.

    Attributes:
        uid: In its URL, and the name of its file.
        title: The question.
        description: For whom.
        rows: Their titles and panels.
        hours: How far back it looks at first.
    """

    uid: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    hours: int = 1

    @property
    def panels(self) -> Iterator[Panel]:
        """All of them."""
        for _, panels in self.rows:
            yield from panels


def as_json(board: Dashboard) -> str:
    """What Grafana provisions."""
    built = (
        builder.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .readonly()
        .time(f"now-{board.hours}h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(
            builder.DashboardLink("Soundstage").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG]).keep_time(True)
        )
        .with_variable(builder.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            builder.QueryVariable("instance")
            .label("Node")
            .datasource(DATASOURCE)
            .query("label_values(ray_soundstage_model_served, instance)")
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".+")
        )
    )
    numbers = count(1)
    y = 0
    for title, panels in board.rows:
        built = built.with_row(builder.Row(title).grid_pos(_grid(0, y, GRID_COLUMNS, 1)).id(next(numbers)))
        y += 1
        x, height = 0, 0
        for panel in panels:
            if x + panel.width > GRID_COLUMNS:
                x, y, height = 0, y + height, 0
            built = built.with_panel(_panel(panel).id(next(numbers)).grid_pos(_grid(x, y, panel.width, panel.height)))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    document = json.loads(json.dumps(built.build(), cls=JSONEncoder))
    for variable in document["templating"]["list"]:
        # Fields of another kind of variable, which Grafana's own types refuse.
        for name in ("auto", "auto_min", "auto_count"):
            variable.pop(name, None)
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _grid(x: int, y: int, width: int, height: int) -> dashboard.GridPos:
    return dashboard.GridPos(x=x, y=y, w=width, h=height)


def _panel(panel: Panel) -> Any:
    description = " ".join(text for text in (panel.description, _FEEDS[panel.feed]) if text)
    link = builder.DashboardLink(panel.link.title).url(panel.link.url).keep_time(True)
    drawn = _drawn(panel).title(panel.title).description(description).datasource(DATASOURCE).links([link])
    drawn = drawn.unit(panel.unit).thresholds(_thresholds(panel))
    if panel.minimum is not None:
        drawn = drawn.min(panel.minimum)
    if panel.maximum is not None:
        drawn = drawn.max(panel.maximum)
    if panel.decimals is not None:
        drawn = drawn.decimals(panel.decimals)
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).ref_id(letter).legend_format(query.legend)
        target = target.datasource(DATASOURCE)
        target = target.instant() if query.is_instant else target.range()
        if query.has_exemplars:
            target = target.exemplar(True)
        if panel.kind == "heatmap":
            target = target.format(PromQueryFormat.HEATMAP)
        drawn = drawn.with_target(target)
    return drawn


def _drawn(panel: Panel) -> Any:
    last = common_builder.ReduceDataOptions().calcs(["lastNotNull"])
    match panel.kind:
        case "stat":
            return stat.Panel().reduce_options(last).color_mode(common.BigValueColorMode.VALUE)
        case "bars":
            orientation = common.VizOrientation.HORIZONTAL
            return bargauge.Panel().reduce_options(last).orientation(orientation)
        case "heatmap":
            colours = (
                heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").exponent(0.5).steps(64)
            )
            return heatmap.Panel().calculate(False).y_axis(heatmap.YAxisConfig().unit(panel.unit)).color(colours)
        case "lines" | "stack":
            # A table below hides all but its first rows: wide panels have it at the side, narrow ones a line of names.
            is_wide = panel.width >= WIDE and (len(panel.queries) > 1 or "{{" in panel.queries[0].legend)
            legend = (
                common_builder.VizLegendOptions().show_legend(True).calcs(["lastNotNull", "max"] if is_wide else [])
            )
            legend = legend.display_mode(common.LegendDisplayMode.TABLE if is_wide else common.LegendDisplayMode.LIST)
            legend = legend.placement(common.LegendPlacement.RIGHT if is_wide else common.LegendPlacement.BOTTOM)
            lines = timeseries.Panel().line_width(1).legend(legend)
            lines = lines.tooltip(common_builder.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
            if panel.kind == "stack":
                mode = common_builder.StackingConfig().mode(common.StackingMode.NORMAL).group("A")
                lines = lines.stacking(mode).fill_opacity(40)
            if panel.warn is not None or panel.alarm is not None:
                style = common.GraphThresholdsStyleMode.DASHED
                lines = lines.thresholds_style(common_builder.GraphThresholdsStyleConfig().mode(style))
                # So that lines near nothing, or at it, are seen beside where they would be bad.
                lines = lines.axis_soft_max(max(value for value in (panel.warn, panel.alarm) if value is not None))
            return lines


def _thresholds(panel: Panel) -> builder.ThresholdsConfig:
    steps: list[tuple[float | None, str]] = [(None, "green")]
    if panel.is_low_bad:
        colours = [(panel.alarm, "orange"), (panel.warn, "green")]
        steps = [(None, "red"), *((value, colour) for value, colour in colours if value is not None)]
    else:
        colours = [(panel.warn, "orange"), (panel.alarm, "red")]
        steps += [(value, colour) for value, colour in colours if value is not None]
    thresholds = [dashboard.Threshold(value=value, color=colour) for value, colour in steps]
    return builder.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(thresholds)
