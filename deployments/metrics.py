"""What the service tells Prometheus beside what Ray and Serve tell; Ray puts `ray_` before every name.

| name, without `ray_` | type | labels | set by |
|---|---|---|---|
| soundstage_requests_total | counter | route, code | ingress |
| soundstage_request_seconds | histogram | route | ingress |
| soundstage_audio_seconds_total | counter | source | preprocessor, live |
| soundstage_real_time_factor | histogram | | preprocessor |
| soundstage_step_seconds | histogram | stage, step | every stage |
| soundstage_words_total, soundstage_speech_seconds_total | counter | | preprocessor, live |
| soundstage_sound_events_total, soundstage_sound_seconds_total | counter | label | preprocessor, live |
| soundstage_loudness_below_full_scale_lu | histogram | | preprocessor, live |
| soundstage_true_peak_exceeded_total, soundstage_unmeasurable_loudness_total | counter | | preprocessor |
| soundstage_batch_audio_seconds | histogram | stage | model stages |
| soundstage_inference_seconds_total, soundstage_inference_audio_seconds_total | counter | stage | model stages |
| soundstage_top_score | histogram | stage, version | model stages |
| soundstage_model_served, soundstage_model_refused | gauge | stage, version, model | model stages |
| soundstage_shadow_* | | stage, version, candidate | model stages |
| soundstage_live_streams | gauge | | live |
| soundstage_stream_lag_seconds, soundstage_first_partial_seconds, soundstage_final_delay_seconds, \
soundstage_sound_delay_seconds | histogram | | live |

No label holds a request, a client, a file or a text: `code` is one of `soundstage.errors`, `route` one of `ROUTES`,
`label` one of the sound model's. Ray adds labels of its own, of which WorkerId names the replica.

Three traps of Ray 2.60. A counter takes no zero: a code that never came has no series, hence `or vector(0)` in queries.
It adds an observation to a histogram's sum as the middle of its bucket, so that what must add
up is a counter beside the histogram. And it forgets a gauge that is not set anew for 20 s or so: see `LastingGauge`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge, Histogram

from deployments.answers import ServedModel
from soundstage import errors
from soundstage.live.events import Final, LevelReading, LiveEvent, Sound
from soundstage.pipeline import DEFAULT_MIN_SCORE, without_faint
from soundstage.types import ChunkAnalysis, Levels, Segment

LATENCY_BOUNDS_S = [
    0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0,
    30.0,
]  # fmt: skip
"""From a second of sound on one core to half a minute of speech on a busy one. Fine, since Ray adds an observation to
a histogram's sum as the middle of its bucket."""

STEP_BOUNDS_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
"""Of one step of one stage."""
REQUEST_BOUNDS_S = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
                    600.0]  # fmt: skip
"""From a short clip on an idle machine to the default deadline of a request."""
DELAY_BOUNDS_S = [0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 20.0]
"""Live: what a viewer notices, and what is too late for any caption."""
FACTOR_BOUNDS = [0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0]
BATCH_BOUNDS_S = [1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 75.0, 90.0, 96.0, 128.0, 192.0]
SCORE_BOUNDS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]
LOUDNESS_BOUNDS_LU = [
    5.0,
    9.0,
    12.0,
    14.0,
    16.0,
    18.0,
    20.0,
    22.0,
    23.0,
    24.0,
    26.0,
    28.0,
    31.0,
    35.0,
    40.0,
    50.0,
    70.0,
]
"""Below 0 LUFS, since Ray takes no negative bounds: 23 is the -23 LUFS of EBU R 128, 16 and 14 what music services
ask for, 70 the gate below which nothing has a loudness."""
LEVEL_PERIOD_S = 10
"""Of a live stream one reading in ten seconds is kept beside the loudness of whole files."""
MAX_TRUE_PEAK_DBTP = -1.0
"""Source: EBU R 128 (2023)."""

ROUTES = ("/v1/analyze", "/v1/audio/transcriptions", "/v1/stream", "/v1/models")
"""What requests are counted under; others are "other"."""
CODES = ("ok", "cancelled", *(error.code for error in errors.ERRORS))
"""How a request can end; "cancelled" is a client that left before its answer."""


