"""Everything that windows are mixed from, decoded and turned into spectrograms once, and kept."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from soundstage.audio.features import mel_spectrogram
from soundstage.params import FeatureParams
from soundstage.sound.model import SILENCE, levels
from soundstage.types import SAMPLE_RATE
from training.data import BadFolder, read_clip
from training.sound_classification.config import VariantConfig
from training.sound_classification.data.music import played
from training.sound_classification.data.table import Clip
from training.sound_classification.data.variants import varied
from training.sound_classification.data.voices import SENTENCES, recorded, spoken

HELD_OUT = 0.2
"""Share of speech and music that is not trained on."""
_N_NAMED = 5

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Spectrogram:
    """A recording as windows are mixed from it.

    Attributes:
        mel: float16 (n_frames, n_mels), magnitudes.
        level: float32 (n_frames,), mean magnitude over a quarter of a second.
    """

    mel: NDArray[np.float16]
    level: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clips:
    """The spectrograms of all clips and of their copies, on disk.

    Attributes:
        key: Changes with anything that training hears, and not with where the files are or how old.
        n_variants: Copies of each clip.
    """

    key: str
    n_variants: int
    _mel: NDArray[np.float16]
    _level: NDArray[np.float32]
    _ends: NDArray[np.int64]

    def __getitem__(self, place: tuple[int, int]) -> Spectrogram:
        """A clip by its place in the table, and variant 0 (itself) to n_variants."""
        clip, variant = place
        item = clip * (1 + self.n_variants) + variant
        span = slice(int(self._ends[item - 1]) if item else 0, int(self._ends[item]))
        return Spectrogram(self._mel[span], self._level[span])


@dataclass(frozen=True, slots=True)
class Backgrounds:
    """What clips are mixed with. Held out: samples at 16 kHz, float32 (n_samples,), that are never trained on.

    All of it may be empty, where programs are missing.
    """

    speech: Spectrogram
    music: Spectrogram
    speech_held_out: NDArray[np.float32]
    music_held_out: NDArray[np.float32]


@contextmanager
def _made_once(folder: Path) -> Iterator[Path | None]:
    """A folder to fill, which then gets its name at once; None if it is there. Others wait meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            yield None
            return
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            yield scratch
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def _stamp(path: Path) -> tuple[str, int, int]:
    state = path.stat()
    return str(path.resolve()), state.st_size, state.st_mtime_ns


def spectrogram(samples: NDArray[np.float32], params: FeatureParams) -> Spectrogram:
    """Of samples at 16 kHz."""
    mel = mel_spectrogram(samples, params)
    level = levels(mel, params) if len(mel) >= 25 else mel.mean(axis=1)
    return Spectrogram(mel.astype(np.float16), level[: len(mel)].astype(np.float32))


def load_clips(
    clips: tuple[Clip, ...],
    cache: Path,
    *,
    params: FeatureParams,
    variants: VariantConfig,
    on_clip: Progress = lambda _done, _of: None,
) -> Clips:
    """Decode all clips and make their copies, or read that back from the cache.

    Args:
        clips: In the order of the table.
        cache: Folder; made where it does not exist.
        params: Of the spectrograms.
        variants: Of the copies.
        on_clip: Told how many clips are done, of how many.

    Raises:
        BadFolder: Files cannot be decoded, hold nothing, end before a label starts, or are the same in two folds.
    """
    events = [[heard.start_s for heard in clip.heard] for clip in clips]
    how = (events, params.model_dump(), variants.model_dump(exclude={"share"}))
    kept = cache / f"clips-{_key([_stamp(clip.path) for clip in clips], *how)}"
    with _made_once(kept) as scratch:
        if scratch is not None:
            _decode(clips, scratch, params, variants, on_clip)
    ends = np.load(kept / "ends.npy")
    mel = np.memmap(kept / "mel.f16", np.float16, "r").reshape(-1, params.n_mels)
    digests: list[str] = json.loads((kept / "digests.json").read_text(encoding="utf-8"))
    _check_copies(clips, digests)  # the folds are not part of the folder's name
    return Clips(_key(digests, *how), variants.n_each, mel, np.load(kept / "level.npy"), ends)


