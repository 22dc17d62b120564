r"""An analysis as a file that a production can ship.

Captions (SRT, WebVTT) count from the programme's start, as players and caption deliveries do, whatever its timecode;
EDL, OpenTimelineIO and CSV carry timecode from `start_timecode` on. All is UTF-8 with "\n" line ends, which players
read as well as "\r\n"; only CSV has "\r\n", by RFC 4180. An analysis that heard nothing is a valid, empty file.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import pysubs2

from soundstage.captions import cues
from soundstage.captions.layout import layout
from soundstage.captions.sdh import sdh_layout
from soundstage.captions.timecode import Timebase
from soundstage.errors import InvalidRequest
from soundstage.params import CaptionParams, SdhParams
from soundstage.types import Analysis, Caption

_JOINER = "\u2060"
"""WORD JOINER: has no width and parts two characters that would else be markup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionOptions:
    """What a client may choose.

    Attributes:
        start_timecode: Of the first frame: HH:MM:SS:FF, or HH:MM:SS;FF for drop-frame. Not for captions.
        frame_rate: Frames a second, one of `soundstage.captions.timecode.FRAME_RATES`.
        title: Of the EDL and of the OpenTimelineIO clip, such as the name of the file.
        captions: What a reader can follow.
        sdh: Which sounds a caption reader is told of.
        timebase: Made from the first two.

    Raises:
        InvalidRequest: No such frame rate, or no such timecode at that rate.
    """

    start_timecode: str = "00:00:00:00"
    frame_rate: float = 25.0
    title: str = "Soundstage"
    captions: CaptionParams = field(default_factory=CaptionParams)
    sdh: SdhParams = field(default_factory=SdhParams)
    timebase: Timebase = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "timebase", Timebase.of(self.start_timecode, self.frame_rate))
        object.__setattr__(self, "title", " ".join(self.title.split()) or "Soundstage")


def captions(analysis: Analysis, options: CaptionOptions) -> list[Caption]:
    """What is said, as captions."""
    return layout(analysis.segments, options.captions, duration_s=analysis.duration_s)


def sdh_captions(analysis: Analysis, options: CaptionOptions) -> list[Caption]:
    """What is said and heard, as captions."""
    return sdh_layout(analysis.segments, analysis.events, options.captions, options.sdh, duration_s=analysis.duration_s)


def srt(captions: Sequence[Caption]) -> str:
    """SubRip. It has no way to escape, so markup is parted by an invisible character: players show it as text."""
    return _written(captions, "srt", lambda line: re.sub(r"<|\{|--(?=>)", rf"\g<0>{_JOINER}", line))


def vtt(captions: Sequence[Caption]) -> str:
    """WebVTT. Source: W3C WebVTT, 4.1: `&`, `<` and `-->` must not stand in cue text."""
    return _written(captions, "vtt", lambda line: html.escape(line, quote=False))


def _written(captions: Sequence[Caption], name: str, escape: Callable[[str], str]) -> str:
    subs = pysubs2.SSAFile()
    for caption in captions:
        # pysubs2 speaks SubStation Alpha inside, where a backslash begins a code.
        lines = [escape(line).replace("\\", f"\\{_JOINER}") for line in caption.lines]
        start_ms, end_ms = round(1000 * caption.start_s), round(1000 * caption.end_s)
        subs.append(pysubs2.SSAEvent(start=start_ms, end=end_ms, text=r"\N".join(lines)))
    return subs.to_string(name, keep_ssa_tags=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One kind of file.

    Attributes:
        name: As in the request.
        media_type: As in the response.
        suffix: Of the file, after its stem.
        renderer: Analysis and options to text.
    """

    name: str
    media_type: str
    suffix: str
    renderer: Callable[[Analysis, CaptionOptions], str]


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        item.name: item
        for item in (
            Format(
                name="srt",
                media_type="application/x-subrip",
                suffix=".srt",
                renderer=lambda analysis, options: srt(captions(analysis, options)),
            ),
            Format(
                name="vtt",
                media_type="text/vtt",
                suffix=".vtt",
                renderer=lambda analysis, options: vtt(captions(analysis, options)),
            ),
            Format(
                name="sdh_srt",
                media_type="application/x-subrip",
                suffix=".sdh.srt",
                renderer=lambda analysis, options: srt(sdh_captions(analysis, options)),
            ),
            Format(
                name="sdh_vtt",
                media_type="text/vtt",
                suffix=".sdh.vtt",
                renderer=lambda analysis, options: vtt(sdh_captions(analysis, options)),
            ),
            Format(
                name="otio",
                media_type="application/json",
                suffix=".otio",
                renderer=lambda analysis, options: cues.otio_json(analysis, options.timebase, options.title),
            ),
            Format(
                name="edl",
                media_type="text/plain",
                suffix=".edl",
                renderer=lambda analysis, options: cues.edl(analysis, options.timebase, options.title),
            ),
            Format(
                name="audacity",
                media_type="text/plain",
                suffix=".labels.txt",
                renderer=lambda analysis, options: cues.audacity(analysis),
            ),
            Format(
                name="csv",
                media_type="text/csv",
                suffix=".csv",
                renderer=lambda analysis, options: cues.cue_csv(analysis, options.timebase),
            ),
        )
    }
)
"""Every file that `render` writes, by the name in the request."""


def render(analysis: Analysis, response_format: str, options: CaptionOptions) -> str:
    """The analysis as the text of a file.

    Args:
        analysis: Of a whole clip.
        response_format: A name in FORMATS.
        options: What the client chose.

    Raises:
        InvalidRequest: There is no such format.
    """
    if response_format not in FORMATS:
        raise InvalidRequest(f"response_format {response_format[:32]!r} is not one of {', '.join(FORMATS)}")
    return FORMATS[response_format].renderer(analysis, options)
