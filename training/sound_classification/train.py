"""Trains the sound classifier and writes it as a model folder, or measures the recipe by cross-validation."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError
from tensorboardX import SummaryWriter

from soundstage.errors import ModelError
from soundstage.models.registry import ModelCard, ModelFolder, open_folder, sha256_of, write_folder
from soundstage.models.runtime import limit_threads
from soundstage.sound.listener import SoundListener
from soundstage.sound.model import EXTRA_LABELS, SoundParams, member_name, member_weights, stored_weights
from training.config import BadConfig
from training.data import BadFolder
from training.runs import Arrays, Diverged, Run, WrongRun, bar, claimed, fingerprint, shown, write_whole
from training.sound_classification.config import Config, read_config
from training.sound_classification.data.examples import Mixer
from training.sound_classification.data.material import Backgrounds, Clips, load_backgrounds, load_clips
from training.sound_classification.data.table import Clip, Table, check_cross_validation, read_table
from training.sound_classification.learning import build_classifier, learn
from training.sound_classification.measure import behaviour, over_seeds, recognition
from training.sound_classification.model.yamnet import NotYamnet, Yamnet

CARD_TEMPLATE = Path(__file__).parent / "model" / "card.md"
DEFAULT_CONFIG = Path(__file__).parent / "config.yaml"

_ALL = "all-folds"

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
console = Console(stderr=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What every run of a recipe shares."""

    table: Table
    clips: Clips
    backgrounds: Backgrounds
    yamnet: Yamnet | None
    speech: str


@dataclass(frozen=True, slots=True)
class Goal:
    """A model to be made.

    Attributes:
        left_out: The fold that it does not hear; None hears all.
        seed: Of everything that is left to chance.
    """

    left_out: str | None
    seed: int

    @property
    def title(self) -> str:
        """Name of its folder, and of its model in cross-validation."""
        if self.left_out is None:
            return _ALL
        return f"without-fold-{re.sub(r'[^a-z0-9._-]', '-', self.left_out.lower())}"


