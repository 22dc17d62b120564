"""Segments to captions: where text is cut, how lines are broken, how long each caption stays.

The conventions are those of the trade: at most two lines of 42 characters, one to seven seconds, at most 20
characters a second, two frames between captions. No word is ever lost: where somebody speaks too fast for the
reading speed and no silence is near, the caption is kept whole and `too_fast` tells.

Sources: Netflix Timed Text Style Guide, General Requirements (partnerhelp.netflixstudios.com, article 215758617) and
English (217350977); BBC Subtitle Guidelines, 3 and 4 (bbc.co.uk/accessibility/forproducts/guides/subtitles);
EBU-TT-D (EBU Tech 3380) for what the result is later carried in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from soundstage.params import CaptionParams
from soundstage.types import Caption, Segment

_OPENERS = "\"'“‘([«"  # noqa: RUF001
_CLOSERS = "\"'”’)]»"  # noqa: RUF001
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")  # noqa: RUF001
_CLAUSE_ENDS = (",", ";", ":", "--", "—", "–", "、", "，")  # noqa: RUF001


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TITLES = _words("mr. mrs. ms. dr. prof. st. sr. jr. gen. col. capt. lt. sgt. rev. hon. no. vs. e.g. i.e.")
_ARTICLES = _words("a an the my your his her its our their this that these those some any no every each")
_CONJUNCTIONS = _words(
    "and but or nor so yet because although though while whereas unless until if when where who which that than as"
)
_PREPOSITIONS = _words(
    "about above across after against along among around at before behind below beneath beside between beyond by down "
    "during for from in inside into like near of off on onto out outside over past since through throughout to toward "
    "towards under up upon with within without"
)
_PRONOUNS = _words("i you he she it we they i'm you're he's she's it's we're they're i've you've we've they've")
_AUXILIARIES = _words(
    "am is are was were be been being have has had do does did will would shall should can could may might must not "
    "don't doesn't didn't won't wouldn't can't couldn't isn't aren't wasn't weren't haven't hasn't hadn't"
)

_NEVER = 14.0
_CAPTION_COST = 8.0
"""What one more caption costs, against the break costs below: an ordinary break between words costs 6."""
_PAUSE_S = 0.3
"""A shorter silence between words is articulation, not a pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One word as it is shown, with its times.

    Attributes:
        text: Never longer than a line.
        start_s: When it is first heard.
        end_s: When it is last heard.
        closes: A sentence or a segment ends with it.
    """

    text: str
    start_s: float
    end_s: float
    closes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The words of one caption before it is drawn.

    Attributes:
        start_s: On screen from.
        end_s: On screen until.
        tokens: In order; empty for a caption that holds only sounds.
        sounds: Lines above the words.
    """

    start_s: float
    end_s: float
    tokens: tuple[Token, ...] = ()
    sounds: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s

    def lines(self, params: CaptionParams) -> tuple[str, ...]:
        """What is drawn, sounds above words."""
        return (*self.sounds, *map(text_of, break_lines(self.tokens, params)))

    def reading_s(self, params: CaptionParams) -> float:
        """How long reading takes at the highest speed allowed."""
        return n_chars(self.lines(params)) / params.max_chars_per_s


def text_of(tokens: Iterable[Token]) -> str:
    """The words with spaces between them."""
    return " ".join(token.text for token in tokens)


def n_chars(lines: Sequence[str]) -> int:
    """Characters that are read, with a space for each line break."""
    return sum(map(len, lines)) + max(0, len(lines) - 1)


def too_fast(captions: Iterable[Caption], params: CaptionParams) -> tuple[Caption, ...]:
    """Those that no silence could slow down to the reading speed: somebody should look at them."""
    return tuple(
        caption
        for caption in captions
        if n_chars(caption.lines) > params.max_chars_per_s * (caption.end_s - caption.start_s) + 1e-3
    )


