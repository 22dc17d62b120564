"""Captions of a live stream, in order and apart: speech as soon as it is final, and sounds with it."""

from __future__ import annotations

from soundstage.captions.sdh import sdh_layout
from soundstage.live.events import LiveCaption, Sound
from soundstage.params import CaptionParams, SdhParams
from soundstage.types import Segment

_AHEAD_S = 60.0
"""A caption may be held beyond what was heard so far."""


class LiveCaptions:
    """What a reader is shown of one stream.

    Args:
        params: What a reader can follow.
        sdh: Which sounds are shown.
    """

    def __init__(self, params: CaptionParams, sdh: SdhParams) -> None:
        self._params = params
        self._sdh = sdh
        self._until_s = 0.0

    def say(self, segment: Segment) -> list[LiveCaption]:
        """What was said for good."""
        captions = sdh_layout([segment], [], self._params, self._sdh, duration_s=segment.end_s + _AHEAD_S)
        return [LiveCaption(caption=caption, is_sound=False) for caption in captions]

    def hear(self, sound: Sound) -> None:
        """A sound was told of."""

    def ready(self, *, is_speaking: bool) -> list[LiveCaption]:
        """Captions that need wait no more."""
        return []
