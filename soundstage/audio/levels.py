"""How loud the source is, before any resampling: EBU R 128 loudness, peaks, clipping and silence."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av.audio import AudioFrame
from av.filter import Graph
from numpy.typing import NDArray

from soundstage.errors import SampleRateMismatch
from soundstage.params import LevelParams
from soundstage.types import AudioBlock, Levels, Region

_FULL_SCALE = 32_767 / 32_768
"""The largest value of 16 bits, which every deeper format passes where it clips."""

NOTHING_LUFS = -70.0
"""FFmpeg shows the absolute gate where no block passed it. Source: ITU-R BS.1770-5, annex 1."""

_SHORT_TERM_S = 3.0
"""Window of the loudness range. Source: EBU Tech 3342."""

_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
"""Layouts that BS.1770 weights: surrounds +1.5 dB, low frequency effects not at all. In any other number of channels
each counts like a single one."""


class LevelMeter:
    """Levels of one stream; the same stream in other blocks gives the same levels.

    Source: EBU R 128 (2023), ITU-R BS.1770-5, EBU Tech 3341 and 3342, through FFmpeg's filter ebur128; silence as in
    FFmpeg's silencedetect: every sample of every channel below the level.
    """

    def __init__(self, params: LevelParams) -> None:
        self._params = params
        self._threshold = 10 ** (params.silence_dbfs / 20)
        self._format: tuple[int, int] | None = None
        self._n_samples = 0
        self._peak = 0.0
        self._n_clipped = 0
        self._last_loud = -1
        self._silence: list[Region] = []
        self._metadata: dict[str, str] = {}

    def push(self, block: AudioBlock) -> None:
        """Take in the next block.

        Raises:
            SampleRateMismatch: The block has another rate or other channels than the first.
        """
        samples = block.samples
        if not len(samples):
            return
        source_format = (block.sample_rate, samples.shape[1])
        if self._format is None:
            self._format = source_format
            self._graph = _loudness_graph(*source_format)
            self._before = np.zeros((2, samples.shape[1]), bool)
        if source_format != self._format:
            raise SampleRateMismatch(f"the stream began with {self._format} (Hz, channels), not with {source_format}")
        self._measure_loudness(samples)
        magnitude = np.abs(samples)
        self._count_clipped(magnitude)
        self._find_silence(magnitude.max(axis=1))
        self._n_samples += len(samples)

    def result(self) -> Levels:
        """The levels of all that was pushed. Call it once, at the end.

        Raises:
            ValueError: Nothing was pushed.
        """
        if self._format is None:
            raise ValueError("no audio was pushed")
        sample_rate, n_channels = self._format
        self._add_silence(self._n_samples)
        lufs = float(self._metadata.get("lavfi.r128.I", NOTHING_LUFS))
        is_measured = lufs > NOTHING_LUFS
        has_range = is_measured and self._n_samples >= _SHORT_TERM_S * sample_rate
        loudness_range = float(self._metadata["lavfi.r128.LRA"]) if has_range else None
        # Peaks are reported every 100 ms: silence brings out those of the last part, but must not count as loudness.
        self._measure_loudness(np.zeros((sample_rate // 5, n_channels), np.float32))
        # FFmpeg rounds them to a thousandth of full scale, which is too coarse for quiet audio.
        true_peaks = [float(self._metadata[f"lavfi.r128.true_peaks_ch{i}"]) for i in range(n_channels)]
        return Levels(
            integrated_lufs=lufs if is_measured else None,
            loudness_range_lu=loudness_range,
            true_peak_dbtp=to_db(max(self._peak, *true_peaks)),
            sample_peak_dbfs=to_db(self._peak),
            n_clipped_samples=self._n_clipped,
            silence=tuple(self._silence),
            n_channels=n_channels,
            sample_rate=sample_rate,
        )

    def _measure_loudness(self, samples: NDArray[np.float32]) -> None:
        sample_rate, n_channels = self._format or (0, 0)
        frame = AudioFrame.from_ndarray(
            samples.astype(np.float64).reshape(1, -1), format="dbl", layout=_layout(n_channels)
        )
        frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
        self._graph.push(frame)
        measured: AudioFrame | None = None
        while True:
            try:
                pulled = self._graph.pull()
            except (BlockingIOError, EOFError):
                break
            assert isinstance(pulled, AudioFrame)
            measured = pulled
            self._note(measured)
        if measured is not None:
            self._metadata = measured.metadata

    def _note(self, measured: AudioFrame) -> None:
        """The next 100 ms are measured, with all that came before."""

    def _count_clipped(self, magnitude: NDArray[np.float32]) -> None:
        is_full = np.concatenate([self._before, magnitude >= _FULL_SCALE])
        self._before = is_full[-2:]
        self._peak = max(self._peak, float(magnitude.max()))
        if self._peak < _FULL_SCALE:
            return
        continues = is_full[2:] & is_full[1:-1]
        begins = continues & ~is_full[:-2]
        self._n_clipped += int(continues.sum()) + int(begins.sum())

    def _find_silence(self, magnitude: NDArray[np.float32]) -> None:
        loud = self._n_samples + np.flatnonzero(magnitude >= self._threshold)
        if not len(loud):
            return
        edges = np.concatenate([[self._last_loud], loud])
        sample_rate = (self._format or (1, 1))[0]
        for i in np.flatnonzero(np.diff(edges) > self._params.min_silence_s * sample_rate):
            self._last_loud = int(edges[i])
            self._add_silence(int(edges[i + 1]))
        self._last_loud = int(loud[-1])

    def _add_silence(self, end: int) -> None:
        """Note the silence between the last loud sample and this one, where it is long enough."""
        sample_rate = (self._format or (1, 1))[0]
        start = self._last_loud + 1
        if end - start >= self._params.min_silence_s * sample_rate:
            self._silence.append(Region(start_s=start / sample_rate, end_s=end / sample_rate))


def to_db(magnitude: float) -> float | None:
    """dBFS; None for digital silence."""
    return float(20 * np.log10(magnitude)) if magnitude > 0 else None


def _layout(n_channels: int) -> str:
    return _LAYOUTS.get(n_channels, f"{n_channels} channels")


def _loudness_graph(sample_rate: int, n_channels: int) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add_abuffer(
        sample_rate=sample_rate, format="dbl", layout=_layout(n_channels), time_base=Fraction(1, sample_rate)
    )
    meter = graph.add("ebur128", peak="true", metadata="1", framelog="quiet")
    graph.link_nodes(source, meter, graph.add("abuffersink")).configure()
    return graph
