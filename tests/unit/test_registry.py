"""Model folders: whole or not at all, read only when intact."""

from __future__ import annotations

import json
import multiprocessing
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.errors import ModelError
from soundstage.models import registry
from soundstage.models.registry import ModelCard, ModelFolder, ModelSources, open_folder, write_folder
from soundstage.models.store import Store
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


@pytest.mark.parametrize(
    ("name", "version"), [("nose", None), ("ears", "9"), ("../ears", None), ("ears", "../1.0.0"), ("ears", "candidate")]
)
def test_what_is_not_there_is_named(root: Path, name: str, version: str | None) -> None:
    write(root)
    with pytest.raises(ModelError, match=r"no model|not a model name|neither a version nor an alias"):
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


def test_a_folder_under_another_version_is_refused(root: Path) -> None:
    folder = write(root)
    folder.path.rename(root / "ears" / "2.0.0")
    with pytest.raises(ModelError, match=r"is that of ears 1\.0\.0"):
        registry.find("ears", "2.0.0")


# The registry that many machines share


@pytest.fixture(params=["folder", "memory"])
def sources(request: pytest.FixtureRequest, tmp_path: Path, root: Path) -> Iterator[ModelSources]:
    """A machine with an empty cache, and a registry with ears 1.0.0 and 2.0.0."""
    url = str(tmp_path / "shared") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/models"
    for version in ("1.0.0", "2.0.0"):
        registry.publish(write(tmp_path / "trained", version), Store(url))
    yield ModelSources(cache_dir=tmp_path / "cache", registry=url)
    if request.param == "memory":
        import fsspec

        fsspec.filesystem("memory").store.clear()


def test_a_version_is_fetched_once(sources: ModelSources) -> None:
    folder = registry.find("ears", "1.0.0", sources)
    assert folder.path == sources.cache / "ears" / "1.0.0"
    assert np.array_equal(folder.weights()["kernel"], WEIGHTS["kernel"])
    gone = ModelSources(cache_dir=sources.cache, registry="memory://gone")
    assert registry.find("ears", "1.0.0", gone).path == folder.path


def test_aliases_say_what_is_used(sources: ModelSources) -> None:
    assert registry.find("ears", None, sources).card.version == "2.0.0"
    registry.set_aliases("ears", {"stable": "1.0.0", "candidate": "2.0.0"}, sources.home)
    assert registry.find("ears", None, sources).card.version == "1.0.0"
    assert registry.find("ears", "candidate", sources).card.version == "2.0.0"
    registry.set_aliases("ears", {"stable": "2.0.0"}, sources.home)
    assert registry.find("ears", "stable", sources).card.version == "2.0.0"
    assert registry.aliases("ears", sources.home) == {"stable": "2.0.0", "candidate": "2.0.0"}
    with pytest.raises(ModelError, match="its aliases are candidate, stable"):
        registry.find("ears", "best", sources)


def test_a_damaged_version_never_reaches_the_cache(sources: ModelSources) -> None:
    sources.home.write(b"not the weights", "ears", "1.0.0", "weights.safetensors")
    with pytest.raises(ModelError, match=r"1\.0\.0/weights\.safetensors is damaged"):
        registry.find("ears", "1.0.0", sources)
    assert not [path for path in sources.cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    assert registry.find("ears", "2.0.0", sources).card.version == "2.0.0"


def test_a_damaged_copy_is_fetched_anew(sources: ModelSources) -> None:
    weights = registry.find("ears", "1.0.0", sources).path / "weights.safetensors"
    weights.write_bytes(b"x")
    assert registry.find("ears", "1.0.0", sources).weights().keys() == WEIGHTS.keys()


def test_a_half_published_version_does_not_exist(sources: ModelSources) -> None:
    sources.home.write(b"half", "ears", "3.0.0", "weights.safetensors")
    assert registry.find("ears", None, sources).card.version == "2.0.0"
    with pytest.raises(ModelError, match=r"no model ears 3\.0\.0"):
        registry.find("ears", "3.0.0", sources)


def test_what_was_published_never_changes(sources: ModelSources, tmp_path: Path) -> None:
    card = ModelCard(name="ears", version="1.0.0", kind="sound", description="d", licence="CC0-1.0", source="s")
    other = write_folder(tmp_path / "other", card, params=PARAMS, weights={}, readme="another")
    with pytest.raises(ModelError, match="give the new one a new version"):
        registry.publish(other, sources.home)
    assert registry.find("ears", "1.0.0", sources).weights()


def test_publishing_again_mends_what_is_damaged(sources: ModelSources, tmp_path: Path) -> None:
    sources.home.write(b"x", "ears", "1.0.0", "weights.safetensors")
    registry.publish(open_folder(tmp_path / "trained" / "ears" / "1.0.0"), sources.home)
    assert registry.find("ears", "1.0.0", sources).weights()


def _find(cache: Path, url: str) -> str:
    return str(registry.find("ears", "2.0.0", ModelSources(cache_dir=cache, registry=url)).path)


def test_processes_that_fetch_at_once_share_one_copy(tmp_path: Path) -> None:
    registry.publish(write(tmp_path / "trained", "2.0.0"), Store(str(tmp_path / "shared")))
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        paths = pool.starmap(_find, [(tmp_path / "cache", str(tmp_path / "shared"))] * 8)
    assert set(paths) == {str(tmp_path / "cache" / "ears" / "2.0.0")}
    assert [path.name for path in (tmp_path / "cache" / "ears").iterdir()] == ["2.0.0"]


def test_a_registry_that_is_not_there_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="where there is nothing at all"):
        registry.find("ears", None, ModelSources(registry=str(tmp_path / "mistyped")))
    with pytest.raises(ModelError, match="cannot be used"):
        registry.find("ears", None, ModelSources(registry="nosuch://registry"))


@pytest.mark.parametrize(
    "url", ["s3://AKIA:hunter2@bucket/models", "https://hunter2@host/models", "gs://bucket/models?token=hunter2"]
)
def test_secrets_are_refused_and_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must not hold a key") as refusal:
        ModelSources(registry=url)
    assert "hunter2" not in str(refusal.value)
    monkeypatch.setenv("SOUNDSTAGE_REGISTRY", url)
    with pytest.raises(ModelError, match="must not hold a key") as refusal:
        registry.find("ears")
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"stable": "../1"}', b'{"STABLE": "1.0.0"}'])
def test_damaged_aliases_are_refused(sources: ModelSources, data: bytes) -> None:
    sources.home.write(data, "ears", "aliases.json")
    with pytest.raises(ModelError, match="is not a table of aliases"):
        registry.find("ears", None, sources)


def test_a_card_cannot_reach_out_of_its_folder() -> None:
    with pytest.raises(ValueError, match="files"):
        ModelCard(
            name="e", version="1", kind="sound", description="", licence="", source="", files={"../../etc/passwd": "0"}
        )
