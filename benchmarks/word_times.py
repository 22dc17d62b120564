"""How far the times of words are off: `python -m benchmarks.word_times`.

Two kinds of speech whose times are known: espeak-ng's, which tells when each word begins, and phrases of a reader
(LJ Speech) that are cut out at clear pauses and put together anew with known gaps, so that the first word of each
phrase has a known start. Both go through the whole pipeline. The heads and numbers of soundstage.speech.alignment
were chosen on the clips of `Split.TUNING`; figures come from those of `Split.TEST`: other sentences, other voices,
other recordings.
"""

from __future__ import annotations

import csv
import ctypes
import difflib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.results import as_table, write_result
from soundstage.audio.resample import Resampler, decode_mono
from soundstage.models.registry import ModelFolder
from soundstage.params import Limits, MoonshineParams
from soundstage.pipeline import AnalysisOptions, Pipeline, Task
from soundstage.speech import weights
from soundstage.speech.decoding import GreedyDecoder
from soundstage.speech.transcriber import Transcriber
from soundstage.types import SAMPLE_RATE, AudioBlock, EncodedAudio, Waveform, Word


class Split(StrEnum):
    """What a clip is for."""

    TUNING = "tuning"
    TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenWord:
    """A word whose start is known, and which others are not.

    Attributes:
        text: As in the text that was spoken.
        start_s: Of the clip; None where it is not known.
    """

    text: str
    start_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenClip:
    """Speech with what was said when."""

    name: str
    waveform: Waveform
    words: tuple[SpokenWord, ...]


SENTENCES = {
    Split.TUNING: (
        "The captain never told us where the harbour was, and nobody dared to ask him.",
        "Before the rain came, my grandmother used to carry water from the village well every morning.",
        "Would you mind closing the window? There is a terrible draught in here.",
        "Our neighbours painted their kitchen yellow, but the children wanted it to be blue.",
        "Although the library was almost empty, she could hardly find a quiet corner to read.",
        "He picked up the telephone, listened for a while, and put it down without a word.",
        "Most of the bridges in this valley were built by people who had never seen the sea.",
        "I am sorry, I did not hear you. Could you say that again, a little more slowly?",
        "The old engine coughed, shook itself, and finally began to pull the carriages up the hill.",
        "Some birds sleep on one leg, others hang upside down, and a few never seem to rest at all.",
        "Please leave your shoes outside, wash your hands, and help yourself to some bread.",
        "After a long silence the judge asked whether anybody had anything else to add.",
        "You should always look twice at a mushroom before you decide to put it into the soup.",
        "Music from the garden floated through the open door, and somebody started to laugh.",
        "They walked along the river until the lights of the city disappeared behind them.",
        "It is not the mountain that is difficult, my friend, it is the weather.",
    ),
    Split.TEST: (
        "When the last bus had gone, we sat under the station clock and waited for the morning.",
        "Her brother repairs violins in a small workshop behind the market.",
        "Do you remember the summer when the lake was too cold for swimming?",
        "The editor wanted a shorter ending, the writer wanted a longer one, and neither of them got it.",
        "Nothing grows on that side of the island except grass and a few stubborn trees.",
        "Tell the doctor that the fever is down, but that he still refuses to eat.",
        "A good carpenter measures carefully, cuts slowly, and never blames the wood.",
        "Whenever somebody opened the door, the candles flickered and the cat lifted its head.",
        "We have plenty of time. Sit down, take off your coat, and tell me everything.",
        "The second half of the film was so loud that my ears were ringing for an hour.",
        "Snow had covered the road completely, so they left the car and went on by foot.",
        "Honestly, I thought that the museum was closed on rainy afternoons.",
        "Their first concert was a disaster, yet people still talk about it with affection.",
        "Put the heavy boxes at the bottom, the glasses on top, and the letters in the drawer.",
        "Far below us, a single tractor crawled across the brown field like a beetle.",
        "What happened to the little shop that used to sell maps and second hand books?",
    ),
}
VOICES = {
    Split.TUNING: (("en-us", 160), ("en+f3", 145), ("en-gb-scotland+m3", 175), ("en-us+f2", 190)),
    Split.TEST: (("en", 150), ("en-us+f4", 165), ("en-gb-x-rp+m5", 185), ("en-us+m7", 140)),
}
"""Voice with variant, and words a minute."""


