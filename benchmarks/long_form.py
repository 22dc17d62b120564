"""A programme of an hour through the whole pipeline: `python -m benchmarks.long_form --data DIR`.

Scenes of sentences that a reader speaks (LJ Speech), close together or apart, some over music or sounds (ESC-50), with
music, sounds and silence between them, all drawn by a seeded generator and written to a file scene by scene. Compared
with the same sentences one by one. Words that are written where nobody speaks are counted in a second file of sounds,
music and noise, half as long.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import jiwer
import numpy as np
import typer
from rich.console import Console
from whisper_normalizer.english import EnglishTextNormalizer

from benchmarks.audio import Samples, clip, level, leveled, rows, silence
from benchmarks.results import as_table, write_result
from soundstage.pipeline import AnalysisOptions, Pipeline, Task
from soundstage.speech import weights
from soundstage.speech.transcriber import Transcriber
from soundstage.types import SAMPLE_RATE, ChunkAnalysis, EncodedAudio, Segment
from training.sound_classification.data import music

N_THREADS = 2
_VOICE_DB = -23.0
"""Level of the programme's speech, dB of full scale."""
_ROOM_DB = -65.0
_CLOSE_S, _APART_S = (0.15, 0.5), (0.6, 2.5)
"""Gaps between the sentences of a scene: within what voice activity calls one region, and beyond."""
_BED_DB = (-25.0, -12.0)
"""Music or sounds under speech, relative to it."""
_N_EDGE_WORDS = 3
"""Words on either side of a cut among which one may be lost or doubled."""


