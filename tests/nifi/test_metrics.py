"""A real NiFi tells what panels and alerts ask of it."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import httpx
import pytest

from dashboards.boards import BOARDS
from deployments.local import free_port
from monitoring.local import Monitor, stop
from nifi.canvas import Login
from nifi.metrics import OLDEST, Figures, server
from soundstage import sample
from tests.conftest import ROOT
from tests.nifi.conftest import Proof, wait_for
from tests.observability.grafana import ask, metrics_of, substituted
from tests.observability.tools import how_to_get, missing

SCRAPE_S = 1
PANELS = {panel.title: panel.queries for board in BOARDS for panel in board.panels if panel.feed == "nifi"}


def test_every_figure_that_panels_and_alerts_ask_for_is_told(proof: Proof) -> None:
    with httpx.Client(base_url=proof.nifi.url, timeout=30) as client:
        text = Figures(client, Login()).read()
    told = {line.partition("{")[0] for line in text.splitlines() if "{" in line and not line.startswith("#")}
    rules = (ROOT / "monitoring" / "prometheus" / "rules" / "alerts.yml").read_text(encoding="utf-8")
    asked = metrics_of(rules).union(*(metrics_of(q.expr) for b in BOARDS for p in b.panels for q in p.queries))
    asked = {name for name in asked if name.startswith(("nifi_", "soundstage_nifi_"))}
    assert {"nifi_percent_used_count", OLDEST} <= asked
    assert asked - {OLDEST} <= told
    assert 'component_type="Connection"' in text
    assert 'source_name="' in text


def test_every_panel_of_nifi_finds_something_while_a_file_waits(proof: Proof, tmp_path: Path) -> None:
    if absent := missing("prometheus"):
        pytest.skip(f"SKIPPED, NOT PROVEN: {how_to_get(absent)}")
    monitor = Monitor(
        cluster=proof.cluster, state_dir=tmp_path, prometheus_port=free_port(), nifi_port=free_port(),
        scrape_interval_s=SCRAPE_S,
    )  # fmt: skip
    assert monitor.nifi_port is not None

    def values(expr: str) -> list[float]:
        query = substituted(expr, instances=[], range_s=60)
        return [float(each["value"][1]) for each in ask(monitor.prometheus_url, "query", query=query)["result"]]

    there = proof.watch / "panels" / "clip.wav"
    there.parent.mkdir()
    proof.front.set_busy(True)
    with httpx.Client(base_url=proof.nifi.url, timeout=30) as client:
        figures = server(Figures(client, Login()), "127.0.0.1", monitor.nifi_port)
        threading.Thread(target=figures.serve_forever).start()
        running = monitor.start("prometheus")
        try:
            shutil.copy(sample.reading_path(), there)
            wait_for(lambda: any(value > 0 for value in values(OLDEST)), 60, "a file that waits")
            assert len(PANELS) == 3
            for title, queries in PANELS.items():
                assert all(values(query.expr) for query in queries), title
        finally:
            proof.front.set_busy(False)
            stop(running)
            figures.shutdown()
            figures.server_close()
    wait_for(lambda: "panels/clip.json" in proof.delivered(), 120, "the file that waited")
    proof.report()
