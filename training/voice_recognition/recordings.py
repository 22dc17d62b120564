"""Recordings with transcripts: the table, checked before time is spent, and the batches that are made of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from soundstage.params import ChunkParams, DecodingParams
from soundstage.speech.shapes import MIN_SAMPLES, pad_length
from soundstage.speech.tokenizer import Tokenizer
from soundstage.types import SAMPLE_RATE
from training.acoustics import Samples, faster, in_room, noise, room, speech_level, telephone, with_noise
from training.data import BadFolder, Row, read_clip, read_meta
from training.voice_recognition.config import AugmentationConfig, DataConfig

SPLITS = ("train", "validation", "test")
COLUMNS = ("filename", "transcript", "split")
_AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".mp4", ".mov", ".mkv", ".webm")
_N_NAMED = 5
_FIRST_PIECE = 3 + 256
"""Token after the special ones and the single bytes, in which is spelt what has no token of its own."""
_SAMPLES_STEP = SAMPLE_RATE
"""Rows are padded to a multiple of it, and to one of so many tokens, so that few shapes have to be compiled."""
_TOKENS_STEP = 16
_POOL_BATCHES = 8
"""Among so many batches, recordings of like length come together."""

_DECODING = DecodingParams()
N_SILENCE = round(_DECODING.silence_s * SAMPLE_RATE)
"""As many zeros stand before and after each recording as in serving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What is said in one file.

    Attributes:
        samples: int16 (n_samples,) at 16 kHz.
        token_ids: Of the transcript, without start and end.
    """

    name: str
    transcript: str
    split: str
    samples: NDArray[np.int16]
    token_ids: tuple[int, ...]

    def waveform(self) -> Samples:
        """As float32 (n_samples,)."""
        return self.samples.astype(np.float32) / np.float32(32_768)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The recordings of a folder.

    Attributes:
        warnings: What is worth knowing, and does not stop training.
    """

    path: Path
    recordings: tuple[Recording, ...]
    warnings: tuple[str, ...]

    def of(self, split: str) -> tuple[Recording, ...]:
        """Those of one split."""
        return tuple(recording for recording in self.recordings if recording.split == split)

    def key(self) -> str:
        """Changes with anything that training sees."""
        digest = hashlib.sha256()
        for recording in self.recordings:
            digest.update(repr((recording.name, recording.transcript, recording.split)).encode())
            digest.update(recording.samples.tobytes())
        return digest.hexdigest()[:16]


def read_corpus(
    folder: Path,
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    on_file: Callable[[int, int], None] = lambda _done, _of: None,
) -> Corpus:
    """Read meta.csv (filename, transcript and, where wanted, split) and every file that it names.

    Args:
        folder: Holds meta.csv, and the recordings beside it or in its subfolder `audio`.
        config: How they are shared out.
        tokenizer: Of the model.
        on_file: Told how many files are read, of how many.

    Raises:
        BadFolder: The folder cannot be used; the message names the lines or files.
    """
    rows = read_meta(folder, ["transcript"])
    table = folder / "meta.csv"
    _check_table(rows, table, config)
    splits = _splits(rows, table, config)
    warnings = [*_not_named(rows, table), *_spelt(rows, tokenizer)]
    faults: list[str] = []
    recordings = []
    for i, (row, split) in enumerate(zip(rows, splits, strict=True)):
        text = " ".join(row.values["transcript"].split())
        token_ids = tuple(tokenizer.encode(text))
        try:
            samples = _read(row, len(token_ids))
        except BadFolder as e:
            faults.append(str(e))
        else:
            name = row.values["filename"]
            recordings.append(Recording(name=name, transcript=text, split=split, samples=samples, token_ids=token_ids))
        on_file(i + 1, len(rows))
    if faults:
        raise BadFolder(_named(faults))
    return Corpus(path=folder, recordings=tuple(recordings), warnings=tuple(warnings))


def _named(faults: Sequence[str]) -> str:
    more = f"\nand {len(faults) - _N_NAMED} more" if len(faults) > _N_NAMED else ""
    return "\n".join(faults[:_N_NAMED]) + more


def _check_table(rows: Sequence[Row], table: Path, config: DataConfig) -> None:
    unknown = [column for column in rows[0].values if column not in (*COLUMNS, *config.other_columns)]
    if unknown:
        raise BadFolder(
            f"{table} has columns that mean nothing here: {', '.join(unknown)}. Known are {', '.join(COLUMNS)}; name "
            f"those to be passed over in data.other_columns of the config"
        )
    faults = []
    counts = Counter(row.values["filename"] for row in rows)
    for number, row in enumerate(rows, start=2):
        name = row.values["filename"]
        if not any(map(str.isalnum, row.values["transcript"])):
            faults.append(f"{table}, line {number}: the transcript of {name} is empty, or holds no word")
        if counts[name] > 1:
            faults.append(f"{table}, line {number}: {name} is named {counts[name]} times")
    if faults:
        raise BadFolder(_named(faults))


