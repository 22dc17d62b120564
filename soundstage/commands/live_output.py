"""What a live stream tells, as files that grow with it and are valid at every moment."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from pathlib import Path
from typing import Protocol

from soundstage.captions.formats import srt, vtt
from soundstage.types import Caption, JsonObject

GROWING_FORMATS = ("vtt", "srt", "ndjson")
"""By the suffix of the file."""


class GrowingFile(Protocol):
    """Takes note of events."""

    def write(self, event: JsonObject) -> None:
        """What it is of the file's business is in it when this returns."""

    def close(self) -> None:
        """Nothing follows."""


def format_of(path: Path) -> str | None:
    """The format of a file by its suffix; None for one that is not in GROWING_FORMATS."""
    suffix = path.suffix.lower().removeprefix(".")
    return suffix if suffix in GROWING_FORMATS else None


def growing_file(path: Path) -> GrowingFile:
    """A new file in the format of its suffix; one that is there is replaced.

    Raises:
        OSError: The disk refuses.
    """
    name = format_of(path)
    assert name is not None, f"no format of {path}"
    return GrowingLines(path) if name == "ndjson" else GrowingCaptions(path, name)


class GrowingLines:
    """Every event on a line of its own, as JSON."""

    def __init__(self, path: Path) -> None:
        self._file = _Unbuffered(path)

    def write(self, event: JsonObject) -> None:
        """Add a line."""
        self._file.put(self._file.n_bytes, f"{json.dumps(event, ensure_ascii=False)}\n")

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()


class GrowingCaptions:
    """Captions in order of their start.

    One that comes late, as sounds do that only their end makes certain, is put in its place. Each change is one write
    of whole captions, from the first that moves to the end of the file: a reader sees it done or not done.
    """

    def __init__(self, path: Path, output_format: str) -> None:
        self._render = vtt if output_format == "vtt" else srt
        self._header = "WEBVTT\n\n" if output_format == "vtt" else ""
        self._starts_s: list[float] = []
        self._offsets: list[int] = []
        """In bytes, of each caption."""
        self._bodies: list[str] = []
        """Without their numbers."""
        self._file = _Unbuffered(path)
        self._file.put(0, self._header)

    def write(self, event: JsonObject) -> None:
        """Add a caption."""
        if event["type"] != "caption":
            return
        caption = Caption(start_s=event["start_s"], end_s=event["end_s"], lines=tuple(event["lines"]))
        place = bisect_right(self._starts_s, caption.start_s)
        self._starts_s.insert(place, caption.start_s)
        self._offsets.insert(place, self._offsets[place] if place < len(self._offsets) else self._file.n_bytes)
        self._bodies.insert(place, self._render([caption]).removeprefix(self._header).removeprefix("1\n"))
        offset = first = self._offsets[place]
        moved = []
        for i in range(place, len(self._bodies)):
            cue = f"{i + 1}\n{self._bodies[i]}"
            self._offsets[i] = offset
            offset += len(cue.encode())
            moved.append(cue)
        self._file.put(first, "".join(moved))

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()


class _Unbuffered:
    """A file of which each write is one call of the system."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self.n_bytes = 0

    def put(self, offset: int, text: str) -> None:
        """Write from an offset on; the file never gets shorter."""
        data = text.encode()
        os.lseek(self._fd, offset, os.SEEK_SET)
        while data:
            n_written = os.write(self._fd, data)
            data = data[n_written:]
            offset += n_written
        self.n_bytes = max(self.n_bytes, offset)

    def close(self) -> None:
        os.close(self._fd)
