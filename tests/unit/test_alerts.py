"""Nobody is left alone with an alert: each is tested, says how urgent it is, and where to read on."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

PROMETHEUS = ROOT / "monitoring" / "prometheus"
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
TESTS = [
    case
    for path in PROMETHEUS.glob("tests/*.yml")
    for case in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
]
RUNBOOK = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_has_a_runbook_a_severity_and_tests(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert alert["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
    section = re.search(rf"^### {name}\n(.+?)(?=^#|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/operations.md has no section {name}"
    assert len(section[1].split()) > 25, f"the section {name} helps nobody"
    tests = [test for case in TESTS for test in case.get("alert_rule_test", []) if test["alertname"] == name]
    assert any(test.get("exp_alerts") for test in tests), "no test makes it fire"
    assert any(not test.get("exp_alerts") for test in tests) or name.endswith("Slowly"), "no test keeps it silent"


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    part = RUNBOOK.partition("\n## Runbook\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^### (\w+)$", part, re.MULTILINE)) == {alert["alert"] for alert in ALERTS}


def test_what_is_inhibited_exists() -> None:
    config = yaml.safe_load((ROOT / "monitoring" / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8"))
    names = {alert["alert"] for alert in ALERTS}
    for rule in config["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            label, _, value = matcher.partition("=")
            if label == "alertname":
                assert set(value.strip('~"').split("|")) <= names