def _not_named(rows: Sequence[Row], table: Path) -> list[str]:
    named = {row.path.resolve() for row in rows}
    folder = rows[0].path.parent
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _AUDIO]
    others = [path.name for path in files if path.resolve() not in named]
    if not others:
        return []
    return [f"{len(others)} recordings in {folder} have no transcript in {table} and are left out, first {others[0]}"]


def _spelt(rows: Sequence[Row], tokenizer: Tokenizer) -> list[str]:
    letters = {piece.decode() for piece in tokenizer.pieces[_FIRST_PIECE:]}
    spelt = [(row.values["filename"], set("".join(row.values["transcript"].split())) - letters) for row in rows]
    found = [(name, characters) for name, characters in spelt if characters]
    if not found:
        return []
    characters = "".join(sorted({c for _, own in found for c in own}))
    what = "transcripts hold characters that the model has no token for and spells in bytes, which it hardly learns"
    return [f"{len(found)} {what}: {characters} (first in {found[0][0]})"]


def _plain(text: str) -> str:
    return " ".join("".join(c for c in text.casefold() if c.isalnum() or c.isspace()).split())


def _splits(rows: Sequence[Row], table: Path, config: DataConfig) -> list[str]:
    """The split of each line: that of the table, or one that is made, with equal transcripts together."""
    texts = [_plain(row.values["transcript"]) for row in rows]
    if "split" in rows[0].values:
        splits = [row.values["split"].strip() for row in rows]
        faults = [
            f"{table}, line {number}: split {split!r} is none of {', '.join(SPLITS)}"
            for number, split in enumerate(splits, start=2)
            if split not in SPLITS
        ]
        first: dict[str, int] = {}
        for i, text in enumerate(texts):
            other = first.setdefault(text, i)
            if "train" in (splits[i], splits[other]) and splits[i] != splits[other]:
                faults.append(
                    f"{table}, line {i + 2}: {rows[i].values['filename']} ({splits[i]}) says the same as "
                    f"{rows[other].values['filename']} ({splits[other]}); the model would be tested on what it has read"
                )
        if faults:
            raise BadFolder(_named(faults))
    else:
        kinds = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
        n_validation, n_test = (
            max(1, round(len(kinds) * share)) if share else 0 for share in (config.validation_share, config.test_share)
        )
        of_text = {
            text: "validation" if i < n_validation else "test" if i < n_validation + n_test else "train"
            for i, text in enumerate(kinds)
        }
        splits = [of_text[text] for text in texts]
    for needed in ("train", "validation"):
        if needed not in splits:
            raise BadFolder(f"{table} leaves no recording for {needed}; see data.validation_share and the column split")
    return splits


def _read(row: Row, n_tokens: int) -> NDArray[np.int16]:
    samples = read_clip(row.path)
    duration_s, longest_s = len(samples) / SAMPLE_RATE, ChunkParams().max_duration_s
    if duration_s > longest_s:
        raise BadFolder(
            f"{row.path} is {duration_s:.1f} s long; the model hears at most {longest_s:g} s at once: cut it, and its "
            f"transcript"
        )
    if len(samples) < MIN_SAMPLES:
        raise BadFolder(f"{row.path} is too short: {duration_s:.3f} s")
    if not np.abs(samples).max() > 1e-4:
        raise BadFolder(f"{row.path} holds silence, and its transcript says {row.values['transcript'][:40]!r}")
    if n_tokens >= max_tokens(len(samples)):
        raise BadFolder(
            f"{row.path} is {duration_s:.1f} s long and its transcript has {n_tokens} tokens; the service writes "
            f"{_DECODING.max_tokens_per_s:g} a second at most. Do they belong together?"
        )
    return np.asarray(np.rint(np.clip(samples, -1, 32_767 / 32_768) * 32_768), np.int16)


