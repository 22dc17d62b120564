"""Frozen parameters: limits of what is accepted, and how audio is cut and looked at.

Each number lives here once. Those that belong to a trained model are saved beside its weights and read back from
there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from soundstage.types import SAMPLE_RATE


class Params(BaseModel):
    """Base of all parameters: frozen, and a misspelt name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(Params):
    """What one request may bring. Checked while reading, not after."""

    max_upload_bytes: int = Field(512 * 1024**2, gt=0)
    max_duration_s: float = Field(4 * 3600.0, gt=0)
    max_channels: int = Field(64, gt=0)
    min_sample_rate: int = Field(8_000, gt=0)
    max_sample_rate: int = Field(192_000, gt=0)


class VoiceActivityParams(Params):
    """How frame probabilities become speech regions.

    Source: Silero's reference iterator (github.com/snakers4/silero-vad, utils_vad.py, get_speech_timestamps).
    """

    threshold: float = Field(0.5, ge=0, le=1)
    """A frame at or above it starts speech."""
    release_threshold: float = Field(0.35, ge=0, le=1)
    """Below it for min_silence_s, speech ends."""
    min_speech_s: float = Field(0.25, ge=0)
    min_silence_s: float = Field(0.6, ge=0)
    """A shorter pause stays inside its region."""
    min_peak: float = Field(0.97, ge=0, le=1)
    """A span in which no frame reaches it is a sound that resembles a voice. Measured: every phrase of LJ Speech does,
    at 0 dB of noise too; nine of ten of the spans that barking, crying and laughing open in ESC-50 stay below 0.98."""
    padding_s: float = Field(0.2, ge=0)
    """Added on both sides, as far as the neighbour allows."""


class ChunkParams(Params):
    """How a stream is cut.

    Source: Moonshine was trained on at most 30 s (arXiv:2410.15608).
    """

    max_duration_s: float = Field(30.0, gt=1)
    min_duration_s: float = Field(20.0, gt=0)
    """Once a chunk is this long, it ends at the next silence."""
    max_region_s: float = Field(15.0, gt=1)
    """Longer speech is cut where the voice is least certain."""
    context_s: float = Field(1.0, ge=0)
    """What is heard with speech that was cut, on the other side of the cut; a chunk carries it along."""


class LevelParams(Params):
    """What counts as silence in the level report."""

    silence_dbfs: float = Field(-60.0, lt=0)
    min_silence_s: float = Field(2.0, gt=0)


class FeatureParams(Params):
    """Log-mel spectrogram, in librosa's terms.

    The defaults are YAMNet's front end. Source: github.com/tensorflow/models, research/audioset/yamnet/features.py.
    """

    sample_rate: int = SAMPLE_RATE
    n_fft: int = 512
    win_length: int = 400
    hop_length: int = 160
    n_mels: int = 64
    fmin_hz: float = 125.0
    fmax_hz: float = 7500.0
    power: float = 1.0
    log_offset: float = 0.001
    mel_interpolation: Literal["hz", "mel"] = "mel"
    """Triangles are straight in hertz (librosa) or in mel (tf.signal, which YAMNet was trained with)."""


class CaptionParams(Params):
    """What a reader can follow.

    Source: Netflix Timed Text Style Guide, General Requirements (two lines, 7 s, gaps of two frames, 0.5 s to close
    a gap) and English (42 characters, 20 characters a second for adult programmes); BBC Subtitle Guidelines, 4
    (timing) for the minimum.
    """

    max_lines: int = Field(2, ge=1, le=2)
    max_line_chars: int = Field(42, ge=16)
    min_duration_s: float = Field(1.0, gt=0)
    max_duration_s: float = Field(7.0, gt=1)
    max_chars_per_s: float = Field(20.0, gt=0)
    """Spaces count."""
    min_gap_s: float = Field(0.084, ge=0)
    """Two frames at 24 frames a second. Closer captions would flicker."""
    max_lead_s: float = Field(0.5, ge=0)
    """A caption may come this much before its first word where it would else be too short to read."""
    max_pause_s: float = Field(1.0, gt=0)
    """Words further apart never share a caption."""


class SdhParams(Params):
    """Which sounds a caption reader is told of, and when.

    Source: Netflix Timed Text Style Guide, English, I (sounds that matter to the plot, not every one); DCMP
    Captioning Key, Sound Effects; the numbers are ours, set by reading the result.
    """

    min_score: float = Field(0.5, ge=0, le=1)
    min_score_under_speech: float = Field(0.65, ge=0, le=1)
    min_score_faint: float = Field(0.8, ge=0, le=1)
    """For sounds that hardly ever matter, such as mouse clicks and breathing."""
    short_s: float = Field(0.4, ge=0)
    """Under speech, a sound shorter than this must be as certain as a faint one."""
    repeat_s: float = Field(5.0, ge=0)
    """The same sound again after a shorter pause is the same caption."""
    ambience_repeat_s: float = Field(30.0, ge=0)
    """The same for sounds that last, such as rain, engines and music."""
    min_duration_s: float = Field(1.5, gt=0)
    """Longer than for speech: a label says something new (BBC Subtitle Guidelines, 4.3.3)."""
    max_duration_s: float = Field(3.0, gt=0)
    max_shift_s: float = Field(3.0, ge=0)
    """How far from its start a sound may be shown; ambience may wait until it ends."""