def _decode(
    clips: tuple[Clip, ...], folder: Path, params: FeatureParams, variants: VariantConfig, on_clip: Progress
) -> None:
    faults: list[str] = []
    level, ends, digests, n_frames = [], [], [], 0
    with (folder / "mel.f16").open("wb") as file:
        for i, clip in enumerate(clips):
            try:
                samples = _read(clip, params)
            except BadFolder as e:
                faults.append(str(e))
                on_clip(i + 1, len(clips))
                continue
            digests.append(hashlib.sha256(samples.tobytes()).hexdigest())
            rng = np.random.default_rng([0, i])
            for version in (samples, *(varied(samples, variants, rng) for _ in range(variants.n_each))):
                made = spectrogram(version, params)
                file.write(made.mel.tobytes())
                level.append(made.level)
                n_frames += len(made.level)
                ends.append(n_frames)
            on_clip(i + 1, len(clips))
    if faults:
        more = f"\nand {len(faults) - _N_NAMED} more" if len(faults) > _N_NAMED else ""
        raise BadFolder("\n".join(faults[:_N_NAMED]) + more)
    np.save(folder / "level.npy", np.concatenate(level))
    np.save(folder / "ends.npy", np.array(ends, np.int64))
    (folder / "digests.json").write_text(json.dumps(digests), encoding="utf-8")


def _read(clip: Clip, params: FeatureParams) -> NDArray[np.float32]:
    samples = read_clip(clip.path)
    duration_s = len(samples) / SAMPLE_RATE
    if len(samples) < params.win_length:
        raise BadFolder(f"{clip.path} is too short: {duration_s:.3f} s")
    if not samples.any() and clip.labels != (SILENCE,):
        raise BadFolder(f"{clip.path} holds digital silence and nothing of {', '.join(clip.labels)}")
    late = [heard for heard in clip.heard if heard.start_s is not None and heard.start_s >= duration_s]
    if late:
        raise BadFolder(f"{clip.path} ends at {duration_s:.2f} s, before {late[0].label} starts at {late[0].start_s} s")
    return samples


def _check_copies(clips: tuple[Clip, ...], digests: list[str]) -> None:
    first: dict[str, Clip] = {}
    for clip, digest in zip(clips, digests, strict=True):
        other = first.setdefault(digest, clip)
        if other.fold != clip.fold:
            raise BadFolder(
                f"{clip.name} (fold {clip.fold}) and {other.name} (fold {other.fold}) are the same recording; a model "
                f"would be tested on what it has heard. Give them one fold, or one source"
            )


def load_backgrounds(speech: Path | None, cache: Path, *, params: FeatureParams, made_s: float) -> Backgrounds:
    """Record, speak and compose what goes under the clips, or read it back from the cache.

    Args:
        speech: Folder of recorded speech: meta.csv with filename and transcript.
        cache: Folder; made where it does not exist.
        params: Of the spectrograms.
        made_s: Seconds that are spoken by espeak-ng, and played by fluidsynth, where they are installed.

    Raises:
        BadFolder: The folder of speech cannot be used.
    """
    table = (speech / "meta.csv") if speech is not None else None
    stamp = _stamp(table) if table is not None and table.is_file() else str(speech)
    kept = cache / f"backgrounds-{_key(stamp, params.model_dump(), made_s)}"
    with _made_once(kept) as scratch:
        if scratch is not None:
            for name, samples in _backgrounds(speech, round(made_s * SAMPLE_RATE)).items():
                np.save(scratch / f"{name}.npy", samples.astype(np.float16))
                if "held_out" not in name:
                    made = spectrogram(samples, params)
                    np.save(scratch / f"{name}-mel.npy", made.mel)
                    np.save(scratch / f"{name}-level.npy", made.level)

    def read(name: str) -> Spectrogram:
        return Spectrogram(np.load(kept / f"{name}-mel.npy", mmap_mode="r"), np.load(kept / f"{name}-level.npy"))

    return Backgrounds(
        read("speech"),
        read("music"),
        np.load(kept / "speech_held_out.npy").astype(np.float32),
        np.load(kept / "music_held_out.npy").astype(np.float32),
    )


def _backgrounds(speech: Path | None, n_made: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    n_held_out = round(n_made * HELD_OUT)
    if speech is not None:
        said, said_held_out, sentences = recorded(speech, held_out=HELD_OUT)
        said = np.concatenate([said, spoken(sentences, n_made, rng)])
    else:
        voices = spoken(list(SENTENCES), n_made + n_held_out, rng)
        said, said_held_out = voices[:n_made], voices[n_made:]
    music = played(n_made + n_held_out, rng)
    return {
        "speech": said,
        "speech_held_out": said_held_out,
        "music": music[:n_made],
        "music_held_out": music[n_made:],
    }
