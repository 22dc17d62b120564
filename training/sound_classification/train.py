"""Trains the sound classifier and writes it as a model folder, or measures the recipe by cross-validation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.numpy import load_file, save_file

from soundstage.models.registry import ModelCard, ModelFolder, write_folder
from soundstage.models.runtime import limit_threads
from soundstage.sound.model import (
    MUSIC,
    SILENCE,
    SPEECH,
    SoundParams,
    member_name,
    member_weights,
    scores_from_logits,
    window_features,
)
from training.data import BadFolder
from training.sound_classification.data.examples import Mixer
from training.sound_classification.data.material import FREE_LICENCE, Material, fit, load
from training.sound_classification.learning import MEMBERS, Arrays, Learner, LearningParams, window_logits
from training.sound_classification.model.audioset import start_head
from training.sound_classification.model.yamnet import NotYamnet, Yamnet

CARD_TEMPLATE = Path(__file__).parent / "model" / "card.md"
NAME, VERSION = "soundstage-sounds", "0.1.0"


app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
console = Console(stderr=True)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), *Progress.get_default_columns()[1:2], MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip


def stored(weights: Arrays) -> dict[str, NDArray[np.float16]]:
    """As they are stored: half precision costs no accuracy."""
    return {name: array.astype(np.float16) for name, array in weights.items()}


def train(
    material: Material,
    chosen: NDArray[np.int64],
    params: SoundParams,
    learning: LearningParams,
    start: Arrays,
    *,
    seed: int,
    title: str,
) -> Arrays:
    """One run on the chosen clips."""
    learner = Learner(params, learning, start, seed)
    mixer = Mixer(material, chosen, params, seed, balanced=learning.balanced)
    if mixer.n_windows() < learning.batch_size:
        raise BadFolder(f"{len(chosen)} clips do not fill one batch of {learning.batch_size} windows")
    with _bar() as bar:
        task = bar.add_task(title, total=None, note="")
        for progress in learner.learn(mixer):
            bar.update(task, completed=progress.step, total=progress.n_steps, note=f"loss {progress.loss:.2f}")
    return learner.weights()


def _window_scores(
    params: SoundParams, weights: dict[str, NDArray[np.float16]], windows: Iterable[NDArray[np.float32]]
) -> NDArray[np.float32]:
    features = np.stack([window_features(fit(window, params.n_window_samples), params) for window in windows])
    members = [window_logits(params, member_weights(weights, i), features) for i in range(params.n_members)]
    scores: NDArray[np.float32] = np.mean([scores_from_logits(logits, params) for logits in members], axis=0)
    return scores


def top1(
    material: Material, tested: NDArray[np.int64], params: SoundParams, weights: dict[str, NDArray[np.float16]]
) -> float:
    """Share of the clips whose best-scored sound is the right one."""
    scores = _window_scores(params, weights, (material.clips[i].astype(np.float32) for i in tested))
    best = np.array(params.sounds)[scores[:, : len(params.sounds)].argmax(axis=1)]
    return float((best == material.categories[tested]).mean())


def behaviour(material: Material, params: SoundParams, weights: dict[str, NDArray[np.float16]]) -> dict[str, float]:
    """What is heard in speech, music and silence that was not trained on.

    Returns:
        For each, the share of 5 s windows in which it scores at least 0.5, and for speech and music the share in
        which any sound does, wrongly.
    """
    n = params.n_window_samples
    figures = {}
    n_sounds = len(params.sounds)
    for label, source in ((SPEECH, material.speech_test), (MUSIC, material.music_test)):
        if len(source) >= n:
            scores = _window_scores(params, weights, source[: len(source) // n * n].reshape(-1, n))
            figures[f"{label}_found"] = float((scores[:, params.labels.index(label)] >= 0.5).mean())
            figures[f"{label}_with_false_sound"] = float((scores[:, :n_sounds] >= 0.5).any(axis=1).mean())
    noise = np.random.default_rng(1).standard_normal((8, n)).astype(np.float32)
    levels = 10.0 ** (np.array([-np.inf, -100, -96, -90, -86, -82, -78, -74], np.float32) / 20)
    scores = _window_scores(params, weights, noise * levels[:, np.newaxis])
    figures[f"{SILENCE}_found"] = float((scores[:, params.labels.index(SILENCE)] >= 0.5).mean())
    return figures


def write(
    registry: Path,
    *,
    material: Material,
    chosen: NDArray[np.int64],
    params: SoundParams,
    weights: dict[str, NDArray[np.float16]],
    figures: dict[str, float],
    licences: str,
) -> ModelFolder:
    """The model folder: weights, parameters and what people have to know of them."""
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(figures.items()))
    attributions = "\n".join(sorted(str(name) for name in material.names[chosen])).encode()
    readme = CARD_TEMPLATE.read_text(encoding="utf-8").format(
        name=NAME,
        version=VERSION,
        n_clips=len(chosen),
        n_sounds=len(params.sounds),
        licences=licences,
        folds=", ".join(str(fold) for fold in np.unique(material.folds[chosen])),
        figures=rows or "| not measured | |",
    )
    card = ModelCard(
        name=NAME,
        version=VERSION,
        kind="sound",
        description=f"{len(params.sounds)} everyday sounds, speech, music and silence, over time",
        licence="Apache-2.0",
        source=f"YAMNet (Apache-2.0), every layer trained on {len(chosen)} clips of ESC-50 ({licences}); see README.md",
        labels=params.labels,
        metrics=figures,
    )
    return write_folder(
        registry,
        card,
        params=params,
        weights=weights,
        readme=readme,
        extra={"training-clips.txt": attributions + b"\n"},
    )


def _folds(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError as e:
        raise typer.BadParameter(f"{text!r} is no list of folds such as 1,2,3,4") from e


class Runs:
    """The folder that runs leave their weights and figures in; several may share it, side by side."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _file(self, title: str, member: int) -> Path:
        return self.path / f"{title}-member-{member}.safetensors"

    def keep(self, title: str, member: int, weights: Arrays) -> None:
        """Write down what one member learnt."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_file(weights, self._file(title, member))

    def has(self, title: str, member: int) -> bool:
        """Whether a member has been trained."""
        return self._file(title, member).exists()

    def members(self, title: str) -> Arrays | None:
        """The weights of all members by their names in the model folder; None while one is missing."""
        arrays: Arrays = {}
        for member in range(len(MEMBERS)):
            if not self.has(title, member):
                return None
            own = load_file(self._file(title, member))
            arrays |= {member_name(member, name): array for name, array in own.items()}
        return arrays

    def note(self, fold: int, figure: float) -> None:
        """Write down how well a fold was recognised that was left out."""
        text = json.dumps({f"top1_fold_{fold}": figure})
        (self.path / f"fold-{fold}.json").write_text(text + "\n", encoding="utf-8")

    def figures(self) -> dict[str, float]:
        """Top-1 by fold, and their mean."""
        figures: dict[str, float] = {}
        for file in sorted(self.path.glob("fold-*.json")):
            figures |= json.loads(file.read_text(encoding="utf-8"))
        return {**figures, "top1_mean": round(float(np.mean(list(figures.values()))), 4)} if figures else {}


def start_of(yamnet: Path, params: SoundParams, learning: LearningParams, seed: int) -> Arrays:
    """Weights to start from: YAMNet's body, and where asked for a head that begins with YAMNet's opinion."""
    file = Yamnet(yamnet)
    if not learning.head_from_yamnet:
        return file.weights()
    kernel, bias = start_head(params.sounds, file.names(), file.classifier(), np.random.default_rng(seed))
    return {**file.weights(), "head/kernel": kernel, "head/bias": bias}


def train_members(
    *,
    material: Material,
    chosen: NDArray[np.int64],
    params: SoundParams,
    changes: dict[str, int],
    yamnet: Path,
    runs: Runs,
    wanted: list[int],
    seed: int,
    title: str,
) -> Arrays | None:
    """Train those of the wanted members that are not there yet; the weights of all, None while one is missing."""
    for member in wanted:
        if runs.has(title, member):
            console.print(f"{title}: member {member} was trained already", highlight=False)
            continue
        learning = MEMBERS[member].model_copy(update=changes)
        start = start_of(yamnet, params, learning, seed + member)
        own = f"{title}, member {member}"
        runs.keep(title, member, train(material, chosen, params, learning, start, seed=seed + member, title=own))
    return runs.members(title)


@app.command(
    epilog="""
