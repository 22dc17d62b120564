"""Word and character error rates, how sure they are, and where they come from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
from numpy.typing import NDArray

with warnings.catch_warnings():  # it warns of an escape sequence of its own, when it is first compiled
    warnings.simplefilter("ignore")
    from whisper_normalizer.english import EnglishTextNormalizer

_N_RESAMPLED = 1000
_COVERED = 0.95


@dataclass(frozen=True, slots=True)
class Errors:
    """What differs in each text, int64 (n_texts, 4): substitutions, deletions, insertions, and what was to be said.

    The last column counts the words, or characters, of the references.
    """

    counts: NDArray[np.int64]

    @property
    def rate(self) -> float:
        """Errors for each word of the references."""
        return _rate(self.counts.sum(axis=0))

    @property
    def interval(self) -> tuple[float, float]:
        """Between which the rate lies in 95 % of samples of as many texts, by the bootstrap over texts.

        Source: Bisani & Ney, "Bootstrap Estimates for Confidence Intervals in ASR Performance Evaluation", 2004.
        """
        rng = np.random.default_rng(0)
        n = len(self.counts)
        rates = [_rate(self.counts[rng.integers(0, n, n)].sum(axis=0)) for _ in range(_N_RESAMPLED)]
        low, high = np.quantile(rates, [(1 - _COVERED) / 2, (1 + _COVERED) / 2])
        return float(low), float(high)

    @property
    def worst(self) -> list[int]:
        """Texts with any errors, those with the most first."""
        n_wrong = self.counts[:, :3].sum(axis=1)
        return [int(i) for i in np.argsort(-n_wrong, kind="stable") if n_wrong[i]]


def _rate(sums: NDArray[np.int64]) -> float:
    return float(sums[:3].sum() / max(1, sums[3]))


@dataclass(frozen=True, slots=True)
class Score:
    """Of texts against what was said, both after Whisper's normalisation of English (arXiv:2212.04356, appendix C)."""

    references: tuple[str, ...]
    hypotheses: tuple[str, ...]
    words: Errors
    characters: Errors


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Compare texts.

    Args:
        references: What was said.
        hypotheses: What was written, one for each.
    """
    normalize = EnglishTextNormalizer()
    said = tuple(normalize(text) for text in references)
    written = tuple(normalize(text) for text in hypotheses)
    words = [_counts(jiwer.process_words, *pair) for pair in zip(said, written, strict=True)]
    characters = [_counts(jiwer.process_characters, *pair) for pair in zip(said, written, strict=True)]
    return Score(said, written, Errors(np.array(words)), Errors(np.array(characters)))


def _counts(compare: object, said: str, written: str) -> tuple[int, int, int, int]:
    if not said:  # jiwer compares nothing with nothing; normalisation leaves nothing of "hmm"
        return 0, 0, len(written.split()), 0
    assert callable(compare)
    found = compare(said, written)
    n_said = found.hits + found.substitutions + found.deletions
    return found.substitutions, found.deletions, found.insertions, n_said
