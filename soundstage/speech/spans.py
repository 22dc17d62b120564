"""What is decoded at once: neighbouring regions of speech with their pauses, since the model writes better in context.

Measured on 118 sentences of LJ Speech whose pauses were made 0.5 to 1 s longer: 3.5 % of the words are wrong, decoded
region by region 4.2 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from soundstage.params import SpanParams
from soundstage.types import Chunk, Region, Segment, Word

Span = tuple[Region, ...]
"""Regions in order, at least one."""
_TOUCHING_S = 0.05
"""What is closer was one stretch of speech before it was cut."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A span, and what is heard beside it where it was cut out of longer speech; its words are the neighbour's.

    Attributes:
        span: Whose words are told.
        before: Up to its beginning; None where speech begins there.
        after: From its end on; None where speech ends there.
    """

    span: Span
    before: Region | None = None
    after: Region | None = None

    @property
    def start_s(self) -> float:
        """Of what is heard."""
        return self.span[0].start_s if self.before is None else self.before.start_s

    @property
    def end_s(self) -> float:
        """Of what is heard."""
        return self.span[-1].end_s if self.after is None else self.after.end_s


def in_context(chunk: Chunk, params: SpanParams, context_s: float) -> list[Heard]:
    """The spans of a chunk, each with what it is heard with.

    Args:
        chunk: Of a stream.
        params: Limits of spans.
        context_s: What is heard beyond a cut, as far as the chunk carries it.
    """
    found = spans(chunk.speech, params)
    ends_s = [chunk.waveform.start_s, *(span[-1].end_s for span in found)]
    starts_s = [*(span[0].start_s for span in found[1:]), chunk.waveform.end_s]
    heard = []
    for span, end_before_s, start_after_s in zip(found, ends_s, starts_s, strict=False):
        start_s, end_s = span[0].start_s, span[-1].end_s
        first_s = max(chunk.heard.start_s, start_s - context_s)
        last_s = min(chunk.heard.end_s, end_s + context_s)
        is_cut_before = start_s - end_before_s < _TOUCHING_S and first_s < start_s
        is_cut_after = start_after_s - end_s < _TOUCHING_S and last_s > end_s
        heard.append(
            Heard(
                span,
                before=Region(start_s=first_s, end_s=start_s) if is_cut_before else None,
                after=Region(start_s=end_s, end_s=last_s) if is_cut_after else None,
            )
        )
    return heard


def middle_s(word: Word) -> float:
    """The time that says to which region a word belongs."""
    return (word.start_s + word.end_s) / 2


def timed(segment: Segment) -> Segment:
    """The segment with words, at even distances where the model gives no times."""
    if segment.words:
        return segment
    texts = segment.text.split()
    edges_s = np.linspace(segment.start_s, segment.end_s, len(texts) + 1).tolist()
    return replace(
        segment,
        words=tuple(
            Word(text=text, start_s=start_s, end_s=end_s, confidence=1.0)
            for text, (start_s, end_s) in zip(texts, pairwise(edges_s), strict=True)
        ),
    )


def spans(regions: Sequence[Region], params: SpanParams) -> list[Span]:
    """Regions that are decoded together; each of them is in one span, in order."""
    found: list[Span] = []
    for region in regions:
        if (
            found
            and region.start_s - found[-1][-1].end_s <= params.max_pause_s
            and region.end_s - found[-1][0].start_s <= params.max_duration_s
        ):
            found[-1] = (*found[-1], region)
        else:
            found.append((region,))
    return found


def parted(segment: Segment, span: Span) -> list[Segment]:
    """A segment of each region of a span in which there are words.

    A word belongs to the region that its middle is nearest to. Where words have no times, the segment stays whole.

    Args:
        segment: What was written for the span.
        span: Its regions.
    """
    if len(span) == 1 or not segment.words:
        return [segment]
    edges_s = [(before.end_s + after.start_s) / 2 for before, after in pairwise(span)]
    owners = np.searchsorted(edges_s, [middle_s(word) for word in segment.words])
    parts = []
    for i, region in enumerate(span):
        words = tuple(word for word, owner in zip(segment.words, owners, strict=True) if owner == i)
        if words:
            parts.append(
                replace(
                    segment,
                    start_s=min(region.start_s, words[0].start_s),
                    end_s=max(region.end_s, words[-1].end_s),
                    text=" ".join(word.text for word in words),
                    words=words,
                )
            )
    return parts


def own_segments(segment: Segment, heard: Heard) -> list[Segment]:
    """As `parted`, of the words of the span alone.

    Args:
        segment: What was written for all that was heard.
        heard: That.
    """
    if heard.before is None and heard.after is None:
        return parted(segment, heard.span)
    start_s, end_s = heard.span[0].start_s, heard.span[-1].end_s
    words = tuple(
        replace(word, start_s=max(word.start_s, start_s), end_s=min(word.end_s, end_s))
        for word in timed(segment).words
        if start_s <= middle_s(word) < end_s
    )
    if not words:
        return []
    text = " ".join(word.text for word in words)
    return parted(replace(segment, start_s=start_s, end_s=end_s, text=text, words=words), heard.span)
