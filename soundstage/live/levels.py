"""How loud a stream is, second by second."""

from __future__ import annotations

import numpy as np
from av.audio import AudioFrame

from soundstage.audio.levels import NOTHING_LUFS, LevelMeter, to_db
from soundstage.live.events import LevelReading
from soundstage.params import LevelParams
from soundstage.types import AudioBlock


class ReadingLevelMeter(LevelMeter):
    """A level meter that is read once a second; the same stream in other blocks gives the same readings."""

    def __init__(self, params: LevelParams) -> None:
        super().__init__(params)
        self._momentary_lufs = self._short_term_lufs = NOTHING_LUFS
        self._second_peak = 0.0
        self._n_read = 0

    def read(self, block: AudioBlock) -> list[LevelReading]:
        """Take in the next block, as push does; the readings of the seconds that are whole now."""
        readings: list[LevelReading] = []
        rate, rest = block.sample_rate, block.samples
        while len(rest):
            n_missing = (self._n_read + 1) * rate - self._n_samples
            piece, rest = rest[:n_missing], rest[n_missing:]
            self._second_peak = max(self._second_peak, float(np.abs(piece).max()))
            self.push(AudioBlock(samples=piece, sample_rate=rate))
            if len(piece) == n_missing:
                readings.append(self._reading())
        return readings

    def _note(self, measured: AudioFrame) -> None:
        metadata = measured.metadata
        self._momentary_lufs = max(self._momentary_lufs, float(metadata["lavfi.r128.M"]))
        self._short_term_lufs = float(metadata["lavfi.r128.S"])

    def _reading(self) -> LevelReading:
        reading = LevelReading(
            start_s=self._n_read,
            end_s=self._n_read + 1,
            momentary_lufs=_known(self._momentary_lufs),
            short_term_lufs=_known(self._short_term_lufs),
            sample_peak_dbfs=to_db(self._second_peak),
        )
        self._n_read += 1
        self._momentary_lufs, self._second_peak = NOTHING_LUFS, 0.0
        return reading


def _known(lufs: float) -> float | None:
    return lufs if lufs > NOTHING_LUFS else None