class Espeak:
    """espeak-ng's library, which calls back with the sample at which each word begins.

    Raises:
        OSError: The library is not installed.

    Source: github.com/espeak-ng/espeak-ng, src/include/espeak-ng/speak_lib.h.
    """

    LIBRARY = "libespeak-ng.so.1"
    _SYNCHRONOUS, _UTF8, _RATE, _WORD, _END_OF_LIST = 2, 1, 1, 1, 0

    class _Event(ctypes.Structure):
        _fields_ = (
            ("type", ctypes.c_int),
            ("unique_identifier", ctypes.c_uint),
            ("text_position", ctypes.c_int),
            ("length", ctypes.c_int),
            ("audio_position", ctypes.c_int),
            ("sample", ctypes.c_int),
            ("user_data", ctypes.c_void_p),
            ("id", ctypes.c_char * 8),
        )

    def __init__(self) -> None:
        self._library = ctypes.CDLL(self.LIBRARY)
        self._rate = self._library.espeak_Initialize(self._SYNCHRONOUS, 0, None, 0)
        self._pieces: list[NDArray[np.int16]] = []
        self._starts: dict[int, int] = {}
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(self._Event)
        )
        self._callback = callback(self._receive)  # kept: the library holds no reference
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, words_per_min: int) -> SpokenClip:
        """Speech, and when each word of it begins."""
        self._pieces, self._starts = [], {}
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(self._RATE, words_per_min, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 1, 0, self._UTF8, None, None)
        self._library.espeak_Synchronize()
        resampler = Resampler()
        block = AudioBlock(
            samples=(np.concatenate(self._pieces) / 2**15).astype(np.float32)[:, None], sample_rate=self._rate
        )
        samples = np.concatenate([resampler.push(block), resampler.finish()])
        words, position = [], 0
        for word in text.split():
            position = text.index(word, position)
            # Two words that it speaks as one have one start, that of the first.
            sample = self._starts.get(position + 1)
            words.append(SpokenWord(text=word, start_s=None if sample is None else sample / self._rate))
            position += len(word)
        return SpokenClip(
            name=f"{voice} {words_per_min}: {text}", waveform=Waveform(samples=samples), words=tuple(words)
        )

    def _receive(self, pcm: ctypes._Pointer[ctypes.c_short], n_samples: int, events: ctypes._Pointer[_Event]) -> int:
        if pcm and n_samples:
            self._pieces.append(np.ctypeslib.as_array(pcm, (n_samples,)).copy())
        i = 0
        while events[i].type != self._END_OF_LIST:
            if events[i].type == self._WORD:
                self._starts.setdefault(events[i].text_position, events[i].sample)
            i += 1
        return 0


FRAME_LENGTH = SAMPLE_RATE // 100
_HEARD_DB = -45.0
"""Level of a frame in which the reader is heard, 30 dB below the voice and 15 above the room. dBFS."""
_LOUD_DB = -30.0
_PAUSE_FRAMES = 20
_RISE_FRAMES = 5
"""A clear start rises from below the first level to above the second within these frames."""


def phrases(waveform: Waveform) -> Iterator[NDArray[np.float32]]:
    """The stretches between clear pauses that start clearly; the first sample is the start."""
    n_frames = len(waveform.samples) // FRAME_LENGTH
    power = np.mean(waveform.samples[: n_frames * FRAME_LENGTH].reshape(n_frames, FRAME_LENGTH) ** 2, axis=1)
    levels_db = 10 * np.log10(power + 1e-12)
    (heard,) = np.nonzero(levels_db > _HEARD_DB)
    starts = [
        first for before, first in zip([-_PAUSE_FRAMES, *heard], heard, strict=False) if first - before > _PAUSE_FRAMES
    ]
    for start in starts:
        inside = heard[heard >= start]
        (breaks,) = np.nonzero(np.diff(inside) > _PAUSE_FRAMES)
        end = inside[breaks[0]] if len(breaks) else inside[-1]
        is_clear = start >= _PAUSE_FRAMES and levels_db[start : start + _RISE_FRAMES].max() > _LOUD_DB
        if is_clear and end - start >= 30:
            yield waveform.samples[start * FRAME_LENGTH : (end + 3) * FRAME_LENGTH]


