"""Names and words that a clip is expected to hold: read, checked, and counted in what was written.

How the decoder is led to them is in `soundstage.speech.hinting`. Greedy decoding cannot take back what was begun in
vain, so the text with hints stands only if the model holds it about as probable as the text without, see `is_better`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from soundstage.errors import InvalidRequest
from soundstage.params import HintParams

Hints = tuple[str, ...]
"""Phrases as they are to be written."""
_N_PROMPT_WORDS = 4


def parse_hints(text: str, params: HintParams | None = None) -> Hints:
    """Read a list of phrases, separated by commas or line ends; blank ones and repetitions are left out.

    Raises:
        InvalidRequest: There is more text or more phrases than may be, or one is too long or holds no letter or digit.
    """
    params = params or HintParams()
    if len(text) > params.max_total_chars:
        raise InvalidRequest(f"hints: more than {params.max_total_chars} characters; send the rarest names alone")
    phrases = _phrases(text)
    if len(phrases) > params.max_phrases:
        raise InvalidRequest(f"hints: more than {params.max_phrases} phrases; send the rarest names alone")
    for phrase in phrases:
        if len(phrase) > params.max_chars:
            raise InvalidRequest(
                f"hints: {phrase[: params.max_chars]!r}… has more than {params.max_chars} characters;"
                " separate names by commas or line ends"
            )
        if not any(map(str.isalnum, phrase)):
            raise InvalidRequest(f"hints: {phrase!r} holds no letter or digit")
    return phrases


def hints_of_prompt(prompt: str, params: HintParams | None = None) -> Hints:
    """The names in the prompt of a client that knows no hints, such as "Kowalczyk, Tbilisi"; sentences are passed over.

    As many as there may be; a prompt is never refused.
    """
    params = params or HintParams()
    phrases = _phrases(prompt[: params.max_total_chars])
    fit = [p for p in phrases if len(p) <= params.max_chars and len(p.split()) <= _N_PROMPT_WORDS]
    return tuple(p for p in fit if any(map(str.isalnum, p)))[: params.max_phrases]


def _phrases(text: str) -> Hints:
    parts = (" ".join(part.split()) for part in re.split(r"[,\n]", text))
    return tuple(dict.fromkeys(filter(None, parts)))


def n_found(phrases: Iterable[str], text: str) -> int:
    """How often phrases stand in a text, as whole words."""
    return sum(len(re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)) for phrase in phrases)


def is_better(gain: int, hinted_logprob: float, plain_logprob: float, params: HintParams) -> bool:
    """Whether the text with hints stands.

    Args:
        gain: By how many phrases it holds more than the text without.
        hinted_logprob: Natural logarithm of its probability, all tokens together, without any bonus.
        plain_logprob: Of the other.
        params: How much a phrase is worth.
    """
    return gain > 0 and hinted_logprob + params.phrase_bonus * gain >= plain_logprob
