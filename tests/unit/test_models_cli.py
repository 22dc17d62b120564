"""From a trained model to the one that is live: listing, verifying, promoting, going back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from soundstage import cli
from soundstage.commands import models as model_commands
from soundstage.models import registry
from soundstage.models.registry import ModelCard, ModelFolder, ModelSources
from soundstage.pipeline import SOUND_MODEL
from tests.unit.test_speech_transcriber import random_weights, write

CARD = ModelCard(
    name="scribe", version="1.0.0", kind="speech", description="", licence="CC0-1.0", source="", languages=("en",)
)


def soundstage(*args: object) -> Result:
    return CliRunner().invoke(cli.app, ["models", *map(str, args)])


def trained(root: Path, version: str = "1.0.0", *, seed: int = 0, **changes: Any) -> ModelFolder:
    card = CARD.model_copy(update={"version": version, **changes})
    return write(root / "trained", card=card, weights=random_weights(seed))


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSources:
    """A machine with an empty cache, and an empty registry that it shares."""
    monkeypatch.setenv("SOUNDSTAGE_MODELS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SOUNDSTAGE_REGISTRY", str(tmp_path / "shared"))
    return ModelSources()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the seconds that running a model takes, where that is not the point."""
    monkeypatch.setattr(model_commands, "_try", lambda _: None)


def test_a_fit_model_is_verified(tmp_path: Path) -> None:
    folder = trained(tmp_path)
    assert "scribe 1.0.0 is intact and runs" in soundstage("verify", folder.path).stdout
    answer = json.loads(soundstage("verify", folder.path, "--json").stdout)
    assert answer == {
        "is_fit": True, "problem": None, "path": str(folder.path), "name": "scribe", "version": "1.0.0"
    }  # fmt: skip


def test_the_shipped_sound_model_is_fit() -> None:
    result = soundstage("verify", SOUND_MODEL)
    assert result.exit_code == 0, result.stderr


def with_changed_byte(folder: ModelFolder) -> None:
    file = folder.path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def with_params(folder: ModelFolder, **changes: object) -> None:
    params = json.loads((folder.path / "params.json").read_text())
    rewrite(folder, "params.json", json.dumps({**params, **changes}).encode())


def with_infinite_weights(folder: ModelFolder) -> None:
    from safetensors.numpy import save

    rewrite(
        folder, "weights.safetensors", save({name: np.full_like(w, np.inf) for name, w in random_weights().items()})
    )


def with_card(folder: ModelFolder, **changes: object) -> None:
    path = folder.path / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: ModelFolder, name: str, data: bytes) -> None:
    (folder.path / name).write_bytes(data)
    with_card(folder, files={**folder.card.files, name: registry.sha256_of(folder.path / name)})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (with_changed_byte, "weights.safetensors is damaged"),
        (lambda folder: with_params(folder, n_hearts=2), "n_hearts: Extra inputs are not permitted"),
        (lambda folder: with_params(folder, hidden_size=32), "do not fit its parameters"),
        (with_infinite_weights, "not finite"),
        (lambda folder: with_card(folder, licence=" "), "names no licence"),
        (lambda folder: with_card(folder, languages=[]), "names no language"),
        (lambda folder: with_card(folder, kind="smell"), "kind: Input should be 'speech' or 'sound'"),
        (lambda folder: (folder.path / "tokenizer.bin").unlink(), "tokenizer.bin is missing"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, spoil: Any, reason: str) -> None:
    folder = trained(tmp_path)
    spoil(folder)
    verified = soundstage("verify", folder.path)
    assert verified.exit_code == 1
    assert reason in verified.stderr
    assert verified.stderr.startswith("failed: ")
    assert verified.stderr.count("\n") == 1


def test_an_unfit_model_is_not_promoted(tmp_path: Path, machine: ModelSources) -> None:
    folder = trained(tmp_path)
    with_infinite_weights(folder)
    assert json.loads(soundstage("verify", folder.path, "--json").stdout)["is_fit"] is False
    promoted = soundstage("promote", folder.path)
    assert promoted.exit_code == 1
    assert "not finite" in promoted.stderr
    assert machine.home.entries() == []


def test_labels_that_are_not_those_of_the_model_are_refused(tmp_path: Path) -> None:
    shipped = registry.find(SOUND_MODEL)
    folder = tmp_path / shipped.path.name
    folder.mkdir()
    for file in shipped.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with_card(ModelFolder(folder, shipped.card), labels=["dog"])
    assert "labels" in soundstage("verify", folder).stderr