def max_tokens(n_samples: int) -> int:
    """After how many tokens the service cuts off a recording, the end among them."""
    return int(np.ceil(_DECODING.max_tokens_per_s * (n_samples + 2 * N_SILENCE) / SAMPLE_RATE))


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step is given.

    Attributes:
        samples: float32 (n_batch, n_padded).
        n_samples: int32 (n_batch,).
        token_ids: int32 (n_batch, n_tokens), from the start token on; end tokens after a row's end.
        targets: int32 (n_batch, n_tokens), the token after each; -1 after a row's end.
    """

    samples: Samples
    n_samples: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    targets: NDArray[np.int32]

    @property
    def inputs(self) -> dict[str, NDArray[np.float32] | NDArray[np.int32]]:
        """What the network reads."""
        return {"samples": self.samples, "n_samples": self.n_samples, "token_ids": self.token_ids}


def padded(waveforms: Sequence[Samples]) -> tuple[Samples, NDArray[np.int32]]:
    """Waveforms as rows, with silence around each as in serving; and how many samples of each row are its own."""
    n_samples = np.array([len(waveform) + 2 * N_SILENCE for waveform in waveforms], np.int32)
    length = pad_length(-(-int(n_samples.max()) // _SAMPLES_STEP) * _SAMPLES_STEP)
    rows = np.zeros((len(waveforms), length), np.float32)
    for row, waveform in zip(rows, waveforms, strict=True):
        row[N_SILENCE : N_SILENCE + len(waveform)] = waveform
    return rows, n_samples


def batch_of(waveforms: Sequence[Samples], token_ids: Sequence[Sequence[int]], *, start: int, end: int) -> Batch:
    """Rows of one batch.

    Args:
        waveforms: Each float32 (n_samples,).
        token_ids: Of each, what is said.
        start: Token before the first.
        end: Token after the last.
    """
    samples, n_samples = padded(waveforms)
    n_tokens = -(-(max(map(len, token_ids)) + 1) // _TOKENS_STEP) * _TOKENS_STEP
    given = np.full((len(token_ids), n_tokens), end, np.int32)
    targets = np.full((len(token_ids), n_tokens), -1, np.int32)
    for i, ids in enumerate(token_ids):
        given[i, : len(ids) + 1] = [start, *ids]
        targets[i, : len(ids) + 1] = [*ids, end]
    return Batch(samples, n_samples, given, targets)


class Shuffler:
    """Gives each step its recordings, as they may sound; the same for the same seed and step.

    Args:
        recordings: To train on.
        config: What is done to them.
        batch_size: Rows of a batch; the last one of an epoch is filled up.
        seed: Of the order and of what is done.
        start: Token before the first.
        end: Token after the last.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        config: AugmentationConfig,
        *,
        batch_size: int,
        seed: int,
        start: int,
        end: int,
    ) -> None:
        self._recordings, self._config, self._seed = recordings, config, seed
        self._batch_size, self._start, self._end = batch_size, start, end
        self.n_epoch_steps = -(-len(recordings) // batch_size)

    def batch(self, step: int) -> Batch:
        """Of a step, counted from 0."""
        rng = np.random.default_rng([self._seed, 1, step])
        chosen = [self._recordings[i] for i in self._order(step // self.n_epoch_steps)[step % self.n_epoch_steps]]
        return batch_of(
            [self._varied(recording.waveform(), rng) for recording in chosen],
            [recording.token_ids for recording in chosen],
            start=self._start,
            end=self._end,
        )

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        """Batches of an epoch: all recordings once, those of like length together."""
        rng = np.random.default_rng([self._seed, 0, epoch])
        n, size = len(self._recordings), self._batch_size
        order = np.resize(rng.permutation(n), self.n_epoch_steps * size)
        lengths = np.array([len(recording.samples) for recording in self._recordings])
        pool = _POOL_BATCHES * size
        pools = [order[i : i + pool] for i in range(0, len(order), pool)]
        sorted_ = np.concatenate([own[np.argsort(lengths[own], kind="stable")] for own in pools])
        batches = sorted_.reshape(-1, size)
        return [batches[i] for i in rng.permutation(len(batches))]

    def _varied(self, samples: Samples, rng: np.random.Generator) -> Samples:
        config = self._config
        if rng.random() < config.untouched:
            return samples
        if rng.random() < config.speed:
            longest = round(ChunkParams().max_duration_s * SAMPLE_RATE)
            samples = faster(samples, max(rng.uniform(*config.speed_range), len(samples) / longest))
        if rng.random() < config.reverberation:
            samples = in_room(samples, room(rng, rng.uniform(*config.reverberation_s), rng.uniform(*config.direct_db)))
        if rng.random() < config.noise:
            samples = with_noise(samples, self._noise(len(samples), rng), rng.uniform(*config.noise_snr_db))
        if rng.random() < config.telephone:
            codec = str(rng.choice(config.telephone_codecs))
            samples = telephone(samples, codec, rng.uniform(*config.telephone_kbps))
        if rng.random() < config.mask:
            samples = self._masked(samples, rng)
        gain = 10 ** (rng.uniform(*config.gain_db) / 20)
        return np.asarray(np.clip(samples * gain, -1, 1), np.float32)

    def _noise(self, n_samples: int, rng: np.random.Generator) -> Samples:
        config = self._config
        if rng.random() >= config.babble:
            return noise(rng, n_samples, rng.uniform(*config.noise_slope))
        voices = [self._recordings[i].waveform() for i in rng.integers(0, len(self._recordings), rng.integers(3, 7))]
        babble = np.sum([np.resize(np.roll(v / speech_level(v), rng.integers(len(v))), n_samples) for v in voices], 0)
        return np.asarray(babble / np.sqrt(np.mean(np.square(babble)) + 1e-12), np.float32)

    def _masked(self, samples: Samples, rng: np.random.Generator) -> Samples:
        config = self._config
        width_hz = rng.uniform(*config.mask_hz)
        low_hz = rng.uniform(50.0, 4_000.0)
        band = scipy.signal.butter(4, (low_hz, low_hz + width_hz), "bandstop", fs=SAMPLE_RATE, output="sos")
        samples = scipy.signal.sosfilt(band, samples).astype(np.float32)
        for _ in range(config.n_masks):
            n = round(rng.uniform(*config.mask_s) * SAMPLE_RATE)
            start = rng.integers(0, max(1, len(samples) - n))
            samples[start : start + n] = 0
        return samples
