"""Named, versioned, checksummed model folders.

A registry is a folder `<registry>/<name>/<version>/`; each version holds

    model.json            ModelCard: what it is, its licence, measured accuracy and the SHA-256 of every other file
    params.json           the frozen parameters it was trained with
    weights.safetensors   named arrays
    README.md             the model card for people

and what else the model needs, such as a tokenizer. A folder is written whole or not at all, and read only after
its checksums hold. Beside the versions lies

    aliases.json          what "stable" and other names stand for, such as {"stable": "0.2.0"}

so that a version is put live, and taken back, by one small write.

Models are looked for in the cache, then among those that come with the package; a registry that many machines
share ($SOUNDSTAGE_REGISTRY, a folder or any URL that fsspec reads) says what the aliases stand for, and a version
that only it has is copied into the cache first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import platformdirs
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from soundstage.errors import ModelError
from soundstage.models.store import Store, check_url
from soundstage.params import Params

CARD_NAME = "model.json"
PARAMS_NAME = "params.json"
WEIGHTS_NAME = "weights.safetensors"
README_NAME = "README.md"
ALIASES_NAME = "aliases.json"

STABLE = "stable"
"""The alias that is used where no version is named."""

SHIPPED_DIR = Path(__file__).parent / "shipped"
"""Models of our own training that come with the package."""

ModelKind = Literal["speech", "sound"]
ParamsT = TypeVar("ParamsT", bound=Params)

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
"""Of a model."""
Version = Annotated[str, StringConstraints(pattern=r"^[0-9][a-z0-9._-]*$")]
"""Begins with a digit, so that no alias looks like one."""
Alias = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def _check_reference(text: str) -> str:
    if not (is_version(text) or _fits(_ALIAS, text)):
        raise ValueError(f"{text!r} is neither a version, such as 0.2.0, nor an alias, such as {STABLE}")
    return text


VersionOrAlias = Annotated[str, AfterValidator(_check_reference)]

_NAMES: TypeAdapter[str] = TypeAdapter(Name)
_VERSIONS: TypeAdapter[str] = TypeAdapter(Version)
_ALIAS: TypeAdapter[str] = TypeAdapter(Alias)
_ALIASES: TypeAdapter[dict[str, str]] = TypeAdapter(dict[Alias, Version])


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

    name: Name
    version: Version
    kind: ModelKind
    description: str
    licence: str
    source: str
    labels: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    metrics: dict[str, float] = Field(default_factory=dict)
    files: dict[FileName, str] = Field(default_factory=dict)


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
            raise ModelError(f"{self.path / PARAMS_NAME} does not fit this version of Soundstage: {told(e)}") from e

    def weights(self) -> dict[str, NDArray[np.generic]]:
        """The named arrays, as stored.

        Raises:
            ModelError: The file is not safetensors.
        """
        try:
            return load_file(self.path / WEIGHTS_NAME)
        except SafetensorError as e:
            raise ModelError(f"{self.path / WEIGHTS_NAME} is not a safetensors file: {e}") from e


def _parse_card(data: bytes, place: object) -> ModelCard:
    try:
        return ModelCard.model_validate_json(data)
    except ValidationError as e:
        raise ModelError(f"the {CARD_NAME} in {place} is not a model card: {told(e)}") from e


def told(error: ValidationError) -> str:
    """What is wrong with a file or a setting, in one line."""
    problems = ((".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors())
    return "; ".join(f"{place}: {message}" if place else message for place, message in problems)


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
        card = _parse_card((path / CARD_NAME).read_bytes(), path)
    except FileNotFoundError as e:
        raise ModelError(f"{path} holds no {CARD_NAME}") from e
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
    with _written_whole(target) as scratch:
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
    return open_folder(target)


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of the target at the end, or vanishes where something fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the system drops the lock of a process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class ModelSources(Params):
    """Where models come from.

    Attributes:
        cache_dir: Holds what was fetched; None for $SOUNDSTAGE_MODELS_DIR, else the user's cache directory.
        registry: Folder or URL of the registry that many machines share; None for $SOUNDSTAGE_REGISTRY, and without
            that for the cache itself.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    cache_dir: Path | None = None
    registry: Annotated[str, AfterValidator(check_url)] | None = None

    @property
    def cache(self) -> Path:
        """Where fetched versions are kept."""
        return self.cache_dir or cache_dir()

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders of this machine in which models are looked for, first match wins."""
        return (self.cache, SHIPPED_DIR)

    @property
    def shared(self) -> Store | None:
        """The registry that many machines share.

        Raises:
            ModelError: Its URL is none that can be used.
        """
        url = self.registry or os.environ.get("SOUNDSTAGE_REGISTRY")
        return Store(url) if url else None

    @property
    def home(self) -> Store:
        """The registry whose aliases count.

        Raises:
            ModelError: Its URL is none that can be used.
        """
        return self.shared or Store(str(self.cache))


def find(name: str, version: str | None = None, sources: ModelSources | None = None) -> ModelFolder:
    """The named model in this version.

    Args:
        name: Of the model.
        version: A version or an alias; None for the alias "stable", and where there is none for the newest version.
        sources: Where to look; None for what the environment says.

    Raises:
        ModelError: There is none, it is damaged, or the registry does not answer.
    """
    sources = sources or ModelSources()
    version = resolve(name, version, sources)
    problem: ModelError | None = None
    for path in _local_folders(name, version, sources):
        try:
            return _named(open_folder(path), name, version)
        except ModelError as e:
            problem = problem or e
    shared = sources.shared
    if shared is not None and (data := shared.read(name, version, CARD_NAME)) is not None:
        return _fetch(data, shared, sources.cache / name / version)
    raise problem or _not_found(f"{name} {version}", sources)


def resolve(name: str, version: str | None = None, sources: ModelSources | None = None) -> str:
    """The version that a version or an alias stands for now.

    Args:
        name: Of the model.
        version: As for `find`. A version stands for itself, whether it exists or not.
        sources: As for `find`.

    Raises:
        ModelError: Not a name, no such model or alias, or the registry does not answer.
    """
    sources = sources or ModelSources()
    if not is_name(name):
        raise ModelError(f"{name!r} is not a model name")
    if version is not None and is_version(version):
        return version
    known = aliases(name, sources.home)
    alias = version or STABLE
    if alias in known:
        return known[alias]
    if version is not None:
        raise ModelError(
            f"{version!r} is neither a version nor an alias of {name} in {sources.home.url}"
            + (f"; its aliases are {', '.join(sorted(known))}" if known else ", where it has no aliases")
        )
    found = versions(name, sources)
    if not found:
        raise _not_found(name, sources)
    return found[0]


def versions(name: str, sources: ModelSources | None = None) -> list[str]:
    """Every version of a model, here and in the shared registry, newest first.

    Raises:
        ModelError: The registry does not answer.
    """
    sources = sources or ModelSources()
    found = {path.name for path in _local_folders(name, "*", sources)}
    if (shared := sources.shared) is not None:
        found |= set(_versions_in(shared, name))
    return sorted(found, key=_version_key, reverse=True)


def aliases(name: str, registry: Store) -> dict[str, str]:
    """What the aliases of a model stand for.

    Raises:
        ModelError: The registry does not answer, or its file of aliases is damaged.
    """
    data = registry.read(name, ALIASES_NAME)
    if data is None:
        return {}
    try:
        return _ALIASES.validate_json(data)
    except ValidationError as e:
        raise ModelError(f"{registry.url}/{name}/{ALIASES_NAME} is not a table of aliases: {told(e)}") from e


def set_aliases(name: str, standing: Mapping[str, str], registry: Store) -> None:
    """Let aliases stand for versions, in one atomic write; the model's other aliases stay.

    Raises:
        ModelError: Not an alias, or the registry does not take it.
    """
    for alias in standing:
        check_alias(alias)
    known = {**aliases(name, registry), **standing}
    registry.write(json.dumps(known, indent=2, sort_keys=True).encode() + b"\n", name, ALIASES_NAME)


def publish(folder: ModelFolder, registry: Store) -> None:
    """Copy a version into a registry; a version that is there already is checked, and mended where it is damaged.

    Its card is written last, so that a reader sees the version whole or not at all.

    Raises:
        ModelError: The registry holds another model by this name and version, or does not take it.
    """
    card = folder.card
    data = (folder.path / CARD_NAME).read_bytes()
    there = registry.read(card.name, card.version, CARD_NAME)
    if there is not None and _parse_card(there, registry.url).files != card.files:
        raise ModelError(
            f"{registry.url} holds another model as {card.name} {card.version}; what was published never changes: "
            "give the new one a new version"
        )
    for name, expected in card.files.items():
        path = (card.name, card.version, name)
        if registry.sha256(*path) != expected:
            registry.upload(folder.path / name, *path)
            if registry.sha256(*path) != expected:
                raise ModelError(f"{name} was damaged on its way to {registry.url}")
    if there != data:
        registry.write(data, card.name, card.version, CARD_NAME)


def list_models(sources: ModelSources | None = None) -> list[ModelFolder]:
    """Every version on this machine that can be read; damaged ones are left out."""
    folders = []
    for path in _local_folders("*", "*", sources or ModelSources()):
        try:
            folders.append(open_folder(path))
        except ModelError:
            continue
    return folders


def list_cards(registry: Store) -> list[ModelCard]:
    """The card of every version in a registry that is whole.

    Raises:
        ModelError: The registry does not answer, or a card in it is none.
    """
    cards = []
    for name in filter(is_name, registry.entries()):
        for version in _versions_in(registry, name):
            data = registry.read(name, version, CARD_NAME)
            assert data is not None
            cards.append(_parse_card(data, f"{registry.url}/{name}/{version}"))
    return cards


def read_card(name: str, version: str, sources: ModelSources | None = None) -> ModelCard | None:
    """The card of a version, without its other files; None where there is no such version.

    Raises:
        ModelError: It is no card, or the registry does not answer.
    """
    sources = sources or ModelSources()
    for path in _local_folders(name, version, sources):
        return _parse_card((path / CARD_NAME).read_bytes(), path)
    shared = sources.shared
    data = shared.read(name, version, CARD_NAME) if shared is not None else None
    return _parse_card(data, f"{sources.home.url}/{name}/{version}") if data is not None else None


def check_alias(text: str) -> None:
    """Refuse what cannot be an alias.

    Raises:
        ModelError: It cannot.
    """
    if not _fits(_ALIAS, text):
        raise ModelError(f"{text!r} is no alias: small letters, digits and -, a letter first")


def is_name(text: str) -> bool:
    """Whether a model may be called so."""
    return _fits(_NAMES, text)


def is_version(text: str) -> bool:
    """Whether it is a version, and not an alias."""
    return _fits(_VERSIONS, text)


def _fits(adapter: TypeAdapter[str], text: str) -> bool:
    try:
        adapter.validate_python(text)
    except ValidationError:
        return False
    return True


def _version_key(version: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in version.split("."))


def _local_folders(name: str, version: str, sources: ModelSources) -> list[Path]:
    """Folders of this machine that hold a card, in the order in which they count; * stands for any name or version."""
    return [
        card.parent
        for root in sources.roots
        for card in sorted(root.glob(f"{name}/{version}/{CARD_NAME}"))
        if is_version(card.parent.name)
    ]


def _versions_in(registry: Store, name: str) -> list[str]:
    entries = filter(is_version, registry.entries(name))
    return sorted((entry for entry in entries if registry.read(name, entry, CARD_NAME)), key=_version_key)


def _fetch(card_data: bytes, shared: Store, target: Path) -> ModelFolder:
    """Copy a version from the shared registry, unless another process was quicker."""
    name, version = target.parent.name, target.name
    card = _parse_card(card_data, f"{shared.url}/{name}/{version}")
    with locked(target.parents[1] / f".{name}.lock"):
        try:
            return _named(open_folder(target), name, version)
        except ModelError:
            pass
        with _written_whole(target) as scratch:
            for file, expected in card.files.items():
                shared.download(scratch / file, name, version, file)
                if sha256_of(scratch / file) != expected:
                    raise ModelError(f"{shared.url}/{name}/{version}/{file} is damaged: its SHA-256 is not the card's")
            (scratch / CARD_NAME).write_bytes(card_data)
        return _named(open_folder(target), name, version)


def _named(folder: ModelFolder, name: str, version: str) -> ModelFolder:
    if (folder.card.name, folder.card.version) != (name, version):
        raise ModelError(f"the card in {folder.path} is that of {folder.card.name} {folder.card.version}")
    return folder


def _not_found(wanted: str, sources: ModelSources) -> ModelError:
    places = [str(root) for root in sources.roots]
    if (shared := sources.shared) is not None:
        places.append(shared.url if shared.entries() else f"{shared.url}, where there is nothing at all")
    return ModelError(f"no model {wanted} in {', '.join(places)}; `soundstage models fetch` reads the speech model")
