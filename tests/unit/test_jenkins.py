"""What Jenkins calls, people can call: every step is a target of the Makefile; tests/cluster runs the pipelines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster import delivery
from cluster.delivery import MAX_WORSE, STEPS, Delivery, StopDelivery

ROOT = Path(__file__).parents[2]
PIPELINES = sorted((ROOT / "cluster" / "jenkins").rglob("Jenkinsfile"))
TARGETS = set(re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
NAMES = {name for target in TARGETS for name in target.split()}


def test_both_pipelines_are_there() -> None:
    assert [path.parent.name for path in PIPELINES] == ["CD", "CI"]


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_every_step_is_a_target(path: Path) -> None:
    wanted = set(re.findall(r"make ([a-z-]+)", path.read_text()))
    assert wanted
    assert wanted <= NAMES - {"make help"}


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.parent.name)
def test_no_command_is_filled_in_by_groovy(path: Path) -> None:
    assert not re.findall(r'\bsh\s+"', path.read_text()), "a secret would be part of the command"


def test_every_step_of_a_delivery_is_a_target() -> None:
    assert set(STEPS) <= NAMES


# The gate


@pytest.fixture
def trained(tmp_path: Path) -> Delivery:
    folder = tmp_path / "models" / "ears" / "2"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    environment = {
        "MODEL": "ears",
        "OUTPUT": str(tmp_path / "models"),
        "TEST_DATA": "clips",
        "SOUNDSTAGE_REGISTRY": "r",
        "CANARY_MINUTES": "0",
    }
    return Delivery.from_environment(environment)


def scored(monkeypatch: pytest.MonkeyPatch, *, champion: float, challenger: float) -> None:
    def run(*args: str, environment: dict[str, str]) -> str:
        assert args[:2] == ("-m", "training.sound_classification.evaluate")
        top1 = challenger if "SOUNDSTAGE_MODELS_DIR" in environment else champion
        return f'warming up\n{{"top1": {top1}, "n_clips": 10}}\n'

    monkeypatch.setattr(delivery, "_run", run)
    monkeypatch.setattr(Delivery, "_live_version", lambda self: "1")


def test_a_better_model_passes_the_gate_and_the_champion_is_remembered(
    trained: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, champion=0.90, challenger=0.92)
    trained.gate()
    went_back: list[tuple[str, ...]] = []
    monkeypatch.setattr(delivery, "_soundstage", lambda *args: went_back.append(args))
    monkeypatch.setattr(Delivery, "_is_served", lambda self, version: version == "1")
    trained.rollback()
    assert went_back == [("models", "promote", "ears", "--version", "1", "--to", "r", "--force")]


def test_a_worse_model_is_refused(trained: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, champion=0.90, challenger=0.90 - 2 * MAX_WORSE)
    with pytest.raises(StopDelivery, match="worse"):
        trained.gate()


@pytest.mark.parametrize(
    ("counts", "why"),
    [((0, 0, 0), "no request"), ((100, 50, 0), "too often"), ((100, 100, 1), "failed"), ((100, 90, 0), None)],
)
def test_a_candidate_that_is_not_compared_or_says_something_else_is_refused(
    trained: Delivery, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int, int], why: str | None
) -> None:
    def ask(self: Delivery, query: str) -> float:
        assert 'candidate="2"' in query
        return next(n for name, n in zip(("compared", "agreed", "failed"), counts, strict=True) if name in query)

    monkeypatch.setattr(Delivery, "_ask", ask)
    monkeypatch.setattr(Delivery, "_is_tried_out", lambda self, version: version == "2")
    monkeypatch.setattr(delivery, "_soundstage", lambda *args: None)
    if why is None:
        trained.canary()
    else:
        with pytest.raises(StopDelivery, match=why):
            trained.canary()


def test_what_is_not_given_is_named(tmp_path: Path) -> None:
    with pytest.raises(StopDelivery, match="DATA"):
        Delivery.from_environment({"OUTPUT": str(tmp_path)}).train()
    with pytest.raises(StopDelivery, match="train-sounds"):
        Delivery.from_environment({"OUTPUT": str(tmp_path)}).export_model()