class MoonshineParams(Params):
    """Shape of the speech model. The defaults are Moonshine tiny's.

    Source: arXiv:2410.15608, table 1, and the published graph of the model.
    """

    sample_rate: int = SAMPLE_RATE
    hidden_size: int = Field(288, gt=0)
    n_heads: int = Field(8, gt=0)
    n_encoder_layers: int = Field(6, gt=0)
    n_decoder_layers: int = Field(6, gt=0)
    rotary_size: int = Field(32, gt=0, multiple_of=2)
    """Dimensions of each head that carry the position; the others do not turn."""
    rotary_base: float = Field(10_000.0, gt=1)
    norm_epsilon: float = Field(1e-5, gt=0)
    vocabulary_size: int = Field(32_768, gt=0)
    start_token_id: int = 1
    end_token_id: int = 2
    alignment_layer: int = Field(3, ge=0)
    """Decoder layer whose cross-attention looks at what the next token writes down; counted from 0."""
    alignment_heads: tuple[int, ...] = (0, 4, 5, 7)
    """Its heads that do; none for a model that gives no word times.

    Measured: chosen one after the other for the least error of word starts on the tuning clips of
    benchmarks/word_times.py. With four heads of any layers it is 0.3 ms less, with eight 3 ms.
    """


class DecodingParams(Params):
    """When the speech model stops, and when its text is not believed."""

    max_tokens_per_s: float = Field(6.5, gt=0)
    """A row is cut off beyond it. Source: the reference implementation, github.com/moonshine-ai/moonshine."""
    silence_s: float = Field(0.2, ge=0)
    """Digital silence put before and after each region: the model spells better what does not start at once."""
    min_avg_logprob: float = Field(-0.7, le=0)
    """Text that the model itself holds less probable than this, on average over its tokens, is dropped.

    Measured: of 128 phrases under 1.6 s none lies below -0.61, of 98 texts invented for ESC-50's sounds half do.
    """
    filler_texts: tuple[str, ...] = ("You", "Thank you for watching.", "Thank you for watching!")
    """What the model writes for noise and silence, to the letter; a spoken "You." has its full stop."""
    max_compression_ratio: float = Field(2.4, gt=1)
    """Text that zlib shrinks further repeats itself. Source: Whisper (arXiv:2212.04356), 4.5."""
    min_retry_s: float = Field(2.0, gt=0.5)
    """Where the model lost its way in so much audio, it is asked again for each half, and so on; in less, the text is
    dropped. Somebody who says one sentence nine times is written down so."""
    max_batch_s: float = Field(80.0, gt=0)
    """Padded audio that is decoded together."""


