"""What to do where the model lost its way: notice it, and cut the audio where it harms least.

A decoder that loses the thread writes one phrase over and over, goes on until it is cut off, or drifts into another
script. It finds the thread again in shorter pieces more often than not.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from soundstage.params import DecodingParams
from soundstage.types import Segment, Waveform

_FRAME_S = 0.03
_PAUSE_FRAMES = 5


def is_astray(text: str, *, has_ended: bool, params: DecodingParams) -> bool:
    """Whether a text cannot be what was said: cut off, in a loop, or in a script that the model does not write.

    Args:
        text: What the model wrote.
        has_ended: By itself, before the limit of tokens for so much audio.
        params: Limits.
    """
    return not has_ended or compression_ratio(text) > params.max_compression_ratio or not is_latin(text)


def compression_ratio(text: str) -> float:
    """How many times shorter zlib makes a text: high where it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def is_latin(text: str) -> bool:
    """Whether all letters are Latin ones, accents and all."""
    return all(unicodedata.name(letter, "").startswith("LATIN") for letter in text if letter.isalpha())


def halves(waveform: Waveform) -> tuple[Waveform, Waveform]:
    """Cut at the quietest point of the middle third."""
    n_frame = round(_FRAME_S * waveform.sample_rate)
    first = len(waveform.samples) // 3
    frames = waveform.samples[first : 2 * first]
    frames = frames[: len(frames) // n_frame * n_frame].reshape(-1, n_frame)
    energies = np.convolve(np.mean(np.square(frames), axis=1), np.ones(_PAUSE_FRAMES), mode="valid")
    middle = (int(np.argmin(energies)) + _PAUSE_FRAMES / 2) * n_frame
    cut_s = waveform.start_s + (first + middle) / waveform.sample_rate
    return waveform.between(waveform.start_s, cut_s), waveform.between(cut_s, waveform.end_s)


def joined(waveform: Waveform, parts: Sequence[Segment | None]) -> Segment | None:
    """One segment of what was believed of the pieces of a waveform; None where that is nothing."""
    believed = [part for part in parts if part is not None]
    if not believed:
        return None
    weights = [len(part.text) for part in believed]
    return replace(
        believed[0],
        start_s=waveform.start_s,
        end_s=waveform.end_s,
        text=" ".join(part.text for part in believed),
        words=tuple(word for part in believed for word in part.words),
        avg_logprob=float(np.average([part.avg_logprob for part in believed], weights=weights)),
        is_retried=True,
    )
