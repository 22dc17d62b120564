"""Model folders: whole or not at all, read only when intact."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.errors import ModelError
from soundstage.models import registry
from soundstage.models.registry import ModelCard, ModelFolder, open_folder, write_folder
from soundstage.params import ChunkParams, LevelParams

PARAMS = LevelParams(silence_dbfs=-50)
WEIGHTS: dict[str, NDArray[np.generic]] = {
    "kernel": np.arange(6, dtype=np.float16).reshape(2, 3),
    "bias": np.zeros(3, np.float32),
}


def write(root: Path, version: str = "1.0.0") -> ModelFolder:
    card = ModelCard(name="ears", version=version, kind="sound", description="d", licence="CC0-1.0", source="s")
    return write_folder(root, card, params=PARAMS, weights=WEIGHTS, readme="# ears\n", extra={"labels.txt": b"dog\n"})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOUNDSTAGE_MODELS_DIR", str(tmp_path))
    return tmp_path


def test_what_was_written_is_read(root: Path) -> None:
    folder = open_folder(write(root).path)
    assert folder.params(LevelParams) == PARAMS
    read = folder.weights()
    assert {name: array.dtype for name, array in read.items()} == {"kernel": np.float16, "bias": np.float32}
    assert np.array_equal(read["kernel"], WEIGHTS["kernel"])
    assert set(folder.card.files) == {"params.json", "weights.safetensors", "README.md", "labels.txt"}


def test_another_user_may_read_it(root: Path) -> None:
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in write(root).path.iterdir())


def test_a_version_may_be_written_again(root: Path) -> None:
    write(root)
    folder = write(root)
    assert [path.name for path in folder.path.parent.iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("name", ["weights.safetensors", "params.json", "labels.txt", "README.md"])
def test_one_changed_byte_is_refused(root: Path, name: str) -> None:
    folder = write(root)
    file = folder.path / name
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match=f"{name} is damaged"):
        open_folder(folder.path)
    assert registry.list_models() == [entry for entry in registry.list_models() if entry.card.name != "ears"]


def test_a_missing_file_is_refused(root: Path) -> None:
    folder = write(root)
    (folder.path / "labels.txt").unlink()
    with pytest.raises(ModelError, match=r"labels\.txt is missing"):
        open_folder(folder.path)


def test_parameters_of_another_kind_are_refused(root: Path) -> None:
    with pytest.raises(ModelError, match="does not fit"):
        write(root).params(ChunkParams)


def test_the_newest_version_is_found_by_number(root: Path) -> None:
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        write(root, version)
    assert registry.find("ears").card.version == "1.10.0"
    assert registry.find("ears", "1.2.0").card.version == "1.2.0"


@pytest.mark.parametrize(("name", "version"), [("nose", None), ("ears", "9"), ("../ears", None), ("ears", "../1.0.0")])
def test_what_is_not_there_is_named(root: Path, name: str, version: str | None) -> None:
    write(root)
    with pytest.raises(ModelError, match=r"no model|not a model name"):
        registry.find(name, version)


def test_a_write_that_fails_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        write(root)
    assert not list((root / "ears").iterdir())


def test_the_shipped_model_is_intact_and_small() -> None:
    for card in registry.SHIPPED_DIR.glob("*/*/model.json"):
        folder = open_folder(card.parent)
        assert json.loads(card.read_text())["licence"] == folder.card.licence == "Apache-2.0"
        assert sum(file.stat().st_size for file in folder.path.iterdir()) <= 16 * 1024**2
