"""Fine-tunes the speech model on recordings with transcripts and writes it as a model folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
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
from soundstage.models import registry
from soundstage.models.registry import (
    CARD_NAME,
    PARAMS_NAME,
    README_NAME,
    WEIGHTS_NAME,
    ModelCard,
    ModelFolder,
    sha256_of,
    write_folder,
)
from soundstage.models.runtime import limit_threads
from soundstage.params import MoonshineParams
from soundstage.speech.tokenizer import TOKENIZER_NAME, Tokenizer
from soundstage.types import SAMPLE_RATE
from training.config import BadConfig
from training.data import BadFolder
from training.runs import Diverged, Run, WrongRun, bar, claimed, fingerprint, shown, write_whole
from training.voice_recognition import RECORDINGS_NAME
from training.voice_recognition.conditions import Condition, heard_in
from training.voice_recognition.config import Config, read_config
from training.voice_recognition.learning import Learner, Writer, build_learner
from training.voice_recognition.recordings import SPLITS, Corpus, Recording, Shuffler, read_corpus
from training.voice_recognition.scoring import Score, score

CARD_TEMPLATE = Path(__file__).parent / "card.md"

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
console = Console(stderr=True)


class Trainer:
    """Fine-tunes one model by one recipe.

    Args:
        config: The recipe.
        start: The model to begin with.
        corpus: What it learns from.
        runs: Folder of the run: weights, validations and logs.
        checkpoint_steps: How often the run writes down where it is.

    Raises:
        ModelError: The start holds no weights of this kind of model.
    """

    def __init__(
        self, config: Config, start: ModelFolder, corpus: Corpus, runs: Path, *, checkpoint_steps: int
    ) -> None:
        self._config, self._start, self._corpus = config, start, corpus
        self._checkpoint_steps = checkpoint_steps
        self._params = start.params(MoonshineParams)
        self._tokenizer = Tokenizer.read(start.path / TOKENIZER_NAME)
        self._weights: Mapping[str, NDArray[Any]] = start.weights()
        key = fingerprint(config.learnt_from(), start.card.files[WEIGHTS_NAME], corpus.key())
        self.run = Run(runs, key)
        self._best, self._validations = runs / "best.safetensors", runs / f"validations-{key}.json"
        self._shuffler = Shuffler(
            corpus.of("train"),
            config.augmentation,
            batch_size=config.learning.batch_size,
            seed=config.seed,
            start=self._params.start_token_id,
            end=self._params.end_token_id,
        )

    @property
    def n_steps(self) -> int:
        """At most."""
        return self._config.learning.n_epochs * self._shuffler.n_epoch_steps

    def make(self, output: Path) -> ModelFolder:
        """Train what is left of the run, then measure the model and write it into a registry.

        Raises:
            WrongRun: Another process is at it, or the folder holds another run.
        """
        learning = self._config.learning
        with claimed(self.run.folder / "lock") as is_ours:
            if not is_ours:
                raise WrongRun(f"another process is at {self.run.folder}; name another folder with --runs")
            learner = build_learner(self._weights, self._params, learning, n_steps=self.n_steps, seed=self._config.seed)
            if not self.run.is_done:
                self.train(learner)
            return self.write(learner, output)

    def train(self, learner: Learner) -> None:
        """Learn until the end, or until validations get no better, from wherever the run is.

        Raises:
            Diverged: A loss or weight is no number, or every validation was worse than the start.
            OSError: The disk refuses; the last checkpoint stays.
            WrongRun: The folder holds another run.
        """
        writer = self._writer(learner)
        n_done = self.run.n_done
        if n_done:
            console.print(f"goes on after step {n_done} of {self.n_steps}", highlight=False)
        validation_steps = self._config.validation.every_epochs * self._shuffler.n_epoch_steps
        with SummaryWriter(str(self.run.folder)) as log:
            if 0 not in self._found():
                self._validate(0, learner, writer, log)
            reports = self.run.steps(learner, self._batch, self.n_steps, checkpoint_steps=self._checkpoint_steps)
            for progress in shown(reports, "fine-tuning", log, console):
                if progress.step % validation_steps and progress.step < self.n_steps:
                    continue
                self._validate(progress.step, learner, writer, log)
                if self._is_over(progress.step):
                    console.print(f"no better for {self._config.validation.patience} validations", highlight=False)
                    break
        self._finish()

    def _batch(self, step: int) -> tuple[Any, Any]:
        batch = self._shuffler.batch(step)
        return batch.inputs, batch.targets

    def _writer(self, learner: Learner) -> Writer:
        return Writer(learner.speech, self._params, batch_size=self._config.learning.batch_size)

    def _found(self) -> dict[int, dict[str, float]]:
        """Word error rates of each validation, by step and condition."""
        if not self._validations.exists():
            return {}
        found = json.loads(self._validations.read_text(encoding="utf-8"))
        return {int(step): rates for step, rates in found.items()}

    def _validate(self, step: int, learner: Learner, writer: Writer, log: SummaryWriter) -> None:
        """Note how good the weights are, and keep them where none were better."""
        recordings = self._corpus.of("validation")
        conditions = self._config.validation.conditions
        rates = {
            str(condition): self._score(writer, recordings, condition, f"validating ({condition})").words.rate
            for condition in conditions
        }
        for condition, rate in rates.items():
            log.add_scalar(f"validation_wer/{condition}", rate, step)
        found = self._found()
        others = [_mean(own) for of, own in found.items() if of != step]
        if _mean(rates) <= min(others, default=np.inf):
            self.run.write(self._best, learner.speech.arrays(), step)
        write_whole(self._validations, json.dumps({**found, step: rates}, indent=2) + "\n")
        told = ", ".join(f"{condition} {100 * rate:.2f} %" for condition, rate in rates.items())
        console.print(f"step {step} of {self.n_steps}: word error rate {told}", highlight=False)

    def _is_over(self, step: int) -> bool:
        found = {of: _mean(own) for of, own in self._found().items() if of <= step}
        best = max(of for of in found if found[of] == min(found.values()))
        return sum(of > best for of in found) >= self._config.validation.patience

    def _finish(self) -> None:
        found = {step: _mean(rates) for step, rates in self._found().items()}
        later = [rate for step, rate in found.items() if step]
        if later and min(later) > found[0]:
            raise Diverged(
                f"every validation was worse than the start ({100 * found[0]:.2f} % words wrong; the best after it "
                f"{100 * min(later):.2f} %): the rate is too high, the recordings are too few, or their transcripts "
                f"are not what is said. No model is written; see {self._validations}"
            )
        best = self.run.read(self._best)
        assert best is not None, "the start is validated first"
        if max(np.abs(array).max() for array in best[0].values()) > np.finfo(np.float16).max:
            raise self.run.diverged(f"weights are too large to be stored after step {best[1]}")
        self.run.finish(*best)
        self._best.unlink()

    def _score(self, writer: Writer, recordings: Sequence[Recording], condition: Condition, title: str) -> Score:
        with bar(console) as shown_bar:
            task = shown_bar.add_task(title, total=len(recordings), note="")
            waveforms = [heard_in(condition, own.waveform(), own.name) for own in recordings]
            written = writer.write(waveforms, lambda n: shown_bar.advance(task, n))
        return score([own.transcript for own in recordings], [self._tokenizer.decode(ids) for ids in written])

    def write(self, learner: Learner, output: Path) -> ModelFolder:
        """Measure what the run has learnt and write it into a registry.

        Raises:
            OSError: The disk refuses; what was there stays.
        """
        weights = {name: array.astype(np.float16) for name, array in self.run.weights().items()}
        tested = "test" if self._corpus.of("test") else "validation"
        recordings = self._corpus.of(tested)
        before = self._figures(learner, self._weights, recordings, "before")
        after = self._figures(learner, weights, recordings, "after")
        figures = {**after, **{f"start_{name}": value for name, value in before.items()}}
        card = ModelCard(
            name=self._config.name,
            version=self._config.version,
            kind="speech",
            description=self._config.description or f"{self._start.card.name}, fine-tuned",
            licence=self._config.licence,
            source=f"{self._start.card.name} {self._start.card.version}, fine-tuned; see README.md",
            languages=self._start.card.languages,
            metrics=figures,
        )
        own = {CARD_NAME, PARAMS_NAME, WEIGHTS_NAME, README_NAME}
        about = {
            "figures": figures,
            "validations": self._found(),
            "start": {"name": self._start.card.name, "version": self._start.card.version},
            "keras_backend": keras.backend.backend(),
            "config": self._config.model_dump(mode="json"),
        }
        names = "".join(f"{own.split}\t{own.name}\n" for own in self._corpus.recordings)
        return write_folder(
            output,
            card,
            params=self._params,
            weights=weights,
            readme=self._readme(card, tested),
            extra={
                **{name: (self._start.path / name).read_bytes() for name in self._start.card.files if name not in own},
                "metrics.json": (json.dumps(about, indent=2) + "\n").encode(),
                RECORDINGS_NAME: names.encode(),
            },
        )

    def _figures(
        self, learner: Learner, weights: Mapping[str, NDArray[Any]], recordings: Sequence[Recording], when: str
    ) -> dict[str, float]:
        learner.speech.restore(weights)
        writer = self._writer(learner)
        figures: dict[str, float] = {}
        for condition in dict.fromkeys((Condition.CLEAN, *self._config.test_conditions)):
            found = self._score(writer, recordings, condition, f"testing {when} ({condition})")
            suffix = "" if condition == Condition.CLEAN else f"_{condition}"
            figures[f"wer{suffix}"] = round(found.words.rate, 4)
            if condition == Condition.CLEAN:
                figures["cer"] = round(found.characters.rate, 4)
        return figures

    def _readme(self, card: ModelCard, tested: str) -> str:
        learning = self._config.learning
        splits = {split: self._corpus.of(split) for split in SPLITS}
        material = [
            f"| `{self._corpus.path.name}`, {split} | {len(own)} | "
            f"{sum(len(recording.samples) for recording in own) / SAMPLE_RATE / 60:.1f} |"
            for split, own in splits.items()
            if own
        ]
        how = (
            f"Updates of rank {learning.lora_rank} were learnt." if learning.lora_rank else "Whole weights were learnt."
        )
        frozen = f" Frozen: {', '.join(f'`{name}`' for name in learning.frozen)}." if learning.frozen else ""
        return CARD_TEMPLATE.read_text(encoding="utf-8").format(
            name=card.name,
            version=card.version,
            description=card.description,
            start=f"{self._start.card.name} {self._start.card.version} ({self._start.card.licence})",
            how=how + frozen,
            material="\n".join(material),
            table_sha256=sha256_of(self._corpus.path / "meta.csv"),
            n_tested=len(splits[tested]),
            tested=tested,
            chosen="" if tested == "test" else ", but by which the weights were chosen",
            figures="\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(card.metrics.items())),
            notes=self._config.notes.strip(),
        )


def _mean(rates: Mapping[str, float]) -> float:
    return float(np.mean(list(rates.values())))


def _find_start(config: Config) -> ModelFolder:
    start = registry.find(config.start, config.start_version)
    if start.card.kind != "speech":
        raise BadConfig(f"start: {start.card.name} is a {start.card.kind} model, not one for speech")
    return start


def _load(data: Path, config: Config, start: ModelFolder) -> Corpus:
    with bar(console) as reading:
        task = reading.add_task("reading", total=None, note="")
        corpus = read_corpus(
            data,
            config.data,
            Tokenizer.read(start.path / TOKENIZER_NAME),
            on_file=lambda done, of: reading.update(task, completed=done, total=of),
        )
    for warning in corpus.warnings:
        console.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
    counts = ", ".join(f"{len(corpus.of(split))} to {verb}" for split, verb in zip(SPLITS, _VERBS, strict=True))
    console.print(f"{len(corpus.recordings)} recordings: {counts}", highlight=False)
    return corpus


_VERBS = ("learn from", "validate", "test")


@app.command(
    epilog="""
