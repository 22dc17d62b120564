"""An analysis as files on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from soundstage.audio.decode import SourceInfo, open_audio
from soundstage.captions.formats import FORMATS, CaptionOptions, render
from soundstage.errors import ServiceError
from soundstage.params import Limits
from soundstage.types import Analysis, JsonObject

OUTPUT_FORMATS = ("json", *FORMATS)
"""What can be written; "json" is the body that the service answers with."""

_DIGITS = {"_s": 3, "_lufs": 2, "_lu": 2, "_dbtp": 2, "_dbfs": 2, "score": 4, "confidence": 4, "prob": 4}
"""Decimals by the end of a field's name, as in deployments.api.schemas."""


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
    text = analysis.text
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
