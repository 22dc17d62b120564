"""Speech regions to segments of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from soundstage.errors import ModelError, SampleRateMismatch
from soundstage.models.registry import ModelCard, ModelFolder
from soundstage.models.runtime import limit_threads
from soundstage.params import AlignmentParams, DecodingParams, HintParams, MoonshineParams
from soundstage.speech.alignment import Utterance, align, confidences, timed_words, tokens_of_words
from soundstage.speech.decoding import Decoded, GreedyDecoder
from soundstage.speech.fallback import halves, is_astray, joined
from soundstage.speech.hinting import tables
from soundstage.speech.hints import Hints, is_better, n_found
from soundstage.speech.tokenizer import TOKENIZER_NAME, Tokenizer
from soundstage.types import Segment, Waveform, Word


class Transcriber:
    """The speech model, ready to write.

    Args:
        folder: Of the registry, kind "speech".
        params: When the model stops, and when its text is not believed.
        n_threads: For TensorFlow; None leaves the choice to it.

    Raises:
        ModelError: The folder holds another kind of model, or files that do not fit.
    """

    def __init__(
        self, folder: ModelFolder, params: DecodingParams | None = None, *, n_threads: int | None = None
    ) -> None:
        if folder.card.kind != "speech":
            raise ModelError(f"{folder.card.name} is a {folder.card.kind} model, not one for speech")
        if n_threads is not None:
            limit_threads(n_threads)
        self.card: ModelCard = folder.card
        self.params = params or DecodingParams()
        self._model_params = folder.params(MoonshineParams)
        self._tokenizer = Tokenizer.read(folder.path / TOKENIZER_NAME)
        if len(self._tokenizer) != self._model_params.vocabulary_size:
            raise ModelError(f"the tokenizer in {folder.path} knows {len(self._tokenizer)} tokens, the model others")
        self._n_silence = round(self.params.silence_s * self._model_params.sample_rate)
        self._alignment_params = AlignmentParams()
        self.hint_params = HintParams()
        self._decoder = GreedyDecoder(folder.weights(), self._model_params, self.hint_params)

    def warm_up(self) -> None:
        """Run once, so that the first request does not pay for it; one graph serves all lengths, another all drafts.

        Raises:
            RuntimeError: The output is not finite.
        """
        self.probe()
        self._decoder.decode([np.zeros(self._model_params.sample_rate, np.float32)], [2], drafts=[[0]])

    def probe(self) -> None:
        """Run on a second of silence.

        Raises:
            RuntimeError: The output is not finite.
        """
        silence = np.zeros(self._model_params.sample_rate, np.float32)
        if not math.isfinite(self._decoder.decode([silence], [1])[0].avg_logprob):
            raise RuntimeError(f"{self.card.name} {self.card.version} gives probabilities that are not finite")

    def transcribe(
        self,
        waveforms: Sequence[Waveform],
        hints: Sequence[Hints] | None = None,
        drafts: Sequence[str] | None = None,
    ) -> list[Segment | None]:
        """Write down what is said in each waveform; the same whatever else is in the batch.

        Args:
            waveforms: Speech regions, 16 kHz, at most 30 s each: the model was trained on no longer ones.
            hints: Of each waveform, names and words that it may hold.
            drafts: Of each waveform, what its text may begin with, empty where nothing is known. What was expected
                rightly is written at once; nothing else changes.

        Returns:
            One for each waveform, with its times and those of its words; None where there is no text that can be
            believed.

        Raises:
            SampleRateMismatch: A waveform has another rate than the model.
        """
        for waveform in waveforms:
            if waveform.sample_rate != self._model_params.sample_rate:
                raise SampleRateMismatch(
                    f"the waveform has {waveform.sample_rate} Hz, the model {self._model_params.sample_rate} Hz"
                )
        segments, astray = self._written(waveforms, hints, drafts)
        retried = [i for i in astray if waveforms[i].duration_s >= self.params.min_retry_s]
        if retried:
            pieces = [piece for i in retried for piece in halves(waveforms[i])]
            others = self.transcribe(pieces, None if hints is None else [hints[i] for i in retried for _ in range(2)])
            for i, *pair in zip(retried, others[::2], others[1::2], strict=True):
                segments[i] = joined(waveforms[i], pair)
        return segments

    def _written(
        self, waveforms: Sequence[Waveform], hints: Sequence[Hints] | None, drafts: Sequence[str] | None
    ) -> tuple[list[Segment | None], list[int]]:
        """What is believed of what the model writes, and where it lost its way."""
        segments: list[Segment | None] = [None] * len(waveforms)
        astray: list[int] = []
        silence = np.zeros(self._n_silence, np.float32)
        for indices in self._batches(waveforms):
            batch = [np.concatenate([silence, waveforms[i].samples, silence]) for i in indices]
            max_tokens = [math.ceil(self.params.max_tokens_per_s * self._padded_s(waveforms[i])) for i in indices]
            if drafts is None:
                decoded = self._decoder.decode(batch, max_tokens)
            else:
                expected = [self._tokenizer.encode(drafts[i]) for i in indices]
                decoded = self._decoder.decode(batch, max_tokens, drafts=expected)
            if hints is not None:
                decoded = self._hinted(decoded, batch, max_tokens, [hints[i] for i in indices])
            words = self._words([waveforms[i] for i in indices], batch, decoded)
            for i, row, row_words in zip(indices, decoded, words, strict=True):
                text = self._tokenizer.decode(row.token_ids)
                if self._is_astray(text, row):
                    astray.append(i)
                elif self._is_believable(text, row):
                    segments[i] = self._segment(waveforms[i], text, row, row_words)
        return segments, astray

    def _padded_s(self, waveform: Waveform) -> float:
        return waveform.duration_s + 2 * self.params.silence_s

    def _batches(self, waveforms: Sequence[Waveform]) -> list[list[int]]:
        """Indices of waveforms of like length, together at most max_batch_s long once padded to the longest."""
        batches: list[list[int]] = []
        for i in sorted(range(len(waveforms)), key=lambda i: -len(waveforms[i].samples)):
            if not len(waveforms[i].samples):
                continue
            longest = waveforms[batches[-1][0]] if batches else None
            if longest is None or (len(batches[-1]) + 1) * self._padded_s(longest) > self.params.max_batch_s:
                batches.append([])
            batches[-1].append(i)
        return batches

    def _hinted(
        self,
        decoded: Sequence[Decoded],
        batch: Sequence[NDArray[np.float32]],
        max_tokens: Sequence[int],
        hints: Sequence[Hints],
    ) -> list[Decoded]:
        """What is written with hints, where the model does not hold it too much less probable than without."""
        chosen = list(decoded)
        rows = [row for row, phrases in enumerate(hints) if phrases]
        if not rows:
            return chosen
        trees = tables([hints[row] for row in rows], self._tokenizer)
        led = self._decoder.decode([batch[row] for row in rows], [max_tokens[row] for row in rows], trees)
        for row, other in zip(rows, led, strict=True):
            text, plain_text = (self._tokenizer.decode(each.token_ids) for each in (other, decoded[row]))
            gain = n_found(hints[row], text) - n_found(hints[row], plain_text)
            is_sound = self._is_believable(text, other) and not self._is_astray(text, other)
            if is_sound and is_better(gain, other.logprob, decoded[row].logprob, self.hint_params):
                chosen[row] = other
        return chosen

    def _words(
        self, waveforms: Sequence[Waveform], batch: Sequence[NDArray[np.float32]], decoded: Sequence[Decoded]
    ) -> list[tuple[Word, ...]]:
        """Of each waveform; none where the model does not tell where it looked."""
        words: list[tuple[Word, ...]] = [()] * len(decoded)
        traces = {row: result.trace for row, result in enumerate(decoded) if result.trace is not None}
        tokens = {row: tokens_of_words(self._tokenizer, decoded[row].token_ids) for row in traces}
        utterances = [
            Utterance(samples=batch[row], n_silence=self._n_silence, attention=trace.attention, words=tokens[row])
            for row, trace in traces.items()
        ]
        for row, spans in zip(traces, align(utterances, self._alignment_params), strict=True):
            token_ids = decoded[row].token_ids
            words[row] = timed_words(
                self._tokenizer.decode(token_ids).split(),
                spans,
                confidences(self._tokenizer, token_ids, traces[row].logprobs, tokens[row]),
                start_s=waveforms[row].start_s,
                end_s=waveforms[row].end_s,
            )
        return words

    @staticmethod
    def _segment(waveform: Waveform, text: str, decoded: Decoded, words: tuple[Word, ...]) -> Segment:
        return Segment(
            start_s=waveform.start_s,
            end_s=waveform.end_s,
            text=text,
            words=words,
            avg_logprob=min(decoded.avg_logprob, 0.0),
        )

    def _is_astray(self, text: str, decoded: Decoded) -> bool:
        return is_astray(text, has_ended=decoded.has_ended, params=self.params)

    def _is_believable(self, text: str, decoded: Decoded) -> bool:
        return (
            decoded.avg_logprob >= self.params.min_avg_logprob
            and any(character.isalnum() for character in text)
            and text not in self.params.filler_texts
        )
