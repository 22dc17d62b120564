"""Fine-tuning from a folder to a live model: the walk-through of the README, breaks, other backends, bad recipes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from typer.testing import CliRunner

from soundstage.models.registry import open_folder
from soundstage.speech.transcriber import Transcriber
from tests.conftest import ROOT
from tests.training.training_commands import commands_of, killed_after, run, step_of
from tests.unit.tiny_speech import random_weights, write_model, write_recordings
from training.voice_recognition import scoring, train
from training.voice_recognition.config import read_config

pytestmark = pytest.mark.slow

README = ROOT / "training" / "voice_recognition" / "README.md"
TINY = "training/voice_recognition/tiny.yaml"
TRAIN = "training.voice_recognition.train"


@pytest.mark.timeout(900)
def test_the_walk_through_ends_with_a_live_model(tmp_path: Path) -> None:
    write_recordings(tmp_path / "my-recordings")
    write_model(tmp_path / "registry")
    (tmp_path / "training" / "voice_recognition").mkdir(parents=True)
    shutil.copy(ROOT / TINY, tmp_path / TINY)
    answers = []
    for command in commands_of(README):
        code, stdout, stderr = run(shlex.split(command), tmp_path, PYTHONSAFEPATH="1")
        assert code == 0, f"{command}: {stderr}"
        answers.append(stdout)
    before, written, verified, promoted, after = answers

    first, last = (json.loads(answer.splitlines()[-1]) for answer in (before, after))
    # the tiny model writes nothing
    assert (first["wer"], first["cer"], first["deletions"], first["n_clips"]) == (1, 1, 21, 10)
    assert (last["wer"], last["n_clips"]) == (1, 1), "it is measured on what it has learnt from"
    assert first["conditions"].keys() == last["conditions"].keys() == {"clean", "noise_0_db"}
    folder = open_folder(tmp_path / "models" / "my-voices" / "1")
    assert folder.card.metrics == json.loads(written.splitlines()[-1])
    names = {"wer", "cer", "wer_noise_0_db"}
    assert folder.card.metrics.keys() == names | {f"start_{name}" for name in names}
    assert folder.card.kind == "speech"
    assert (folder.path / "LICENSE").read_text(encoding="utf-8") == "CC0"
    assert {"metrics.json", "recordings.txt", "tokenizer.bin"} <= folder.card.files.keys()
    card = (folder.path / "README.md").read_text(encoding="utf-8")
    assert "from moonshine-tiny-en 1.0.0 (CC0-1.0)" in card
    assert "| `my-recordings`, train | 8 | 0.2 |" in card
    assert "my-voices 1" in verified
    assert "my-voices" in promoted
    Transcriber(folder).warm_up()
    start = random_weights()
    stored = {name: array.astype(np.float32) for name, array in folder.weights().items()}
    moved = {name for name, array in stored.items() if np.abs(array - start[name]).max() > 2e-3}
    assert "decoder.embedding" not in moved, "it is frozen"
    assert scalars(tmp_path / "runs" / "voice") >= {"validation_wer/clean"}


def scalars(folder: Path) -> set[str]:
    tags = set()
    for log in folder.glob("events.out.tfevents.*"):
        data = log.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            tags |= {value.tag for value in Event.FromString(data[12 : 12 + size]).summary.value}
            data = data[16 + size :]
    return tags


def recipe(folder: Path, text: str) -> str:
    (folder / "recipe.yaml").write_text("test_conditions: [clean]\n" + text, encoding="utf-8")
    return "recipe.yaml"


@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    write_recordings(tmp_path / "takes")
    write_model(tmp_path / "registry")
    config = recipe(tmp_path, "learning: {n_epochs: 500, batch_size: 8}\nvalidation: {every_epochs: 100}")
    command = ["python", "-m", TRAIN, "--data", "takes", "--config", config, "--checkpoint-steps", "1"]
    checkpoint = tmp_path / "runs/voice/checkpoint.safetensors"
    killed_after(2, checkpoint, command, tmp_path)
    step = step_of(checkpoint)
    assert f"goes on after step {step} of 500" in killed_after(step, checkpoint, command, tmp_path)


@pytest.mark.timeout(900)
def test_jax_trains_too(tmp_path: Path) -> None:
    write_recordings(tmp_path / "takes")
    write_model(tmp_path / "registry")
    text = "learning: {n_epochs: 2, batch_size: 8, rate: 1.0e-3, lora_rank: 2}\nvalidation: {patience: 1}"
    command = ["python", "-m", TRAIN, "--data", "takes", "--config", recipe(tmp_path, text), "--output", "models"]
    code, _, stderr = run(command, tmp_path, KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
    assert code == 0, stderr
    folder = open_folder(tmp_path / "models" / "my-voices" / "1")
    assert json.loads((folder.path / "metrics.json").read_text(encoding="utf-8"))["keras_backend"] == "jax"
    start = random_weights()
    now = {name: array.astype(np.float32) for name, array in folder.weights().items()}
    assert np.abs(now["encoder.layers.0.mlp.fc1.kernel"] - start["encoder.layers.0.mlp.fc1.kernel"]).max() > 1e-5
    np.testing.assert_allclose(now["encoder.norm.scale"], start["encoder.norm.scale"], rtol=1e-3)
    Transcriber(folder).warm_up()


def trained(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(train.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # another test of this process has used TensorFlow before, with other threads
    monkeypatch.setattr(train, "limit_threads", lambda _n: None)
    monkeypatch.setenv("SOUNDSTAGE_MODELS_DIR", str(tmp_path / "registry"))
    monkeypatch.chdir(tmp_path)
    write_recordings(tmp_path / "takes")
    write_model(tmp_path / "registry")


@pytest.mark.usefixtures("_in_a_folder")
def test_what_is_wrong_with_a_recipe_is_said_at_once(tmp_path: Path) -> None:
    def complaint(text: str) -> str:
        code, _, stderr = trained("--data", "takes", "--config", recipe(tmp_path, text))
        assert code == 2
        return stderr

    assert "learning.n_epoch: there is no such key" in complaint("learning: {n_epoch: 3}")
    assert "no weight is called encodr.*" in complaint("learning: {frozen: ['encodr.*']}")
    assert "leaves nothing to learn" in complaint("learning: {frozen: ['*']}")
    assert "no model nobody in" in complaint("start: nobody")
    assert "is a sound model" in complaint("start: soundstage-sounds")
    assert "validation.conditions.0" in complaint("validation: {conditions: [loud]}")


@pytest.mark.usefixtures("_in_a_folder")
def test_a_run_that_leads_nowhere_writes_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "learning: {n_epochs: 1, batch_size: 8, rate: 1.0e+30, warm_up: 0, clip_norm: 1.0e+30}"
    arguments = ["--data", "takes", "--config", recipe(tmp_path, text), "--checkpoint-steps", "1"]
    code, _, stderr = trained(*arguments)
    assert code == 2
    assert re.search(r"no numbers any more|the loss is nan|too large to be stored after step 1", stderr), stderr
    rates = iter([0.1, 0.3, 0.2])
    real = scoring.score
    monkeypatch.setattr(
        train, "score", lambda said, _: real(["a b c d e f g h i j"], [_wrong(next(rates))] * len(said[:1]))
    )
    text = "learning: {n_epochs: 2, batch_size: 8}"
    code, _, stderr = trained("--data", "takes", "--config", recipe(tmp_path, text), "--runs", "runs/other")
    assert code == 2
    assert "every validation was worse than the start (10.00 % words wrong; the best after it 20.00 %)" in stderr
    assert not (tmp_path / "runs" / "models").exists()


def _wrong(rate: float) -> str:
    words = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
    return " ".join(words[round(rate * len(words)) :])


@pytest.mark.usefixtures("_in_a_folder")
def test_training_stops_when_it_gets_no_better_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([0.5, 0.3, 0.2, 0.4, 0.3, 0.2, 0.9])
    real = scoring.score
    monkeypatch.setattr(train, "score", lambda *_: real(["a b c d e f g h i j"], [_wrong(next(rates))]))
    text = "learning: {n_epochs: 9, batch_size: 8, rate: 1.0e-3}\nvalidation: {patience: 2}"
    code, stdout, stderr = trained("--data", "takes", "--config", recipe(tmp_path, text), "--output", "models")
    assert code == 0, stderr
    assert "no better for 2 validations" in stderr
    # five validations, then the start and the model are measured
    assert {name: value for name, value in json.loads(stdout).items() if "wer" in name} == {
        "start_wer": 0.2,
        "wer": 0.9,
    }
    assert step_of(tmp_path / "runs" / "voice" / "weights.safetensors") == 2
    other = recipe(tmp_path, text.replace("e-3", "e-4"))
    code, _, stderr = trained("--data", "takes", "--config", other)
    assert code == 2
    assert "another recipe or other clips" in stderr


def test_the_recipes_that_come_with_it_can_be_read() -> None:
    folder = README.parent
    assert read_config(folder / "tiny.yaml").learning.n_epochs == 2
    assert read_config(folder / "hard_conditions.yaml").validation.conditions == ("clean", "noisy_telephone")