def layout(segments: Sequence[Segment], params: CaptionParams, *, duration_s: float) -> list[Caption]:
    """Captions of what was said.

    Args:
        segments: In any order; where they overlap, the later one waits.
        params: What a reader can follow.
        duration_s: Of the programme; no caption is held beyond it.

    Returns:
        In order, without overlap. Every word is there once. `too_fast` tells which exceed the reading speed.
    """
    return draw(speech_blocks(segments, params, duration_s=duration_s), params)


def draw(blocks: Sequence[Block], params: CaptionParams) -> list[Caption]:
    """Break the lines of each block and close the gaps that are too short to be seen as pauses."""
    return [
        Caption(start_s=block.start_s, end_s=block.end_s, lines=block.lines(params))
        for block in _close_gaps(blocks, params)
    ]


def speech_blocks(segments: Sequence[Segment], params: CaptionParams, *, duration_s: float) -> list[Block]:
    """What `layout` draws, with the times of the words kept."""
    tokens = [token for segment in sorted(segments, key=lambda s: s.start_s) for token in _tokens(segment, params)]
    return _timed([group for run in _runs(tokens, params) for group in _cut(run, params)], params, duration_s)


def _tokens(segment: Segment, params: CaptionParams) -> list[Token]:
    """Words with times: those of the recogniser, else in proportion to the characters within the segment."""
    texts = segment.text.split()
    if [word.text.strip() for word in segment.words] == texts:
        timed = [
            Token(text=text, start_s=word.start_s, end_s=word.end_s, closes=_ends_sentence(text))
            for text, word in zip(texts, segment.words, strict=True)
        ]
    else:
        timed = _spread(texts, segment.start_s, segment.end_s)
    # A word longer than a line, or a script without spaces, is cut to lines.
    width = params.max_line_chars
    pieces: list[Token] = []
    for token in timed:
        parts = [token.text[i : i + width] for i in range(0, len(token.text), width)]
        pieces += [token] if len(parts) == 1 else _spread(parts, token.start_s, token.end_s)
    return [*pieces[:-1], replace(pieces[-1], closes=True)]


def _spread(texts: Sequence[str], start_s: float, end_s: float) -> list[Token]:
    total = sum(len(text) + 1 for text in texts) - 1
    tokens, before = [], 0
    for text in texts:
        after = before + len(text)
        tokens.append(
            Token(
                text=text,
                start_s=start_s + (end_s - start_s) * before / total,
                end_s=start_s + (end_s - start_s) * after / total,
                closes=_ends_sentence(text),
            )
        )
        before = after + 1
    return tokens


def _runs(tokens: Sequence[Token], params: CaptionParams) -> list[list[Token]]:
    """Parts between pauses that no caption spans."""
    runs: list[list[Token]] = []
    for token in tokens:
        if runs and token.start_s - runs[-1][-1].end_s < params.max_pause_s:
            runs[-1].append(token)
        else:
            runs.append([token])
    return runs


def _bare(text: str) -> str:
    return text.strip(".,;:!?…—-" + _OPENERS + _CLOSERS).lower()


def _ends_sentence(text: str) -> bool:
    core = text.rstrip(_CLOSERS)
    initial = re.fullmatch(r"\W*[A-Z]\.", core)  # J. R. R. Tolkien
    return core.endswith(_SENTENCE_ENDS) and core.lower() not in _TITLES and not initial


