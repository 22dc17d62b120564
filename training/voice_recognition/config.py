"""The recipe: everything that fine-tuning the speech model can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from soundstage.params import Params
from soundstage.speech import weights
from training.config import Range, Share, read_yaml
from training.voice_recognition.conditions import Condition


class DataConfig(Params):
    """Which recordings are used for what."""

    validation_share: Share = 0.1
    """Of the recordings, to choose the best weights by, where the table has no column `split`."""
    test_share: Share = 0.1
    """Of the recordings, for the figures of the model card."""
    other_columns: tuple[str, ...] = ()
    """Columns of the table that are no concern of training. Any other unknown column is an error."""


class AugmentationConfig(Params):
    """What is done to a recording, each time anew, in this order."""

    untouched: Share = 0.2
    """How often nothing at all is done, so that the model stays good at what is clean."""
    speed: Share = 0.5
    """How often it is played slower or faster."""
    speed_range: Range = (0.9, 1.1)
    reverberation: Share = 0.3
    """How often it sounds in a room."""
    reverberation_s: Range = (0.15, 1.0)
    """Time in which the room's response falls by 60 dB."""
    direct_db: Range = (-3.0, 12.0)
    """Level of the direct sound above that of the room."""
    noise: Share = 0.5
    """How often noise is added."""
    noise_snr_db: Range = (0.0, 20.0)
    """Level of the speech above the noise."""
    noise_slope: Range = (0.0, 2.0)
    """Of the noise's spectrum: 0 is white, 1 pink, 2 brown."""
    babble: Share = 0.2
    """Share of the noises that are other recordings of the folder, several at once."""
    telephone: Share = 0.2
    """How often it comes through a telephone line: 300 to 3400 Hz, and a codec at 8 kHz."""
    telephone_codecs: tuple[Literal["mulaw", "opus"], ...] = Field(("mulaw", "opus"), min_length=1)
    telephone_kbps: Range = (8.0, 16.0)
    """Of Opus; G.711 (mulaw) has 64."""
    gain_db: Range = (-10.0, 6.0)
    mask: Share = 0.0
    """How often stretches of time and a band of frequencies are blanked (SpecAugment, arXiv:1904.08779); on samples,
    which are what this model's encoder reads."""
    n_masks: int = Field(2, ge=1)
    """Stretches of time."""
    mask_s: Range = (0.05, 0.25)
    mask_hz: Range = (100.0, 800.0)
    """Width of the band."""


class LearningConfig(Params):
    """How the weights move."""

    n_epochs: int = Field(10, ge=1)
    """Times each recording is heard, at most."""
    batch_size: int = Field(8, ge=1)
    rate: float = Field(1e-4, ge=0)
    warm_up: Share = 0.1
    """Share of the steps in which the rate rises, before it falls along a cosine."""
    final_rate: Share = 0.05
    """Share of the rate at the end."""
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    """Of all gradients together."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the targets that is spread evenly over all tokens."""
    frozen: tuple[str, ...] = ("decoder.embedding",)
    """Weights that keep their start, by name; `*` and `?` as in file names: `decoder.*` trains the encoder alone."""
    lora_rank: int = Field(0, ge=0)
    """Low-rank updates of the kernels that are not frozen, and nothing else: few weights learn. 0: all of them
    (Hu et al., arXiv:2106.09685)."""
    lora_alpha: float = Field(16.0, gt=0)
    """Updates count alpha / rank."""


class ValidationConfig(Params):
    """By what the best weights are chosen, and when to stop."""

    every_epochs: int = Field(1, ge=1)
    conditions: tuple[Condition, ...] = Field((Condition.CLEAN,), min_length=1)
    """The mean of the word error rates in these decides."""
    patience: int = Field(3, ge=1)
    """Stop after so many validations that were no better than the best."""


class Config(Params):
    """A recipe."""

    name: str = "my-voices"
    """Of the model, in the registry and in serve_config.yaml."""
    version: str = "1"
    description: str = ""
    licence: str = "not stated"
    """Of the model that comes out. It follows from those of the start (MIT) and of the recordings."""
    notes: str = ""
    """Markdown for the model card."""
    start: str = weights.NAME
    """Model of the registry that is fine-tuned."""
    start_version: str | None = None
    """Version or alias; none: the one that would be served."""
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    learning: LearningConfig = LearningConfig()
    validation: ValidationConfig = ValidationConfig()
    test_conditions: tuple[Condition, ...] = tuple(Condition)
    """In which the model is measured for its card."""
    seed: int = 0

    def learnt_from(self) -> dict[str, Any]:
        """What decides the weights, beside the recordings and the start."""
        left_out = {"name", "version", "description", "licence", "notes", "start", "start_version", "test_conditions"}
        return self.model_dump(mode="json", exclude=left_out)


def read_config(path: Path) -> Config:
    """A recipe from a YAML file; raises as `training.config.read_yaml`."""
    return read_yaml(path, Config)