**Example**

`python -m training.voice_recognition.train --data my-recordings --config my-config.yaml --output models`
"""
)
def main(
    *,
    data: Annotated[
        Path, typer.Option(help="Recordings: meta.csv (filename, transcript) beside them or beside audio/.")
    ],
    config: Annotated[Path, typer.Option(help="The recipe, YAML.")],
    output: Annotated[Path, typer.Option(help="Registry to write the model to.")] = Path("runs/models"),
    runs: Annotated[Path, typer.Option(help="The run leaves weights and logs here, and goes on from them.")] = Path(
        "runs/voice"
    ),
    checkpoint_steps: Annotated[int, typer.Option(min=1, help="After how many steps the run saves where it is.")] = 25,
    threads: Annotated[int, typer.Option(min=1, help="For TensorFlow.")] = 2,
) -> None:
    """Fine-tune the speech model on a folder of recordings with transcripts.

    Broken off in any way, the same command goes on. The last line printed is JSON: the figures of the model card.
    """
    os.environ.setdefault("NPROC", str(threads))  # JAX on the processor
    try:
        limit_threads(threads)
        recipe = read_config(config)
        start = _find_start(recipe)
        trainer = Trainer(recipe, start, _load(data, recipe, start), runs, checkpoint_steps=checkpoint_steps)
        folder = trainer.make(output)
    except (BadFolder, BadConfig, WrongRun, Diverged, ModelError) as e:
        raise _refused(str(e)) from e
    except (OSError, SafetensorError) as e:
        where = "" if isinstance(e, OSError) and e.filename else f" (writing to {runs} or {output})"
        raise _refused(f"{e}{where}. What was there before is untouched; the same command goes on") from e
    console.print(f"written to {folder.path}", highlight=False, soft_wrap=True)
    print(json.dumps(folder.card.metrics))


def _refused(message: str) -> typer.Exit:
    console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(2)


if __name__ == "__main__":
    app()