def _break_cost(left: Token, right: Token) -> float:
    """How much it hurts to part two words: 0 between sentences or segments, 6 between any two, 14 after an article.

    Source: Netflix, General Requirements, Line Treatment: after punctuation, before conjunctions, before
    prepositions; never between article and noun, first and last name, pronoun and verb, auxiliary and verb.
    """
    core = left.text.rstrip(_CLOSERS)
    before, after = _bare(left.text), _bare(right.text)
    if left.closes:
        cost = 0.0
    elif core.lower() in _TITLES or not after:  # "Dr." and its name; a dash and what it follows
        cost = _NEVER
    elif core.endswith(_CLAUSE_ENDS):
        cost = 1.0
    elif before in _ARTICLES:
        cost = _NEVER
    elif before in _PREPOSITIONS or before in _CONJUNCTIONS:
        cost = 12.0
    elif after in _CONJUNCTIONS:
        cost = 2.0
    elif after in _PREPOSITIONS:
        cost = 3.0
    elif before in _PRONOUNS or before in _AUXILIARIES or (left.text[:1].isupper() and right.text[:1].isupper()):
        cost = 9.0
    else:
        cost = 6.0
    # A speaker's own pause is where the eye expects a cut.
    pause_s = right.start_s - left.end_s
    return cost if pause_s < _PAUSE_S else max(0.0, cost - 10.0 * pause_s)


def _cut(run: Sequence[Token], params: CaptionParams) -> list[tuple[Token, ...]]:
    """The cheapest way to part a run into captions, by dynamic programming over the last cut."""
    n, costs = len(run), _Costs.of(run, params)
    best, came_from = [0.0] + [float("inf")] * n, [0] * (n + 1)
    for last in range(1, n + 1):
        for first in range(last - 1, -1, -1):
            cost = costs.caption(first, last)
            if cost is None:
                break
            # A caption that ends inside a phrase is worse than a line that does.
            cost += best[first] + 2.0 * costs.breaks[last]
            if cost < best[last]:
                best[last], came_from[last] = cost, first
    groups, last = [], n
    while last:
        groups.append(tuple(run[came_from[last] : last]))
        last = came_from[last]
    return groups[::-1]


@dataclass(frozen=True, slots=True)
class _Costs:
    """Sums over a run of words, so that each caption that could be is weighed in constant time.

    Attributes:
        params: What a reader can follow.
        starts: In s, of each word.
        ends: In s, of each word.
        offsets: Characters and spaces before each word, and after the last.
        breaks: Cost of parting words i - 1 and i; 0 at both ends.
        pauses: In s, all silences between words up to word i beyond what articulation needs.
        sentences: Ends of sentences and segments before word i.
    """

    params: CaptionParams
    starts: list[float]
    ends: list[float]
    offsets: list[int]
    breaks: list[float]
    pauses: list[float]
    sentences: list[int]

    @classmethod
    def of(cls, run: Sequence[Token], params: CaptionParams) -> _Costs:
        gaps = [max(0.0, right.start_s - left.end_s - _PAUSE_S) for left, right in pairwise(run)]
        return cls(
            params,
            [token.start_s for token in run],
            [token.end_s for token in run],
            list(accumulate((len(token.text) + 1 for token in run), initial=0)),
            [0.0, *(_break_cost(left, right) for left, right in pairwise(run)), 0.0],
            list(accumulate(gaps, initial=0.0)),
            list(accumulate((token.closes for token in run), initial=0)),
        )

    def width(self, first: int, last: int) -> int:
        """Characters of words first to last - 1 on one line."""
        return self.offsets[last] - self.offsets[first] - 1

    def line_break(self, first: int, last: int) -> tuple[int, float] | None:
        """Where the second line begins (`first`: one line is enough) and what it costs; None where nothing fits.

        Source: Netflix, one line unless it exceeds the limit; bottom-heavy where there is a choice.
        """
        limit = self.params.max_line_chars
        if self.width(first, last) <= limit:
            return first, 0.0
        found: tuple[int, float] | None = None
        for at in range(last - 1, first, -1):
            top, bottom = self.width(first, at), self.width(at, last)
            if bottom > limit or self.params.max_lines < 2:
                break
            cost = self.breaks[at] + 0.1 * abs(bottom - top) + (1.0 if top > bottom else 0.0)
            if top <= limit and (found is None or cost < found[1]):
                found = at, cost
        return found

    def caption(self, first: int, last: int) -> float | None:
        """What a caption of words first to last - 1 costs; None where neither it nor any longer one can be."""
        params, starts, ends = self.params, self.starts, self.ends
        broken = self.line_break(first, last)
        if broken is None or (last - first > 1 and ends[last - 1] - starts[first] > params.max_duration_s):
            return None
        # The words before and after bound how long it may stay.
        lead_s = params.max_lead_s if not first else starts[first] - ends[first - 1] - params.min_gap_s
        until_s = starts[last] - params.min_gap_s if last < len(starts) else ends[-1] + params.max_pause_s
        room_s = max(until_s - starts[first] + min(max(lead_s, 0.0), params.max_lead_s), 1e-3)
        short = 60.0 * max(0.0, 1.0 - room_s / params.min_duration_s)
        brisk = 4.0 * max(0.0, 1.0 - room_s / (2 * params.min_duration_s))
        fast = min(1.0, max(0.0, self.width(first, last) / room_s / params.max_chars_per_s - 1.0))
        pauses_s = self.pauses[last - 1] - self.pauses[first]
        # One sentence to a caption reads best (BBC 3.2); two may share a line, but not with half of a third.
        sentences = self.sentences[last - 1] - self.sentences[first]
        halved = 6.0 if sentences and self.sentences[last] == self.sentences[last - 1] else 0.0
        mixed = sentences * (4.0 + 0.06 * self.width(first, last)) + halved
        return _CAPTION_COST + broken[1] + mixed + short + brisk + 20.0 * fast + 20.0 * pauses_s