class LastingGauge:
    """A gauge that stays: its values are set anew from a thread of the process while they are known.

    Args:
        name: For Prometheus, without `ray_`.
        description: One sentence.
        tag_keys: Its labels.
    """

    PERIOD_S = 8.0
    """Ray exports every 10 s and forgets after two exports."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()) -> None:
        self._gauge = Gauge(name, description, tag_keys)
        self._tag_keys = tag_keys
        self._values: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._keep, name=f"gauge {name}", daemon=True).start()

    def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Set one of its values."""
        key = tuple((tags or {})[name] for name in self._tag_keys)
        with self._lock:
            self._values[key] = value
            self._gauge.set(value, tags=dict(zip(self._tag_keys, key, strict=True)))

    def _keep(self) -> None:
        while True:
            time.sleep(self.PERIOD_S)
            with self._lock:
                for key, value in self._values.items():
                    self._gauge.set(value, tags=dict(zip(self._tag_keys, key, strict=True)))


class RequestMetrics:
    """Of one replica of the ingress: how requests end, by HTTP and WebSocket."""

    def __init__(self) -> None:
        self._requests = Counter(
            "soundstage_requests_total", "Requests and live streams, by how they ended.", ("route", "code")
        )
        self._seconds = Histogram(
            "soundstage_request_seconds",
            "From the first byte of a request to the last of its answer.",
            REQUEST_BOUNDS_S,
            ("route",),
        )

    def done(self, path: str, code: str, seconds: float) -> None:
        """A request has ended.

        Args:
            path: Of its URL.
            code: One of CODES.
            seconds: From its first byte to its last.
        """
        route = next((route for route in ROUTES if path == route or path.startswith(route + "/")), "other")
        self._requests.inc(tags={"route": route, "code": code})
        self._seconds.observe(seconds, tags={"route": route})


class ContentMetrics:
    """What is heard, of files and of live streams.

    Args:
        source: "file" or "live".
    """

    def __init__(self, source: str) -> None:
        self._audio_s = Counter(
            "soundstage_audio_seconds_total", "Audio that was analysed, in seconds.", ("source",)
        ).set_default_tags({"source": source})
        self._words = Counter("soundstage_words_total", "Words that were written down.")
        self._speech_s = Counter("soundstage_speech_seconds_total", "Speech that was written down, in seconds.")
        self._events = Counter("soundstage_sound_events_total", "Sounds that were heard.", ("label",))
        self._sound_s = Counter("soundstage_sound_seconds_total", "How long sounds were heard, in seconds.", ("label",))
        self._loudness = Histogram(
            "soundstage_loudness_below_full_scale_lu",
            "Integrated loudness of files, short-term loudness of live streams: LU below 0 LUFS.",
            LOUDNESS_BOUNDS_LU,
        )
        self._too_hot = Counter(
            "soundstage_true_peak_exceeded_total", "Clips whose true peak is above -1 dBTP, the limit of EBU R 128."
        )
        self._unmeasurable = Counter(
            "soundstage_unmeasurable_loudness_total", "Clips without loudness: silent, or shorter than 0.4 s."
        )

    def chunk(self, analysis: ChunkAnalysis) -> None:
        """One more piece of a file was analysed."""
        self.audio(analysis.end_s - analysis.start_s)
        for segment in analysis.segments:
            self.segment(segment)
        for event in without_faint(analysis, DEFAULT_MIN_SCORE).events:
            self.sound(event.label, event.end_s - event.start_s)

    def segment(self, segment: Segment) -> None:
        """Something was written down for good."""
        self._words.inc(len(segment.text.split()))
        _add(self._speech_s, segment.end_s - segment.start_s)

    def sound(self, label: str, seconds: float) -> None:
        """A sound was heard for so long."""
        self._events.inc(tags={"label": label})
        _add(self._sound_s, seconds, label=label)

    def audio(self, seconds: float) -> None:
        """So much more audio was analysed."""
        _add(self._audio_s, seconds)

    def loudness(self, lufs: float | None) -> None:
        """Of a clip, or of a live stream once every few seconds; None where there is none."""
        if lufs is None or not math.isfinite(lufs):
            self._unmeasurable.inc()
        else:
            self._loudness.observe(max(0.1, -lufs))

    def levels(self, levels: Levels) -> None:
        """Of a whole clip."""
        self.loudness(levels.integrated_lufs)
        if levels.true_peak_dbtp is not None and levels.true_peak_dbtp > MAX_TRUE_PEAK_DBTP:
            self._too_hot.inc()