class Trainer:
    """Makes models by one recipe. Several processes with the same arguments share the work.

    Args:
        config: The recipe.
        material: What from.
        runs: Folder of weights, figures and logs.
        checkpoint_steps: How often a run writes down where it is.
    """

    def __init__(self, config: Config, material: Material, runs: Path, *, checkpoint_steps: int) -> None:
        self._config, self._material, self._runs = config, material, runs
        self._checkpoint_steps = checkpoint_steps
        self._members = [config.member(i) for i in range(len(config.members))]
        table = material.table
        self.params = SoundParams(
            sounds=tuple(label for label in table.labels if label not in EXTRA_LABELS),
            is_exclusive=table.is_exclusive,
            level_ranges=tuple(config.level for config in self._members),
            whole_members=tuple(i for i, config in enumerate(self._members) if not config.loss.frames),
            window_s=config.window_s,
            events=config.events,
        )
        self.recipe = fingerprint(config.learnt_from(), material.clips.key, [_plain(clip) for clip in table.clips])
        self.registry = runs / "models"
        """Of the models of cross-validation: each named after the fold that it has not heard, its version the seed."""

    def chosen(self, left_out: str | None) -> NDArray[np.int64]:
        """Places in the table of the clips that a model is trained on."""
        allowed = _allowed(self._material.table, self._config)
        return np.array(
            [i for i, clip in enumerate(self._material.table.clips) if clip in allowed and clip.fold != left_out]
        )

    def _run(self, goal: Goal, member: int, part: str = "") -> Run:
        folder = self._runs / goal.title / f"seed-{goal.seed}-member-{member}{part}"
        chosen = [_plain(self._material.table.clips[i]) for i in self.chosen(goal.left_out)]
        parts = (self._members[member].learnt_from(), self._material.clips.key, self._material.speech, chosen)
        return Run(folder, fingerprint(*parts, goal.seed, member, part))

    def train(self, goal: Goal) -> bool:
        """Train what is left of a model and claimed by no other process; whether all of it is there then."""
        runs = [self._run(goal, member) for member in range(len(self._members))]
        for member, run in enumerate(runs):
            with claimed(run.folder / "lock") as is_ours:
                if not is_ours:
                    console.print(f"{_of(goal, member)}: another process is at it", highlight=False)
                elif not run.is_done:
                    self._learn(goal, member, run)
        return all(run.is_done for run in runs)  # another process may have come to the end of one meanwhile

    def _learn(self, goal: Goal, member: int, run: Run) -> None:
        """The heads alone, where the recipe says so, then all of it."""
        config, title, start = self._members[member], _of(goal, member), None
        seeds = np.random.SeedSequence([goal.seed, member]).generate_state(2)
        if config.learning.n_head_epochs:
            heads = self._run(goal, member, "-heads")
            if not heads.is_done:
                alone = config.model_copy(update={"learning": config.learning.of_heads})
                self._learn_all(goal, heads, alone, seed=int(seeds[1]), title=f"{title}, heads alone")
            start = heads.weights()
        self._learn_all(goal, run, config, seed=int(seeds[0]), title=title, start=start)

    def _learn_all(
        self, goal: Goal, run: Run, config: Config, *, seed: int, title: str, start: Arrays | None = None
    ) -> None:
        material = self._material
        mixer = Mixer(
            material.table.clips,
            self.chosen(goal.left_out),
            material.clips,
            material.backgrounds,
            params=self.params,
            config=config,
            seed=seed,
        )
        n_steps = config.learning.n_epochs * mixer.n_epoch_steps
        classifier = build_classifier(self.params, config, material.yamnet, n_steps=n_steps, seed=seed, start=start)
        if run.n_done:
            console.print(f"{title}: goes on after step {run.n_done} of {n_steps}", highlight=False)
        reports = learn(run, classifier, mixer, n_steps, checkpoint_steps=self._checkpoint_steps)
        with SummaryWriter(str(run.folder)) as log:
            for _ in shown(reports, title, log, console):
                pass

    def _weights(self, goal: Goal) -> dict[str, NDArray[np.generic]]:
        """Of all members, as they are stored; figures are of models that were read from there."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for member in range(len(self._members)):
            own = stored_weights(self._run(goal, member).weights())
            arrays |= {member_name(member, name): array for name, array in own.items()}
        return arrays

    def write_tested(self, goal: Goal) -> None:
        """Write a model of cross-validation as a folder, with its figures on the fold that it has not heard."""
        target = self.registry / goal.title / str(goal.seed)
        with claimed(self._runs / goal.title / f"seed-{goal.seed}.lock") as is_ours:
            if not is_ours or target.exists():
                return
            tested = [clip for clip in self._material.table.clips if clip.fold == goal.left_out]
            weights, ranges = self._weights(goal), self.params.level_ranges
            figures = self._recognition(goal, weights, self.params, tested)
            if len(ranges) > 1:
                for member, level_range in enumerate(ranges):
                    alone = self.params.model_copy(update={"level_ranges": (level_range,), "whole_members": ()})
                    own = {member_name(0, name): array for name, array in member_weights(weights, member).items()}
                    found = self._recognition(goal, own, alone, tested, f", member {member} alone")
                    figures |= {f"member_{member}_{name}": value for name, value in found.items()}
            self._write(
                self.registry,
                goal,
                self._card(goal, goal.title, str(goal.seed), figures),
                self.params,
                weights,
            )
            console.print(f"{_of(goal)}: top-1 {figures['top1']:.4f} of {len(tested)} clips", highlight=False)

    def write(self, goal: Goal, registry: Path, figures: Mapping[str, float]) -> ModelFolder:
        """Write the model, with figures of cross-validation and what it does in speech, music and silence."""
        card = self._card(goal, self._config.name, self._config.version, {})
        weights = self._weights(goal)
        with tempfile.TemporaryDirectory() as scratch:
            listener = SoundListener(self._write(Path(scratch), goal, card, self.params, weights))
            backgrounds = self._material.backgrounds
            found = behaviour(listener, backgrounds.speech_held_out, backgrounds.music_held_out)
        card = card.model_copy(update={"metrics": {**figures, **found}})
        return self._write(registry, goal, card, self.params, weights)

    def _recognition(
        self,
        goal: Goal,
        weights: Mapping[str, NDArray[np.generic]],
        params: SoundParams,
        tested: Sequence[Clip],
        whose: str = "",
    ) -> dict[str, float]:
        card = self._card(goal, goal.title, str(goal.seed), {})
        with tempfile.TemporaryDirectory() as scratch, bar(console) as testing:
            listener = SoundListener(self._write(Path(scratch), goal, card, params, weights))
            task = testing.add_task(f"testing {_of(goal)}{whose}", total=len(tested), note="")
            return recognition(listener, tested, on_clip=lambda: testing.advance(task))

    def _card(self, goal: Goal, name: str, version: str, figures: Mapping[str, float]) -> ModelCard:
        n_clips = len(self.chosen(goal.left_out))
        start = "YAMNet (Apache-2.0), " if self._starts_from_yamnet else ""
        return ModelCard(
            name=name,
            version=version,
            kind="sound",
            description=self._config.description
            or f"{len(self.params.sounds)} sounds, speech, music and silence, over time",
            licence=self._config.licence,
            source=f"{start}trained on {n_clips} clips; see README.md",
            labels=self.params.labels,
            metrics=dict(figures),
        )

    @property
    def _starts_from_yamnet(self) -> bool:
        return any(config.learning.start == "yamnet" for config in self._members)

    def _write(
        self,
        registry: Path,
        goal: Goal,
        card: ModelCard,
        params: SoundParams,
        weights: Mapping[str, NDArray[np.generic]],
    ) -> ModelFolder:
        names = sorted(self._material.table.clips[i].name for i in self.chosen(goal.left_out))
        about = {
            "figures": card.metrics,
            "recipe": self.recipe,
            "seed": goal.seed,
            "left_out": goal.left_out,
            "n_training_clips": len(names),
            "keras_backend": keras.backend.backend(),
            "config": self._config.model_dump(mode="json"),
        }
        return write_folder(
            registry,
            card,
            params=params,
            weights=weights,
            readme=self._readme(goal, card, params),
            extra={
                "metrics.json": (json.dumps(about, indent=2) + "\n").encode(),
                "training-clips.txt": ("\n".join(names) + "\n").encode(),
            },
        )

    def _readme(self, goal: Goal, card: ModelCard, params: SoundParams) -> str:
        table = self._material.table
        clips = [table.clips[i] for i in self.chosen(goal.left_out)]
        licences = Counter(clip.licence or "not stated" for clip in clips)
        material = [(f"{n} clips of `{table.path.parent.name}`", licence) for licence, n in sorted(licences.items())]
        if len(self._material.backgrounds.speech.level):
            material.append((f"speech: {self._material.speech}", "see the notes"))
        if len(self._material.backgrounds.music.level):
            material.append(("music composed by the training code, played with the sound font Fluid R3", "MIT"))
        if self._starts_from_yamnet:
            material.append(("YAMNet's weights, by Google, trained on AudioSet", "Apache-2.0"))
        figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(card.metrics.items()))
        left_out = f"fold {goal.left_out}, which it has not heard" if goal.left_out is not None else None
        return CARD_TEMPLATE.read_text(encoding="utf-8").format(
            name=card.name,
            version=card.version,
            description=card.description,
            sounds=f"{', '.join(params.sounds)}; speech, music and silence",
            exclusive="The sounds exclude one another; speech, music and silence each stand alone."
            if params.is_exclusive
            else "Each label stands alone: any number of them may be heard at once.",
            start="from YAMNet's weights" if self._starts_from_yamnet else "from weights drawn by chance",
            n_members=params.n_members,
            material="".join(f"| {what} | {licence} |\n" for what, licence in material),
            table_sha256=sha256_of(table.path),
            measured_on=f"On {left_out}."
            if left_out
            else "By cross-validation: on models of the same recipe that had not heard the fold they were tested on.",
            figures=figures or "| not measured | |",
            notes=self._config.notes.strip(),
        )

    def figures(self) -> dict[str, float]:
        """What cross-validation has measured so far, on models of this recipe."""
        found: dict[tuple[str, int], dict[str, float]] = {}
        for path in sorted(self.registry.glob("without-fold-*/*/metrics.json")):
            about = json.loads(path.read_text(encoding="utf-8"))
            if about["recipe"] == self.recipe:
                found[about["left_out"], about["seed"]] = about["figures"]
        return summary(found)


def summary(found: Mapping[tuple[str, int], Mapping[str, float]]) -> dict[str, float]:
    """Means over folds and seeds.

    Args:
        found: Figures by fold and seed.

    Returns:
        Each figure's mean over the folds, the mean of that over the seeds; "_std", its standard deviation over the
        seeds, where there are several; and "top1_fold_N", beside which the mean is called "top1_mean". Only seeds that
        have all folds count, once there is one.
    """
    folds, seeds = (sorted({key[i] for key in found}) for i in (0, 1))
    whole = [seed for seed in seeds if all((fold, seed) in found for fold in folds)]
    counted = {key: own for key, own in found.items() if key[1] in (whole or seeds)}
    by_seed = {
        name: [
            float(np.mean([own[name] for (_, of), own in counted.items() if of == seed and name in own]))
            for seed in sorted({key[1] for key in counted})
        ]
        for name in sorted({name for own in counted.values() for name in own})
    }
    figures = {"top1_mean" if name == "top1" else name: value for name, value in over_seeds(by_seed).items()}
    for fold in folds:
        own = [figures["top1"] for (of, _), figures in counted.items() if of == fold]
        if own:
            figures[f"top1_fold_{fold}"] = round(float(np.mean(own)), 4)
    return figures


def _plain(clip: Clip) -> tuple[Any, ...]:
    return clip.name, clip.fold, [(heard.label, heard.start_s, heard.end_s) for heard in clip.heard]


def _of(goal: Goal, member: int | None = None) -> str:
    return f"{goal.title}, seed {goal.seed}" + ("" if member is None else f", member {member}")


def _allowed(table: Table, config: Config) -> list[Clip]:
    return [clip for clip in table.clips if not config.data.licences or clip.licence in config.data.licences]


def _check(table: Table, config: Config, *, is_cross_validation: bool) -> None:
    """What can be wrong between a table and a recipe."""
    allowed = _allowed(table, config)
    if not allowed:
        raise BadFolder(f"no clip of {table.path} has a licence of {', '.join(config.data.licences)}")
    if all(label in EXTRA_LABELS for label in table.labels):
        raise BadFolder(f"{table.path} has no label but {', '.join(EXTRA_LABELS)}")
    missing = set(table.labels) - {label for clip in allowed for label in clip.labels}
    if missing:
        raise BadFolder(f"{table.path}: no clip may be trained on for {', '.join(sorted(missing))}; see data.licences")
    if is_cross_validation:
        check_cross_validation(table, allowed)


def _load(config: Config, table: Table, speech: Path | None, yamnet: Path | None, cache: Path) -> Material:
    needs_yamnet = any(
        own.learning.start == "yamnet" or own.loss.yamnet for own in map(config.member, range(len(config.members)))
    )
    if needs_yamnet and yamnet is None:
        raise BadConfig(
            "the recipe starts from YAMNet, or is taught by it: give its file with --yamnet, or set learning.start to "
            "random and loss.yamnet to 0"
        )
    file = Yamnet(yamnet) if needs_yamnet and yamnet is not None else None
    if file is None:
        console.print(
            "WEIGHTS START BY CHANCE: fit for trying things out; a good model starts from YAMNet", style="yellow"
        )
    params = SoundParams(sounds=("any",)).features
    backgrounds = load_backgrounds(speech, cache, params=params, made_s=config.data.made_s)
    for name, found in (("speech", backgrounds.speech), ("music", backgrounds.music)):
        if not len(found.level):
            console.print(
                f"no {name} to put under the clips, and nothing is learnt of {name}; see README.md", style="yellow"
            )
    with bar(console) as decoding:
        task = decoding.add_task("decoding", total=len(table.clips), note="")
        clips = load_clips(
            table.clips,
            cache,
            params=params,
            variants=config.augmentation.variants,
            on_clip=lambda done, of: decoding.update(task, completed=done, total=of),
        )
    recorded = (
        f"recordings of `{speech.name}`, and voices of espeak-ng" if speech is not None else "voices of espeak-ng"
    )
    return Material(table=table, clips=clips, backgrounds=backgrounds, yamnet=file, speech=recorded)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 0,1,2") from e


def _tested_folds(table: Table, text: str | None) -> tuple[str, ...]:
    if text is None:
        return table.folds
    wanted = tuple(part.strip() for part in text.split(","))
    unknown = set(wanted) - set(table.folds)
    if unknown:
        raise BadFolder(f"{table.path} has no fold {', '.join(sorted(unknown))}; it has {', '.join(table.folds)}")
    return wanted


@app.command(
    epilog="""