class Sentence(NamedTuple):
    """Something said in the programme."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Material:
    """What programmes are made of."""

    sentences: Sequence[tuple[Path, str]]
    sounds: Sequence[Path]

    @classmethod
    def read(cls, data: Path) -> Material:
        """From folders ljspeech and esc50, each with meta.csv beside its audio."""
        return cls(
            [(data / "ljspeech" / "audio" / row["filename"], row["transcript"]) for row in rows(data / "ljspeech")],
            [data / "esc50" / "audio" / row["filename"] for row in rows(data / "esc50")],
        )


def programme(
    material: Material, duration_s: float, rng: np.random.Generator
) -> Iterator[tuple[Samples, list[Sentence]]]:
    """Scene after scene, each with what is said in it, until there is enough."""
    order = itertools.chain.from_iterable(rng.permutation(len(material.sentences)) for _ in itertools.count())
    start_s = 0.0
    while start_s < duration_s:
        gap_s = _CLOSE_S if rng.random() < 0.5 else _APART_S
        pieces: list[Samples] = []
        sentences: list[Sentence] = []
        n_samples = 0
        for i in itertools.islice(order, int(rng.integers(2, 11))):
            path, text = material.sentences[i]
            for piece in (silence(rng.uniform(*gap_s)), leveled(clip(path), _VOICE_DB)):
                pieces.append(piece)
                n_samples += len(piece)
            end_s = start_s + n_samples / SAMPLE_RATE
            sentences.append(Sentence(text, end_s - len(pieces[-1]) / SAMPLE_RATE, end_s))
        speech = np.concatenate(pieces)
        scene = np.concatenate([speech + bed(material, len(speech), rng), interlude(material, rng)])
        scene += level(_ROOM_DB) * rng.standard_normal(len(scene), np.float32)
        start_s += len(scene) / SAMPLE_RATE
        yield scene, sentences


def bed(material: Material, n_samples: int, rng: np.random.Generator) -> Samples:
    """What is heard under speech: nothing, music or a sound."""
    kind = rng.choice(["nothing", "music", "sounds"], p=[0.4, 0.3, 0.3])
    if kind == "nothing":
        return np.zeros(n_samples, np.float32)
    if kind == "music":
        samples = played(n_samples, rng)
    else:
        one = clip(material.sounds[int(rng.integers(len(material.sounds)))])
        samples = np.resize(one, n_samples)
    return leveled(samples, _VOICE_DB + rng.uniform(*_BED_DB))


def interlude(material: Material, rng: np.random.Generator) -> Samples:
    """What is heard between scenes."""
    kind = rng.choice(["nothing", "music", "sounds"])
    if kind == "nothing":
        return silence(rng.uniform(1, 8))
    if kind == "music":
        samples = played(round(rng.uniform(4, 20) * SAMPLE_RATE), rng)
    else:
        chosen = rng.integers(len(material.sounds), size=rng.integers(1, 4))
        samples = np.concatenate([clip(material.sounds[i]) for i in chosen])
    return np.concatenate([silence(0.7), leveled(samples, _VOICE_DB + rng.uniform(-10, 0))])


def non_speech(material: Material, kind: str, duration_s: float, rng: np.random.Generator) -> Iterator[Samples]:
    """Sounds, music or noise, of many levels, with short pauses, until there is enough."""
    n_left = round(duration_s * SAMPLE_RATE)
    order = itertools.cycle(rng.permutation(len(material.sounds)))
    while n_left > 0:
        match kind:
            case "sounds":
                samples = clip(material.sounds[next(order)])
            case "music":
                samples = played(20 * SAMPLE_RATE, rng)
            case _:
                samples = noise(5 * SAMPLE_RATE, rng)
        samples = np.concatenate([leveled(samples, rng.uniform(-45, -15)), silence(0.5)])
        n_left -= len(samples)
        yield samples


def played(n_samples: int, rng: np.random.Generator) -> Samples:
    """Music.

    Raises:
        typer.Exit: Nothing is installed that plays it.
    """
    samples = music.played(n_samples, rng)
    if not len(samples):
        print("NOT MEASURED: there is no music without fluidsynth and its sound font", file=sys.stderr)
        raise typer.Exit(1)
    return samples


def noise(n_samples: int, rng: np.random.Generator) -> Samples:
    """White, pink or brown, or between."""
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20) ** rng.uniform(0, 1)
    return np.fft.irfft(spectrum, n_samples).astype(np.float32)


class WavFile:
    """Writes 16-bit samples piece by piece."""

    def __init__(self, path: Path) -> None:
        self._file = wave.open(str(path), "wb")  # noqa: SIM115  # closed by close()
        self._file.setnchannels(1)
        self._file.setsampwidth(2)
        self._file.setframerate(SAMPLE_RATE)

    def write(self, samples: Samples) -> None:
        """Peaks beyond full scale are clipped."""
        self._file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()


@dataclass(slots=True)
class Heard:
    """What the pipeline gave for one file.

    Attributes:
        segments: In order of their coming.
        cuts_s: Where one chunk ends and the next begins.
        came_s: When each chunk's results came, since the start.
        memory_mib: Resident at each chunk.
        in_order: Each part began where the one before ended, and its segments lie in it.
        wall_s: All in all.
    """

    segments: list[Segment]
    cuts_s: list[float]
    came_s: list[float]
    memory_mib: list[float]
    in_order: bool
    wall_s: float

    @classmethod
    def of(cls, pipeline: Pipeline, path: Path) -> Heard:
        """Listen to a file."""
        heard = cls([], [], [], [], True, 0.0)
        started = time.perf_counter()
        end_s = 0.0
        for part in pipeline.stream(path, AnalysisOptions(tasks=frozenset({Task.SPEECH}))):
            if not isinstance(part, ChunkAnalysis):
                continue
            heard.came_s.append(time.perf_counter() - started)
            heard.memory_mib.append(resident_mib())
            heard.in_order &= abs(part.start_s - end_s) < 1e-6 and all(
                part.start_s <= segment.start_s <= segment.end_s <= part.end_s + 1e-6 for segment in part.segments
            )
            end_s = part.end_s
            heard.segments += part.segments
            heard.cuts_s += [] if part.is_last else [end_s]
        heard.wall_s = time.perf_counter() - started
        return heard

    @property
    def texts(self) -> list[str]:
        """Of each segment."""
        return [segment.text for segment in self.segments]

    def memory_growth_mib(self, *, after: float) -> float:
        """By how much the peak rose after a share of the chunks."""
        first = int(after * len(self.memory_mib))
        return round(max(self.memory_mib[first:]) - max(self.memory_mib[: first + 1]), 1)


def resident_mib() -> float:
    """Memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


class Comparison:
    """Truth and what was written, word by word, as Whisper's normaliser has them.

    Args:
        sentences: What was said, in order.
        segments: What was written, in order.
    """

    def __init__(self, sentences: Sequence[Sentence], segments: Sequence[Segment]) -> None:
        normalize = EnglishTextNormalizer()
        self._truth = " ".join(filter(None, (normalize(sentence.text) for sentence in sentences))).split()
        texts = [normalize(segment.text).split() for segment in segments]
        self._written = [word for words in texts for word in words]
        self._firsts = np.concatenate([[0], np.cumsum([len(words) for words in texts])]).astype(int)
        self._segments = segments
        self._output = jiwer.process_words(" ".join(self._truth), " ".join(self._written))
        self._sentences = sentences
        ops = self._output.alignments[0]
        around = zip([None, *ops[:-1]], ops, [*ops[1:], None], strict=True)
        self._lone = [op for before, op, after in around if not {"substitute"} & {o.type for o in (before, after) if o}]

    @property
    def wer(self) -> float:
        """Word error rate."""
        return float(self._output.wer)

    def at_cuts(self, chunk_cuts_s: Sequence[float]) -> tuple[int, list[str], list[str]]:
        """How many cuts are amid a sentence, and the words that are lost and doubled at them, with what is around them.

        A cut is the edge of a chunk, or a segment that begins where the one before ends. One word that is written as
        two, or two as one, is wrong and not lost: beside it another is substituted.
        """
        n_cuts, lost, doubled = 0, list[str](), list[str]()
        for i, (before, after) in enumerate(itertools.pairwise(self._segments), start=1):
            cut_s = next((c for c in chunk_cuts_s if before.end_s - 0.5 <= c <= after.start_s + 0.5), after.start_s)
            touches = after.start_s - before.end_s < 0.1
            if not touches or not any(s.start_s + 0.1 < cut_s < s.end_s - 0.1 for s in self._sentences):
                continue
            n_cuts += 1
            place = self._firsts[i]
            for op in self._lone:
                if op.hyp_end_idx < place - _N_EDGE_WORDS or op.hyp_start_idx > place + _N_EDGE_WORDS:
                    continue
                if op.type == "delete":
                    lost += [_shown(self._truth, at) for at in range(op.ref_start_idx, op.ref_end_idx)]
                elif op.type == "insert":
                    around = self._written[max(0, op.hyp_start_idx - _N_EDGE_WORDS) : op.hyp_start_idx]
                    around += self._written[op.hyp_end_idx : op.hyp_end_idx + _N_EDGE_WORDS]
                    inserted = range(op.hyp_start_idx, op.hyp_end_idx)
                    doubled += [_shown(self._written, at) for at in inserted if self._written[at] in around]
        return n_cuts, lost, doubled


