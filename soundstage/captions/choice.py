"""Which timecode captions and cue lists get: the caller's, else the file's."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from soundstage.captions.formats import CaptionOptions
from soundstage.captions.timecode import Timebase
from soundstage.errors import InvalidRequest
from soundstage.params import SdhParams


class SaysTimecode(Protocol):
    """What a file may say of itself: SourceInfo before, and ClipSummary after it was read."""

    @property
    def start_timecode(self) -> str | None:
        """HH:MM:SS:FF of the first frame."""
        ...

    @property
    def time_reference_s(self) -> float | None:
        """Seconds since midnight, of a Broadcast Wave file."""
        ...

    @property
    def frame_rate(self) -> Fraction | None:
        """Frames a second."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TimecodeChoice:
    """What the caller said about timecode; None leaves it to the file, and then to CaptionOptions.

    Attributes:
        start_timecode: HH:MM:SS:FF, or HH:MM:SS;FF for drop-frame.
        frame_rate: Frames a second.
        sdh: Which sounds a caption reader is told of.

    Raises:
        InvalidRequest: No such frame rate, or no such timecode at that rate.
    """

    start_timecode: str | None = None
    frame_rate: float | None = None
    sdh: SdhParams = field(default_factory=SdhParams)

    def __post_init__(self) -> None:
        self.options(None, title="")

    def options(self, info: SaysTimecode | None, *, title: str) -> CaptionOptions:
        """Options for one file.

        What the caller chose counts, then what the file says of itself, as far as both together are timecode: a
        screen recording at 13.7 pictures a second has none, and is no error.

        Raises:
            InvalidRequest: What the caller chose is no timecode.
        """
        chosen: dict[str, Any] = {"start_timecode": self.start_timecode, "frame_rate": self.frame_rate}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        if info is not None:
            found: dict[str, Any] = {}
            if info.frame_rate is not None:
                found["frame_rate"] = float(info.frame_rate)
            start_timecode = _start_timecode(info, float(chosen.get("frame_rate", found.get("frame_rate", 25.0))))
            if start_timecode is not None:
                found["start_timecode"] = start_timecode
            try:
                return CaptionOptions(title=title, sdh=self.sdh, **(found | chosen))
            except InvalidRequest:
                pass  # of what the file says; the caller's choice alone is known to be good
        return CaptionOptions(title=title, sdh=self.sdh, **chosen)


def _start_timecode(info: SaysTimecode, frame_rate: float) -> str | None:
    if info.start_timecode is not None or info.time_reference_s is None:
        return info.start_timecode
    try:
        timebase = Timebase.of("00:00:00:00", frame_rate)
    except InvalidRequest:
        return None
    return timebase.timecode(timebase.frame(info.time_reference_s))
