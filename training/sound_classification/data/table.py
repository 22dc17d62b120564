"""The table of labelled clips, checked before any time is spent on them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data import BadFolder, Row, read_meta
from training.sound_classification.config import DataConfig

LABEL_COLUMNS = ("category", "label")
COLUMNS = ("filename", *LABEL_COLUMNS, "start_s", "end_s", "fold", "source", "licence")
SEPARATOR = ";"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A label of a clip.

    Attributes:
        start_s, end_s: When it sounds; None where the table does not say.
    """

    label: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A file and what is heard in it.

    Attributes:
        fold: Clips that are left out together.
        licence: As in the table, or empty.
    """

    path: Path
    name: str
    heard: tuple[Heard, ...]
    fold: str
    licence: str

    @property
    def labels(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys(heard.label for heard in self.heard))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All clips of a folder.

    Attributes:
        path: Of meta.csv, for messages.
        is_exclusive: No clip has more than one label.
    """

    path: Path
    clips: tuple[Clip, ...]
    is_exclusive: bool

    @property
    def folds(self) -> tuple[str, ...]:
        """In order."""
        return tuple(sorted({clip.fold for clip in self.clips}, key=_numbers_first))

    @property
    def labels(self) -> tuple[str, ...]:
        """In order."""
        return tuple(sorted({label for clip in self.clips for label in clip.labels}))


def _numbers_first(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (2**31, text)


def read_table(folder: Path, config: DataConfig) -> Table:
    """Read meta.csv and check it.

    Its columns: filename; category or label (several separated by ";"); where known, start_s and end_s, one line for
    each time that something is heard; fold; source (clips of one recording share it); licence.

    Args:
        folder: Holds meta.csv, and the clips beside it or in its subfolder `audio`.
        config: Which clips are used.

    Raises:
        BadFolder: The table cannot be used; the message names the file, line or label.
    """
    rows = read_meta(folder, [])
    table = folder / "meta.csv"
    label_column = _label_column(rows[0], table, config)
    by_name: dict[str, list[tuple[int, Row]]] = {}
    for number, row in enumerate(rows, start=2):
        by_name.setdefault(row.values["filename"], []).append((number, row))
    folds = _folds(by_name, table, config)
    clips = [
        Clip(
            path=lines[0][1].path,
            name=name,
            heard=tuple(
                heard for number, row in lines for heard in _heard(row, label_column, f"{table}, line {number}")
            ),
            fold=folds[name],
            licence=_one_value(lines, "licence", table),
        )
        for name, lines in by_name.items()
    ]
    if config.folds:
        clips = [clip for clip in clips if clip.fold in config.folds]
        missing = set(config.folds) - {clip.fold for clip in clips}
        if missing:
            raise BadFolder(
                f"{table} has no clip of fold {', '.join(sorted(missing))}; it has {_listed(folds.values())}"
            )
    _check_labels(clips, table, config)
    is_exclusive = all(len(clip.labels) == 1 for clip in clips)
    return Table(path=table, clips=tuple(clips), is_exclusive=is_exclusive)


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values), key=_numbers_first)) or "none"


def _label_column(row: Row, table: Path, config: DataConfig) -> str:
    unknown = [column for column in row.values if column not in (*COLUMNS, *config.other_columns)]
    if unknown:
        raise BadFolder(
            f"{table} has columns that mean nothing here: {', '.join(unknown)}. Known are {', '.join(COLUMNS)}; name "
            f"those to be passed over in data.other_columns of the config"
        )
    found = [column for column in LABEL_COLUMNS if column in row.values]
    if len(found) != 1:
        raise BadFolder(f"{table} needs one of the columns {' and '.join(LABEL_COLUMNS)}, it has {len(found)} of them")
    if ("start_s" in row.values) != ("end_s" in row.values):
        raise BadFolder(f"{table} has only one of the columns start_s and end_s")
    return found[0]


def _one_value(lines: Sequence[tuple[int, Row]], column: str, table: Path) -> str:
    """What all lines of one clip say in a column, or nothing."""
    values = {row.values.get(column, "").strip() for _, row in lines}
    if len(values) > 1:
        name = lines[0][1].values["filename"]
        raise BadFolder(f"{table} gives {name} more than one {column}: {_listed(values)}")
    return values.pop()