**Examples**

`python -m training.sound_classification.train --data esc50 --speech ljspeech --yamnet yamnet.tflite --cross-validate`

`python -m training.sound_classification.train --data esc50 --speech ljspeech --yamnet yamnet.tflite
--output soundstage/models/shipped`
"""
)
def main(
    *,
    data: Annotated[Path, typer.Option(help="Labelled clips, laid out as ESC-50: meta.csv beside audio/.")],
    speech: Annotated[Path, typer.Option(help="Recorded speech: meta.csv with filename and transcript, and audio/.")],
    yamnet: Annotated[Path, typer.Option(help="YAMNet's TFLite file: where the weights start, and a teacher.")],
    output: Annotated[Path, typer.Option(help="Registry to write the model to.")] = Path("runs/models"),
    folds: Annotated[str, typer.Option(help="Folds that are used.")] = "1,2,3,4",
    cross_validation: Annotated[
        bool, typer.Option("--cross-validate", help="Leave out each fold in turn and test on it; writes no model.")
    ] = False,
    test_folds: Annotated[
        str | None, typer.Option(help="Cross-validate with these folds only, to run several side by side.")
    ] = None,
    members: Annotated[
        str, typer.Option(help="Train these members only, to run them side by side; what is there is kept.")
    ] = ",".join(str(member) for member in range(len(MEMBERS))),
    licences: Annotated[
        str, typer.Option(help="Train on clips whose column licence has this value; 'any' takes all.")
    ] = FREE_LICENCE,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Times each clip is heard alone; 12 and 16 for the two members.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows to a step.")] = LearningParams().batch_size,
    seed: Annotated[int, typer.Option(help="Of everything that is left to chance.")] = 0,
    runs: Annotated[Path, typer.Option(help="Runs leave weights and figures here, and go on from them.")] = Path(
        "runs/sound"
    ),
    cache: Annotated[Path, typer.Option(help="Where decoded and synthesised audio is kept.")] = Path("runs/sound"),
    material_seconds: Annotated[float, typer.Option(help="How much speech, and music, is synthesised.")] = 1800.0,
    threads: Annotated[int, typer.Option(min=1, help="Several runs with one thread each beat one with many.")] = 1,
) -> None:
    """Train the sound classifier on folders of labelled clips.

    The last line printed is JSON: the figures that were measured, those of cross-validation among them.
    """
    limit_threads(threads)
    used, kept = _folds(folds), Runs(runs)
    changes = {"batch_size": batch_size, **({"n_epochs": epochs} if epochs is not None else {})}
    wanted = _folds(members)
    if not set(wanted) <= set(range(len(MEMBERS))):
        raise typer.BadParameter(f"{members!r}: there are members 0 to {len(MEMBERS) - 1}")
    try:
        material = _load(data, speech, yamnet, cache, material_seconds)
        sounds = tuple(np.unique(material.categories[np.isin(material.folds, used)]).tolist())
        params = SoundParams(sounds=sounds, n_members=len(MEMBERS))
        allowed = np.isin(material.folds, used) & ((material.licences == licences) | (licences == "any"))
        if not allowed.any():
            raise BadFolder(f"no clip of folds {folds} has the licence {licences!r}")  # noqa: TRY301

        def members_of(chosen: NDArray[np.int64], title: str) -> Arrays | None:
            return train_members(
                material=material,
                chosen=chosen,
                params=params,
                changes=changes,
                yamnet=yamnet,
                runs=kept,
                wanted=wanted,
                seed=seed,
                title=title,
            )

        if cross_validation:
            for fold in _folds(test_folds) if test_folds else used:
                chosen, tested = (
                    np.flatnonzero(allowed & (material.folds != fold)),
                    np.flatnonzero(material.folds == fold),
                )
                if not len(chosen) or not len(tested):
                    raise BadFolder(f"nothing to train on or to test with when fold {fold} is left out")  # noqa: TRY301
                raw = members_of(chosen, f"without-fold-{fold}")
                if raw is not None:
                    figure = top1(material, tested, params, stored(raw))
                    console.print(f"fold {fold}: top-1 {figure:.4f} of {len(tested)} clips")
                    kept.note(fold, figure)
            figures = kept.figures()
        else:
            chosen = np.flatnonzero(allowed)
            raw = members_of(chosen, "all-folds")
            figures = kept.figures()
            if raw is not None:
                figures |= behaviour(material, params, stored(raw))
                folder = write(
                    output,
                    material=material,
                    chosen=chosen,
                    params=params,
                    weights=stored(raw),
                    figures=figures,
                    licences=licences,
                )
                console.print(f"written to {folder.path}", highlight=False, soft_wrap=True)
    except (BadFolder, NotYamnet) as e:
        console.print(str(e), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from e
    print(json.dumps(figures))


def _load(data: Path, speech: Path, yamnet: Path, cache: Path, seconds: float) -> Material:
    with _bar() as bar:
        task = bar.add_task("material", total=None, note="")
        material = load(
            data,
            speech,
            yamnet,
            cache,
            n_window_samples=SoundParams(sounds=("any",)).n_window_samples,
            seconds=seconds,
            on_clip=lambda done, of: bar.update(task, completed=done, total=of),
        )
    if not len(material.music):
        console.print("fluidsynth or its sound font is missing: nothing is learnt of music but from YAMNet")
    return material


if __name__ == "__main__":
    app()