N_PHRASES = 4
"""In one clip: about ten seconds."""
GAP_S = (0.15, 0.6)
"""Least and most; voice activity keeps a pause of up to 0.6 s inside its region."""
_FADE_S = 0.005
_ROOM_DB = -62.0
"""Noise under the whole clip, as loud as the reader's room."""


def spliced_clips(folder: Path, split: Split, words_of: Callable[[Waveform], list[str]]) -> Iterator[SpokenClip]:
    """Phrases of different recordings, with known gaps between them.

    Args:
        folder: Of LJ Speech, with meta.csv.
        split: Every other recording is for tuning.
        words_of: What the recogniser writes for a phrase that it hears alone: its transcript tells what is said in a
            recording, but not in which part of it.
    """
    with (folder / "meta.csv").open(encoding="utf-8", newline="") as file:
        names = [row["filename"] for row in csv.DictReader(file)][list(Split).index(split) :: 2]
    found = [p for name in names for p in phrases(decode_mono(folder / "audio" / name, Limits()))]
    rng = np.random.default_rng(7)
    order = rng.permutation(len(found))
    for first in range(0, len(found) - N_PHRASES + 1, N_PHRASES):
        pieces: list[NDArray[np.float32]] = []
        words: list[SpokenWord] = []
        n_samples = 0
        for i in order[first : first + N_PHRASES]:
            pieces.append(np.zeros(round(rng.uniform(*GAP_S) * SAMPLE_RATE), np.float32))
            n_samples += len(pieces[-1])
            texts = words_of(Waveform(samples=found[i]))
            words += [
                SpokenWord(text=text, start_s=None if position else n_samples / SAMPLE_RATE)
                for position, text in enumerate(texts)
            ]
            pieces.append(_faded(found[i]))
            n_samples += len(pieces[-1])
        samples = np.concatenate([*pieces, np.zeros(SAMPLE_RATE // 2, np.float32)])
        samples += rng.normal(0, 10 ** (_ROOM_DB / 20), len(samples)).astype(np.float32)
        yield SpokenClip(name=f"phrases {first}", waveform=Waveform(samples=samples), words=tuple(words))


def _faded(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    faded = samples.copy()
    ramp = np.linspace(0, 1, round(_FADE_S * SAMPLE_RATE), dtype=np.float32)
    faded[: len(ramp)] *= ramp
    faded[-len(ramp) :] *= ramp[::-1]
    return faded


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far the starts of words are off.

    Attributes:
        errors_s: Found less true, of each word with a known start that the recogniser wrote.
        n_known: Words with a known start, those included that it did not write or wrote otherwise.
    """

    errors_s: NDArray[np.float64]
    n_known: int

    @classmethod
    def of(cls, clips: Iterable[SpokenClip], pipeline: Pipeline) -> Errors:
        """Of all clips, each through the whole pipeline."""
        errors_s: list[float] = []
        n_known = 0
        for clip in clips:
            audio = EncodedAudio(
                data=clip.waveform.samples.tobytes(), media_type="audio/pcm", sample_rate=SAMPLE_RATE, encoding="f32le"
            )
            analysis = pipeline.analyze(audio, AnalysisOptions(tasks=frozenset({Task.SPEECH})))
            found = [word for segment in analysis.segments for word in segment.words]
            n_known += sum(word.start_s is not None for word in clip.words)
            errors_s += matched_errors_s(clip.words, found)
        return cls(errors_s=np.array(errors_s), n_known=n_known)

    @property
    def mae_ms(self) -> float:
        """Mean absolute error."""
        return round(1000 * float(np.abs(self.errors_s).mean()), 1)

    def figures(self, name: str) -> dict[str, float]:
        """For people and for the results."""
        errors_ms = 1000 * self.errors_s
        return {
            f"{name}_mae_ms": self.mae_ms,
            f"{name}_median_ms": round(float(np.median(np.abs(errors_ms))), 1),
            f"{name}_p95_ms": round(float(np.percentile(np.abs(errors_ms), 95)), 1),
            f"{name}_bias_ms": round(float(errors_ms.mean()), 1),
            f"{name}_n_words": len(errors_ms),
            f"{name}_matched_ratio": round(len(errors_ms) / self.n_known, 3),
        }


def matched_errors_s(spoken: Sequence[SpokenWord], found: Sequence[Word]) -> list[float]:
    """Found less true start of each word that both texts share, in order, where its start is known."""
    texts = [_bare(word.text) for word in spoken], [_bare(word.text) for word in found]
    blocks = difflib.SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
    pairs = ((spoken[block.a + i], found[block.b + i]) for block in blocks for i in range(block.size))
    return [word.start_s - truth.start_s for truth, word in pairs if truth.start_s is not None]


def _bare(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()


BATCH_SIZE = 8
"""Clips that are transcribed together when the cost is measured."""
_N_ROUNDS = 15


def cost_ratio(transcriber: Transcriber, folder: ModelFolder, clips: Sequence[SpokenClip]) -> float:
    """How much more transcribing costs with words than without, in seconds of all cores.

    The median over pairs, one after the other: what else the machine does slows both.
    """
    waveforms = [clip.waveform for clip in sorted(clips, key=lambda clip: clip.waveform.duration_s)]
    middle = (len(waveforms) - BATCH_SIZE) // 2
    batch = waveforms[middle : middle + BATCH_SIZE]
    wordless = Transcriber(folder, n_threads=N_THREADS)
    params = folder.params(MoonshineParams).model_copy(update={"alignment_heads": ()})
    wordless._decoder = GreedyDecoder(folder.weights(), params)
    ratios = []
    for _ in range(_N_ROUNDS + 1):
        seconds = []
        for either in (wordless, transcriber):
            started = time.process_time()
            either.transcribe(batch)
            seconds.append(time.process_time() - started)
        ratios.append(seconds[1] / seconds[0])
    return round(float(np.median(ratios[1:])), 3)  # the first round pays for tracing


N_THREADS = 2


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds ljspeech.")] = Path("../shared/data"),
    split: Annotated[Split, typer.Option(help="Figures come from test.")] = Split.TEST,
) -> None:
    """Measure word times; the last line is JSON. `mae_ms` is the greater of the two mean absolute errors."""
    folder = weights.fetch()
    transcriber = Transcriber(folder, n_threads=N_THREADS)
    pipeline = Pipeline(transcriber, None)
    figures: dict[str, float] = {}
    errors: list[Errors] = []
    try:
        espeak = Espeak()
    except OSError as e:
        print(f"NOT MEASURED: speech of espeak-ng, since its library does not load ({e})", file=sys.stderr)
    else:
        clips = [espeak.say(text, *voice) for voice in VOICES[split] for text in SENTENCES[split]]
        errors.append(Errors.of(clips, pipeline))
        figures |= errors[-1].figures("espeak")
        figures["words_cost_ratio"] = cost_ratio(transcriber, folder, clips)
    if (data / "ljspeech").is_dir():

        def words_of(waveform: Waveform) -> list[str]:
            (segment,) = transcriber.transcribe([waveform])
            return segment.text.split() if segment else []

        errors.append(Errors.of(spliced_clips(data / "ljspeech", split, words_of), pipeline))
        figures |= errors[-1].figures("spliced")
    else:
        print(f"NOT MEASURED: spliced recordings, since there is no {data / 'ljspeech'}", file=sys.stderr)
    if not errors:
        raise typer.Exit(1)
    figures = {"mae_ms": max(error.mae_ms for error in errors), **figures}
    if split is Split.TEST:
        write_result("word_times", figures, {"what": "starts of words, through the whole pipeline, against known ones"})
    Console().print(as_table(f"Word times, {split} clips", figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
