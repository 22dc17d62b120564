"""An analysis as files on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from soundstage.audio.decode import SourceInfo, open_audio
from soundstage.captions.formats import FORMATS, CaptionOptions, render
from soundstage.captions.timecode import Timebase
from soundstage.errors import InvalidRequest, ServiceError
from soundstage.params import Limits
from soundstage.types import Analysis, JsonObject

OUTPUT_FORMATS = ("json", *FORMATS)
"""What can be written; "json" is the body that the service answers with."""

_DIGITS = {"_s": 3, "_lufs": 2, "_lu": 2, "_dbtp": 2, "_dbfs": 2, "score": 4, "confidence": 4, "prob": 4}
"""Decimals by the end of a field's name, as in deployments.api.schemas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimecodeChoice:
    """What the caller said about timecode; None leaves it to the file, and then to CaptionOptions.

    Raises:
        InvalidRequest: No such frame rate, or no such timecode at that rate.
    """

    start_timecode: str | None = None
    frame_rate: float | None = None

    def __post_init__(self) -> None:
        self.options(None, title="")

    def options(self, info: SourceInfo | None, *, title: str) -> CaptionOptions:
        """Options for one file.

        What the caller chose counts, then what the file says of itself, as far as both together are timecode: a
        screen recording at 13.7 pictures a second has none, and is no error.

        Raises:
            InvalidRequest: What the caller chose is no timecode.
        """
        chosen: dict[str, Any] = {"start_timecode": self.start_timecode, "frame_rate": self.frame_rate}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        if info is not None:
            found: dict[str, Any] = {}
            if info.frame_rate is not None:
                found["frame_rate"] = float(info.frame_rate)
            start_timecode = _start_timecode(info, float(chosen.get("frame_rate", found.get("frame_rate", 25.0))))
            if start_timecode is not None:
                found["start_timecode"] = start_timecode
            try:
                return CaptionOptions(title=title, **(found | chosen))
            except InvalidRequest:
                pass  # of what the file says; the caller's choice alone is known to be good
        return CaptionOptions(title=title, **chosen)


def _start_timecode(info: SourceInfo, frame_rate: float) -> str | None:
    if info.start_timecode is not None or info.time_reference_s is None:
        return info.start_timecode
    try:
        timebase = Timebase.of("00:00:00:00", frame_rate)
    except InvalidRequest:
        return None
    return timebase.timecode(timebase.frame(info.time_reference_s))


def probe(path: Path) -> SourceInfo | None:
    """What a file says of itself in its header; None where it cannot be read, which the analysis will tell."""
    try:
        with open_audio(path, Limits()) as audio:
            return audio.info
    except (ServiceError, OSError):
        return None


def analysis_body(analysis: Analysis) -> JsonObject:
    """The analysis as the body of POST /v1/analyze, field by field and rounded like it."""
    fields = _rounded(dataclasses.asdict(analysis), "")
    models = dict(fields.pop("model_versions"))
    text = " ".join(segment.text for segment in analysis.segments)
    first = {name: fields.pop(name) for name in ("request_id", "duration_s", "language")}
    return {**first, "text": text, **fields, "models": models}


def _rounded(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item, key) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_rounded(item, name) for item in value]
    if isinstance(value, float):
        return next((round(value, digits) for end, digits in _DIGITS.items() if name.endswith(end)), value)
    return value


def rendered(analysis: Analysis, output_format: str, options: CaptionOptions) -> str:
    """The text of one output.

    Args:
        analysis: Of a whole file.
        output_format: One of OUTPUT_FORMATS.
        options: Timecode and title.
    """
    if output_format == "json":
        return json.dumps(analysis_body(analysis), ensure_ascii=False, indent=2) + "\n"
    return render(analysis, output_format, options)


def suffix(output_format: str) -> str:
    """How the name of an output ends, after the stem of its input."""
    return ".json" if output_format == "json" else FORMATS[output_format].suffix


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which appears under its name whole or not at all: whoever watches the folder never sees half.

    Raises:
        OSError: The disk refuses; nothing is left behind.
    """
    scratch = path.parent / f".soundstage-{secrets.token_hex(8)}.part"
    try:
        with scratch.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
