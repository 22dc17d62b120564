"""Training from a folder to a live model: the walk-through of the README, breaks, full disks, other backends."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from safetensors import safe_open
from tensorboardX.proto.event_pb2 import Event
from typer.testing import CliRunner

from soundstage.models.registry import open_folder
from soundstage.sound.listener import SoundListener
from soundstage.sound.model import SoundParams, network_weights
from soundstage.types import Waveform
from tests.conftest import ROOT
from tests.training.training_commands import commands_of, killed_after, largest_file, run, step_of
from tests.unit.tiny_clips import sound, tiny_clips, write_table
from training.runs import Run, WrongRun, claimed, write_whole
from training.sound_classification import evaluate, train
from training.sound_classification.config import Config
from training.sound_classification.data.examples import Batch, Mixer
from training.sound_classification.learning import build_classifier, learn
from training.sound_classification.measure import late, short_windows
from training.sound_classification.train import summary

pytestmark = pytest.mark.slow

README = ROOT / "training" / "sound_classification" / "README.md"
TINY = "training/sound_classification/tiny.yaml"


@dataclass(frozen=True)
class Walk:
    folder: Path
    answers: list[str]


def walked(folder: Path) -> Walk:
    """Every command of the README, in a folder."""
    tiny_clips(folder / "my-clips")
    (folder / "training" / "sound_classification").mkdir(parents=True)
    shutil.copy(ROOT / TINY, folder / TINY)
    answers = []
    for command in commands_of(README):
        code, stdout, stderr = run(shlex.split(command), folder, PYTHONSAFEPATH="1")
        assert code == 0, f"{command}: {stderr}"
        answers.append(stdout)
    return Walk(folder, answers)


def trained(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(train.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture
def _any_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process has used TensorFlow before, with other threads."""
    monkeypatch.setattr(train, "limit_threads", lambda _n: None)


def check_that_the_model_knows_its_sounds(walk: Walk) -> None:
    measured, written, verified, promoted, evaluated = walk.answers
    figures = json.loads(measured.splitlines()[-1])
    assert figures.keys() == {"top1_mean", "top1_quiet", "top1_late", "top1_2s", "top1_fold_1", "top1_fold_2"}
    assert figures["top1_mean"] >= 0.6, "it learns nothing: chance is 0.33"

    folder = open_folder(walk.folder / "models" / "my-sounds" / "1")
    assert folder.card.metrics == json.loads(written.splitlines()[-1])
    assert figures.items() <= folder.card.metrics.items(), "the card has the figures of cross-validation"
    assert {"speech_found", "silence_found"} <= folder.card.metrics.keys() or not shutil.which("espeak-ng")
    about = json.loads((folder.path / "metrics.json").read_text(encoding="utf-8"))
    assert about["figures"] == folder.card.metrics
    assert about["config"]["learning"]["n_epochs"] == 25
    card = (folder.path / "README.md").read_text(encoding="utf-8")
    assert "24 clips of `my-clips`" in card
    assert "| top1_mean |" in card
    assert {"metrics.json", "README.md", "training-clips.txt", "weights.safetensors"} <= folder.card.files.keys()

    assert "my-sounds 1" in verified
    assert "my-sounds" in promoted
    assert json.loads(evaluated.splitlines()[-1]) == {"top1": pytest.approx(1.0, abs=0.2), "n_clips": 24}


def check_that_a_model_of_cross_validation_is_one_of_the_registry(walk: Walk) -> None:
    folder = open_folder(walk.folder / "runs" / "sound" / "models" / "without-fold-2" / "0")
    clips = (folder.path / "training-clips.txt").read_text(encoding="utf-8").split()
    assert len(clips) == 12
    scores = SoundListener(folder).listen([Waveform(samples=sound("hiss", 2.0, 500))])[0]
    assert scores.labels[:3] == ("beep", "hiss", "sweep")
    assert np.isfinite(scores.scores).all()
    whole = open_folder(walk.folder / "models" / "my-sounds" / "1")
    assert len((whole.path / "training-clips.txt").read_text(encoding="utf-8").split()) == 24


