"""The Dockerfiles, by a linter and by what they must agree with; tests/cluster runs their steps."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from deployments.local import LocalCluster
from tests.cluster.image import context_files, is_ignored, parse

ROOT = Path(__file__).parents[2]
DOCKERFILES = ("cluster/Dockerfile", "cluster/tensorflow_serving/Dockerfile")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_linter_finds_nothing(name: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--format", "json", ROOT / name], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == []


def test_nodes_run_as_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and deployments.local set the same variables of Ray, but for what is a matter of one machine's ports."""
    steps = parse((ROOT / "cluster/Dockerfile").read_text())
    (environment,) = (step.rest for step in steps if step.name == "ENV" and "RAY_" in step.rest)
    image = dict(pair.split("=", 1) for pair in shlex.split(environment))
    for name in [name for name in os.environ if name.startswith(("RAY_", "TF_"))]:
        monkeypatch.delenv(name)
    local = LocalCluster().environment()
    expected = {
        name: value
        for name, value in local.items()
        if name.startswith(("RAY_", "TF_")) and not name.endswith(("_PORT", "_PATH"))
    }
    assert {name: image.get(name) for name in expected} == expected


def test_every_package_is_checked_against_its_hash() -> None:
    text = (ROOT / "cluster/Dockerfile").read_text()
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert installs
    assert all("--require-hashes" in line or "--no-deps /wheels/" in line for line in installs)
    for lock in sorted((ROOT / "cluster").glob("requirements-*.lock")):
        content = lock.read_text()
        assert content.count("==") <= content.count("--hash=sha256:")
        assert "index-url" not in content


def test_the_result_runs_as_nobody_and_knows_its_health() -> None:
    steps = parse((ROOT / "cluster/Dockerfile").read_text())
    runtime = next(i for i, step in enumerate(steps) if step.name == "FROM" and step.rest.endswith("AS runtime"))
    after = {step.name: step.rest for step in steps[runtime:]}
    assert after["USER"] == "10001:10001"
    assert "readyz" in after["HEALTHCHECK"]
    assert steps[-1].name == "COPY", "the last stage, which is built by default, is the CPU image"


def test_nothing_but_what_is_needed_is_sent_to_the_builder() -> None:
    files = set(map(str, context_files(ROOT)))
    assert {"pyproject.toml", "requirements.lock", "soundstage/cli.py", "deployments/app.py"} <= files
    unwanted = ("tests/", ".git/", "benchmarks/", "training/", "docs/", "runs/", ".env", "cluster/compose/")
    assert [name for name in files if name.startswith(unwanted)] == []


@pytest.mark.parametrize(
    ("path", "patterns", "ignored"),
    [
        ("a/b.py", ["*"], True),
        ("a/b.py", ["*", "!a"], False),
        ("a/c/b.pyc", ["*", "!a", "**/*.pyc"], True),
        ("lock-1.txt", ["*", "!lock-*.txt"], False),
        ("a/b.py", ["b.py"], False),
    ],
)
def test_dockerignore_is_read_as_docker_reads_it(path: str, patterns: list[str], ignored: bool) -> None:
    assert is_ignored(PurePosixPath(path), patterns) is ignored
