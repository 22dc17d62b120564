"""Subtitles for the deaf and hard of hearing: speech and sounds in one track.

Sounds are written as captioners write them: lower case in square brackets, what makes the sound and then what it
does, a present participle for a sound that lasts and a finite verb for one that ends at once: `[dog barking]`,
`[glass shatters]`. Notes mark music; a description of music stands in brackets like any sound, because notes
alone mean sung words: `[♪ music playing ♪]`. Only sounds that a reader would want to know of are shown.

Sources: Netflix Timed Text Style Guide, English (partnerhelp.netflixstudios.com, article 217350977), I: brackets,
lower case, sounds that matter; DCMP Captioning Key (captioningkey.org), Sound Effects and Music: participle against
verb, the note, a sustained sound is not captioned anew; BBC Subtitle Guidelines, 10 and 11: brief, subject then verb.
"""

from __future__ import annotations

import textwrap
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from soundstage.captions.layout import Block, break_lines, draw, speech_blocks
from soundstage.params import CaptionParams, SdhParams
from soundstage.types import Caption, Segment, SoundEvent


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NEVER_SHOWN = frozenset({"speech", "silence"})
"""Speech is captioned by its words, and silence is no sound."""

AMBIENCE = _words(
    "airplane chainsaw chirping_birds clock_tick crackling_fire crickets engine fireworks helicopter insects "
    "keyboard_typing music rain sea_waves snoring thunderstorm train vacuum_cleaner washing_machine wind"
)
"""Sounds that go on: told of at their start, and again only after a long pause."""

FAINT = _words(
    "breathing brushing_teeth can_opening clock_tick drinking_sipping insects keyboard_typing mouse_click "
    "pouring_water water_drops"
)
"""Sounds that hardly ever matter to a story and are easily heard by mistake: shown only where certain."""

PHRASES = {
    # animals
    "dog": "dog barking",
    "rooster": "rooster crowing",
    "pig": "pig grunting",
    "cow": "cow mooing",
    "frog": "frog croaking",
    "cat": "cat meowing",
    "hen": "hen clucking",
    "insects": "insects buzzing",
    "sheep": "sheep bleating",
    "crow": "crow cawing",
    # nature
    "rain": "rain falling",
    "sea_waves": "waves crashing",
    "crackling_fire": "fire crackling",
    "crickets": "crickets chirping",
    "chirping_birds": "birds chirping",
    "water_drops": "water dripping",
    "wind": "wind blowing",
    "pouring_water": "water pouring",
    "toilet_flush": "toilet flushes",
    "thunderstorm": "thunder rumbling",
    # people
    "crying_baby": "baby crying",
    "sneezing": "sneezes",
    "clapping": "applause",
    "breathing": "breathing heavily",
    "coughing": "coughing",
    "footsteps": "footsteps",
    "laughing": "laughter",
    "brushing_teeth": "brushing teeth",
    "snoring": "snoring",
    "drinking_sipping": "sipping",
    # indoors
    "door_knock": "knocking on door",
    "door_wood_knock": "knocking on door",
    "mouse_click": "mouse clicks",
    "keyboard_typing": "typing on keyboard",
    "door_wood_creaks": "door creaks",
    "can_opening": "can pops open",
    "washing_machine": "washing machine running",
    "vacuum_cleaner": "vacuum cleaner whirring",
    "clock_alarm": "alarm ringing",
    "clock_tick": "clock ticking",
    "glass_breaking": "glass shatters",
    # outdoors
    "helicopter": "helicopter whirring",
    "chainsaw": "chainsaw buzzing",
    "siren": "siren wailing",
    "car_horn": "car horn honks",
    "engine": "engine running",
    "train": "train passing",
    "church_bells": "church bells ringing",
    "airplane": "airplane passing",
    "fireworks": "fireworks exploding",
    "hand_saw": "sawing",
    # beyond ESC-50
    "music": "♪ music playing ♪",
}
"""What a captioner writes for each label of ESC-50, under both names in use for door_wood_knock, and for music."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """A sound that shall be shown.

    Attributes:
        line: With its brackets.
        start_s: When it is first heard.
        end_s: When it is last heard, over all its repetitions.
        lasts: It may be told of at any time until it ends.
    """

    line: str
    start_s: float
    end_s: float
    lasts: bool


def sound_line(label: str, max_chars: int) -> str:
    """A label as a caption line; one that we do not know, from a user's own model, with spaces."""
    phrase = PHRASES.get(label) or " ".join(label.replace("_", " ").replace("[", "(").replace("]", ")").split()).lower()
    if len(phrase) > max_chars - 2:
        phrase = textwrap.shorten(phrase, max_chars - 2, placeholder="…")
    return f"[{phrase}]"


