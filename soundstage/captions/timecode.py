"""SMPTE timecode from seconds.

Source: SMPTE ST 12-1. OpenTimelineIO does the arithmetic; see `Timebase.timecode` for the one thing that it needs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from opentimelineio import opentime

from soundstage.errors import InvalidRequest

FRAME_RATES = {
    "23.976": Fraction(24_000, 1001),
    "24": Fraction(24),
    "25": Fraction(25),
    "29.97": Fraction(30_000, 1001),
    "30": Fraction(30),
    "50": Fraction(50),
    "59.94": Fraction(60_000, 1001),
    "60": Fraction(60),
}
"""Those of film, television and the web, by the names they go by."""

_DROP_FRAME = ("29.97", "59.94")


@dataclass(frozen=True, slots=True)
class Timebase:
    """Where a programme starts and how its frames are counted.

    Attributes:
        rate: Frames a second, exact.
        drop_frame: Labels are dropped so that timecode keeps up with the clock.
        start_frame: Number of the programme's first frame.
    """

    rate: Fraction
    drop_frame: bool
    start_frame: int

    @classmethod
    def of(cls, start_timecode: str, frame_rate: float) -> Timebase:
        """Check what a client sent.

        Args:
            start_timecode: HH:MM:SS:FF, or HH:MM:SS;FF for drop-frame.
            frame_rate: One of FRAME_RATES, also as 23.98 or 30000/1001.

        Raises:
            InvalidRequest: There is no such rate, or no such timecode at this rate.
        """
        near = [(name, rate) for name, rate in FRAME_RATES.items() if abs(float(rate) - frame_rate) < 0.005]
        if not near:
            raise InvalidRequest(f"frame_rate {frame_rate:g} is not one of {', '.join(FRAME_RATES)}")
        ((name, rate),) = near
        if not re.fullmatch(r"[0-9]{2}:[0-9]{2}:[0-9]{2}[:;][0-9]{2}", start_timecode):
            raise InvalidRequest(
                f"start_timecode {start_timecode[:32]!r} is not HH:MM:SS:FF, nor HH:MM:SS;FF for drop-frame"
            )
        drop_frame = ";" in start_timecode
        if drop_frame and name not in _DROP_FRAME:
            raise InvalidRequest(
                f"start_timecode {start_timecode} is drop-frame, which {name} frames a second does not have; "
                f"write it with ':', or send frame_rate {' or '.join(_DROP_FRAME)}"
            )
        timebase = cls(rate, drop_frame, 0)
        try:
            frame = opentime.from_timecode(start_timecode, timebase._label_rate).to_frames()
        except ValueError:
            frame = -1
        # OpenTimelineIO reads 25:61:61:00 as well; what does not come out as it went in does not exist.
        if frame < 0 or timebase.timecode(frame) != start_timecode:
            raise InvalidRequest(f"start_timecode {start_timecode} does not exist at {name} frames a second")
        return cls(rate, drop_frame, frame)

    @property
    def _label_rate(self) -> float:
        # Without drop-frame, labels count whole frames a second: 29.97 is labelled as 30 is. OpenTimelineIO 0.18
        # takes the exact rate here and then turns back to 00:00 some 86 s before midnight.
        return float(self.rate) if self.drop_frame else float(round(self.rate))

    def frame(self, time_s: float) -> int:
        """The number of the frame nearest to a time of the programme."""
        return self.start_frame + round(time_s * self.rate)

    def timecode(self, frame: int) -> str:
        """The label of a frame; after midnight it starts anew."""
        time = opentime.RationalTime(frame, self._label_rate)
        return str(opentime.to_timecode(time, self._label_rate, self.drop_frame))
