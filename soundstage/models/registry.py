"""Named, versioned, checksummed model folders.

A registry is a folder `<registry>/<name>/<version>/`; each version holds

    model.json            ModelCard: what it is, its licence, measured accuracy and the SHA-256 of every other file
    params.json           the frozen parameters it was trained with
    weights.safetensors   named arrays
    README.md             the model card for people

and what else the model needs, such as a tokenizer. A folder is written whole or not at all, and read only after
its checksums hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import platformdirs
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from soundstage.errors import ModelError
from soundstage.params import Params

CARD_NAME = "model.json"
PARAMS_NAME = "params.json"
WEIGHTS_NAME = "weights.safetensors"
README_NAME = "README.md"

SHIPPED_DIR = Path(__file__).parent / "shipped"
"""Models of our own training that come with the package."""

ModelKind = Literal["speech", "sound"]
ParamsT = TypeVar("ParamsT", bound=Params)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def cache_dir() -> Path:
    """The registry that set-up fills: $SOUNDSTAGE_MODELS_DIR, else the user's cache directory."""
    configured = os.environ.get("SOUNDSTAGE_MODELS_DIR")
    return Path(configured) if configured else Path(platformdirs.user_cache_dir("soundstage")) / "models"


class ModelCard(Params):
    """What model.json holds.

    Attributes:
        metrics: Measured figures by name; rates are fractions.
        files: SHA-256 in hexadecimal of every other file of the folder.
    """

    name: str = Field(pattern=_NAME.pattern)
    version: str = Field(pattern=_NAME.pattern)
    kind: ModelKind
    description: str
    licence: str
    source: str
    labels: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    metrics: dict[str, float] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One version of a model whose checksums hold."""

    path: Path
    card: ModelCard

    def params(self, params_type: type[ParamsT]) -> ParamsT:
        """The parameters saved beside the weights.

        Raises:
            ModelError: They are not of this type.
        """
        try:
            return params_type.model_validate_json((self.path / PARAMS_NAME).read_bytes())
        except ValidationError as e:
            raise ModelError(f"{self.path / PARAMS_NAME} does not fit this version of Soundstage: {e}") from e

    def weights(self) -> dict[str, NDArray[np.generic]]:
        """The named arrays, as stored.

        Raises:
            ModelError: The file is not safetensors.
        """
        try:
            return load_file(self.path / WEIGHTS_NAME)
        except SafetensorError as e:
            raise ModelError(f"{self.path / WEIGHTS_NAME} is not a safetensors file: {e}") from e


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_folder(path: Path) -> ModelFolder:
    """Read a model folder and check that every file is the one that was written.

    Raises:
        ModelError: No model.json, a file is missing, or its checksum differs.
    """
    try:
        card = ModelCard.model_validate_json((path / CARD_NAME).read_bytes())
    except FileNotFoundError as e:
        raise ModelError(f"{path} holds no {CARD_NAME}") from e
    except ValidationError as e:
        raise ModelError(f"{path / CARD_NAME} is not a model card: {e}") from e
    for name, expected in card.files.items():
        file = path / name
        if not file.is_file():
            raise ModelError(f"{file} is missing")
        if sha256_of(file) != expected:
            raise ModelError(f"{file} is damaged: its SHA-256 is not the one in {CARD_NAME}")
    missing = {PARAMS_NAME, WEIGHTS_NAME} - card.files.keys()
    if missing:
        raise ModelError(f"{path / CARD_NAME} lists no {', '.join(sorted(missing))}")
    return ModelFolder(path, card)


def write_folder(
    registry: Path,
    card: ModelCard,
    *,
    params: Params,
    weights: Mapping[str, NDArray[np.generic]],
    readme: str,
    extra: Mapping[str, bytes] | None = None,
) -> ModelFolder:
    """Write a version whole or not at all, replacing an older writing of the same version.

    Args:
        registry: Made where it does not exist.
        card: Its `files` are filled in here.
        params: Saved as params.json.
        weights: Saved as weights.safetensors, each array in its own dtype.
        readme: The model card for people.
        extra: Further files by name.

    Raises:
        OSError: The disk refuses; nothing is left behind.
    """
    target = registry / card.name / card.version
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{card.version}-", dir=target.parent))
    try:
        contiguous = {name: np.ascontiguousarray(array) for name, array in sorted(weights.items())}
        save_file(contiguous, scratch / WEIGHTS_NAME)
        (scratch / PARAMS_NAME).write_text(params.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (scratch / README_NAME).write_text(readme, encoding="utf-8")
        for name, data in (extra or {}).items():
            (scratch / name).write_bytes(data)
        files = {file.name: sha256_of(file) for file in sorted(scratch.iterdir())}
        card = card.model_copy(update={"files": files})
        text = json.dumps(card.model_dump(), indent=2, ensure_ascii=False)
        (scratch / CARD_NAME).write_text(text + "\n", encoding="utf-8")
        # The service may run as another user than the one who trained.
        scratch.chmod(0o755)
        for file in scratch.iterdir():
            file.chmod(0o644)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
            target.rename(old / "model")
            scratch.rename(target)
            shutil.rmtree(old)
        else:
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return open_folder(target)


def search_path() -> tuple[Path, ...]:
    """Where models are looked for, first match wins."""
    return (cache_dir(), SHIPPED_DIR)


def _version_key(version: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in version.split("."))


def _version_dirs() -> Iterator[Path]:
    for registry in search_path():
        cards = registry.glob(f"*/*/{CARD_NAME}")
        yield from sorted(card.parent for card in cards if not card.parent.name.startswith("."))


def find(name: str, version: str | None = None) -> ModelFolder:
    """The named model in this version, or in its newest.

    Raises:
        ModelError: There is none, or it is damaged.
    """
    if not _NAME.fullmatch(name) or (version is not None and not _NAME.fullmatch(version)):
        raise ModelError(f"{name!r} version {version!r} is not a model name and version")
    found = [path for path in _version_dirs() if path.parent.name == name and version in (None, path.name)]
    if not found:
        wanted = name if version is None else f"{name} {version}"
        places = ", ".join(str(path) for path in search_path())
        raise ModelError(f"no model {wanted} in {places}; `soundstage models fetch` reads the speech model")
    return open_folder(max(found, key=lambda path: _version_key(path.name)))


def list_models() -> list[ModelFolder]:
    """Every version that can be read; damaged ones are left out."""
    folders = []
    for path in _version_dirs():
        try:
            folders.append(open_folder(path))
        except ModelError:
            continue
    return folders
