"""The Compose file: everything is bounded, closed and healthy, and what it mounts exists; tests/cluster parses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
DOCUMENT: dict[str, Any] = yaml.safe_load((CLUSTER / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
RUN_ONCE = {name for name, service in SERVICES.items() if service.get("restart") == "no"}
ENVIRONMENT = dict(
    line.split("=", 1) for line in (CLUSTER.parent / ".env").read_text().splitlines() if line and line[0] != "#"
)


def test_every_part_starts_by_default_but_jenkins() -> None:
    there = {profile for service in SERVICES.values() for profile in service["profiles"]}
    assert set(ENVIRONMENT["COMPOSE_PROFILES"].split(",")) == there - {"ci"}
    assert (CLUSTER.parent / ENVIRONMENT["COMPOSE_FILE"]).samefile(CLUSTER / "docker-compose.yml")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_bounded_and_closed(name: str) -> None:
    service = SERVICES[name]
    if service.get("deploy", {}).get("replicas") == 0:
        return
    assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] or "writes" in (CLUSTER / "docker-compose.yml").read_text().split(f"  {name}:")[1]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    if name not in RUN_ONCE and "build" not in service:
        assert "healthcheck" in service
        assert ":latest" not in service["image"]
        assert ":" in service["image"]


def test_what_is_mounted_from_the_repository_is_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (CLUSTER / source).exists(), f"{name}: {source}"
            elif not source.startswith("$"):
                assert source in DOCUMENT["volumes"], f"{name}: {source}"


def test_no_secret_is_in_a_variable() -> None:
    for name, service in SERVICES.items():
        for variable, value in (service.get("environment") or {}).items():
            if any(word in variable for word in ("PASSWORD", "TOKEN", "SECRET", "API_KEY")):
                assert variable.endswith(("_FILE", "_PATH")), f"{name}: {variable}={value}"
