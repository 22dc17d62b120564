"""A real NiFi tells what panels and alerts ask of it."""

from __future__ import annotations

import httpx

from dashboards.boards import BOARDS
from nifi.canvas import Login
from nifi.metrics import OLDEST, Figures
from tests.conftest import ROOT
from tests.nifi.conftest import Proof
from tests.observability.grafana import metrics_of


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