def check_that_losses_are_logged_for_tensorboard(walk: Walk) -> None:
    log = next((walk.folder / "runs" / "sound" / "all-folds" / "seed-0-member-0").glob("events.out.tfevents.*"))
    data, tags = log.read_bytes(), set()
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        tags |= {value.tag for value in event.summary.value}
        data = data[16 + size :]
    assert {"loss/loss", "loss/sounds", "loss/steps"} <= tags


def check_that_a_full_disk_leaves_the_old_model_as_it_is(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(walk.folder)
    before = open_folder(walk.folder / "models" / "my-sounds" / "1").card
    monkeypatch.setattr(train, "behaviour", lambda *_: {})  # only the writing is under test
    monkeypatch.setattr(train, "SoundListener", lambda _folder: None)
    whole = train.Trainer.write

    def on_a_full_disk(*arguments: object, **others: object) -> object:
        with largest_file(1_000_000):
            return whole(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(train.Trainer, "write", on_a_full_disk)
    code, _, stderr = trained("--data", "my-clips", "--config", TINY, "--output", "models")
    assert code == 2
    assert "File too large" in stderr
    assert "What was there before is untouched" in stderr
    assert open_folder(walk.folder / "models" / "my-sounds" / "1").card == before
    assert [path.name for path in (walk.folder / "models" / "my-sounds").iterdir()] == ["1"]


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_any_threads")
def test_the_walk_through_ends_with_a_live_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = walked(tmp_path)
    check_that_the_model_knows_its_sounds(walk)
    check_that_a_model_of_cross_validation_is_one_of_the_registry(walk)
    check_that_losses_are_logged_for_tensorboard(walk)
    check_that_a_full_disk_leaves_the_old_model_as_it_is(walk, monkeypatch)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_whole(path, "old")
    with largest_file(10), pytest.raises(OSError, match=r"figures\.json"):
        write_whole(path, "new" * 1000)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def recipe(folder: Path, text: str) -> str:
    (folder / "recipe.yaml").write_text("window_s: 1.0\ndata: {n_folds: 2, made_s: 0}\n" + text, encoding="utf-8")
    return "recipe.yaml"


FEW_STEPS = """
augmentation: {short_windows: 0}
learning: {start: random, n_epochs: 8, batch_size: 4, precision: float32}
"""


@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    tiny_clips(tmp_path / "my-clips", 4)
    command = ["python", "-m", "training.sound_classification.train", "--data", "my-clips"]
    command += ["--config", recipe(tmp_path, FEW_STEPS.replace("8", "200")), "--checkpoint-steps", "1"]
    checkpoint = tmp_path / "runs/sound/all-folds/seed-0-member-0/checkpoint.safetensors"
    killed_after(2, checkpoint, command, tmp_path)
    step = step_of(checkpoint)
    assert f"goes on after step {step} of " in killed_after(step, checkpoint, command, tmp_path)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_any_threads")
def test_whoever_completes_a_model_tests_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_clips(tmp_path / "my-clips", 4)
    two = recipe(tmp_path, FEW_STEPS + "\nmembers: [{}, {}]")
    command = ("--data", "my-clips", "--config", two, "--cross-validate", "--test-folds", "1")
    assert trained(*command)[0] == 0
    model = tmp_path / "runs/sound/models/without-fold-1/0"
    shutil.rmtree(model)
    folders = [tmp_path / f"runs/sound/without-fold-1/seed-0-member-{i}" for i in range(2)]
    for folder in folders:
        (folder / "weights.safetensors").rename(folder / "later")

    def learn_while_another_process_ends(*_: object, **__: object) -> None:
        for folder in folders:
            (folder / "later").rename(folder / "weights.safetensors")

    monkeypatch.setattr(train.Trainer, "_learn", learn_while_another_process_ends)
    with claimed(folders[0] / "lock"):
        code, stdout, stderr = trained(*command)
    assert code == 0
    assert "member 0: another process is at it" in stderr
    assert (model / "weights.safetensors").exists()
    assert "top1_fold_1" in json.loads(stdout.splitlines()[-1])


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_any_threads")
def test_another_recipe_does_not_go_on_with_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_clips(tmp_path / "my-clips", 4)
    folder = tmp_path / "runs/sound/all-folds/seed-0-member-0"
    folder.mkdir(parents=True)
    from safetensors.numpy import save_file

    save_file(
        {"conv/bias": np.zeros(32, np.float32)}, folder / "weights.safetensors", {"fingerprint": "x", "step": "9"}
    )
    code, _, stderr = trained("--data", "my-clips", "--config", recipe(tmp_path, FEW_STEPS))
    assert code == 2
    assert "another recipe or other clips" in stderr
    (folder / "weights.safetensors").write_bytes(b"half a file")
    code, _, stderr = trained("--data", "my-clips", "--config", recipe(tmp_path, FEW_STEPS))
    assert code == 2
    assert "weights.safetensors is damaged" in stderr


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_any_threads")
def test_a_loss_that_is_no_number_stops_and_keeps_what_was_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_clips(tmp_path / "my-clips", 4)
    wild = FEW_STEPS.replace("learning: {", "learning: {body_rate: 1.0e+25, head_rate: 1.0e+25, warm_up: 0.5, ")
    code, _, stderr = trained("--data", "my-clips", "--config", recipe(tmp_path, wild), "--checkpoint-steps", "1")
    assert code == 2
    assert re.search(r"(the loss is (nan|inf) at|no numbers any more after) step \d+ of 24", stderr), stderr
    checkpoint = tmp_path / "runs/sound/all-folds/seed-0-member-0/checkpoint.safetensors"
    assert str(checkpoint.relative_to(tmp_path)) in stderr
    with safe_open(checkpoint, "numpy") as file:
        assert all(np.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118
    assert not (tmp_path / "runs/models").exists()


BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ImportError("TensorFlow is not here")
sys.meta_path.insert(0, Blocked())
from training.sound_classification.train import app
app()
"""


@pytest.mark.timeout(900)
def test_jax_trains_where_there_is_no_tensorflow(tmp_path: Path) -> None:
    tiny_clips(tmp_path / "my-clips", 4)
    config = recipe(tmp_path, FEW_STEPS.replace("8", "1"))
    command = ["python", "-c", BLOCKER, "--data", "my-clips", "--config", config, "--output", "models"]
    code, stdout, stderr = run(command, tmp_path, KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
    assert code == 0, stderr
    assert "silence_found" in json.loads(stdout.splitlines()[-1])
    folder = open_folder(tmp_path / "models" / "my-sounds" / "1")
    assert json.loads((folder.path / "metrics.json").read_text(encoding="utf-8"))["keras_backend"] == "jax"
    scores = SoundListener(folder).listen([Waveform(samples=sound("beep", 1.0, 0))])[0]
    assert np.isfinite(scores.scores).all()


@pytest.mark.usefixtures("_any_threads")
def test_what_is_wrong_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_clips(tmp_path / "my-clips", 4)

    def complaint(*arguments: str | Path, text: str = FEW_STEPS) -> str:
        code, _, stderr = trained("--data", "my-clips", "--config", recipe(tmp_path, text), *arguments)
        assert code == 2
        return stderr

    assert "starts from YAMNet" in complaint(text="")
    assert "learning.n_epoch: there is no such key" in complaint(text="learning: {n_epoch: 3}")
    (tmp_path / "no.tflite").write_bytes(b"nothing of the kind")
    assert "no.tflite is not a TFLite file" in complaint("--yamnet", "no.tflite", text="")
    assert "has no fold 7; it has 1, 2" in complaint("--cross-validate", "--test-folds", "7")
    licences = FEW_STEPS + "\ndata: {licences: [CC0]}"
    assert "has a licence of CC0" in complaint(text=licences)
    (tmp_path / "my-clips" / "beep-0.wav").write_bytes(b"not audio")
    assert "beep-0.wav cannot be decoded" in complaint()
    (tmp_path / "my-clips" / "beep-0.wav").unlink()
    assert "beep-0.wav" in complaint()
    assert "meta.csv" in complaint("--data", tmp_path / "nowhere")


class NoiseMixer:
    """Windows of noise, the same for each step."""

    def batch(self, step: int) -> Batch:
        rng = np.random.default_rng(step)
        return Batch(
            log_mel=rng.standard_normal((2, 98, 64), np.float32),
            sounds=np.eye(3, dtype=np.float32)[rng.integers(0, 3, 2)],
            sound_weights=np.ones(2, np.float32),
            extras=np.zeros((2, 3), np.float32),
            frames=np.zeros((2, 4, 5), np.float32),
            frame_weights=np.ones((2, 4, 5), np.float32),
        )


def test_frozen_layers_stay_and_the_heads_learn_faster() -> None:
    params = SoundParams(sounds=("beep", "hiss"), window_s=1.0)
    config = Config.model_validate(
        {"learning": {"start": "random", "frozen_blocks": 2, "warm_up": 0, "precision": "float32", "dropout": 0}}
    )
    classifier = build_classifier(params, config, None, n_steps=10, seed=0)
    before = network_weights(classifier)
    batch = NoiseMixer().batch(0)
    losses = classifier.train_on_batch(batch.log_mel, batch.targets, return_dict=True)
    after = network_weights(classifier)
    assert np.isfinite(losses["loss"])
    moved = {name: float(np.abs(after[name] - before[name]).max()) for name in before}
    frozen = ("conv", "depthwise_1", "pointwise_1", "depthwise_2", "pointwise_2")
    assert all(moved[f"{name}/kernel"] == 0 for name in frozen)
    assert moved["pointwise_3/kernel"] == pytest.approx(config.learning.body_rate, rel=0.1)
    assert moved["clip/kernel"] == pytest.approx(config.learning.head_rate, rel=0.1)
    # the first average is a tenth of the way: 1 - (1 + 1) / (10 + 1) from the start
    average = dict(zip((v.path for v in classifier.trainable_variables), classifier.optimizer.averages, strict=True))[
        "clip/kernel"
    ]
    np.testing.assert_allclose(
        average.numpy(),
        before["clip/kernel"] + 9 / 11 * (after["clip/kernel"] - before["clip/kernel"]),
        atol=1e-6,
    )


@pytest.mark.parametrize(("multiplies", "precision"), [(True, "mixed_bfloat16"), (False, "float32")])
def test_the_precision_is_what_the_processor_is_fast_with(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, precision: str
) -> None:
    monkeypatch.setattr("training.sound_classification.learning.multiplies_bfloat16", lambda: multiplies)
    params = SoundParams(sounds=("beep", "hiss"), window_s=1.0)
    config = Config.model_validate({"learning": {"start": "random"}})
    classifier = build_classifier(params, config, None, n_steps=1, seed=0)
    assert classifier.get_layer("pointwise_1").dtype_policy.name == precision
    assert classifier.get_layer("frames").dtype_policy.name == "float32"


def test_heads_learn_alone_before_the_body(tmp_path: Path) -> None:
    params = SoundParams(sounds=("beep", "hiss"), window_s=1.0)
    learning = {"start": "random", "n_head_epochs": 3, "n_epochs": 5, "warm_up": 0, "precision": "float32"}
    config = Config.model_validate({"learning": learning})
    alone = config.model_copy(update={"learning": config.learning.of_heads})
    assert (alone.learning.n_epochs, alone.learning.head_rate) == (3, config.learning.first_head_rate)
    classifier = build_classifier(params, alone, None, n_steps=4, seed=0)
    start = network_weights(classifier)
    run = Run(tmp_path, "heads")
    list(learn(run, classifier, cast(Mixer, NoiseMixer()), 4, checkpoint_steps=10))
    heads = run.weights()
    for name, array in heads.items():
        moved = not np.array_equal(array, start[name])
        assert moved == name.startswith(("clip/", "frames/")), name
    goes_on = build_classifier(params, config, None, n_steps=4, seed=1, start=heads)
    np.testing.assert_array_equal(network_weights(goes_on)["clip/kernel"], heads["clip/kernel"])
    assert len(goes_on.trainable_variables) == 2 * (27 + 2)


def test_a_run_that_was_broken_off_ends_like_one_that_was_not(tmp_path: Path) -> None:
    params = SoundParams(sounds=("beep", "hiss"), window_s=1.0)
    config = Config.model_validate({"learning": {"start": "random", "precision": "float32", "dropout": 0.5}})

    def steps(folder: str) -> Iterator[int]:
        classifier = build_classifier(params, config, None, n_steps=4, seed=0)
        mixer = cast(Mixer, NoiseMixer())
        for progress in learn(Run(tmp_path / folder, "this"), classifier, mixer, 4, checkpoint_steps=2):
            yield progress.step

    assert list(steps("straight")) == [1, 2, 3, 4]
    broken = steps("broken")
    assert [next(broken) for _ in range(3)] == [1, 2, 3]
    del broken
    assert list(steps("broken")) == [3, 4], "it starts over, or leaves steps out"
    first, second = (Run(tmp_path / name, "this").weights() for name in ("straight", "broken"))
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=1e-5, err_msg=name)
    with pytest.raises(WrongRun, match="another recipe"):
        Run(tmp_path / "broken", "other").weights()


def test_figures_over_folds_and_seeds() -> None:
    found = {
        ("1", 0): {"top1": 0.8, "top1_quiet": 0.7},
        ("2", 0): {"top1": 0.9, "top1_quiet": 0.8},
        ("1", 1): {"top1": 0.6, "top1_quiet": 0.7},
        ("2", 1): {"top1": 0.9, "top1_quiet": 0.8},
        ("1", 2): {"top1": 0.1, "top1_quiet": 0.1},  # without fold 2: not counted
    }
    assert summary(found) == pytest.approx(
        {
            "top1_mean": 0.8,
            "top1_std": 0.0707,
            "top1_quiet": 0.75,
            "top1_quiet_std": 0.0,
            "top1_fold_1": 0.7,
            "top1_fold_2": 0.9,
        }
    )
    assert summary({}) == {}


def test_short_windows_hold_the_loudest_moment() -> None:
    samples = np.full(80_000, 0.01, np.float32)
    samples[40_000:44_000] = 0.5
    windows = short_windows(samples)
    assert len(windows) == 8
    assert all(len(window) == 32_000 and (window == 0.5).sum() == 4_000 for window in windows)
    assert [len(window) for window in short_windows(samples[:20_000])] == [20_000]
    moved = late(samples)
    assert len(moved) == len(samples)
    assert (moved[56_000:60_000] == 0.5).all()


def test_evaluation_counts_only_labels_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_clips(tmp_path / "clips", 2)
    answers = {"beep": 0.2, "hiss": 0.1, "sweep": 0.0, "speech": 0.9}
    monkeypatch.setattr(evaluate, "listened", lambda rows, _model, _threads: ({**answers} for _ in rows))

    def figures() -> dict[str, float]:
        result = CliRunner().invoke(evaluate.app, ["--data", str(folder), "--json"])
        assert result.exit_code == 0
        return dict(json.loads(result.stdout.splitlines()[-1]))

    assert figures() == {"top1": pytest.approx(2 / 6), "n_clips": 6}
    write_table(folder, ("filename", "label"), [("beep-0.wav", "hiss; beep"), ("hiss-0.wav", "hiss")])
    assert figures() == {"top1": 0.5, "n_clips": 2}
