"""Learns how frame scores become events, on soundscapes of clips that the model never heard."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from soundstage.errors import ModelError
from soundstage.models.registry import (
    CARD_NAME,
    PARAMS_NAME,
    README_NAME,
    WEIGHTS_NAME,
    ModelFolder,
    find,
    open_folder,
    write_folder,
)
from soundstage.models.runtime import limit_threads
from soundstage.params import EventParams, LabelEventParams
from soundstage.pipeline import SOUND_MODEL
from soundstage.sound.events import EventTracker
from soundstage.sound.listener import SoundListener
from soundstage.sound.model import SILENCE, SoundParams
from soundstage.types import FrameScores, SoundEvent, Waveform
from training.data import BadFolder, read_meta
from training.sound_classification.data.soundscapes import DURATION_S, Composer, Soundscape, load_sources

TUNED, SCORED = 0, 1
"""Parts of the recordings of each label: what parameters are learned on, and what they are judged on."""
N_PARTS = 2
SEEDS_APART = 1_000_000
"""Seeds of one part and fold never meet those of another."""

ONSET_COLLAR_S = 0.25
SEGMENT_S = 1.0
"""Source: sed_eval's defaults (Mesaros, Heittola & Virtanen, "Metrics for Polyphonic Sound Event Detection", 2016);
the collar is that of DESED."""

Value = int | float
_SHIFTS_S = tuple(round(-0.1 + 0.05 * i, 2) for i in range(19))
GRID: dict[str, tuple[Value, ...]] = {
    # below 0.3, DEFAULT_MIN_SCORE would take out again what was found
    "on_score": tuple(round(0.3 + 0.05 * i, 2) for i in range(14)),
    "off_share": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "n_median_frames": (1, 3, 5),
    "max_gap_s": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "response_s": _SHIFTS_S,
    "release_s": _SHIFTS_S,
}
"""What is tried, one after the other; off_share is off_score as a share of on_score.

n_min_frames stays 1: a live stream would tell of each sound a step later.
"""
N_PASSES = 2
SILENCE_SCORE = 0.9
"""What silence starts at: no soundscape holds any, and a pause between two sounds is none."""
PRIOR_EVENTS = 250.0
"""A label's own examples count against so many that behave as all labels do together. Fewer follow chance: with 40, the
common thresholds of four folds are better by a point on recordings that were not tuned on."""

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
console = Console(stderr=True)

Counts = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a model says of a soundscape, and what is in it.

    Attributes:
        scores: Of the whole soundscape.
        events: The truth.
        background: What lasts throughout; whether it is reported as an event does not count.
    """

    scores: FrameScores
    events: tuple[SoundEvent, ...]
    background: str


def soundscapes(data: Path, speech: Path, *, fold: int, part: int, n: int) -> Iterator[Soundscape]:
    """Soundscapes of one part of a fold's recordings.

    Args:
        data: Folder of labelled clips, laid out as ESC-50.
        speech: Folder of recorded speech.
        fold: Whose clips.
        part: TUNED or SCORED.
        n: How many.

    Raises:
        BadFolder: A folder cannot be used.
    """
    composer = Composer(load_sources(data, speech, folds=[fold], part=part, n_parts=N_PARTS))
    first = (fold * N_PARTS + part) * SEEDS_APART
    for seed in range(first, first + n):
        yield composer.compose(seed)


def heard(listen: Callable[[Waveform], FrameScores], scapes: Iterable[Soundscape]) -> list[Heard]:
    """What a model says of each soundscape."""
    return [
        Heard(scores=listen(Waveform(samples=scape.samples)), events=scape.events, background=scape.background)
        for scape in scapes
    ]


def listened(listener: SoundListener, waveform: Waveform) -> FrameScores:
    """What a model says of one waveform."""
    return listener.listen([waveform])[0]


