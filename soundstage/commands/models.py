"""Models on the command line: which there are, whether one is fit to serve, and putting one live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soundstage.errors import ModelError
from soundstage.models import registry
from soundstage.models.registry import STABLE, ModelCard, ModelFolder, ModelKind, ModelSources
from soundstage.models.store import Store
from soundstage.types import JsonObject

JUDGED_BY: dict[ModelKind, tuple[tuple[str, int], ...]] = {
    "sound": (("top1_mean", 1),),
    "speech": (("wer", -1), ("librispeech_clean_wer", -1)),
}
"""Measured figures by which a new version is held against the one it replaces, with 1 where more is better and -1
where less is. The first one that both have counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A version and where it lies.

    Attributes:
        card: Of the model.
        place: A folder of this machine, or the URL of the shared registry.
        aliases: What stands for it.
    """

    card: ModelCard
    place: str
    aliases: tuple[str, ...]

    @property
    def record(self) -> JsonObject:
        """For programs."""
        return {**self.card.model_dump(exclude={"files"}), "place": self.place, "aliases": list(self.aliases)}


def listed(sources: ModelSources) -> Iterator[Listed]:
    """Every version that can be read, here and in the shared registry.

    Raises:
        ModelError: The registry does not answer.
    """
    places = [(folder.card, str(folder.path)) for folder in registry.list_models(sources)]
    if (shared := sources.shared) is not None:
        places += [(card, f"{shared.url}/{card.name}/{card.version}") for card in registry.list_cards(shared)]
    known = {name: registry.aliases(name, sources.home) for name in {card.name for card, _ in places}}
    for card, place in places:
        names = (alias for alias, version in known[card.name].items() if version == card.version)
        yield Listed(card=card, place=place, aliases=tuple(sorted(names)))


def named(model: str, version: str | None, sources: ModelSources) -> ModelFolder:
    """The model that a person means.

    Args:
        model: The folder of a version, or the name of a model.
        version: A version or an alias, only beside a name.
        sources: Where a name is looked for.

    Raises:
        ModelError: There is none, or it is damaged.
    """
    path = Path(model)
    if len(path.parts) > 1 or (path / registry.CARD_NAME).is_file():
        if version is not None:
            raise ModelError(f"{model} is a folder, which holds one version: leave --version out")
        return registry.open_folder(path)
    return registry.find(model, version, sources)


def verify(folder: ModelFolder) -> None:
    """Check that a version could serve: what it says of itself, its parameters, its weights, and that it runs.

    Raises:
        ModelError: It could not; the message says why, in one line.
    """
    if not folder.card.licence.strip():
        raise ModelError(f"{folder.path / registry.CARD_NAME} names no licence")
    try:
        _try(folder)
    except (ModelError, ImportError):
        raise
    except Exception as e:
        reason = str(e).partition("\n")[0]
        raise ModelError(f"{folder.card.name} {folder.card.version} does not run: {reason}") from e


def _try(folder: ModelFolder) -> None:
    for name, array in folder.weights().items():
        if not np.isfinite(array).all():
            raise ModelError(f"{folder.card.name} {folder.card.version} does not run: {name} is not finite")
    # Imported here, since TensorFlow takes seconds to load.
    if folder.card.kind == "sound":
        from soundstage.sound.listener import SoundListener  # noqa: PLC0415

        listener = SoundListener(folder)
        if folder.card.labels != listener.params.labels:
            raise ModelError(f"the labels in {folder.path / registry.CARD_NAME} are not those of its parameters")
        listener.warm_up()
    else:
        from soundstage.speech.transcriber import Transcriber  # noqa: PLC0415

        if not folder.card.languages:
            raise ModelError(f"{folder.path / registry.CARD_NAME} names no language")
        Transcriber(folder).warm_up()


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A version that was put live.

    Attributes:
        card: Of the model.
        alias: What stands for it now.
        registry: URL of the registry.
        replaced: What the alias stood for before.
        metric: By which both were compared; None where there is nothing to compare.
        figures: New and old, by that metric.
    """

    card: ModelCard
    alias: str
    registry: str
    replaced: str | None
    metric: str | None
    figures: tuple[float, float] | None

    @property
    def record(self) -> JsonObject:
        """For programs."""
        new, old = self.figures or (None, None)
        return {
            "name": self.card.name,
            "version": self.card.version,
            "alias": self.alias,
            "registry": self.registry,
            "replaced": self.replaced,
            "metric": self.metric,
            "value": new,
            "replaced_value": old,
        }

    def __str__(self) -> str:
        told = f"{self.card.name} {self.card.version} is {self.alias} in {self.registry}"
        if self.replaced is None:
            return told
        if self.replaced == self.card.version:
            return f"{told}, as before"
        if self.figures is None:
            return f"{told} instead of {self.replaced}; no figure was measured of both"
        return f"{told} instead of {self.replaced}; {self.metric} {self.figures[0]:g}, was {self.figures[1]:g}"


def promote(folder: ModelFolder, sources: ModelSources, *, alias: str = STABLE, force: bool = False) -> Promotion:
    """Put a version live: verify it, copy it into the registry, and let the alias stand for it.

    Args:
        folder: The version.
        sources: Whose registry takes it.
        alias: What is to stand for it.
        force: Also where it was measured to be worse than what it replaces.

    Raises:
        ModelError: It is unfit, worse, or its version is that of another model; or the registry does not take it.
    """
    card, home = folder.card, sources.home
    registry.check_alias(alias)
    _refuse_other(folder, sources)
    verify(folder)
    standing = _standing(card.name, home, sources)
    before = standing.get(alias)
    replaced = registry.read_card(card.name, before, sources) if before is not None else None
    metric, figures = None, None
    if replaced is not None and replaced.version != card.version and (metric := _metric(card, replaced)) is not None:
        name, sign = metric
        figures = card.metrics[name], replaced.metrics[name]
        if sign * figures[0] < sign * figures[1] and not force:
            raise ModelError(
                f"{card.name} {card.version} is worse than {replaced.version}, which it would replace: {name} "
                f"{figures[0]:g}, was {figures[1]:g}; --force puts it live all the same"
            )
    registry.publish(folder, home)
    registry.set_aliases(card.name, {**standing, alias: card.version}, home)
    return Promotion(
        card=card,
        alias=alias,
        registry=home.url,
        replaced=before,
        metric=metric[0] if metric is not None else None,
        figures=figures,
    )


def _refuse_other(folder: ModelFolder, sources: ModelSources) -> None:
    """Models of this machine are found before those of the registry: a version has to mean the same in both."""
    card = folder.card
    for other in registry.list_models(sources):
        if (other.card.name, other.card.version) == (card.name, card.version) and other.card.files != card.files:
            raise ModelError(f"{other.path} is another model with the version {card.version}: give the new one its own")


def _standing(name: str, home: Store, sources: ModelSources) -> dict[str, str]:
    """What each alias stands for; "stable" for the newest version where nobody has said so yet.

    The first promotion writes that down: a candidate that is published would else be the newest, and live.
    """
    known = registry.aliases(name, home)
    newest = registry.versions(name, sources)[:1]
    return {STABLE: newest[0], **known} if newest else known


def _metric(new: ModelCard, old: ModelCard) -> tuple[str, int] | None:
    return next((entry for entry in JUDGED_BY[new.kind] if entry[0] in new.metrics and entry[0] in old.metrics), None)