def break_lines(tokens: Sequence[Token], params: CaptionParams) -> tuple[tuple[Token, ...], ...]:
    """The words of one caption, line by line."""
    broken = _Costs.of(tokens, params).line_break(0, len(tokens)) if tokens else None
    at = broken[0] if broken else 0
    return tuple(tuple(part) for part in (tokens[:at], tokens[at:]) if part)


def _timed(groups: Sequence[tuple[Token, ...]], params: CaptionParams, duration_s: float) -> list[Block]:
    """When each caption comes and goes.

    It comes with its first word. It stays for its words and for as long as reading takes, into the silence after
    them, as far as the next caption allows; only where that is not enough does it come a little earlier.
    """
    starts: list[float] = []
    for group in groups:
        # Broken or overlapping times still give each caption a moment of its own.
        earliest = starts[-1] + params.min_gap_s + 0.25 if starts else 0.0
        starts.append(max(group[0].start_s, earliest))
    blocks: list[Block] = []
    for i, (group, first_s) in enumerate(zip(groups, starts, strict=True)):
        until_s = starts[i + 1] - params.min_gap_s if i + 1 < len(groups) else max(duration_s, first_s + 0.25)
        block = Block(start_s=first_s, end_s=first_s, tokens=group)
        wanted_s = min(params.max_duration_s, max(params.min_duration_s, block.reading_s(params)))
        end_s = min(max(group[-1].end_s, first_s + wanted_s), first_s + params.max_duration_s, until_s)
        free_s = blocks[-1].end_s + params.min_gap_s if blocks else 0.0
        start_s = min(first_s, max(end_s - wanted_s, first_s - params.max_lead_s, free_s))
        blocks.append(replace(block, start_s=start_s, end_s=end_s))
    return blocks


def _close_gaps(blocks: Sequence[Block], params: CaptionParams) -> list[Block]:
    """A gap too short to be seen as a pause is closed to two frames.

    Source: Netflix Subtitle Timing Guidelines: gaps of 3 to 11 frames are closed.
    """
    closed = []
    for block, following in pairwise(blocks):
        gap_s = following.start_s - block.end_s
        end_s = following.start_s - params.min_gap_s
        if gap_s < 0.5 and params.min_gap_s < gap_s and end_s - block.start_s <= params.max_duration_s:
            closed.append(replace(block, end_s=end_s))
        else:
            closed.append(block)
    return [*closed, *blocks[-1:]]
