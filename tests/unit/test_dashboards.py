"""Dashboards that can be provisioned: what is committed is what the code writes, and every panel explains itself.

Rules by the names of Grafana's dashboard-linter, which is not on any package index that Python reads.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from dashboards.__main__ import OUTPUT, files
from dashboards.boards import BOARDS
from dashboards.panels import GRID_COLUMNS

PANEL_TYPES = {"timeseries", "stat", "heatmap", "bargauge"}
UNITS = {"s", "ms", "percent", "percentunit", "bytes", "none", "short"}
"""Of Grafana's own; those that begin with `suffix:` are shown as they are."""


def boards() -> dict[str, dict[str, Any]]:
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(OUTPUT.glob("dashboards/*.json"))
    }


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


EACH_PANEL = [
    pytest.param(panel, id=f"{uid}/{panel['title']}") for uid, board in boards().items() for panel in panels(board)
]


def test_what_is_committed_is_what_the_code_writes() -> None:
    written = {name: (OUTPUT / name).read_text(encoding="utf-8") for name in files()}
    assert written == files(), "run `python -m dashboards`"
    assert {str(path.relative_to(OUTPUT)) for path in OUTPUT.rglob("*") if path.is_file()} == set(files())


def test_four_questions_with_links_between_them() -> None:
    assert len(boards()) == len(BOARDS) == 4
    assert len({board["title"] for board in boards().values()}) == 4
    for uid, board in boards().items():
        assert board["uid"] == uid
        assert len(board["description"]) > 20
        assert board["links"][0]["tags"] == board["tags"] == ["soundstage"]


@pytest.mark.parametrize("panel", EACH_PANEL)
def test_panel_title_description_units_and_link(panel: dict[str, Any]) -> None:
    assert panel["type"] in PANEL_TYPES
    assert panel["title"]
    assert len(panel["description"]) > 15
    assert panel["description"].endswith((".", ")."))
    unit = panel["fieldConfig"]["defaults"]["unit"]
    assert unit in UNITS or unit.startswith("suffix:")
    assert [link["url"] in {f"/d/{uid}" for uid in boards()} for link in panel["links"]] == [True]


@pytest.mark.parametrize("panel", EACH_PANEL)
def test_panel_datasource_and_target_rules(panel: dict[str, Any]) -> None:
    datasource = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == datasource
    assert panel["targets"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)
    for target in panel["targets"]:
        assert target["datasource"] == datasource
        windows = re.findall(r"(?:rate|increase)\([^[]+\[([^]]+)\]", target["expr"])
        assert set(windows) <= {"$__rate_interval", "$__range", "1h", "30d"}
        # Every question about the cluster is one about the nodes that were chosen.
        for selector in re.findall(r"\bray_\w+(\{[^}]*\})?", target["expr"]):
            assert 'instance=~"$instance"' in selector
        assert target.get("legendFormat")


@pytest.mark.parametrize("board", boards().values(), ids=lambda board: board["uid"])
def test_no_overlap_on_the_grid_and_ids_are_unique(board: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= GRID_COLUMNS
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    # No hole between rows either: all of the height is used.
    height = max(y for _, y in taken) + 1
    assert {y for _, y in taken} == set(range(height))


@pytest.mark.parametrize("board", boards().values(), ids=lambda board: board["uid"])
def test_template_rules(board: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["instance"]["datasource"]["uid"] == "${datasource}"
    assert variables["instance"]["allValue"] == ".+"


def test_provisioning_names_what_is_there() -> None:
    source = yaml.safe_load((OUTPUT / "provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    (prometheus,) = source["datasources"]
    assert (prometheus["type"], prometheus["uid"], prometheus["name"]) == ("prometheus", "prometheus", "Prometheus")
    config = yaml.safe_load((OUTPUT.parents[1] / "monitoring/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    assert prometheus["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    providers = yaml.safe_load((OUTPUT / "provisioning/dashboards/soundstage.yml").read_text(encoding="utf-8"))
    assert [provider["name"] for provider in providers["providers"]] == ["soundstage", "ray"]
