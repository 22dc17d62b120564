"""Captions of a live stream, in order and apart: speech as soon as it is final, and the sounds beside it.

A sound is shown at once where nobody speaks. Where somebody does, it waits for the words, to be laid out with them as
in a file. What was shown is never taken back, so sounds are shown by the scores that captions of files ask for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from soundstage.captions.layout import n_chars
from soundstage.captions.sdh import sdh_layout, select_cues
from soundstage.live.events import LiveCaption
from soundstage.params import CaptionParams, SdhParams
from soundstage.types import Caption, Segment, SoundEvent

_AHEAD_S = 60.0
"""Nothing is known of how far the programme goes on, so captions are held as long as reading takes."""


class LiveCaptions:
    """What a reader of one stream is shown.

    Args:
        params: What a reader can follow.
        sdh: Which sounds are shown.
    """

    def __init__(self, params: CaptionParams, sdh: SdhParams) -> None:
        self._params = params
        self._sdh = sdh
        self._until_s = 0.0
        self._last: tuple[Segment, ...] = ()
        self._waiting: dict[int, SoundEvent] = {}
        self._shown: dict[int, str] = {}  # lines of sounds that still go on
        self._shown_until_s: dict[str, float] = {}  # of each line, when its sound was last heard

    def hear(self, sounds: Iterable[tuple[int, SoundEvent]]) -> None:
        """Take in the sounds that are not settled, by their numbers: those that are gone were confirmed or taken back.

        Args:
            sounds: As the newest looks have them.
        """
        now = dict(sounds)
        for number, line in self._shown.items():
            if number in now:
                self._shown_until_s[line] = now[number].end_s
        self._shown = {number: line for number, line in self._shown.items() if number in now}
        self._waiting = {number: event for number, event in now.items() if number not in self._shown}

    def say(self, segment: Segment) -> list[LiveCaption]:
        """The captions of what was said, with the sounds that wait."""
        self._last = (segment,)
        sounds = self._taken()
        captions = sdh_layout([segment], sounds, self._params, self._sdh, duration_s=segment.end_s + _AHEAD_S)
        return [self._placed(caption) for caption in captions]

    def ready(self) -> list[LiveCaption]:
        """The captions of sounds that wait, where nobody speaks."""
        return [
            self._placed(caption)
            for event in self._taken()
            for caption in sdh_layout([], [event], self._params, self._sdh, duration_s=event.end_s + _AHEAD_S)
        ]

    def _taken(self) -> list[SoundEvent]:
        """The waiting sounds that are to be shown; the others may score more in a later look."""
        taken = []
        for number, event in list(self._waiting.items()):
            cues = select_cues([event], self._last, self._sdh, max_chars=self._params.max_line_chars)
            if not cues:
                continue
            (cue,) = cues
            before_s = self._shown_until_s.get(cue.line)
            repeat_s = self._sdh.ambience_repeat_s if cue.lasts else self._sdh.repeat_s
            self._shown_until_s[cue.line] = cue.end_s
            self._shown[number] = cue.line
            del self._waiting[number]
            if before_s is None or event.start_s - before_s >= repeat_s:
                taken.append(event)
        return taken

    def _placed(self, caption: Caption) -> LiveCaption:
        """After the captions that were shown already, if a little later than it would be in a file."""
        start_s, end_s = caption.start_s, caption.end_s
        free_s = self._until_s + self._params.min_gap_s if self._until_s else 0.0
        if start_s < free_s:
            reading_s = max(self._params.min_duration_s, n_chars(caption.lines) / self._params.max_chars_per_s)
            start_s, end_s = free_s, max(end_s, free_s + min(end_s - start_s, reading_s))
        self._until_s = end_s
        is_sound = all(line.startswith("[") and line.endswith("]") for line in caption.lines)
        return LiveCaption(caption=replace(caption, start_s=start_s, end_s=end_s), is_sound=is_sound)
