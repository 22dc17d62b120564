"""Sound events against YAMNet, in one run, on soundscapes whose events are known: `python -m benchmarks.sound_events`.

DIR holds `esc50`, `ljspeech` and `yamnet`. Both models hear the same soundscapes; for both, the parameters that turn
scores into events are learned in the same way on one half of the recordings, and the figures are of the other half.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.results import as_table, write_result
from benchmarks.yamnet import YamnetListener
from soundstage.models import registry
from soundstage.models.registry import ModelFolder
from soundstage.models.runtime import limit_threads
from soundstage.params import EventParams, LiveParams
from soundstage.pipeline import DEFAULT_MIN_SCORE, SOUND_MODEL, Pipeline
from soundstage.sound.listener import SoundListener
from soundstage.sound.model import SILENCE, SPEECH
from soundstage.types import SAMPLE_RATE, Analysis, EncodedAudio, FrameScores, SoundEvent, Waveform
from training.data import read_meta
from training.sound_classification.data.soundscapes import DURATION_S
from training.sound_classification.measure import over_seeds
from training.sound_classification.tune_events import (
    ONSET_COLLAR_S,
    SEGMENT_S,
    Heard,
    folds_of,
    found_in,
    heard_parts,
    learn,
    listened,
    n_heard_in_training,
    tested_models,
    tested_seeds,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of dcase_util, which imports pkg_resources
    import dcase_util  # type: ignore[import-untyped]
    import sed_eval

OFFSET_SHARE = 0.5
"""An offset may be wrong by half the event's length, or by the collar. Source: sed_eval's default."""
_N_TIMED = 20

Figures = dict[str, float]


def _rows(events: Sequence[SoundEvent]) -> Any:
    return dcase_util.containers.MetaDataContainer(
        [{"event_label": e.label, "onset": e.start_s, "offset": e.end_s, "file": "soundscape"} for e in events]
    )


def sed_figures(heard: Sequence[Heard], params: EventParams) -> Figures:
    """Micro-averaged F1 as sed_eval counts it: segments, onsets, onsets with offsets; and the mean over labels."""
    found = [found_in(own, params) for own in heard]
    labels = sorted({event.label for events in (*found, *(own.events for own in heard)) for event in events})
    by_event = partial(
        sed_eval.sound_event.EventBasedMetrics, labels, t_collar=ONSET_COLLAR_S, percentage_of_length=OFFSET_SHARE
    )
    metrics = {
        "segment_f1": sed_eval.sound_event.SegmentBasedMetrics(labels, time_resolution=SEGMENT_S),
        "event_f1": by_event(evaluate_offset=False),
        "event_f1_with_offset": by_event(evaluate_offset=True),
    }
    for own, ours in zip(heard, found, strict=True):
        for name, metric in metrics.items():
            length = {"evaluated_length_seconds": DURATION_S} if name == "segment_f1" else {}
            metric.evaluate(reference_event_list=_rows(own.events), estimated_event_list=_rows(ours), **length)
    figures = {}
    for name, metric in metrics.items():
        figures[name] = round(float(metric.results_overall_metrics()["f_measure"]["f_measure"]), 4)
        by_label = [own["f_measure"]["f_measure"] for own in metric.results_class_wise_metrics().values()]
        figures[f"{name}_by_label"] = round(float(np.nan_to_num(by_label).mean()), 4)  # not a number: never found
    return figures


def behaviour(pipeline: Pipeline, speech: Path) -> Figures:
    """What the model of the registry makes of read speech and of silence, with the parameters it carries."""
    n_false = n_spoken = 0
    duration_s = 0.0
    rows = read_meta(speech, [])
    for row in rows:
        analysis = pipeline.analyze(row.path)
        told = {event.label for event in _shown(analysis)} | {
            tag.label for tag in analysis.tags if tag.score >= DEFAULT_MIN_SCORE
        }
        n_spoken += SPEECH in told
        n_false += sum(event.label not in {SPEECH, SILENCE} for event in _shown(analysis))
        duration_s += analysis.duration_s
    silence = EncodedAudio(
        data=bytes(2 * 60 * SAMPLE_RATE), media_type="audio/l16", sample_rate=SAMPLE_RATE, n_channels=1
    )
    return {
        "false_events_per_hour": round(3600 * n_false / duration_s, 2),
        "speech_found": round(n_spoken / len(rows), 4),
        "events_in_silence": sum(event.label != SILENCE for event in _shown(pipeline.analyze(silence))),
    }


def cost(listener: SoundListener) -> Figures:
    """Processor time for a second of audio, spectrograms included: 16 windows together, and one as live streams ask.

    The fastest of several runs: other work on the machine only adds.
    """
    rng = np.random.default_rng(0)
    figures = {}
    for name, n_windows, duration_s in (
        ("batch_16", 16, listener.params.window_s),
        ("live_look", 1, LiveParams().look_s),
    ):
        n_samples = round(duration_s * SAMPLE_RATE)
        waveforms = [Waveform(samples=rng.normal(0, 0.1, n_samples).astype(np.float32)) for _ in range(n_windows)]
        taken_s = []
        for _ in range(_N_TIMED):
            start_s = time.process_time()
            listener.listen(waveforms)
            taken_s.append(time.process_time() - start_s)
        figures[f"cpu_ms_per_s_{name}"] = round(1e3 * min(taken_s) / (n_windows * duration_s), 2)
    return figures


def _shown(analysis: Analysis) -> list[SoundEvent]:
    return [event for event in analysis.events if event.score >= DEFAULT_MIN_SCORE]


def _told(tested: Mapping[int, ModelFolder], clips: Path) -> str:
    """How many clips of each fold its model was trained on; says so while it runs."""
    counts = {fold: n_heard_in_training(folder, clips, [fold]) for fold, folder in tested.items()}
    told = {0: "trained on none of its clips", None: "does not say what it was trained on"}
    for fold, count in counts.items():
        card = tested[fold].card
        what = told.get(count, f"TRAINED ON {count} OF ITS CLIPS: no measure of accuracy")
        print(f"fold {fold}: {card.name} {card.version}, {what}", file=sys.stderr)
    return ", ".join(f"{fold}: {'not known' if count is None else count}" for fold, count in counts.items())


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with esc50, ljspeech and yamnet.")],
    folds: Annotated[str, typer.Option("--fold", help="Whose clips, such as 1 or 1,3.")] = "1",
    models: Annotated[
        Path | None,
        typer.Option(help="Models of cross-validation to listen instead, of each seed: DIR/without-fold-F/SEED."),
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Soundscapes for each fold and half.")] = 250,
    threads: Annotated[int, typer.Option(min=1, help="For TensorFlow and for YAMNet.")] = 2,
) -> None:
    """Measure sound events; the last line printed is JSON."""
    limit_threads(threads)
    shipped = registry.find(SOUND_MODEL)
    listener = SoundListener(shipped)
    own_folds = folds_of(folds)
    if models is None:
        runs = {"of the shipped model": dict.fromkeys(own_folds, shipped)}
    else:
        runs = {seed: tested_models(models, own_folds, seed) for seed in tested_seeds(models, own_folds)}

    def learned_and_scored(listeners: Mapping[int, Callable[[Waveform], FrameScores]]) -> tuple[list[Heard], Figures]:
        tuned, scored = heard_parts(data / "esc50", data / "ljspeech", listeners, n=n)
        params, _ = learn(tuned, scored)
        return scored, sed_figures(scored, params)

    by_run, known = [], set()
    for tested in runs.values():
        known.add(_told(tested, data / "esc50"))
        listeners = {
            fold: partial(listened, listener if folder is shipped else SoundListener(folder))
            for fold, folder in tested.items()
        }
        scored, own = learned_and_scored(listeners)
        carried = sed_figures(scored, listener.params.events)
        by_run.append(own | {f"{name}_as_shipped": carried[name] for name in ("event_f1", "segment_f1")})
    figures = over_seeds({name: [run[name] for run in by_run] for name in by_run[0]})
    yamnet = YamnetListener(data / "yamnet" / "yamnet.tflite", listener.params.sounds, n_threads=threads)
    _, theirs = learned_and_scored(dict.fromkeys(own_folds, yamnet.listen))
    figures |= {f"yamnet_{name}": value for name, value in theirs.items()}
    figures |= behaviour(Pipeline(None, listener), data / "ljspeech") | cost(listener)
    detail = {
        "soundscapes": f"{n * len(own_folds)} of 10 s, clips of fold {folds}, 0 to 25 dB above their background",
        "clips of each fold heard in training": "; ".join(sorted(known)),
        "seeds": ", ".join(runs),
    }
    write_result("sound_events", figures, detail)
    Console(stderr=True).print(as_table("sound events", {**figures, **detail}))
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
