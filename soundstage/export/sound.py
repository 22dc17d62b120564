"""The sound model as a graph that stands alone: waveforms in, scores out.

Front end, window plan and joining are those of soundstage.audio.features and soundstage.sound, written in TensorFlow
because they have to run inside of a server without Python; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from soundstage.audio.features import frame_window, mel_filterbank
from soundstage.export import Precision
from soundstage.export.graph import ServedGraph, Tensors, WarmUp, computed, traced
from soundstage.models.registry import ModelFolder
from soundstage.sound.inference import forward
from soundstage.sound.listener import EDGE_STEPS
from soundstage.sound.model import (
    LEVEL_S,
    LevelRange,
    SoundParams,
    combined,
    learnt_weights,
    member_weights,
)

_WARM_UP_S = (0.3, 2, 5, 12, 30)


class SoundGraph(ServedGraph):
    """The sound classifier for TensorFlow Serving.

    Its signature serving_default gives what SoundListener.listen hears in waveforms of one length.

    Raises:
        ModelError: The weights do not fit.
    """

    def __init__(self, folder: ModelFolder, precision: Precision) -> None:
        params = folder.params(SoundParams)
        frames = {"start_s": params.step_s / 2, "hop_s": params.step_s}
        super().__init__(folder, params=params.model_dump(), frames=frames)
        self._params = params
        weights = folder.weights()
        self._members = [
            {
                name: self.store(array, precision)
                for name, array in learnt_weights(member_weights(weights, i), params).items()
            }
            for i in range(params.n_members)
        ]
        self.signatures["serving_default"] = traced(self._listen, waveform=tf.TensorSpec((None, None), tf.float32))

    def warm_ups(self) -> Iterator[WarmUp]:
        """Silence of a few lengths, and a batch of them."""
        yield from super().warm_ups()
        for n_rows, duration_s in [(1, duration_s) for duration_s in _WARM_UP_S] + [(4, self._params.window_s)]:
            n_samples = round(duration_s * self._params.features.sample_rate)
            yield WarmUp("serving_default", {"waveform": tf.zeros((n_rows, n_samples))})

    def _listen(self, waveform: tf.Tensor) -> Tensors:
        """SoundListener.listen for rows of one length, window by window, so that memory is bounded."""
        params, n_labels = self._params, len(self._params.labels)
        members = [{name: computed(variable) for name, variable in own.items()} for own in self._members]
        n_rows, n_samples = tf.unstack(tf.shape(waveform))
        starts, edges = self._plan(n_samples)
        length = tf.where(tf.size(starts) > 1, params.n_window_samples, tf.maximum(n_samples, params.n_step_samples))
        # what does not fill a step is filled up with silence
        waveform = tf.pad(waveform, ((0, 0), (0, tf.maximum(0, params.n_step_samples - n_samples))))

        def step(i: tf.Tensor, tags: tf.Tensor, frames: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            first_sample = starts[i] * params.n_step_samples
            window = waveform[:, first_sample : first_sample + length]
            clip, own = self._hear(members, window)
            kept = tf.minimum(tf.range(edges[i], edges[i + 1]) - starts[i], tf.shape(own)[1] - 1)
            return i + 1, tf.maximum(tags, clip), tf.concat([frames, tf.gather(own, kept, axis=1)], axis=1)

        _, tags, frames = tf.while_loop(
            lambda i, *_: i < tf.size(starts),
            step,
            (tf.constant(0), tf.zeros((n_rows, n_labels)), tf.zeros((n_rows, 0, n_labels))),
            shape_invariants=(
                tf.TensorShape([]),
                tf.TensorShape([None, n_labels]),
                tf.TensorShape([None, None, n_labels]),
            ),
            parallel_iterations=1,
        )
        return {"tags": tags, "frame_scores": frames, "labels": tf.tile([params.labels], (n_rows, 1))}

    def _plan(self, n_samples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """soundstage.sound.listener.windows_of: the first step of each window, and the edges of what is kept of it."""
        params = self._params
        hop_steps = params.n_window_steps - 2 * EDGE_STEPS
        n_beyond = n_samples - params.n_window_samples
        n_beyond = tf.where(n_beyond < params.n_step_samples, 0, n_beyond)
        n_full = _ceil_div(n_beyond, hop_steps * params.n_step_samples)
        last_start = _ceil_div(n_beyond, params.n_step_samples)
        starts = tf.concat([tf.range(n_full) * hop_steps, [last_start]], axis=0)
        edges = tf.concat([[0], starts[1:] + EDGE_STEPS, [_ceil_div(n_samples, params.n_step_samples)]], axis=0)
        return starts[: tf.minimum(n_samples, tf.size(starts))], edges  # nothing has no window

    def _hear(self, members: list[Tensors], samples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores (n_rows, n_labels) and (n_rows, n_steps, n_labels) of one window."""
        mel, loudest = self._window_mel(samples)
        answers = [
            forward(member, self._levelled(mel, loudest, own))
            for member, own in zip(members, self._params.level_ranges, strict=True)
        ]
        return combined(answers, self._params)

    def _window_mel(self, samples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The spectrogram of each row, float32 (n_rows, n_frames, n_mels), and its loudest moment, (n_rows, 1, 1)."""
        params = self._params.features
        window = frame_window(params)
        frames = tf.signal.frame(samples, len(window), params.hop_length) * window
        spectrum = tf.abs(tf.signal.rfft(frames, [params.n_fft]))
        if params.power != 1.0:
            spectrum = spectrum**params.power
        mel = tf.matmul(spectrum, mel_filterbank(params))
        width = round(LEVEL_S * params.sample_rate / params.hop_length)
        level = tf.reduce_mean(mel, axis=2, keepdims=True)
        smooth = tf.nn.conv1d(level, tf.fill((width, 1, 1), 1 / width), stride=1, padding="SAME")
        return mel, tf.reduce_max(smooth, axis=1, keepdims=True)

    def _levelled(self, mel: tf.Tensor, loudest: tf.Tensor, level_range: LevelRange) -> tf.Tensor:
        """soundstage.sound.model.levelled."""
        louder = tf.minimum(level_range.max_gain, level_range.lowest / tf.maximum(loudest, 1e-9))
        softer = 1.0 if level_range.highest is None else tf.minimum(1.0, level_range.highest / loudest)
        gain = tf.where(loudest < level_range.lowest, louder, softer)
        return tf.math.log(mel * gain + self._params.features.log_offset)


def _ceil_div(dividend: tf.Tensor, divisor: int) -> tf.Tensor:
    return -(-dividend // divisor)
