"""Every setting of the service, typed, in one place; serve_config.yaml fills it in under `args`.

What an operator changes while the service runs is in the `user_config` of each deployment, with the classes at the
end of this module.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from soundstage.models.registry import ModelSources, Name, VersionOrAlias, told
from soundstage.params import DecodingParams, EventParams, LiveParams, Params, RemoteModelParams, SdhParams
from soundstage.pipeline import DEFAULT_MIN_SCORE, SOUND_MODEL, SPEECH_MODEL, ReadingParams

_log = logging.getLogger(__name__)


class AuthSettings(Params):
    """Who may call.

    Attributes:
        api_keys_file: Lines of `name:sha256 of the key`; see `soundstage keys`. Without it the service answers
            anyone, and refuses to start unless it listens on the loopback interface alone.
    """

    api_keys_file: Path | None = None


class Deadlines(Params):
    """How long each stage may take, in seconds, before the client is answered 504."""

    request_s: float = Field(600.0, gt=0)
    """The whole request, upload included."""
    chunk_s: float = Field(60.0, gt=0)
    """One chunk of audio through the models, queueing included."""
    probe_s: float = Field(5.0, gt=0)
    """A stage's word that it is there, for /readyz and /v1/models."""


class LiveSettings(Params):
    """Live streams of one ingress replica.

    Attributes:
        params: How they are followed.
    """

    params: LiveParams = LiveParams()
    max_streams: int = Field(256, ge=0)
    """More are answered `overloaded`, 1013."""
    max_duration_s: float = Field(24 * 3600.0, gt=0)
    """Of one stream; then `too_large`, 1009."""
    resume_s: float = Field(30.0, ge=0)
    """How long a stream is kept after its connection broke."""
    start_s: float = Field(10.0, gt=0)
    """Until the first message of a connection."""
    idle_warning_s: float = Field(30.0, gt=0)
    """Without audio."""
    idle_s: float = Field(60.0, gt=0)
    """Without audio; then the stream ends."""
    max_ahead_s: float = Field(30.0, gt=0)
    """Audio that is given to the models before they have answered what came before it; the rest waits at the client."""
    lag_warning_s: float = Field(5.0, gt=0)
    """Results that come so much later than the audio."""
    max_unread_bytes: int = Field(256 * 1024, gt=0)
    """Messages that the client has not taken, half of it with a warning; then `overloaded`, 1013."""
    max_log_bytes: int = Field(512 * 1024, gt=0)
    """Messages that were sent and can be sent again after a resumption: about five minutes of fast speech."""
    draining_s: float = Field(20.0, gt=0)
    """After the warning that the replica goes away, until it ends its streams itself."""
    n_threads: int = Field(2, gt=0)
    """That decode, resample and look for speech, for all streams of the replica."""


class AppArgs(Params):
    """Arguments of `deployments.app:build`.

    Attributes:
        reading: Limits of what is accepted, and how clips are cut.
        auth: Who may call.
        models: Where the replicas look for models.
        deadlines: How long each stage may take.
        live: Limits of live streams.
        max_concurrent_requests: Of one ingress replica; more are answered 503 with Retry-After.
        max_chunks_in_flight: Of one clip. Bounds its memory, and lets its chunks share batches.
        max_inline_bytes: Larger payloads cross between replicas through Ray's object store.
            Source: Serve's gRPC server takes at most 4 MiB a message, and above half a megabyte the object store
            was faster (measured: 11 ms against 5 ms for 1.9 MB).
    """

    reading: ReadingParams = ReadingParams()
    auth: AuthSettings = AuthSettings()
    models: ModelSources = ModelSources()
    deadlines: Deadlines = Deadlines()
    live: LiveSettings = LiveSettings()
    max_concurrent_requests: int = Field(64, gt=0)
    max_chunks_in_flight: int = Field(4, gt=0)
    max_inline_bytes: int = Field(512 * 1024, gt=0, lt=4 * 1024**2)


class BatchConfig(Params):
    """How requests are joined; sizes count seconds of audio, rounded up.

    Attributes:
        max_batch_s: Largest batch. At least one chunk.
        wait_s: How long a batch waits for more when the replica is idle.
    """

    max_batch_s: int = Field(96, ge=31)
    wait_s: float = Field(0.005, ge=0)


class ShadowConfig(Params):
    """A candidate that is tried out beside the model that serves.

    Attributes:
        version: A version or an alias of the same model.
        share: Of the requests that both run on, once they are answered; each costs both models' time again.
    """

    version: VersionOrAlias
    share: float = Field(gt=0, le=1)


class ModelConfig(Params):
    """What both model stages share. A changed model or version is loaded beside the one that serves, then swapped.

    Attributes:
        model: Its name.
        version: A version or an alias; None for the alias "stable", and where there is none for the newest.
        follow_s: How often an alias is looked up again: as long as it takes until a promoted version serves.
        shadow: None tries nothing out.
    """

    model: Name
    version: VersionOrAlias | None = None
    follow_s: float = Field(30.0, gt=0)
    batch: BatchConfig = BatchConfig()
    shadow: ShadowConfig | None = None


class VoiceConfig(ModelConfig):
    """user_config of VoiceRecognizer."""

    model: Name = SPEECH_MODEL
    decoding: DecodingParams = DecodingParams()


class SoundConfig(ModelConfig):
    """user_config of SoundClassifier.

    Attributes:
        remote: TensorFlow Serving, which then runs the network; None runs it in the replica.
    """

    model: Name = SOUND_MODEL
    remote: RemoteModelParams | None = None


class PreprocessConfig(Params):
    """user_config of Preprocessor.

    Attributes:
        events: How frame scores become events; None for what the model was given beside its weights.
    """

    events: EventParams | None = None


class IngressConfig(Params):
    """user_config of Ingress.

    Attributes:
        min_score: Tags and events below it are left out unless the request asks for them.
        events: Of live streams: how frame scores become events; None for what the model was given beside its weights.
        sdh: Which sounds are worth a caption.
    """

    min_score: float = Field(DEFAULT_MIN_SCORE, ge=0, le=1)
    events: EventParams | None = None
    sdh: SdhParams = SdhParams()


USER_CONFIGS: dict[str, type[Params]] = {
    "Ingress": IngressConfig,
    "Preprocessor": PreprocessConfig,
    "VoiceRecognizer": VoiceConfig,
    "SoundClassifier": SoundConfig,
}
"""By the name of the deployment."""

ConfigT = TypeVar("ConfigT", bound=Params)


def changed(last: ConfigT | None, config_type: type[ConfigT], user_config: dict[str, Any]) -> ConfigT:
    """The new user_config; the last one where the new one is wrong, since Serve would end the replica that raises.

    Raises:
        ValidationError: It is wrong, and there is no last one.
    """
    try:
        return config_type.model_validate(user_config)
    except ValidationError as e:
        if last is None:
            raise
        _log.error("user_config: %s; the last one stays", told(e))
        return last
