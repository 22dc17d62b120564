"""The speech model against the published 8-bit graph of the same weights: `python -m benchmarks.speech [--data DIR]`.

Both run in one process on as many threads, in turn, over the same clips of five seconds. ONNX Runtime runs the
graph with its cache, once over the whole batch and once clip by clip, and its better time counts. Ours writes the text
alone here, without the times of words, which the graph does not give. The last line printed is JSON: `onnx_over_ours`,
the time of ONNX Runtime over ours at a batch of 8 (higher is better), and the machine.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import onnxruntime
import tensorflow as tf
import typer
from numpy.typing import NDArray
from onnxruntime import OrtValue
from rich.console import Console

from benchmarks.results import as_table, machine, write_result
from soundstage.audio.resample import decode_mono
from soundstage.models import registry
from soundstage.models.runtime import limit_threads
from soundstage.params import DecodingParams, Limits, MoonshineParams
from soundstage.pipeline import SPEECH_MODEL
from soundstage.sample import reading_path
from soundstage.speech import decoding, model, shapes, shortlist, weights
from soundstage.types import SAMPLE_RATE

CLIP_S = 5
SILENCE_S = DecodingParams().silence_s
MAX_TOKENS = int(DecodingParams().max_tokens_per_s * (CLIP_S + 2 * SILENCE_S)) + 1
BATCHES = (1, 8, 16)
COUNTED_BATCH = 8

_console = Console(stderr=True)

Clips = list[NDArray[np.float32]]


def clips(data: Path | None) -> Clips:
    """The first five seconds of each clip of LJ Speech, else pieces of the recording that comes with the package."""
    n_clip, silence = CLIP_S * SAMPLE_RATE, np.zeros(round(SILENCE_S * SAMPLE_RATE), np.float32)
    if data is None:
        samples = decode_mono(reading_path(), Limits()).samples
        found = [samples[first : first + n_clip] for first in range(0, len(samples) - n_clip + 1, n_clip)]
    else:
        folder = data / "ljspeech"
        with (folder / "meta.csv").open(encoding="utf-8", newline="") as file:
            names = [row["filename"] for row in csv.DictReader(file)][: 4 * max(BATCHES)]
        found = [decode_mono(folder / "audio" / name, Limits()).samples[:n_clip] for name in names]
    return [np.concatenate([silence, clip, silence]) for clip in found if len(clip) == n_clip]


class PublishedGraph:
    """The two graphs as they are published, run by ONNX Runtime with as little copying as it allows."""

    def __init__(self, n_threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
        options.log_severity_level = 3
        folder = Path(str(distribution(weights.DISTRIBUTION).locate_file(weights.ASSETS)))
        self._encoder = onnxruntime.InferenceSession(folder / weights.ENCODER_NAME, options)
        self._decoder = onnxruntime.InferenceSession(folder / weights.DECODER_NAME, options)
        self._past = [each.name for each in self._decoder.get_inputs() if each.name.startswith("past_key_values")]
        self._outputs = [each.name for each in self._decoder.get_outputs()]
        self._params = MoonshineParams()

    def write(self, batch: Clips) -> list[tuple[int, ...]]:
        """Token numbers of each of some clips of equal length."""
        params, value = self._params, OrtValue.ortvalue_from_numpy
        samples = np.stack(batch)
        fixed = {"encoder_attention_mask": value(np.ones(samples.shape, np.int64))}
        (fixed["encoder_hidden_states"],) = self._encoder.run_with_ort_values(
            None, {"input_values": value(samples), "attention_mask": fixed["encoder_attention_mask"]}
        )
        nothing = value(np.zeros((len(batch), params.n_heads, 0, params.hidden_size // params.n_heads), np.float32))
        past = dict.fromkeys(self._past, nothing)
        token_ids = np.full((len(batch), 1), params.start_token_id, np.int64)
        is_active = np.full(len(batch), True)
        while is_active.any() and token_ids.shape[1] <= MAX_TOKENS:
            is_first = token_ids.shape[1] == 1
            inputs = {"input_ids": value(token_ids[:, -1:].copy()), "use_cache_branch": value(np.array([not is_first]))}
            logits, *present = self._decoder.run_with_ort_values(self._outputs, {**inputs, **fixed, **past})
            token = np.where(is_active, logits.numpy()[:, 0].argmax(axis=-1), params.end_token_id)
            is_active &= token != params.end_token_id
            token_ids = np.concatenate([token_ids, token[:, None]], axis=1)
            for name, tensor in zip(self._outputs[1:], present, strict=True):
                if is_first or ".decoder." in name:  # the keys and values of the audio come from the first step alone
                    past[name.replace("present", "past_key_values")] = tensor
        return [tuple(row[row > params.end_token_id].tolist()) for row in token_ids]


class Ours:
    """The speech model of the registry, without the times of words."""

    def __init__(self) -> None:
        folder = registry.find(SPEECH_MODEL)
        self.params = folder.params(MoonshineParams).model_copy(update={"alignment_heads": ()})
        self.decoder = decoding.GreedyDecoder(folder.weights(), self.params)

    def write(self, batch: Clips) -> list[tuple[int, ...]]:
        """Token numbers of each clip."""
        return [row.token_ids for row in self.decoder.decode(batch, [MAX_TOKENS] * len(batch))]


class Seconds(NamedTuple):
    """What one call takes: on the clock, and of all processors, which other work on the machine disturbs less."""

    wall: float
    cpu: float


def seconds(run: Callable[[], object]) -> Seconds:
    """Time one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def stages_ms(ours: Ours, batch: Clips, n_rounds: int) -> dict[str, float]:
    """Least wall milliseconds of each part of a batch; the parts of the decoder as often as it has steps."""
    ready, params, next_token = ours.decoder._weights, ours.params, ours.decoder._next_token
    n_samples = tf.fill([len(batch)], len(batch[0]))
    samples = np.stack([np.pad(clip, (0, shapes.pad_length(len(clip)) - len(clip))) for clip in batch])
    n_steps = 1 + max(map(len, ours.write(batch)))
    encoded = tf.function(lambda: model.encode(ready, params, samples, n_samples))()
    x = tf.random.normal([len(batch), params.hidden_size], seed=0)
    kernels = [f"decoder.layers.{i}.mlp" for i in range(params.n_decoder_layers)]

    def feed_forward(x: tf.Tensor) -> tf.Tensor:
        for name in kernels:
            value, gate = tf.split(model._dense(ready, f"{name}.fc1", x), 2, axis=-1)
            x = x + model._dense(ready, f"{name}.fc2", value * tf.nn.silu(gate))
        return x

    def each_step(part: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[], tf.Tensor]:
        def loop() -> tf.Tensor:
            return tf.while_loop(
                lambda i, _: i < n_steps, lambda i, total: (i + 1, total + tf.reduce_sum(part(x + total))), [0, 0.0]
            )

        return loop

    parts: dict[str, Callable[[], Any]] = {
        "front_end": lambda: model._front_end(ready, params, samples, n_samples),
        "to_encoder": lambda: model.encoder_states(ready, params, samples, n_samples),
        "to_cross": lambda: model.encode(ready, params, samples, n_samples),
        "loop": lambda: decoding.greedy(
            ready, params, encoded, tf.fill([len(batch)], MAX_TOKENS), next_token=next_token
        ),
        "feed_forward": each_step(feed_forward),
        "vocabulary": each_step(lambda x: next_token(x)[1]),
    }
    functions = {name: tf.function(part) for name, part in parts.items()}
    functions["whole"] = lambda: ours.write(batch)
    for function in functions.values():
        function()
    rounds = [{name: 1000 * seconds(function).wall for name, function in functions.items()} for _ in range(n_rounds)]
    least = {name: min(each[name] for each in rounds) for name in functions}
    stages = {
        "front_end": least["front_end"],
        "encoder": least["to_encoder"] - least["front_end"],
        "cross_keys_values": least["to_cross"] - least["to_encoder"],
        "decoder_attention_and_rest": least["loop"] - least["feed_forward"] - least["vocabulary"],
        "decoder_feed_forward": least["feed_forward"],
        "decoder_vocabulary_and_choice": least["vocabulary"],
        "python": least["whole"] - least["to_cross"] - least["loop"],
    }
    return {f"{name}_ms": round(ms, 1) for name, ms in stages.items()}