class StepMetrics:
    """Where the time of a stage goes.

    Args:
        stage: Name of the deployment.
    """

    def __init__(self, stage: str) -> None:
        self._seconds = Histogram(
            "soundstage_step_seconds",
            "Time of one step of a stage: upload, decode, queue, inference, network, render.",
            STEP_BOUNDS_S,
            ("stage", "step"),
        ).set_default_tags({"stage": stage})

    def observe(self, step: str, seconds: float) -> None:
        """A step took so long."""
        self._seconds.observe(max(0.0, seconds), tags={"step": step})

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Around a step, whether it succeeds or not."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.observe(step, time.perf_counter() - start_s)


class ClipMetrics:
    """Of whole files, in one replica of the preprocessor."""

    def __init__(self) -> None:
        self._factor = Histogram(
            "soundstage_real_time_factor",
            "Time from the start of decoding to the last result, over the length of the audio.",
            FACTOR_BOUNDS,
        )

    def done(self, *, audio_s: float, seconds: float) -> None:
        """A clip is analysed."""
        if audio_s > 0:
            self._factor.observe(seconds / audio_s)


class LiveMetrics:
    """Of the live streams of one replica.

    Lag and delays are by the clock of the stream: how long after a sample was said its result was sent.
    """

    def __init__(self) -> None:
        self._content = ContentMetrics("live")
        self._streams = LastingGauge("soundstage_live_streams", "Live streams that are open.")
        self._lag = self._delay("stream_lag", "How far analysis is behind what has arrived of a live stream.")
        self._first_partial = self._delay(
            "first_partial", "From the beginning of a live phrase to its first text, partial or final."
        )
        self._final = self._delay("final_delay", "From the end of what is said to its final text.")
        self._sound = self._delay("sound_delay", "From the start of a sound to its first event.")

    @staticmethod
    def _delay(name: str, description: str) -> Histogram:
        return Histogram(f"soundstage_{name}_seconds", description, DELAY_BOUNDS_S)

    def streams(self, n_streams: int) -> None:
        """So many are open now; 0 at the start of the replica, so that there is a series."""
        self._streams.set(n_streams)

    def stream_lag(self, seconds: float) -> None:
        """Of one stream, every few seconds."""
        self._lag.observe(max(0.0, seconds))

    def first_partial(self, seconds: float) -> None:
        """Once a stream that has speech."""
        self._first_partial.observe(max(0.0, seconds))

    def final_delay(self, seconds: float) -> None:
        """Once a final segment."""
        self._final.observe(max(0.0, seconds))

    def sound_delay(self, seconds: float) -> None:
        """Once an event."""
        self._sound.observe(max(0.0, seconds))

    def audio(self, seconds: float) -> None:
        """So much more of a stream was analysed."""
        self._content.audio(seconds)

    def heard(self, event: LiveEvent) -> None:
        """What a stream was told; counts what is final."""
        match event:
            case Final():
                self._content.segment(event.segment)
            case Sound(state="confirmed", end_s=float(end_s)):
                self._content.sound(event.label, end_s - event.start_s)
            case LevelReading() if int(event.end_s) % LEVEL_PERIOD_S == 0:
                self._content.loudness(event.short_term_lufs)
            case _:
                pass


