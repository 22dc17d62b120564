"""Training on a folder of clips: a tiny run works end to end, and a bad folder is told what is wrong with it."""

from __future__ import annotations

import csv
import json
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from soundstage.models.registry import open_folder
from soundstage.sound.listener import SoundListener
from soundstage.sound.model import SoundParams, body_weights, build_body
from soundstage.types import Waveform
from training.data import BadFolder, read_clip, read_meta
from training.sound_classification import evaluate, train
from training.sound_classification.data import material
from training.sound_classification.data.examples import SILENT_LEVEL, Mixer
from training.sound_classification.data.music import compose
from training.sound_classification.model.yamnet import NotYamnet

SECOND = 16_000


def write_wav(path: Path, samples: NDArray[np.float32]) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SECOND)
        file.writeframes((np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes())


def write_folder(folder: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    (folder / "audio").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, row in enumerate(rows):
        t = np.arange(6 * SECOND) / SECOND
        sound = np.sin(2 * np.pi * 500 * t) if "beep" in row else rng.standard_normal(len(t))
        write_wav(folder / "audio" / row[0], (0.1 * (1 + i % 3) * sound).astype(np.float32))
    with (folder / "meta.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


COLUMNS = ("filename", "fold", "category", "licence")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    rows = [
        (f"{fold}-{label}-{i}.wav", str(fold), label, material.FREE_LICENCE)
        for fold in (1, 2)
        for label in ("beep", "hiss")
        for i in range(4)
    ]
    write_folder(tmp_path / "clips", COLUMNS, [*rows, ("nc.wav", "1", "beep", "CC-BY-NC")])
    return tmp_path / "clips"


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    write_folder(tmp_path / "speech", ("filename", "transcript"), [(f"{i}.wav", "Hello there.") for i in range(5)])
    return tmp_path / "speech"


class FakeYamnet:
    """Random weights and no opinion, in place of the file."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise NotYamnet(f"{path} is not a TFLite file")

    def weights(self) -> dict[str, NDArray[np.float32]]:
        return body_weights(build_body(SoundParams(sounds=("any",))))

    def names(self) -> list[str]:
        return ["Beep", "Speech"]

    def classifier(self) -> NDArray[np.float32]:
        return np.ones((2, 1024), np.float32)

    def scores(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros(521, np.float32)


@pytest.fixture
def yamnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(train, "Yamnet", FakeYamnet)
    monkeypatch.setattr(material, "Yamnet", FakeYamnet)
    monkeypatch.setattr(train, "limit_threads", lambda _n: None)  # another test has used TensorFlow before
    path = tmp_path / "yamnet.tflite"
    path.write_bytes(b"fake")
    return path


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(train.app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture
def common(clips: Path, speech: Path, yamnet: Path, tmp_path: Path) -> list[str | Path]:
    options = {
        "--data": clips,
        "--speech": speech,
        "--yamnet": yamnet,
        "--cache": tmp_path / "cache",
        "--runs": tmp_path / "runs",
    }
    arguments: list[str | Path] = [part for option in options.items() for part in option]
    return [*arguments, "--folds", "1,2", "--epochs", "1", "--batch-size", "4", "--material-seconds", "8"]


def test_a_tiny_run_writes_a_model_that_listens(common: list[str | Path], tmp_path: Path) -> None:
    code, stdout, stderr = run(*common, "--cross-validate", "--test-folds", "2")
    assert code == 0, stderr
    assert set(json.loads(stdout.splitlines()[-1])) == {"top1_fold_2", "top1_mean"}

    code, stdout, stderr = run(*common, "--output", tmp_path / "registry")
    assert code == 0, stderr
    figures = json.loads(stdout.splitlines()[-1])
    assert {"top1_fold_2", "speech_found", "silence_found"} <= set(figures)

    folder = open_folder(tmp_path / "registry" / train.NAME / train.VERSION)
    assert folder.card.labels == ("beep", "hiss", "speech", "music", "silence")
    assert folder.card.metrics == pytest.approx(figures)
    listed = (folder.path / "training-clips.txt").read_text().split()
    assert len(listed) == 16, "a clip that forbids commercial use was trained on"
    assert "nc.wav" not in listed
    tags = SoundListener(folder).listen([Waveform(samples=read_clip(tmp_path / "clips" / "audio" / "nc.wav"))])[0].tags
    assert np.isfinite(tags).all()


def test_a_bad_folder_is_told_what_is_wrong_with_it(
    clips: Path, speech: Path, common: list[str | Path], tmp_path: Path
) -> None:
    (clips / "audio" / "2-hiss-3.wav").unlink()
    code, _, stderr = run(*common)
    assert code == 2
    assert "1 of the 17 files" in stderr
    assert "2-hiss-3.wav" in stderr

    write_folder(tmp_path / "no-fold", ("filename", "category"), [("a.wav", "beep")])
    code, _, stderr = run(*common, "--data", tmp_path / "no-fold")
    assert code == 2
    assert "no column fold, licence" in stderr

    code, _, stderr = run(*common, "--data", tmp_path / "nowhere")
    assert code == 2
    assert "holds no meta.csv" in stderr

    write_wav(clips / "audio" / "2-hiss-3.wav", np.zeros(100, np.float32))
    code, _, stderr = run(*common, "--members", "7")
    assert code == 2
    assert "members 0 to 1" in stderr

    (speech / "audio" / "0.wav").write_bytes(b"not audio")
    code, _, stderr = run(*common, "--cache", tmp_path / "other")
    assert code == 2
    assert "0.wav cannot be decoded" in stderr


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "empty", COLUMNS, [])
    with pytest.raises(BadFolder, match="names no file"):
        read_meta(tmp_path / "empty", ["category"])


def tone(frequency_hz: float, duration_s: float) -> NDArray[np.float32]:
    t = np.arange(round(duration_s * SECOND)) / SECOND
    return (0.2 * np.sin(2 * np.pi * frequency_hz * t)).astype(np.float32)


def test_examples_say_what_is_in_them() -> None:
    params = SoundParams(sounds=("beep", "hiss"))
    n = params.n_window_samples
    rng = np.random.default_rng(0)
    clip = np.zeros((8, n), np.float16)
    clip[::2, :SECOND] = tone(500, 1.0)
    clip[1::2] = 0.1 * rng.standard_normal(n)
    words = 0.1 * rng.standard_normal(20 * SECOND).astype(np.float32)
    made = material.Material(
        clips=clip,
        names=np.array([f"{i}.wav" for i in range(8)]),
        folds=np.ones(8, np.int64),
        categories=np.array(["beep", "hiss"] * 4),
        licences=np.array([material.FREE_LICENCE] * 8),
        teacher=np.zeros((8, 9, 2), np.float32),
        speech=words,
        speech_test=words[:0],
        music=words,
        music_test=words[:0],
    )
    mixer = Mixer(made, np.arange(8), params, seed=1)
    sounds, silent = [], 0
    for _ in range(30):
        for batch in mixer.batches(4):
            assert np.isfinite(batch.log_mel).all()
            assert (batch.steps.sum(axis=1) >= 1).all()
            sounds += batch.sound.tolist()
            is_silent = batch.extra[:, 2] == 1
            silent += int(is_silent.sum())
            assert (batch.sound[is_silent] == 2).all(), "silence is none of the sounds"
            assert (batch.extra[is_silent, :2] == 0).all(), "nobody speaks or plays in silence"
    assert {0, 1, 2} == set(sounds)
    assert silent > 0
    assert SILENT_LEVEL > 0


def test_the_same_seed_gives_the_same_examples_and_music() -> None:
    first, second = (compose(np.random.default_rng(7), tempo_bpm=120, n_bars=4) for _ in range(2))
    assert first == second
    assert first != compose(np.random.default_rng(8), tempo_bpm=120, n_bars=4)
    assert first[:4] == b"MThd"


def test_evaluation_counts_only_labels_of_the_table(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"beep": 0.2, "hiss": 0.1, "speech": 0.9}
    monkeypatch.setattr(evaluate, "listened", lambda rows, _model, _threads: ({**answers} for _ in rows))
    result = CliRunner().invoke(evaluate.app, ["--data", str(clips), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout.splitlines()[-1]) == {"top1": pytest.approx(9 / 17), "n_clips": 17}