def main(
    data: Annotated[Path | None, typer.Option(help="Folder of audio that holds ljspeech.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="For either.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Of each batch, each over other clips; medians count.")] = 9,
    write: Annotated[bool, typer.Option(help="Write benchmarks/results/speech[_without_vnni].json.")] = True,
) -> None:
    """Measure writing of speech against the published graph on the same cores."""
    limit_threads(threads)
    everything, theirs, ours = clips(data), PublishedGraph(threads), Ours()
    ratios: dict[int, float] = {}
    detail: dict[str, Any] = {"threads": threads, "n_clips": len(everything)}
    for n_batch in BATCHES:
        times: list[tuple[Seconds, Seconds, Seconds]] = []
        for number in range(-1, rounds):  # the first is not counted
            batch = [everything[(number * n_batch + i) % len(everything)] for i in range(n_batch)]
            batched = seconds(lambda batch=batch: theirs.write(batch))  # type: ignore[misc]
            one_by_one = seconds(lambda batch=batch: [theirs.write([clip]) for clip in batch])  # type: ignore[misc]
            mine = seconds(lambda batch=batch: ours.write(batch))  # type: ignore[misc]
            if number >= 0:
                times.append((mine, batched, one_by_one))
        ratios[n_batch] = statistics.median(min(b.wall, s.wall) / mine.wall for mine, b, s in times)
        cpu_ratio = statistics.median(min(b.cpu, s.cpu) / mine.cpu for mine, b, s in times)
        for name, column in zip(("ours", "onnx_batched", "onnx_one_by_one"), zip(*times, strict=True), strict=True):
            factor = statistics.median(each.wall for each in column) / n_batch / (CLIP_S + 2 * SILENCE_S)
            detail[f"real_time_factor_{name}_batch_{n_batch}"] = round(factor, 4)
        detail[f"onnx_over_ours_batch_{n_batch}"] = round(ratios[n_batch], 3)
        detail[f"onnx_over_ours_cpu_time_batch_{n_batch}"] = round(cpu_ratio, 3)
        _console.print(f"batch {n_batch}: onnx / ours {ratios[n_batch]:.3f}", style="dim")
    counted = everything[:COUNTED_BATCH]
    n_same = sum(one == other for one, other in zip(ours.write(counted), theirs.write(counted), strict=True))
    detail |= {"same_text": f"{n_same} of {len(counted)}", **stages_ms(ours, counted, rounds)}
    figures = {"onnx_over_ours": round(ratios[COUNTED_BATCH], 3)}
    _console.print(as_table("Speech model against the published graph", {**figures, **detail}))
    if write:
        # Processors differ by more than a machine's other traits do: each kind has a result of its own.
        has_vnni = any(product.n_bits == 8 for product in shortlist.integer_products())
        write_result("speech" if has_vnni else "speech_without_vnni", figures, detail)
    print(json.dumps({**figures, "machine": machine()}))


if __name__ == "__main__":
    typer.run(main)