class LabelEventParams(Params):
    """How the scores of one label become events. The numbers were set on mixes with known times, see training."""

    on_score: float = Field(0.5, ge=0, le=1)
    """A frame at or above it starts an event."""
    off_score: float = Field(0.25, ge=0, le=1)
    """A frame below it ends the event."""
    n_median_frames: int = Field(1, ge=1, le=31)
    """Scores are first smoothed by the median of so many frames; odd, and 1 leaves them as they are."""
    n_min_frames: int = Field(1, ge=1)
    """Scores that stay up for fewer frames are chance."""
    max_gap_s: float = Field(0.6, ge=0)
    """The same sound again after a shorter gap is the same event."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.off_score > self.on_score:
            raise ValueError(f"off_score {self.off_score} must not lie above on_score {self.on_score}")
        if self.n_median_frames % 2 == 0:
            raise ValueError(f"n_median_frames must be odd, got {self.n_median_frames}")
        return self


class EventParams(LabelEventParams):
    """How frame scores become events: for all labels, and what differs for some."""

    response_s: float = 0.16
    """How much of a sound the window of a frame holds when its score rises past on_score."""
    release_s: float = 0.0
    """How much of it the window still holds when the score falls below off_score."""
    min_duration_s: float = Field(0.2, ge=0)
    """What is reported of sounds too short to measure."""
    by_label: dict[str, LabelEventParams] = Field(default_factory=dict)
    """Labels that have parameters of their own, all of them."""

    def of(self, label: str) -> LabelEventParams:
        """The parameters of one label."""
        return self.by_label.get(label, self)


class ClientParams(Params):
    """How patiently the command line asks the service."""

    n_attempts: int = Field(6, ge=1)
    """At a service that is busy or cannot be reached; with the waits below it takes 15 s to give up."""
    first_wait_s: float = Field(0.5, ge=0)
    """Doubles with every attempt; Retry-After, where the service sends it, is the least."""
    max_wait_s: float = Field(60.0, ge=0)
    connect_timeout_s: float = Field(5.0, gt=0)
    read_timeout_s: float = Field(630.0, gt=0)
    """Without one byte of an answer. A little more than the service gives a whole request."""


class AlignmentParams(Params):
    """How attention and level become the times of words.

    Measured: set on the tuning clips of benchmarks/word_times.py; none of them matters much by itself.
    """

    attention_floor: float = Field(0.001, gt=0)
    """Added to the attention before its logarithm is taken: a frame that a token does not look at costs 7."""
    pause_cost: float = Field(3.0, ge=0)
    """Of a frame in a pause, like the attention of 0.05 of a token."""
    level_weight: float = Field(1.0, ge=0)
    """Of the logarithm of how sure it is that a frame is quiet, against that of the attention."""
    doubt: float = Field(0.001, gt=0)
    """Added to that certainty."""
    pause_depth_db: float = Field(40.0, gt=0)
    """A pause is so far below the voice,"""
    room_margin_db: float = Field(8.0, gt=0)
    """or, in a louder room, so little above the room,"""
    min_pause_depth_db: float = Field(12.0, gt=0)
    """but at least so far below the voice."""
    softness_db: float = Field(5.0, gt=0)
    """From the limit to where it is 73 % sure."""


class HintParams(Params):
    """How far names that are expected weigh, in natural logarithms, and how many there may be."""

    max_phrases: int = Field(300, ge=1)
    max_chars: int = Field(60, ge=1)
    """Of one phrase."""
    max_total_chars: int = Field(6_000, ge=1)
    """Of the list."""
    start_bonus: float = Field(4.0, ge=0)
    """Of a token that begins a phrase."""
    continue_bonus: float = Field(6.0, ge=0)
    """Of a token that goes on with the phrase that was begun."""
    phrase_bonus: float = Field(8.0, ge=0)
    """How much less probable the text may be for each phrase more that it holds."""


class SpanParams(Params):
    """Which regions of speech are decoded together."""

    max_pause_s: float = Field(1.0, ge=0)
    """Between them."""
    max_duration_s: float = Field(15.0, gt=0)
    """All in all."""


class RemoteModelParams(Params):
    """Where TensorFlow Serving runs the model.

    Attributes:
        target: HOST:PORT of its gRPC interface; dns:///HOST:PORT spreads calls over all addresses of a name.
        deadline_s: For one batch.
        ca_file: Certificates that the server's is checked with; None speaks without encryption.
        max_answer_bytes: gRPC's own limit of 4 MiB is less than the scores of 20 min of audio.
    """

    target: str = Field(min_length=1)
    deadline_s: float = Field(30.0, gt=0)
    ca_file: Path | None = None
    max_answer_bytes: int = Field(64 * 1024**2, gt=0)


class LiveParams(Params):
    """How a live stream is followed.

    Measured on LJ Speech: 4,761 words of ordinary reading, of which files have 4.24 % wrong, and 2,608 words with
    pauses of 0.5 to 1 s within sentences (4.91 %); latencies on the programmes of benchmarks/streaming.py, with 60 ms
    for a look and 50 ms and 30 ms for each second of audio for a text.
    """

    voice_activity: VoiceActivityParams = VoiceActivityParams(min_silence_s=0.4)
    """An utterance ends after min_silence_s.

    Measured: with 0.4 s 4.24 % of the words are wrong, with 0.38 s 4.39 %, with 0.32 s 4.43 %, with 0.29 s 4.49 %.
    """
    tail_s: float = Field(0.224, gt=0)
    """After its voice, an utterance holds so much; it is written down as soon as that was heard.

    Measured on sentences cut close, of which 5.07 % of the words are wrong with 0.224 s: 5.20 % with 0.192 s, 5.34 %
    with 0.16 s, 5.48 % with 0.128 s. In two hours of programmes, whose files have 4.30 % wrong: 4.50 % with 0.224 s,
    4.62 % with 0.192 s, 4.67 % with 0.16 s. Finals come as much later as it is longer.
    """
    long_utterance_s: float = Field(8.0, gt=1)
    """A longer one ends as soon as tail_s of silence were heard.

    Measured: 4.24 % with 8 s, 4.37 % with 6 s, 4.31 % with 10 s; without it, one in six is cut where there is no pause.
    """
    max_utterance_s: float = Field(15.0, gt=1)
    """A longer one is cut where the voice is least certain in its second half."""
    context: SpanParams = SpanParams(max_duration_s=8.0)
    """What was said before, and is heard again so that the final is written in its context.

    Measured with long pauses: 6.60 % without, 5.87 % with 5 s, 5.06 % with 8 s, 5.25 % with 15 s, all in all. Finals
    hear 1.5 s for each second of the stream with 8 s, 2.5 s with 15 s.
    """
    first_hypothesis_s: float = Field(0.3, gt=0)
    """After the voice begins."""
    first_interval_s: float = Field(0.2, gt=0)
    """New audio for each further one as long as nothing is written.

    Measured: 95 of 100 first partials come within 0.7 s of the voice, with hypothesis_interval_s instead 1.0 s.
    """
    hypothesis_interval_s: float = Field(0.5, gt=0)
    """New audio for each further one. Measured: 0.64 s costs a fifth less, and 2.3 % instead of 1.6 % of the committed
    words are others in the final."""
    patience: float = Field(2.0, ge=1)
    """A hypothesis or a look that took longer than its interval is followed by the next one after so many times as
    long, but not later than all that it hears is new: where the models are busy, streams ask less often."""
    max_hypothesis_s: float = Field(3.5, gt=1)
    """Audio that a hypothesis is made from; what lies before is committed.

    Measured: with 5 s 19 of 408 committed words are others in the final, with 4 s 20, with 3.5 s 21 of 409; together
    hypotheses hear 792 s, 695 s and 657 s for 300 s of a programme.
    """
    n_tentative_words: int = Field(1, ge=0)
    """The last words of a hypothesis, which may be cut off, are never committed. Measured: two change nothing."""
    look_s: float = Field(2.56, gt=0)
    """Audio that an early sound is looked for in.

    Measured: of 29 sounds between sentences, 95 of 100 are told of within 1.2 s with 1.92 and 2.56 s, within 1.4 s with
    4.8 s; 21 %, 17 % and 15 % of those told of are withdrawn, and a look takes 16, 19 and 27 ms.
    """
    look_interval_s: float = Field(0.2, gt=0)
    """New audio for each look. Measured: of 54 sounds in 4 streams, 95 of 100 are told of within 1.11 s, with 0.32 s
    within 1.23 s."""
    speech_look_interval_s: float = Field(0.64, gt=0)
    """The same while somebody speaks: captions of sounds wait for the words then."""
    early_score_share: float = Field(0.4, gt=0, le=1)
    """Of the score at which a sound starts for good, what it is told of early for: its newest step knows nothing of
    what follows, and scores less.

    Measured on 52 sounds between sentences, in blocks of 0.2 s whose looks cost nothing: 95 of 100 are told of by their
    name within 1.08 s with 0.8, 1.04 s with 0.6, 0.94 s with 0.4 and 0.2; of what is told early, 23 %, 25 %, 27 % and
    26 % are withdrawn.
    """
    max_news_s: float = Field(2.56, gt=0)
    """A sound that ended longer ago is not told of early."""
    sound_hangover_s: float = Field(0.64, ge=0)
    """A sound that is not heard for so long has ended."""
    same_sound_s: float = Field(1.5, ge=0)
    """An early sound within so much of a confirmed one is the same."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.tail_s > self.voice_activity.min_silence_s:
            raise ValueError("an utterance must not end before its tail is heard")
        return self