**Examples**

`python -m training.sound_classification.train --data my-clips --config my-config.yaml --yamnet yamnet.tflite`

`python -m training.sound_classification.train --data esc50 --speech ljspeech --yamnet yamnet.tflite --cross-validate
--seeds 0,1,2`
"""
)
def main(
    *,
    data: Annotated[Path, typer.Option(help="Labelled clips: meta.csv beside them, or beside their folder audio/.")],
    config: Annotated[Path, typer.Option(help="The recipe, YAML.")] = DEFAULT_CONFIG,
    speech: Annotated[Path | None, typer.Option(help="Recorded speech: meta.csv with filename and transcript.")] = None,
    yamnet: Annotated[Path | None, typer.Option(help="YAMNet's TFLite file: where the weights start.")] = None,
    output: Annotated[Path, typer.Option(help="Registry to write the model to.")] = Path("runs/models"),
    cross_validate: Annotated[
        bool, typer.Option("--cross-validate", help="Leave out each fold in turn and test on it.")
    ] = False,
    test_folds: Annotated[str | None, typer.Option(help="Cross-validate with these folds only, such as 1,2.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Instead of the recipe's, such as 0,1,2.")] = None,
    runs: Annotated[Path, typer.Option(help="Runs leave weights, figures and logs here, and go on from them.")] = Path(
        "runs/sound"
    ),
    cache: Annotated[Path, typer.Option(help="Where decoded and made audio is kept.")] = Path("runs/cache"),
    checkpoint_steps: Annotated[int, typer.Option(min=1, help="After how many steps a run saves where it is.")] = 50,
    threads: Annotated[int, typer.Option(min=1, help="Several processes with one each beat one with many.")] = 1,
) -> None:
    """Train the sound classifier on a folder of labelled clips.

    Broken off in any way, the same command goes on. Started several times, the processes share the runs.
    The last line printed is JSON: the figures that were measured, those of cross-validation among them.
    """
    os.environ.setdefault("NPROC", str(threads))  # JAX on the processor
    try:
        limit_threads(threads)
        recipe = read_config(config)
        if seeds is not None:
            recipe = recipe.model_copy(update={"seeds": _numbers(seeds)})
        table = read_table(data, recipe.data)
        _check(table, recipe, is_cross_validation=cross_validate)
        goals = [Goal(None, recipe.seeds[0])]
        if cross_validate:
            goals = [Goal(fold, seed) for seed in recipe.seeds for fold in _tested_folds(table, test_folds)]
        material = _load(recipe, table, speech, yamnet, cache)
        trainer = Trainer(recipe, material, runs, checkpoint_steps=checkpoint_steps)
        for goal in goals:
            is_whole = trainer.train(goal)
            if is_whole and cross_validate:
                trainer.write_tested(goal)
            elif is_whole:
                folder = trainer.write(goal, output, trainer.figures())
                console.print(f"written to {folder.path}", highlight=False, soft_wrap=True)
        figures = trainer.figures()
        if cross_validate:
            write_whole(runs / "figures.json", json.dumps(figures, indent=2) + "\n")
        elif is_whole:
            figures = dict(open_folder(output / recipe.name / recipe.version).card.metrics)
    except (BadFolder, BadConfig, NotYamnet, WrongRun, Diverged, ModelError) as e:
        raise _refused(str(e)) from e
    except (OSError, SafetensorError) as e:
        where = "" if isinstance(e, OSError) and e.filename else f" (writing to {runs}, {cache} or {output})"
        raise _refused(f"{e}{where}. What was there before is untouched; the same command goes on") from e
    print(json.dumps(figures))


def _refused(message: str) -> typer.Exit:
    console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(2)


if __name__ == "__main__":
    app()