def found_in(own: Heard, params: EventParams) -> list[SoundEvent]:
    """The events that the tracker finds in a soundscape, without its background and silence."""
    events = EventTracker(params).push(own.scores, is_last=True)
    return [event for event in events if event.label not in {own.background, SILENCE}]


def event_counts(found: Sequence[SoundEvent], truth: Sequence[SoundEvent]) -> tuple[int, int, int]:
    """Right, false and missed events of one label; right is an onset within 0.25 s."""
    left = sorted(event.start_s for event in found)
    n_right = 0
    for onset_s in sorted(event.start_s for event in truth):
        while left and left[0] < onset_s - ONSET_COLLAR_S:
            left.pop(0)
        if left and left[0] <= onset_s + ONSET_COLLAR_S:
            left.pop(0)
            n_right += 1
    return n_right, len(found) - n_right, len(truth) - n_right


def segment_counts(found: Sequence[SoundEvent], truth: Sequence[SoundEvent]) -> tuple[int, int, int]:
    """Seconds of one label that are right, false and missed."""
    is_found, is_true = _active_segments(found), _active_segments(truth)
    n_right = int((is_found & is_true).sum())
    return n_right, int(is_found.sum()) - n_right, int(is_true.sum()) - n_right


def _active_segments(events: Sequence[SoundEvent]) -> NDArray[np.bool_]:
    active = np.zeros(int(np.ceil(DURATION_S / SEGMENT_S)), bool)
    for event in events:
        active[int(event.start_s // SEGMENT_S) : int(np.ceil(event.end_s / SEGMENT_S))] = True
    return active


def counts_of(heard: Sequence[Heard], params: EventParams) -> Counts:
    """float64 (n_labels, 2, 3): of events and of seconds, how many are right, false and missed."""
    labels = heard[0].scores.labels
    counts = np.zeros((len(labels), 2, 3))
    for own in heard:
        found = found_in(own, params)
        for label in {event.label for event in (*found, *own.events)}:
            ours, truth = ([event for event in events if event.label == label] for events in (found, own.events))
            counts[labels.index(label)] += (event_counts(ours, truth), segment_counts(ours, truth))
    return counts


def f1(counts: Counts) -> NDArray[np.float64]:
    """F1 of counts (..., 3)."""
    right, false, missed = np.moveaxis(counts, -1, 0)
    return np.asarray(2 * right / np.maximum(2 * right + false + missed, 1e-9))


def quality(counts: Counts) -> float:
    """What is made as large as can be: the mean of event F1 and segment F1 over all labels together."""
    return float(f1(counts.sum(axis=0)).mean())


def figures_of(heard: Sequence[Heard], params: EventParams) -> dict[str, float]:
    """Event F1 and segment F1 over all labels together, and as the mean over labels."""
    counts = counts_of(heard, params)
    together = f1(counts.sum(axis=0))
    has_truth = counts[:, 0, 0] + counts[:, 0, 2] > 0
    by_label = f1(counts)[has_truth].mean(axis=0)
    values = (*together, *by_label)
    names = ("event_f1", "segment_f1", "event_f1_by_label", "segment_f1_by_label")
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def fit(heard: Sequence[Heard]) -> EventParams:
    """The parameters, the same for all labels, that make `quality` largest: one after the other, twice around."""
    half_s = heard[0].scores.window_s / 2
    values: dict[str, Value] = {
        "on_score": 0.5,
        "off_share": 0.5,
        "n_median_frames": 1,
        "n_min_frames": 1,
        "max_gap_s": 0.2,
        "response_s": half_s,
        "release_s": half_s,
    }
    best = quality(counts_of(heard, _params(values)))
    for _ in range(N_PASSES):
        for name, options in GRID.items():
            for option in options:
                tried = {**values, name: option}
                if (reached := quality(counts_of(heard, _params(tried)))) > best:
                    best, values = reached, tried
    return _params(values)


def _params(values: Mapping[str, Value]) -> EventParams:
    own: dict[str, Any] = dict(values)
    own["off_score"] = round(own["on_score"] * own.pop("off_share"), 3)
    return EventParams.model_validate(own)


def fit_labels(heard: Sequence[Heard], common: EventParams) -> EventParams:
    """Thresholds of their own for labels whose examples ask for them.

    A label's F1 at each threshold is that of its own counts and of PRIOR_EVENTS more that behave as all labels
    together: few examples move little.
    """
    share = common.off_score / common.on_score
    options = [
        LabelEventParams(
            on_score=on,
            off_score=round(float(on) * share, 3),
            **common.model_dump(include={"n_median_frames", "n_min_frames", "max_gap_s"}),
        )
        for on in GRID["on_score"]
    ]
    counts = np.stack(
        [counts_of(heard, common.model_copy(update=option.model_dump())) for option in options]
    )  # (n_options, n_labels, 2, 3)
    together = counts.sum(axis=1, keepdims=True)
    n_true = together[..., :1, 0] + together[..., :1, 2]
    prior = together * (PRIOR_EVENTS / n_true[..., np.newaxis])
    best = f1(counts + prior).mean(axis=-1).argmax(axis=0)
    by_label = {
        label: options[best[i]]
        for i, label in enumerate(heard[0].scores.labels)
        if options[best[i]].on_score != common.on_score
    }
    by_label[SILENCE] = next(option for option in options if option.on_score == SILENCE_SCORE)
    return common.model_copy(update={"by_label": by_label})


def learn(tuned: Sequence[Heard], scored: Sequence[Heard]) -> tuple[EventParams, dict[str, float]]:
    """Parameters from one part, with thresholds by label, and their figures on the other.

    Returns:
        The parameters; and their figures, those beginning with "common_" without thresholds by label.
    """
    common = fit(tuned)
    params = fit_labels(tuned, common)
    figures = figures_of(scored, params)
    return params, {**figures, **{f"common_{name}": value for name, value in figures_of(scored, common).items()}}


def tested_seeds(models: Path, folds: Collection[int]) -> list[str]:
    """The seeds of which each fold has a model of cross-validation, as train.py leaves them: DIR/without-fold-F/SEED.

    Raises:
        ModelError: There is none.
    """
    by_fold = [{card.parent.name for card in models.glob(f"without-fold-{fold}/*/{CARD_NAME}")} for fold in folds]
    seeds = sorted(set.intersection(*by_fold))
    if not seeds:
        wanted = " and ".join(f"without-fold-{fold}" for fold in folds)
        raise ModelError(f"{models} holds no models {wanted} of one seed")
    return seeds


def tested_models(models: Path, folds: Collection[int], seed: str) -> dict[int, ModelFolder]:
    """By fold, the model of cross-validation that has not heard it.

    Raises:
        ModelError: One is missing or damaged.
    """
    return {fold: open_folder(models / f"without-fold-{fold}" / seed) for fold in folds}


def n_heard_in_training(folder: ModelFolder, data: Path, folds: Collection[int]) -> int | None:
    """How many clips of these folds the model was trained on; None where its folder does not say."""
    names = folder.path / "training-clips.txt"
    if not names.is_file():
        return None
    trained = set(names.read_text(encoding="utf-8").split())
    rows = read_meta(data, ["fold"])
    return sum(row.values["filename"] in trained for row in rows if int(row.values["fold"]) in folds)


def folds_of(text: str) -> list[int]:
    """Read "1,3".

    Raises:
        BadFolder: Not whole numbers.
    """
    try:
        return [int(fold) for fold in text.split(",")]
    except ValueError as e:
        raise BadFolder(f"folds {text!r}: expected whole numbers with commas between them") from e


def heard_parts(
    data: Path, speech: Path, listeners: Mapping[int, Callable[[Waveform], FrameScores]], *, n: int
) -> tuple[list[Heard], list[Heard]]:
    """Both parts of each fold's soundscapes, as the model for that fold hears them.

    Args:
        data: Folder of labelled clips.
        speech: Folder of recorded speech.
        listeners: By fold.
        n: Soundscapes for each fold and part.

    Raises:
        BadFolder: A folder cannot be used.
    """
    parts: tuple[list[Heard], list[Heard]] = ([], [])
    for fold, listen in listeners.items():
        for part in (TUNED, SCORED):
            scapes = soundscapes(data, speech, fold=fold, part=part, n=n)
            parts[part].extend(heard(listen, track(scapes, f"fold {fold}, part {part}", total=n, console=console)))
    return parts


def rewritten(
    folder: ModelFolder, registry: Path, version: str, params: EventParams, figures: dict[str, float]
) -> ModelFolder:
    """The model with these event parameters and figures, as another version.

    Raises:
        ModelError: It is not a model for sounds.
    """
    own = {CARD_NAME, PARAMS_NAME, WEIGHTS_NAME, README_NAME}
    metrics = {**folder.card.metrics, **{f"soundscapes_{name}": value for name, value in figures.items()}}
    return write_folder(
        registry,
        folder.card.model_copy(update={"version": version, "metrics": metrics}),
        params=folder.params(SoundParams).model_copy(update={"events": params}),
        weights=folder.weights(),
        readme=(folder.path / README_NAME).read_text(encoding="utf-8"),
        extra={name: (folder.path / name).read_bytes() for name in folder.card.files if name not in own},
    )


@app.command(
    epilog="""
**Example**

`python -m training.sound_classification.tune_events --data DIR/esc50 --speech DIR/ljspeech --folds 1,3
--models runs/sound/models --output runs/models --version 0.3.1`
"""
)
def main(
    *,
    data: Annotated[Path, typer.Option(help="Labelled clips, laid out as ESC-50: meta.csv beside audio/.")],
    speech: Annotated[Path, typer.Option(help="Recorded speech: meta.csv beside audio/.")],
    version: Annotated[str, typer.Option(help="Of the model that is written.")],
    model: Annotated[str, typer.Option(help="Model of the registry that gets the parameters.")] = SOUND_MODEL,
    folds: Annotated[str, typer.Option(help="Folds whose clips are listened to.")] = "1",
    models: Annotated[
        Path | None,
        typer.Option(help="Models of cross-validation, DIR/without-fold-F/SEED; without it, the model itself listens."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Registry to write to.")] = Path("runs/models"),
    n: Annotated[int, typer.Option(min=1, help="Soundscapes for each fold and part.")] = 400,
    threads: Annotated[int, typer.Option(min=1, help="For TensorFlow.")] = 2,
) -> None:
    """Learn from soundscapes how a model's scores become events, and write the model with it.

    Half of the recordings of each label are for learning, the other half for the figures. The last line printed is
    JSON: the figures, which the model's card gets too.
    """
    limit_threads(threads)
    try:
        folder = find(model)
        listeners: dict[int, Callable[[Waveform], FrameScores]] = {}
        own_folds = folds_of(folds)
        if models is None:
            tested = dict.fromkeys(own_folds, folder)
        else:
            tested = tested_models(models, own_folds, tested_seeds(models, own_folds)[0])
        for fold, own in tested.items():
            n_known = n_heard_in_training(own, data, [fold])
            told = (
                "does not say what it was trained on" if n_known is None else f"was trained on {n_known} of its clips"
            )
            console.print(f"fold {fold}: {own.card.name} {own.card.version} {told}", highlight=False)
            listeners[fold] = partial(listened, SoundListener(own))
        params, figures = learn(*heard_parts(data, speech, listeners, n=n))
        written = rewritten(folder, output, version, params, figures)
    except (BadFolder, ModelError) as e:
        console.print(str(e), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from e
    console.print(f"written to {written.path}", highlight=False, soft_wrap=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    app()
