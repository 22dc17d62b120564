"""What Prometheus and Alertmanager themselves say of the rules, and that nobody is left alone with an alert."""

from __future__ import annotations

import re
import subprocess
from typing import Any

from monitoring.local import HERE

RULES = HERE / "prometheus" / "rules"
TESTS = sorted((HERE / "prometheus" / "tests").glob("*.yml"))


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_takes_the_configuration() -> None:
    run("promtool", "check", "config", HERE / "prometheus" / "prometheus.yml")
    run("promtool", "check", "rules", *sorted(RULES.glob("*.yml")))


def test_every_rule_fires_when_it_should_and_only_then() -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", *TESTS)


def test_alertmanager_takes_the_configuration_and_routes_by_severity() -> None:
    config = HERE / "alertmanager" / "alertmanager.yml"
    assert "SUCCESS" in run("amtool", "check-config", config)
    for severity in ("page", "ticket"):
        assert "operators" in run(
            "amtool", "config", "routes", "test", f"--config.file={config}", f"severity={severity}"
        )


def test_a_test_fails_where_a_rule_is_wrong(tmp_path: Any) -> None:
    """The tests of the rules can fail."""
    (tmp_path / "rules").mkdir()
    for path in RULES.glob("*.yml"):
        (tmp_path / "rules" / path.name).write_text(path.read_text().replace("> 5\n", "> 5000\n"))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "t.yml").write_text(TESTS[0].read_text())
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "tests" / "t.yml"], capture_output=True, check=False)
    assert done.returncode != 0
    assert re.search(rb"FAILED", done.stdout + done.stderr)
