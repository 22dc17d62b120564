"""Folders of clips: a table meta.csv, and the audio it names."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from soundstage.audio.resample import decode_mono
from soundstage.errors import ServiceError
from soundstage.params import Limits


class BadFolder(ValueError):
    """A folder of clips that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of meta.csv."""

    path: Path
    values: dict[str, str]


def read_meta(folder: Path, columns: Iterable[str]) -> list[Row]:
    """The lines of a folder's meta.csv; the files lie in its subfolder `audio`, or beside the table.

    Args:
        folder: Holds meta.csv.
        columns: Must be there, beside "filename".

    Raises:
        BadFolder: No table, a column or a file is missing, or the table is empty.
    """
    table = folder / "meta.csv"
    try:
        with table.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lines = list(reader)
            found = reader.fieldnames or ()
    except FileNotFoundError as e:
        raise BadFolder(f"{folder} holds no meta.csv") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise BadFolder(f"{table} is not CSV in UTF-8: {e}") from e
    missing = [column for column in ("filename", *columns) if column not in found]
    if missing:
        raise BadFolder(f"{table} has no column {', '.join(missing)}; it has {', '.join(found)}")
    if not lines:
        raise BadFolder(f"{table} names no file")
    for number, line in enumerate(lines, start=2):
        if None in line or None in line.values() or not line["filename"]:
            raise BadFolder(f"{table}, line {number}: expected {len(found)} values, a file name among them")
    audio = folder / "audio" if (folder / "audio").is_dir() else folder
    rows = [Row(path=audio / line["filename"], values=line) for line in lines]
    absent = [row.path for row in rows if not row.path.is_file()]
    if absent:
        raise BadFolder(f"{len(absent)} of the {len(rows)} files that {table} names are missing, first {absent[0]}")
    return rows


def read_clip(path: Path) -> NDArray[np.float32]:
    """All samples of a file, float32 (n_samples,), mono at 16 kHz, decoded as in serving.

    Raises:
        BadFolder: It cannot be decoded.
    """
    try:
        return decode_mono(path, Limits()).samples
    except ServiceError as e:
        raise BadFolder(f"{path} cannot be decoded: {e}") from e