def _shown(words: Sequence[str], place: int) -> str:
    """One of some words, in brackets among its neighbours."""
    return " ".join([*words[max(0, place - 4) : place], f"[{words[place]}]", *words[place + 1 : place + 5]])


def wer_of_singles(pipeline: Pipeline, material: Material, texts: set[str]) -> float:
    """Word error rate of the same sentences, each a file of its own."""
    normalize = EnglishTextNormalizer()
    truths, written = [], []
    for path, text in material.sentences:
        if text in texts:
            audio = EncodedAudio(data=path.read_bytes(), media_type="audio/flac")
            written.append(normalize(pipeline.analyze(audio, AnalysisOptions(tasks=frozenset({Task.SPEECH}))).text))
            truths.append(normalize(text))
    return float(jiwer.wer(truths, written))


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds ljspeech and esc50.")] = Path("../shared/data"),
    minutes: Annotated[float, typer.Option(min=1, help="Length of the programme.")] = 60.0,
) -> None:
    """Transcribe a programme and half as much without speech; the last line is JSON."""
    material = Material.read(data)
    pipeline = Pipeline(Transcriber(weights.fetch(), n_threads=N_THREADS), None)
    with tempfile.TemporaryDirectory() as scratch:
        file = WavFile(path := Path(scratch) / "programme.wav")
        sentences: list[Sentence] = []
        for scene, said in programme(material, 60 * minutes, np.random.default_rng(11)):
            file.write(scene)
            sentences += said
        file.close()
        wer_single = wer_of_singles(pipeline, material, {sentence.text for sentence in sentences})
        heard = Heard.of(pipeline, path)
        with wave.open(str(path)) as written:
            duration_s = written.getnframes() / SAMPLE_RATE
        path.unlink()
        invented: dict[str, list[str]] = {}
        for kind in ("sounds", "music", "noise"):
            file = WavFile(path := Path(scratch) / f"{kind}.wav")
            for samples in non_speech(material, kind, 10 * minutes, np.random.default_rng(12)):
                file.write(samples)
            file.close()
            invented[kind] = Heard.of(pipeline, path).texts
            path.unlink()
    comparison = Comparison(sentences, heard.segments)
    n_cuts, lost, doubled = comparison.at_cuts(heard.cuts_s)
    n_invented = {kind: len(" ".join(texts).split()) for kind, texts in invented.items()}
    figures = {
        "minutes": round(duration_s / 60, 1),
        "wer_long": round(comparison.wer, 4),
        "wer_single": round(wer_single, 4),
        "invented_words": sum(n_invented.values()),
        **{f"invented_words_{kind}": n for kind, n in n_invented.items()},
        "cuts_amid_a_sentence": n_cuts,
        "lost_at_cuts": len(lost),
        "doubled_at_cuts": len(doubled),
        "memory_growth_mib": heard.memory_growth_mib(after=1 / 5),
        "memory_growth_second_half_mib": heard.memory_growth_mib(after=1 / 2),
        "results_in_order": heard.in_order,
        "first_result_after_ratio": round(heard.came_s[0] / heard.wall_s, 4),
        "longest_wait_s": round(max(np.diff([0.0, *heard.came_s])), 2),
        "real_time_factor": round(heard.wall_s / duration_s, 4),
    }
    detail = {
        "invented": " | ".join(text for texts in invented.values() for text in texts),
        "lost": " | ".join(lost),
        "doubled": " | ".join(doubled),
        "n_threads": N_THREADS,
    }
    write_result("long_form", figures, detail)
    Console().print(as_table("A long programme", figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
