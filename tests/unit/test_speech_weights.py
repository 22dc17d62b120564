"""Set-up reads the speech model once, whole, and only where it is the published one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from soundstage.errors import ModelError
from soundstage.models import registry
from soundstage.params import MoonshineParams
from soundstage.speech import weights
from soundstage.speech.shapes import weight_shapes


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def _use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUNDSTAGE_MODELS_DIR", str(cache))


def test_two_processes_at_once_get_the_whole_model(cache: Path) -> None:
    code = (
        "import sys; from soundstage.speech import weights; print(weights.fetch().path);"
        "assert not {'moonshine_voice', 'tensorflow', 'keras'} & set(sys.modules), 'set-up needs none of them'"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert Path(out.strip()) == cache / weights.NAME / weights.VERSION
    folder = registry.find(weights.NAME)
    assert {name: array.shape for name, array in folder.weights().items()} == weight_shapes(MoonshineParams())
    assert sum(array.size for array in folder.weights().values()) == 27_092_736  # as published
    assert "MIT License" in (folder.path / "LICENSE").read_text()


def test_what_is_there_is_not_written_again() -> None:
    card = weights.fetch().path / registry.CARD_NAME
    before = card.stat().st_mtime_ns
    weights.fetch()
    assert card.stat().st_mtime_ns == before


def test_a_damaged_model_is_refused_and_fetched_anew() -> None:
    path = weights.fetch().path / registry.WEIGHTS_NAME
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(ModelError, match="damaged"):
        registry.find(weights.NAME)
    weights.fetch()
    registry.find(weights.NAME)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("DISTRIBUTION", "no-such-package", "no-such-package, which is missing; install it with"),
        ("DISTRIBUTION_VERSION", "0.0.1", "may hold another model; install it with"),
        ("SHA256", dict.fromkeys(weights.SHA256, "0"), "is not the published file"),
    ],
)
def test_another_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attribute: str, value: object, message: str
) -> None:
    monkeypatch.setenv("SOUNDSTAGE_MODELS_DIR", str(tmp_path))
    monkeypatch.setattr(weights, attribute, value)
    with pytest.raises(ModelError, match=message):
        weights.fetch()
    assert registry.list_models() == [] or all(f.card.name != weights.NAME for f in registry.list_models())