class StageMetrics:
    """Of one replica of a model stage.

    Args:
        stage: Name of the deployment.

    Attributes:
        steps: Where its time goes.
    """

    def __init__(self, stage: str) -> None:
        tags = {"stage": stage}
        pair = ("stage", "version", "candidate")
        self._served = Gauge(
            "soundstage_model_served",
            "1 for the model version that the replica serves, 0 for those that it served before.",
            ("stage", "model", "version"),
        ).set_default_tags(tags)
        self._refused = Gauge(
            "soundstage_model_refused",
            "1 while the replica was asked for this version, or as a candidate, and cannot take it.",
            ("stage", "version"),
        ).set_default_tags(tags)
        self._compared = Counter(
            "soundstage_shadow_compared_total", "Requests that a candidate ran on too.", pair
        ).set_default_tags(tags)
        self._agreed = Counter(
            "soundstage_shadow_agreed_total", "Those on which it agreed with the model that serves.", pair
        ).set_default_tags(tags)
        self._dropped = Counter(
            "soundstage_shadow_dropped_total", "Requests that were left out since the replica is busy.", pair
        ).set_default_tags(tags)
        self._failed = Counter(
            "soundstage_shadow_failed_total", "Requests on which the candidate broke.", pair
        ).set_default_tags(tags)
        self._served_s = Histogram(
            "soundstage_shadow_served_seconds",
            "Time of the model that serves, on a compared request alone.",
            LATENCY_BOUNDS_S,
            pair,
        ).set_default_tags(tags)
        self._candidate_s = Histogram(
            "soundstage_shadow_candidate_seconds",
            "Time of the candidate, on the same request alone.",
            LATENCY_BOUNDS_S,
            pair,
        ).set_default_tags(tags)
        self.steps = StepMetrics(stage)
        self._batch_s = Histogram(
            "soundstage_batch_audio_seconds", "Audio in one batch, in seconds.", BATCH_BOUNDS_S, ("stage",)
        ).set_default_tags(tags)
        self._inference_s = Counter(
            "soundstage_inference_seconds_total", "Time in which the model ran.", ("stage",)
        ).set_default_tags(tags)
        self._audio_s = Counter(
            "soundstage_inference_audio_seconds_total", "Audio that the model ran on, in seconds.", ("stage",)
        ).set_default_tags(tags)
        self._score = Histogram(
            "soundstage_top_score",
            "Score of a chunk's likeliest label; of speech, the mean probability of a segment's tokens.",
            SCORE_BOUNDS,
            ("stage", "version"),
        ).set_default_tags(tags)
        self._shown: dict[str, set[tuple[str, ...]]] = {"served": set(), "refused": set()}

    def show(self, state: ServedModel) -> None:
        """What the replica serves, and what it was refused."""
        refusals = [state.refused, state.candidate.refused if state.candidate is not None else None]
        served: set[tuple[str, ...]] = {(state.card.name, state.card.version)}
        refused: set[tuple[str, ...]] = {(refusal.version or "",) for refusal in refusals if refusal is not None}
        self._mark("served", self._served, ("model", "version"), served)
        self._mark("refused", self._refused, ("version",), refused)

    @contextmanager
    def batch(self, audio_s: float) -> Iterator[None]:
        """Around the model's run on one batch.

        Args:
            audio_s: Audio in it.
        """
        start_s = time.perf_counter()
        yield
        seconds = time.perf_counter() - start_s
        self.steps.observe("inference", seconds)
        self._batch_s.observe(audio_s)
        _add(self._inference_s, seconds)
        _add(self._audio_s, audio_s)

    def scores(self, version: str, scores: Iterable[float]) -> None:
        """How sure the model was; drift shows in how these are distributed."""
        for score in scores:
            self._score.observe(score, tags={"version": version})

    def compared(self, version: str, candidate: str, *, agreed: bool, served_s: float, candidate_s: float) -> None:
        """Both models have answered."""
        tags = {"version": version, "candidate": candidate}
        self._compared.inc(tags=tags)
        if agreed:
            self._agreed.inc(tags=tags)
        self._served_s.observe(served_s, tags=tags)
        self._candidate_s.observe(candidate_s, tags=tags)

    def dropped(self, version: str, candidate: str) -> None:
        """A request was left out."""
        self._dropped.inc(tags={"version": version, "candidate": candidate})

    def failed(self, version: str, candidate: str) -> None:
        """The candidate broke."""
        self._failed.inc(tags={"version": version, "candidate": candidate})

    def _mark(self, name: str, gauge: Gauge, keys: tuple[str, ...], current: set[tuple[str, ...]]) -> None:
        for values in self._shown[name] | current:
            gauge.set(int(values in current), tags=dict(zip(keys, values, strict=True)))
        self._shown[name] |= current


def _add(counter: Counter, value: float, **tags: str) -> None:
    """Ray's counters refuse zero."""
    if value > 0:
        counter.inc(value, tags=tags)
