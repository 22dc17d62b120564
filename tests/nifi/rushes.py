"""Rushes made of real recordings: every container of the trade, nested folders, names as people give them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from soundstage.audio.resample import decode_mono
from soundstage.params import Limits

SAMPLE_RATE = 16_000
FORMATS = (
    ("wav", "wav", "pcm_s16le", 16_000),
    ("flac", "flac", "flac", 16_000),
    ("mp3", "mp3", "libmp3lame", 16_000),
    ("ogg", "ogg", "libopus", 48_000),
    ("opus", "ogg", "libopus", 48_000),
    ("m4a", "ipod", "aac", 16_000),
    ("mp4", "mp4", "aac", 16_000),
    ("mov", "mov", "pcm_s24le", 48_000),
    ("mkv", "matroska", "pcm_s16le", 48_000),
    ("webm", "webm", "libopus", 48_000),
    ("aiff", "aiff", "pcm_s16be", 16_000),
    ("aac", "adts", "aac", 16_000),
    ("mxf", "mxf", "pcm_s16le", 48_000),
    ("wav", "wav", "pcm_s24le", 48_000),
    ("caf", "caf", "pcm_s16le", 16_000),
)
"""Suffix, container, codec, rate in Hz."""

FOLDERS = (
    "Abendschau/Rolle 1",
    "Abendschau/Rolle 2 [25fps] [tc10-00-00-00]",
    "Café Müller/Prise à l’aube/Été",  # noqa: RUF001  # as people name folders
    "ドキュメンタリー/第1回",
    "Show & Tell (2026)/Camera A/CLIPS001/Sub folder",
    "",
)
NAMES = ("take {n}", "A{n:03d}_C001_0101AB", "Übung {n} – final", "録音 {n}", "it's 100% {n}+1 #ok", "x.y.z {n}")  # noqa: RUF001


@dataclass(frozen=True, slots=True, kw_only=True)
class Rush:
    """One file to be captioned.

    Attributes:
        source: Below the watch folder.
        transcript: What is said; None where nobody speaks.
    """

    source: str
    samples: NDArray[np.float32]
    format: tuple[str, str, str, int]
    transcript: str | None

    def documents(self, suffixes: tuple[str, ...]) -> set[str]:
        """Paths that are to be delivered."""
        return {self.source.rpartition(".")[0] + suffix for suffix in suffixes}

    def write(self, folder: Path) -> None:
        """Write it where it belongs below a folder; it gets its name last, as copying tools do."""
        path = folder / self.source
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        encode(part, self.samples, self.format)
        part.rename(path)


def encode(path: Path, samples: NDArray[np.float32], form: tuple[str, str, str, int]) -> None:
    """Write samples (n_samples,) at 16 kHz as a file of one of FORMATS."""
    _, container, codec, rate = form
    with av.open(str(path), "w", format=container) as output:
        if container == "mxf":
            video = output.add_stream("mpeg2video", rate=25)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        stream = output.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        if container == "mxf":
            n_frames = len(samples) * 25 // SAMPLE_RATE + 1
            for number in range(n_frames):
                picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                picture.pts, picture.time_base = number, Fraction(1, 25)
                output.mux(video.encode(picture))
            output.mux(video.encode(None))
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        fifo = av.AudioFifo()
        for ready in [*resampler.resample(frame), *resampler.resample(None)]:
            fifo.write(ready)
        size = stream.codec_context.frame_size or 4096
        while (piece := fifo.read(size, partial=True)) is not None:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))


class Recordings:
    """The recordings beside the checkout."""

    def __init__(self, folder: Path) -> None:
        with (folder / "ljspeech" / "meta.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        by_name = {path.name: path for path in (folder / "ljspeech").rglob("*.flac")}
        self.sentences = [(by_name[Path(row["filename"]).name], row["transcript"]) for row in rows]
        self.sounds = sorted((folder / "esc50").rglob("*.ogg"))

    def speech(self, number: int) -> tuple[NDArray[np.float32], str]:
        """A sentence and its transcript."""
        path, transcript = self.sentences[number % len(self.sentences)]
        return decode_mono(path, Limits()).samples, transcript

    def sound(self, number: int) -> NDArray[np.float32]:
        """Five seconds of something."""
        return decode_mono(self.sounds[number % len(self.sounds)], Limits()).samples

    def rushes(self, name: str, n_files: int, first: int, longest_s: float) -> list[Rush]:
        """Files of 1 s to `longest_s`, of different content, nearly all of them speech."""
        made = []
        for number in range(n_files):
            form = FORMATS[number % len(FORMATS)]
            folder = "/".join(part for part in (name, FOLDERS[number % len(FOLDERS)]) if part)
            samples, transcript = self._content(number, first, n_files, longest_s)
            # A little noise makes its content different from that of every other file.
            noise = np.random.default_rng(first + number).normal(0, 1e-4, len(samples)).astype(np.float32)
            stem = NAMES[number % len(NAMES)].format(n=number)
            made.append(
                Rush(
                    source=f"{folder}/{stem}.{form[0]}",
                    samples=samples + noise,
                    format=form,
                    transcript=transcript,
                )
            )
        return made

    def _content(
        self, number: int, first: int, n_files: int, longest_s: float
    ) -> tuple[NDArray[np.float32], str | None]:
        if number == n_files // 2:  # the longest
            return self._talk(first, longest_s)
        if number % 20 == 7:  # half a minute to a minute and a half
            return self._talk(first + number, min(longest_s, 30.0 * (1 + number % 3)))
        if number % 10 == 9:
            return self.sound(first + number), None
        if number % 10 == 8:
            samples = self.sound(first + number)
            return samples[:SAMPLE_RATE], None
        return self.speech(first + number)

    def _talk(self, first: int, length_s: float) -> tuple[NDArray[np.float32], str]:
        """Sentences one after the other."""
        pieces: list[NDArray[np.float32]] = []
        texts: list[str] = []
        n_samples = 0
        while n_samples < length_s * SAMPLE_RATE:
            samples, text = self.speech(first + len(pieces))
            pieces += [samples, np.zeros(SAMPLE_RATE // 2, np.float32)]
            texts.append(text)
            n_samples += len(samples) + SAMPLE_RATE // 2
        return np.concatenate(pieces), " ".join(texts)