def select_cues(
    events: Sequence[SoundEvent], speech: Sequence[Segment], params: SdhParams, *, max_chars: int
) -> list[Cue]:
    """The sounds that a caption reader would want to know of.

    Args:
        events: In any order.
        speech: Under which sounds must be more certain.
        params: Which ones, and when again.
        max_chars: Of a line.

    Returns:
        In order of their start; a sound that comes again soon is one cue.
    """
    cues: list[Cue] = []
    newest: dict[str, int] = {}
    speech = sorted(speech, key=lambda segment: segment.start_s)
    for event in sorted(events, key=lambda e: (e.start_s, -e.score)):
        if event.label in NEVER_SHOWN or not event.label.strip() or event.score < _threshold(event, speech, params):
            continue
        line, lasts = sound_line(event.label, max_chars), event.label in AMBIENCE
        index = newest.get(line)
        repeat_s = params.ambience_repeat_s if lasts else params.repeat_s
        if index is not None and event.start_s - cues[index].end_s < repeat_s:
            cues[index] = replace(cues[index], end_s=max(cues[index].end_s, event.end_s))
        else:
            newest[line] = len(cues)
            cues.append(Cue(line=line, start_s=event.start_s, end_s=event.end_s, lasts=lasts))
    return cues


def _threshold(event: SoundEvent, speech: Sequence[Segment], params: SdhParams) -> float:
    """The score that a sound needs to be shown; `speech` in order of its start."""
    threshold = params.min_score_faint if event.label in FAINT else params.min_score
    first = bisect_right(speech, event.start_s, key=lambda segment: segment.start_s)
    spoken_s = 0.0
    for segment in speech[max(0, first - 1) :]:
        if segment.start_s >= event.end_s:
            break
        spoken_s += max(0.0, min(event.end_s, segment.end_s) - max(event.start_s, segment.start_s))
    if spoken_s > 0.5 * (event.end_s - event.start_s):
        short = event.end_s - event.start_s < params.short_s
        threshold = max(threshold, params.min_score_faint if short else params.min_score_under_speech)
    return threshold


def sdh_layout(
    segments: Sequence[Segment],
    events: Sequence[SoundEvent],
    params: CaptionParams,
    sdh: SdhParams,
    *,
    duration_s: float,
) -> list[Caption]:
    """One track of speech and sounds.

    Speech is laid out first and keeps its times. A sound then takes a gap of its own at or soon after its start;
    where somebody speaks, it stands above the words of a caption of one line, or of two lines that are parted for it.
    A sound for which there is no place near its start is left out, unless it lasts: then it waits for a place.

    Args:
        segments: What was said.
        events: What was heard.
        params: What a reader can follow.
        sdh: Which sounds are shown.
        duration_s: Of the programme.

    Returns:
        In order, without overlap, at most two lines each.
    """
    blocks = speech_blocks(segments, params, duration_s=duration_s)
    for cue in select_cues(events, segments, sdh, max_chars=params.max_line_chars):
        _place(cue, blocks, params, sdh, duration_s)
    return draw(blocks, params)


def _place(cue: Cue, blocks: list[Block], params: CaptionParams, sdh: SdhParams, duration_s: float) -> None:
    """Put the cue at its cheapest place in the track; cost is seconds away from the sound's start."""
    options = [
        *_own_slots(cue, blocks, params, sdh, duration_s),
        *_shared(cue, blocks, params, sdh, duration_s),
    ]
    if options:
        _, where, replacement = min(options, key=lambda option: option[0])
        blocks[where] = replacement