class LiveClientParams(Params):
    """How a client of a live stream holds on to it."""

    connect_timeout_s: float = Field(5.0, gt=0)
    n_first_attempts: int = Field(6, ge=1)
    """Until the first stream begins; with the waits below it takes 13 s to give up."""
    n_attempts: int = Field(60, ge=1)
    """Without any audio heard in between, once it has begun: about five minutes."""
    first_wait_s: float = Field(0.5, ge=0)
    """Doubles with every attempt."""
    max_wait_s: float = Field(5.0, ge=0)
    n_resumes: int = Field(4, ge=1)
    """Attempts at a service that does not know the stream: another replica of it may."""
    ping_s: float = Field(10.0, gt=0)
    """Of silence of the connection, and as long again for the answer: one that is half open is found out in 20 s."""
    max_ahead_s: float = Field(20.0, gt=1)
    """Audio that is sent beyond what the service has told of: else minutes of it would lie in buffers on the way."""
    max_history_s: float = Field(30.0, gt=0)
    """Audio that is kept behind it, from the end of the last final on: what a new stream would have to hear again."""
    max_unsent_s: float = Field(60.0, gt=0)
    """Audio that waits to be heard; a source that cannot wait loses what is older."""
    progress_s: float = Field(10.0, gt=0)
    """Of audio heard beyond the last failure until failures are counted from one again."""
    handover_s: float = Field(5.0, ge=0)
    """How long a stream on a server that is going down may go on until a pause, where it is parted."""
