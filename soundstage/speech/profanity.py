"""Masks swear words in what was said; times stay as they are."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from importlib.resources import files
from typing import Literal

from soundstage.types import Segment

Profanity = Literal["keep", "mask"]
"""What becomes of swear words."""
_LETTERS = re.compile(r"[^\W\d_]+")


@functools.cache
def swear_words() -> frozenset[str]:
    """Those of profanity.txt, lower case."""
    lines = files("soundstage.speech").joinpath("profanity.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def masked(segment: Segment) -> Segment:
    """The segment with the first letter of each swear word, and an asterisk for each other one."""
    text = _mask(segment.text)
    if text == segment.text:
        return segment
    return replace(segment, text=text, words=tuple(replace(word, text=_mask(word.text)) for word in segment.words))


def _mask(text: str) -> str:
    return _LETTERS.sub(lambda match: _stars(match[0]) if match[0].lower() in swear_words() else match[0], text)


def _stars(word: str) -> str:
    return word[0] + "*" * (len(word) - 1)