def _heard(row: Row, label_column: str, where: str) -> list[Heard]:
    labels = [label.strip() for label in row.values[label_column].split(SEPARATOR)]
    if not all(labels):
        raise BadFolder(f"{where}: {row.path.name} has an empty label")
    start, end = (row.values.get(column, "").strip() for column in ("start_s", "end_s"))
    if not start and not end:
        return [Heard(label=label) for label in labels]
    try:
        start_s, end_s = float(start), float(end)
    except ValueError as e:
        raise BadFolder(f"{where}: start_s {start!r} and end_s {end!r} of {row.path.name} are not two numbers") from e
    if not (math.isfinite(end_s) and 0 <= start_s < end_s):
        raise BadFolder(f"{where}: {row.path.name} must have 0 <= start_s < end_s, not {start_s:g} and {end_s:g}")
    return [Heard(label=label, start_s=start_s, end_s=end_s) for label in labels]


def _folds(by_name: dict[str, list[tuple[int, Row]]], table: Path, config: DataConfig) -> dict[str, str]:
    """The fold of each file: that of the table, or one that is made, with all clips of a source together."""
    sources = {name: _one_value(lines, "source", table) or name for name, lines in by_name.items()}
    folds = {name: _one_value(lines, "fold", table) for name, lines in by_name.items()}
    if any(folds.values()):
        without = [name for name, fold in folds.items() if not fold]
        if without:
            raise BadFolder(f"{table}: {len(without)} files have no fold while others have, first {without[0]}")
        of_source: dict[str, dict[str, str]] = {}
        for name, source in sources.items():
            of_source.setdefault(source, {})[folds[name]] = name
        for source, found in of_source.items():
            if len(found) > 1:
                raise BadFolder(
                    f"{table}: source {source} is in folds {_listed(found)} ({', '.join(found.values())}); a "
                    f"model would be tested on what it has heard"
                )
        return folds
    # the largest sources first, each to the fold that has the fewest clips: the same on every run
    counts = Counter(sources.values())
    sizes = [0] * min(config.n_folds, len(counts))
    made: dict[str, str] = {}
    order = np.random.default_rng(0).permutation(len(counts))
    for _, source in sorted(zip(order, sorted(counts), strict=True), key=lambda item: (-counts[item[1]], item[0])):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += counts[source]
        made[source] = str(smallest + 1)
    return {name: made[source] for name, source in sources.items()}


def _check_labels(clips: Sequence[Clip], table: Path, config: DataConfig) -> None:
    spellings: dict[str, str] = {}
    for clip in clips:
        for label in clip.labels:
            plain = "".join(letter for letter in label.casefold() if letter.isalnum())
            first = spellings.setdefault(plain, label)
            if first != label:
                raise BadFolder(f"{table}: labels {first!r} and {label!r} are the same but for case or spacing")
    counts = Counter(label for clip in clips for label in clip.labels)
    few = {label: n for label, n in counts.items() if n < config.min_clips_per_label}
    if few:
        found = ", ".join(f"{label} ({n})" for label, n in sorted(few.items()))
        raise BadFolder(
            f"{table}: labels with fewer than {config.min_clips_per_label} clips cannot be learnt and tested: {found}"
        )


def check_cross_validation(table: Table, trained: Sequence[Clip]) -> None:
    """That there are folds to leave out, and that something of every label is left when one is.

    Args:
        table: All clips.
        trained: Those that may be trained on.

    Raises:
        BadFolder: It is not so.
    """
    if len(table.folds) < 2:
        raise BadFolder(f"{table.path} has one fold alone; cross-validation needs two")
    for label in table.labels:
        folds = {clip.fold for clip in trained if label in clip.labels}
        if len(folds) < 2:
            raise BadFolder(
                f"{table.path}: what may be trained on has label {label} in "
                + (
                    f"fold {_listed(folds)} alone: nothing to learn it from when that is left out"
                    if folds
                    else "no fold"
                )
            )