_Option = tuple[float, slice, list[Block]]
"""Cost in s, the captions that are replaced, and by what."""


def _distance_s(start_s: float, cue: Cue) -> float:
    """Seconds between the sound and its caption; to tell of a sound before it is heard is worse than after."""
    return start_s - cue.start_s if start_s >= cue.start_s else 1.5 * (cue.start_s - start_s)


def _own_slots(
    cue: Cue, blocks: list[Block], params: CaptionParams, sdh: SdhParams, duration_s: float
) -> Iterator[_Option]:
    """Gaps between captions in which the sound can stand alone."""
    latest_s = max(cue.start_s + sdh.max_shift_s, cue.end_s if cue.lasts else 0.0)
    shown_s = min(max(cue.end_s - cue.start_s, sdh.min_duration_s), sdh.max_duration_s)
    for i in range(bisect_left(blocks, cue.start_s, key=lambda block: block.end_s), len(blocks) + 1):
        from_s = blocks[i - 1].end_s + params.min_gap_s if i else 0.0
        until_s = blocks[i].start_s - params.min_gap_s if i < len(blocks) else max(duration_s, from_s)
        if from_s > latest_s:
            break
        # At the sound's start; a little before it only where the gap ends too soon after it.
        start_s = max(from_s, min(cue.start_s, until_s - sdh.min_duration_s))
        if until_s - start_s >= sdh.min_duration_s - 1e-9 and cue.start_s - start_s <= params.max_lead_s:
            block = Block(start_s=start_s, end_s=min(start_s + shown_s, until_s), sounds=(cue.line,))
            yield _distance_s(start_s, cue), slice(i, i), [block]


def _shared(
    cue: Cue, blocks: list[Block], params: CaptionParams, sdh: SdhParams, duration_s: float
) -> Iterator[_Option]:
    """Captions that have a line left for the sound, or that can be parted so that a half has."""
    for i in range(bisect_left(blocks, cue.start_s - sdh.max_shift_s, key=lambda block: block.end_s), len(blocks)):
        block = blocks[i]
        if block.start_s > cue.start_s + sdh.max_shift_s:
            break
        until_s = blocks[i + 1].start_s - params.min_gap_s if i + 1 < len(blocks) else duration_s
        if len(block.lines(params)) < params.max_lines:
            cost, shared = _with_sound(cue, block, until_s, params)
            options = [(cost, [shared])]
        elif not block.sounds and (halves := _parted(block, params)):
            first_cost, first = _with_sound(cue, halves[0], halves[0].end_s, params)
            second_cost, second = _with_sound(cue, halves[1], until_s, params)
            # Two lines read better whole: parting them is worth half a second.
            options = [(first_cost + 0.5, [first, halves[1]]), (second_cost + 0.5, [halves[0], second])]
        else:
            continue
        yield from ((cost, slice(i, i + 1), shared) for cost, shared in options if cost <= sdh.max_shift_s)


def _with_sound(cue: Cue, block: Block, until_s: float, params: CaptionParams) -> tuple[float, Block]:
    """The caption with the sound above its words, held longer where the silence after it allows."""
    shared = replace(block, sounds=(*block.sounds, cue.line))
    wanted_s = min(shared.reading_s(params), params.max_duration_s)
    shared = replace(shared, end_s=max(block.end_s, min(block.start_s + wanted_s, until_s)))
    # Reading too fast is as bad as being late by as much as is lacking.
    lacking_s = max(0.0, shared.reading_s(params) - shared.duration_s)
    return _distance_s(block.start_s, cue) + lacking_s, shared


def _parted(block: Block, params: CaptionParams) -> list[Block]:
    """A caption of two lines as two of one line, in the time it had; none where one would be too short."""
    top, bottom = break_lines(block.tokens, params)
    halves = [
        replace(block, tokens=top, end_s=bottom[0].start_s - params.min_gap_s),
        replace(block, tokens=bottom, start_s=bottom[0].start_s),
    ]
    readable = all(
        half.duration_s >= params.min_duration_s and half.reading_s(params) <= half.duration_s for half in halves
    )
    return halves if readable else []
