"""Every query of every panel finds something in a real Prometheus that scraped the busy service."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from dashboards.__main__ import OUTPUT, RAY_DASHBOARDS
from dashboards.boards import BOARDS
from tests.observability.conftest import SCRAPE_S, Observed, poll
from tests.observability.grafana import metrics_of, panels_of, substituted

WITHOUT_PROOF = {
    "nifi": "the flow does not run here; `make test-nifi` proves it",
    "gpu": "this machine has no GPU",
}
FEEDS = {(board.uid, panel.title): panel.feed for board in BOARDS for panel in board.panels}
QUERIES = [
    pytest.param(
        panel["title"],
        target,
        FEEDS[board["uid"], panel["title"]],
        id=f"{board['uid']}/{panel['title']}/{target['refId']}",
    )
    for board in (json.loads(path.read_text(encoding="utf-8")) for path in sorted(OUTPUT.glob("dashboards/*.json")))
    for panel in panels_of(board)
    for target in panel["targets"]
]


@pytest.fixture(scope="module")
def instances(observed: Observed, busy: None) -> list[str]:
    """The nodes that the dashboards offer, once there is enough of the load to see."""

    def is_enough() -> bool:
        n = observed.value("min(count_over_time(ray_soundstage_words_total[2m]))")
        # The sample speaks for a part of it only: the first phrases of the stream come late, and a rate needs two.
        finals = observed.value("sum(increase(ray_soundstage_final_delay_seconds_count[1m]))")
        is_compared = observed.value("ray_soundstage_shadow_compared_total") is not None
        return (n or 0) > 60 / SCRAPE_S and (finals or 0) > 0 and is_compared

    poll(is_enough, 300, lambda: f"Prometheus sees no load: {observed.prometheus('label/__name__/values')}")
    found: list[str] = observed.prometheus("label/instance/values", **{"match[]": "ray_soundstage_model_served"})
    assert found == [f"127.0.0.1:{observed.cluster.ports.ray_metrics}"]
    return found


@pytest.mark.parametrize(("title", "target", "feed"), QUERIES)
def test_every_query_finds_something(
    observed: Observed, instances: list[str], title: str, target: dict[str, str], feed: str
) -> None:
    if feed in WITHOUT_PROOF:
        pytest.skip(f"SKIPPED, NOT PROVEN: {title}: {WITHOUT_PROOF[feed]}")
    known = set(observed.prometheus("label/__name__/values"))
    assert metrics_of(target["expr"]) <= known, "no metric of this name"
    range_s = 120
    expr = substituted(target["expr"], instances=instances, range_s=range_s)
    now = time.time()
    if target.get("instant"):
        result = observed.prometheus("query", query=expr)["result"]
    else:
        result = observed.prometheus("query_range", query=expr, start=now - range_s, end=now, step=5)["result"]
    points = [float(value) for series in result for _, value in series.get("values") or [series["value"]]]
    assert any(not math.isnan(point) for point in points), expr


def test_a_misspelt_metric_is_noticed(observed: Observed, instances: list[str]) -> None:
    expr = 'sum(rate(ray_soundstage_word_total{instance=~"$instance"}[$__rate_interval])) or vector(0)'
    assert metrics_of(expr) == {"ray_soundstage_word_total"}
    assert not metrics_of(expr) <= set(observed.prometheus("label/__name__/values"))


def test_series_are_few(observed: Observed, instances: list[str]) -> None:
    """3,000 of a node are kept, here under load; how long a scrape takes, benchmarks.observability measures."""
    node = f'job="ray", instance="{instances[0]}"'
    kept = observed.value(f"max_over_time(scrape_samples_post_metric_relabeling{{{node}}}[2m])")
    offered = observed.value(f"max_over_time(scrape_samples_scraped{{{node}}}[2m])")
    print(f"{kept} series kept of {offered}")
    assert kept is not None
    assert kept <= 3000


def test_all_that_is_scraped_is_up(observed: Observed) -> None:
    up = {series["metric"]["job"]: series["value"][1] for series in observed.prometheus("query", query="up")["result"]}
    assert up == dict.fromkeys(("ray", "haproxy", "canary", "prometheus"), "1")


def test_rays_own_dashboards_are_where_they_are_provisioned_from(observed: Observed) -> None:
    session = observed.logs_dir.parents[1]
    folder = session / Path(RAY_DASHBOARDS).relative_to("/tmp/ray/session_latest")
    boards = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    assert [name for name in boards if name.startswith("serve_")]
    # They ask for a data source of this type, whatever its name; one is provisioned beside them.
    for name, board in boards.items():
        variables = {each["name"]: each for each in board["templating"]["list"]}
        assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus"), name
    assert not {board["uid"] for board in boards.values()} & {board.uid for board in BOARDS}