def test_a_promoted_model_is_the_one_that_is_found(tmp_path: Path, machine: ModelSources) -> None:
    first = soundstage("promote", trained(tmp_path, "1.0.0", metrics={"wer": 0.05}).path)
    assert first.exit_code == 0, first.stderr
    assert registry.find("scribe").card.version == "1.0.0"
    second = soundstage("promote", trained(tmp_path, "1.1.0", metrics={"wer": 0.04}).path, "--json")
    assert json.loads(second.stdout) == {
        "name": "scribe", "version": "1.1.0", "alias": "stable", "registry": machine.home.url, "replaced": "1.0.0",
        "metric": "wer", "value": 0.04, "replaced_value": 0.05,
    }  # fmt: skip
    assert registry.find("scribe").card.version == "1.1.0"


@pytest.mark.usefixtures("quick")
def test_a_worse_model_is_refused_unless_one_insists(tmp_path: Path) -> None:
    soundstage("promote", trained(tmp_path, "1.0.0", metrics={"wer": 0.04}).path)
    worse = trained(tmp_path, "1.1.0", metrics={"wer": 0.05}).path
    refused = soundstage("promote", worse)
    assert refused.exit_code == 1
    assert "scribe 1.1.0 is worse than 1.0.0, which it would replace: wer 0.05, was 0.04" in refused.stderr
    assert registry.versions("scribe") == ["1.0.0"]
    assert soundstage("promote", worse, "--force").exit_code == 0
    assert registry.find("scribe").card.version == "1.1.0"


@pytest.mark.usefixtures("quick")
def test_going_back_is_promoting_what_is_there(tmp_path: Path) -> None:
    for version, seed in (("1.0.0", 0), ("1.1.0", 1)):
        soundstage("promote", trained(tmp_path, version, seed=seed).path)
    back = soundstage("promote", "scribe", "--version", "1.0.0")
    assert "scribe 1.0.0 is stable" in back.stdout
    assert "instead of 1.1.0; no figure was measured of both" in back.stdout
    assert registry.find("scribe").card.version == "1.0.0"


@pytest.mark.usefixtures("quick")
def test_a_first_candidate_does_not_become_live(tmp_path: Path, machine: ModelSources) -> None:
    write(machine.cache, card=CARD)
    result = soundstage("promote", trained(tmp_path, "2.0.0").path, "--alias", "candidate")
    assert result.exit_code == 0, result.stderr
    assert registry.find("scribe").card.version == "1.0.0"
    assert registry.find("scribe", "candidate").card.version == "2.0.0"


@pytest.mark.usefixtures("quick")
def test_a_version_is_one_model(tmp_path: Path) -> None:
    soundstage("promote", trained(tmp_path).path)
    registry.find("scribe")
    other = soundstage("promote", trained(tmp_path, seed=1).path)
    assert other.exit_code == 1
    assert "give the new one its own" in other.stderr
    assert (
        registry.find("scribe").weights()["decoder.embedding"].tobytes()
        == random_weights(0)["decoder.embedding"].tobytes()
    )


@pytest.mark.usefixtures("quick")
def test_models_are_listed_with_their_aliases(tmp_path: Path, machine: ModelSources) -> None:
    soundstage("promote", trained(tmp_path, "1.0.0").path)
    soundstage("promote", trained(tmp_path, "1.1.0").path, "--alias", "candidate")
    entries = [entry for entry in json.loads(soundstage("list", "--json").stdout) if entry["name"] == "scribe"]
    assert [(entry["version"], entry["aliases"], entry["place"]) for entry in entries] == [
        ("1.0.0", ["stable"], f"{machine.home.url}/scribe/1.0.0"),
        ("1.1.0", ["candidate"], f"{machine.home.url}/scribe/1.1.0"),
    ]
    assert "candidate" in soundstage("list").stdout


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["verify", "nose"], "no model nose"),
        (["verify", "scribe", "--version", "best"], "neither a version nor an alias"),
        (["verify", "no/such/folder"], "holds no model.json"),
        (["promote", "FOLDER", "--alias", "1.0"], "is no alias"),
        (["promote", "FOLDER", "--version", "1.0.0"], "leave --version out"),
        (["promote", "FOLDER", "--to", "nosuch://place"], "cannot be used"),
        (["promote", "FOLDER", "--to", "s3://key:hunter2@bucket"], "must not hold a key"),
    ],
)
def test_wrong_usage_is_told(tmp_path: Path, args: list[str], reason: str) -> None:
    folder = trained(tmp_path).path
    result = soundstage(*(folder if arg == "FOLDER" else arg for arg in args))
    assert result.exit_code == 1
    assert reason in result.stderr
    assert "hunter2" not in result.output
