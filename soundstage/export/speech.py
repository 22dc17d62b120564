"""The speech model as a graph that stands alone: whole transcripts, and the two halves of its loop."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from soundstage.export import Precision
from soundstage.export.graph import ServedGraph, Tensors, WarmUp, computed, traced
from soundstage.models.registry import ModelFolder
from soundstage.params import DecodingParams, MoonshineParams
from soundstage.speech import model, shapes
from soundstage.speech.decoding import greedy
from soundstage.speech.shortlist import whole_head
from soundstage.speech.tokenizer import TOKENIZER_NAME, WORD_START, Tokenizer

_WAVEFORMS = {"waveform": tf.TensorSpec((None, None), tf.float32), "n_samples": tf.TensorSpec((None,), tf.int32)}
"""Rows of different lengths; what follows n_samples in a row is padding and counts for nothing."""
_WARM_UP_S = (1, 5, 15)


class SpeechGraph(ServedGraph):
    """Moonshine for TensorFlow Serving.

    Signatures:
        serving_default: Region of speech to text, as Transcriber writes it before it decides what to believe.
        encode: Waveforms to all that the decoder reads.
        decode_step: The logits after one more token.

    Raises:
        ModelError: Weights or tokenizer do not fit.
    """

    def __init__(self, folder: ModelFolder, precision: Precision) -> None:
        params, decoding = folder.params(MoonshineParams), DecodingParams()
        super().__init__(folder, params=params.model_dump(), decoding=decoding.model_dump())
        self._params, self._decoding = params, decoding
        ready = model.prepare(folder.weights(), params)
        self._variables = {name: self.store(array, precision) for name, array in ready.items()}
        self._pieces = tf.constant(Tokenizer.read(folder.path / TOKENIZER_NAME).pieces)
        self._layers_shape = (
            *(None, params.n_decoder_layers, 2, params.n_heads, None),
            params.hidden_size // params.n_heads,
        )
        self.signatures |= {
            "serving_default": traced(self._transcribe, **_WAVEFORMS),
            "encode": traced(self._encode, **_WAVEFORMS),
            "decode_step": traced(
                self._decode_step,
                token_ids=tf.TensorSpec((None,), tf.int32),
                cache=tf.TensorSpec(self._layers_shape, tf.float32),
                cross=tf.TensorSpec(self._layers_shape, tf.float32),
                padding=tf.TensorSpec((None, 1, 1, None), tf.float32),
            ),
        }

    def warm_ups(self) -> Iterator[WarmUp]:
        """Silence of a few lengths, alone and two rows together, and one step of the loop."""
        yield from super().warm_ups()
        for n_rows, duration_s in [(1, duration_s) for duration_s in _WARM_UP_S] + [(2, _WARM_UP_S[0])]:
            n_samples = duration_s * self._params.sample_rate
            silence = {"waveform": tf.zeros((n_rows, n_samples)), "n_samples": tf.fill((n_rows,), n_samples)}
            yield WarmUp("serving_default", silence)
        yield WarmUp("encode", silence)
        start = {"token_ids": tf.fill((n_rows,), self._params.start_token_id)}
        yield WarmUp("decode_step", {**start, **self.signatures["encode"](**silence)})

    def _weights(self) -> Tensors:
        return {name: computed(variable) for name, variable in self._variables.items()}

    def _transcribe(self, waveform: tf.Tensor, n_samples: tf.Tensor) -> Tensors:
        rate, decoding = self._params.sample_rate, self._decoding
        n_silence = round(decoding.silence_s * rate)
        samples = tf.pad(_without_padding(waveform, n_samples), ((0, 0), (n_silence, n_silence)))
        padded_s = tf.cast(n_samples, tf.float64) / rate + 2 * decoding.silence_s
        max_tokens = tf.cast(tf.math.ceil(decoding.max_tokens_per_s * padded_s), tf.int32)
        samples, n_samples = _fitted(samples, n_samples + 2 * n_silence)
        weights = self._weights()
        encoded = model.encode(weights, self._params, samples, n_samples)
        next_token = whole_head(weights["decoder.embedding"])
        token_ids, n_tokens, logprobs = greedy(weights, self._params, encoded, max_tokens, next_token=next_token)
        return {
            "text": self._text(token_ids),
            "token_ids": token_ids,
            "n_tokens": n_tokens,
            "avg_logprob": tf.reduce_sum(logprobs, axis=1) / tf.cast(n_tokens, tf.float32),
            "has_ended": tf.gather(token_ids, n_tokens - 1, batch_dims=1) == self._params.end_token_id,
        }

    def _text(self, token_ids: tf.Tensor) -> tf.Tensor:
        """What Tokenizer.decode makes of each row, string (n_batch,)."""
        joined = tf.strings.reduce_join(tf.gather(self._pieces, token_ids), axis=1)
        text = tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8", errors="replace")
        return tf.strings.strip(tf.strings.regex_replace(text, WORD_START, " "))

    def _encode(self, waveform: tf.Tensor, n_samples: tf.Tensor) -> Tensors:
        samples, n_samples = _fitted(_without_padding(waveform, n_samples), n_samples)
        encoded = model.encode(self._weights(), self._params, samples, n_samples)
        return {
            "cross": self._stacked(encoded.cross),
            "padding": encoded.padding,
            "cache": self._stacked(model.empty_cache(self._params, tf.shape(samples)[0])),
        }

    def _decode_step(self, token_ids: tf.Tensor, cache: tf.Tensor, cross: tf.Tensor, padding: tf.Tensor) -> Tensors:
        logits, grown = model.decode(
            self._weights(),
            self._params,
            token_ids[:, tf.newaxis],
            self._unstacked(cache),
            model.Encoded(self._unstacked(cross), padding),
            position=tf.shape(cache)[4],
        )
        return {"logits": logits[:, 0], "cache": self._stacked(grown)}

    def _stacked(self, cache: model.Cache) -> tf.Tensor:
        """Keys and values of each layer as one tensor (n_batch, n_layers, 2, n_heads, n_steps, head_size)."""
        stacked = tf.stack([tf.stack(pair, axis=1) for pair in cache], axis=1)
        return tf.ensure_shape(stacked, self._layers_shape)

    def _unstacked(self, stacked: tf.Tensor) -> model.Cache:
        return tuple((stacked[:, i, 0], stacked[:, i, 1]) for i in range(self._params.n_decoder_layers))


def _without_padding(waveform: tf.Tensor, n_samples: tf.Tensor) -> tf.Tensor:
    return waveform * tf.sequence_mask(n_samples, tf.shape(waveform)[1], tf.float32)


def _fitted(samples: tf.Tensor, n_samples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Samples and lengths as `model.encode` takes them: silence fills what is too short or no whole hop."""
    n_given = tf.shape(samples)[1]
    n_padded = -(-tf.maximum(n_given, shapes.MIN_SAMPLES) // shapes.HOP_LENGTH) * shapes.HOP_LENGTH
    padded = tf.pad(samples, ((0, 0), (0, n_padded - n_given)))
    return padded, tf.maximum(n_samples, shapes.MIN_SAMPLES)
