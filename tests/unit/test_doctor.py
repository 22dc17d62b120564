"""What the doctor finds on this machine, and on ones that lack something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from soundstage import cli, doctor
from soundstage.doctor import Check, is_fit
from soundstage.errors import Overloaded
from soundstage.models import registry
from soundstage.models.registry import ModelCard
from soundstage.params import Params
from tests.unit.served_app import KnownEngine, serving, unused_url

# Stands in for TensorFlow, which takes seconds to load; the test of the real one is below.
QUICK = 'print("some note on stdout"); print(\'{"version": "9.9", "devices": ["CPU", "GPU", "GPU"]}\')'


def write_model(registry_dir: Path, name: str) -> Path:
    card = ModelCard(name=name, version="1.0.0", kind="sound", description="d", licence="l", source="s")
    return registry.write_folder(registry_dir, card, params=Params(), weights={}, readme="r").path


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A registry with both models."""
    monkeypatch.setenv("SOUNDSTAGE_MODELS_DIR", str(tmp_path))
    monkeypatch.setattr(registry, "SHIPPED_DIR", tmp_path / "shipped")
    return {name: write_model(tmp_path, name) for name in ("moonshine-tiny-en", "soundstage-sounds")}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = doctor.check_tensorflow(QUICK)
    monkeypatch.setattr(doctor, "check_tensorflow", lambda: looked)


@pytest.mark.usefixtures("quick", "models")
def test_a_machine_that_has_all_is_fit() -> None:
    with serving(KnownEngine()) as url:
        result = CliRunner().invoke(cli.app, ["doctor", "--json", "--url", url])
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert {name: check["found"] for name, check in checks.items() if check["state"] == "missing"} == {}
    assert result.exit_code == 0
    assert checks["service"] == {"name": "service", "state": "ok", "found": f"ready at {url}", "advice": ""}
    assert checks["TensorFlow"]["found"] == "9.9 on 2 GPU"
    assert set(checks) >= {"Python", "processors", "memory", "decoders", "Ray Serve", "HAProxy", "free disk"}


@pytest.mark.usefixtures("quick")
def test_what_is_missing_comes_with_what_to_do(models: dict[str, Path]) -> None:
    weights = models["moonshine-tiny-en"] / "weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    result = CliRunner().invoke(cli.app, ["doctor", "--json", "--url", unused_url()])
    assert result.exit_code == 1
    missing = [check for check in json.loads(result.stdout) if check["state"] == "missing"]
    assert [check["name"] for check in missing] == ["model moonshine-tiny-en"]
    assert "damaged" in missing[0]["found"]
    assert "soundstage models fetch" in missing[0]["advice"]


@pytest.mark.usefixtures("quick", "models")
def test_a_service_that_does_not_run_is_a_warning() -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--url", unused_url()], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "no service answers" in result.stdout
    assert "make run" in result.stdout


def test_a_service_that_is_not_ready_says_what_it_waits_for() -> None:
    engine = KnownEngine()
    engine.errors = [Overloaded("VoiceRecognizer has no replica")]
    with serving(engine) as url:
        check = doctor.check_service(url)
    assert (check.state, check.found) == ("warning", "VoiceRecognizer has no replica")
    assert doctor.check_service("nowhere").state == "warning"


def test_tensorflow_is_there() -> None:
    check = doctor.check_tensorflow()
    assert check.state == "ok", check
    assert check.found.startswith("2.")


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("import os; os.kill(os.getpid(), 4)", "ended the process with -4"),
    ],
)
def test_a_broken_tensorflow_does_not_break_the_doctor(code: str, found: str) -> None:
    check = doctor.check_tensorflow(code)
    assert check.state == "missing"
    assert found in check.found
    assert "extra" in check.advice


def test_a_tensorflow_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TENSORFLOW_TIMEOUT_S", 0.2)
    assert doctor.check_tensorflow("import time; time.sleep(60)").state == "missing"


def test_decoders_that_are_not_there_are_named() -> None:
    check = doctor.check_decoders(demuxers=("wav", "betamax"), decoders=("flac", "mp9"))
    assert check.state == "missing"
    assert check.found == "no betamax, mp9"


def test_too_little_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n", encoding="ascii")
    assert doctor.check_memory(limit).state == "warning"
    assert doctor.check_memory(limit).found == "1.0 GiB"
    limit.write_text("max\n", encoding="ascii")
    assert doctor.check_memory(limit).found == doctor.check_memory(tmp_path / "none").found
    assert doctor.check_shared_memory(tmp_path / "none").state == "warning"
    assert doctor.check_disk(tmp_path / "not" / "made" / "yet").found.endswith(str(tmp_path))
    monkeypatch.setattr(doctor, "MIN_FREE_DISK_BYTES", 2**70)
    assert doctor.check_disk(tmp_path).state == "warning"


def test_haproxy_that_is_configured_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_haproxy().state == "ok"
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/no/such/haproxy")
    assert doctor.check_haproxy().state == "missing"


def test_only_what_is_missing_makes_a_machine_unfit() -> None:
    warning = Check(name="a", state="warning", found="")
    assert is_fit([warning])
    assert not is_fit([warning, Check(name="b", state="missing", found="")])
