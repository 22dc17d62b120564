"""The Compose file, read by Docker Compose itself; no container runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.binaries import CannotBuild, program

ROOT = Path(__file__).parents[2]


def compose(*args: str) -> str:
    try:
        command = str(program("docker-compose"))
    except CannotBuild as e:
        pytest.skip(f"THE COMPOSE FILE IS NOT PROVEN: {e}")
    done = subprocess.run([command, *args], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(compose("config", "--format", "json"))["services"]
    return found


def test_a_plain_up_starts_the_whole_system(services: dict[str, Any]) -> None:
    assert set(services) >= {
        "secrets", "head", "worker", "deploy", "nifi", "nifi-flow", "prometheus", "alertmanager", "canary", "grafana",
        "elasticsearch", "logstash", "filebeat", "kibana", "tensorflow-serving",
    }  # fmt: skip
    assert "jenkins" not in services


@pytest.mark.parametrize("profile", ["service", "nifi", "metrics", "logs", "tensorflow-serving", "ci"])
def test_every_profile_stands_alone(profile: str) -> None:
    assert compose("--profile", profile, "config", "--services").split()


def test_secrets_are_made_before_anything_that_reads_them(services: dict[str, Any]) -> None:
    def stands_on(name: str) -> set[str]:
        before = set(services[name].get("depends_on", {}))
        return before | {other for each in before for other in stands_on(each)}

    for name, service in services.items():
        reads = [volume for volume in service.get("volumes", []) if str(volume["target"]).startswith("/run/secrets")]
        assert not reads or "secrets" in stands_on(name), name
