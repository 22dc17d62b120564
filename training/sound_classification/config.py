"""The recipe: everything that a training run can be told, with the values of the shipped model as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from soundstage.params import EventParams, Params
from soundstage.sound.model import LevelRange
from training.config import BadConfig, Range, Share, explained, read_yaml

N_BLOCKS = 13
"""Of the body, after its first convolution."""


class DataConfig(Params):
    """Which clips are used, and what they are mixed with."""

    licences: tuple[str, ...] = ()
    """Train on clips whose column `licence` holds one of these. None: on all. Tests always use all."""
    folds: tuple[str, ...] = ()
    """Use clips of these folds only. None: all."""
    n_folds: int = Field(5, ge=2)
    """How many folds are made where the table has no column `fold`. Clips of one `source` stay together."""
    other_columns: tuple[str, ...] = ()
    """Columns of the table that are no concern of training. Any other unknown column is an error."""
    min_clips_per_label: int = Field(2, ge=1)
    """A label with fewer is an error: it cannot be both learnt and tested."""
    made_s: float = Field(1800.0, ge=0)
    """Seconds of speech (espeak-ng), and of music (fluidsynth), that are made for backgrounds."""


class VariantConfig(Params):
    """Copies of each clip that are made once, on its samples, and kept: what is too slow to do in each step."""

    n_each: int = Field(0, ge=0)
    """Copies of each clip."""
    share: Share = 0.5
    """How often one of the copies is taken in place of the clip."""
    reverberation: Share = 0.7
    """Share of the copies that sound in a room."""
    reverberation_s: Range = (0.15, 1.0)
    """Time in which the room's response falls by 60 dB."""
    direct_db: Range = (-3.0, 12.0)
    """Level of the direct sound above that of the room."""
    codec: Share = 0.5
    """Share of the copies that went through a lossy codec."""
    codecs: tuple[Literal["opus", "mp3", "aac"], ...] = ("opus", "mp3", "aac")
    codec_kbps: Range = (10.0, 40.0)


class AugmentationConfig(Params):
    """What is done to a window, each time anew."""

    time_shift: Share = 1.0
    """How often a clip is rotated, or placed anywhere if it does not fill the window."""
    mixup: Share = 0.0
    """How often a second clip is mixed in, both equally loud, with targets in proportion."""
    mixup_alpha: float = Field(0.5, gt=0)
    """Shares are drawn from Beta(alpha, alpha)."""
    background: Share = 0.25
    """How often speech or music is put under a clip."""
    background_speech: Share = 0.6
    """Share of backgrounds that are speech."""
    background_db: Range = (-15.0, 5.0)
    """Level of the background above the clip."""
    noise: Share = 0.3
    """How often noise is added."""
    noise_db: Range = (-70.0, -36.0)
    """Level of the noise; 0 dB is the median level of clips."""
    gain: Share = 1.0
    """How often a window is made louder or softer before the network's level range is applied."""
    gain_db: Range = (-20.0, 10.0)
    """By how much: of the median level of clips where the range brings all to one level, else of its own."""
    equaliser_db: float = Field(0.0, ge=0)
    """Standard deviation at each of five bands, a curve between them."""
    mask: Share = 0.0
    """How often a stretch of time and one of frequency are blanked (SpecAugment, arXiv:1904.08779)."""
    mask_s: Range = (0.05, 0.4)
    mask_bands: tuple[int, int] = (2, 8)
    """Lowest and highest number of mel bands."""
    short_windows: Share = 0.3
    """Share of batches whose windows are short: they hold the loudest part of a clip, or any part of what is labelled
    with times."""
    short_s: float = Field(2.09, gt=0.4)
    """Length of those."""
    without_sounds: float = Field(0.12, ge=0)
    """Windows without any of the sounds, for each clip: speech, music, both, or silence."""
    silent: Share = 0.2
    """Share of those that are silence."""
    hissing: Share = 0.15
    """Share of those that are nothing but noise of some colour, which is else taken for rain."""
    soundscapes: float = Field(0.0, ge=0)
    """Scenes for each clip: stretches of clips and of speech that come and go over something steady."""
    scene_events: tuple[int, int] = (1, 3)
    """Fewest and most of those stretches."""
    scene_event_s: Range = (0.3, 4.0)
    scene_event_db: Range = (0.0, 25.0)
    """Level of each above what is steady."""
    variants: VariantConfig = VariantConfig()


class TargetConfig(Params):
    """When a sound counts as heard in a step."""

    held: Share = 0.3
    """With times: a step of which the sound takes this share holds it; of one with less, nothing is learnt. Were
    targets shares, sounds shorter than a step would never score high."""
    present: Share = 0.18
    """Without times: a step in which a clip reaches this share of its loudest quarter of a second (-15 dB) holds it."""
    absent: Share = 0.01
    """A step in which it stays below this share does not (-40 dB). Between them nothing is learnt about it."""
    min_mixed: Share = 0.1
    """A clip whose share in a mix is smaller is not asked for."""


class LossConfig(Params):
    """Weights beside the loss of the sounds of a window, which is 1."""

    extras: float = Field(0.3, ge=0)
    """Of speech, music and silence in a window."""
    frames: float = Field(0.5, ge=0)
    """Of what is heard in each step. A member with 0 says which sound a window holds and nothing else: not when, nor
    whether it is one of them, nor speech, music or silence. One member at least has to say that."""
    yamnet: float = Field(0.0, ge=0)
    """Of YAMNet's own 521 opinions of the window, kept alive as a further head during training."""


class LearningConfig(Params):
    """How the weights move."""

    start: Literal["yamnet", "random"] = "yamnet"
    """Where the body's weights start. By chance is for trying things out: it needs far more clips."""
    n_epochs: int = Field(30, ge=1)
    """Times each clip is heard."""
    batch_size: int = Field(32, ge=1)
    n_head_epochs: int = Field(0, ge=0)
    """Times each clip is heard before that by the heads alone, so that what they do not know yet does not disturb the
    body (arXiv:2202.10054)."""
    first_head_rate: float = Field(2e-3, ge=0)
    """Of the heads, while they learn alone."""
    body_rate: float = Field(2e-4, ge=0)
    head_rate: float = Field(1e-3, ge=0)
    frozen_blocks: int = Field(0, ge=0, le=N_BLOCKS)
    """The first convolution and the first blocks of the body that keep their start."""
    warm_up: Share = 0.05
    """Share of the steps in which the rates rise, before they fall along a cosine."""
    final_rate: Share = 0.01
    """Share of the rates at the end."""
    weight_decay: float = Field(0.01, ge=0)
    beta_2: float = Field(0.98, gt=0, lt=1)
    clip_norm: float = Field(5.0, gt=0)
    """Of the body's gradients together."""
    dropout: float = Field(0.3, ge=0, lt=1)
    average: float = Field(0.995, ge=0, lt=1)
    """Of the exponential moving average of the weights, which is what is kept."""
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    """Of the pointwise convolutions: auto is mixed_bfloat16 where the processor multiplies it, 1.5 times as fast as
    float32, which serves elsewhere."""

    @property
    def of_heads(self) -> LearningConfig:
        """How the heads learn alone."""
        return self.model_copy(
            update={
                "n_epochs": self.n_head_epochs,
                "head_rate": self.first_head_rate,
                "frozen_blocks": N_BLOCKS,
                "n_head_epochs": 0,
            }
        )


class Config(Params):
    """A recipe."""

    name: str = "my-sounds"
    """Of the model, in the registry and in serve_config.yaml."""
    version: str = "1"
    description: str = ""
    licence: str = "not stated"
    """Of the model that comes out. It follows from those of the clips."""
    notes: str = ""
    """Markdown for the model card: where the clips are from, whom to name, what it is for, where it fails."""
    window_s: float = Field(5.0, gt=0.4)
    """Seconds that the network sees at once. Longer clips are cut where they sound, shorter ones padded."""
    level: LevelRange = LevelRange()
    """How loud windows are when the network sees them."""
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    targets: TargetConfig = TargetConfig()
    loss: LossConfig = LossConfig()
    learning: LearningConfig = LearningConfig()
    events: EventParams = EventParams()
    """How the model's frame scores become events; not part of training."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Cross-validation trains once for each; a model is trained with the first."""
    members: tuple[dict[str, Any], ...] = Field(({},), min_length=1)
    """The model is the mean of what these networks say. Each is trained by this recipe, with these changes."""

    def learnt_from(self) -> dict[str, Any]:
        """What decides the weights, beside the clips and the seed."""
        return self.model_dump(
            mode="json", exclude={"name", "version", "description", "licence", "notes", "events", "seeds"}
        )

    def member(self, index: int) -> Config:
        """The recipe of one member.

        Raises:
            BadConfig: A change is none of the recipe's keys.
        """
        changed = _merged(self.model_dump(exclude={"members"}), self.members[index])
        try:
            return Config.model_validate(changed)
        except ValidationError as e:
            raise BadConfig(f"members[{index}]: {explained(e)}") from e


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def read_config(path: Path) -> Config:
    """A recipe from a YAML file; what it does not name keeps its default.

    Raises:
        BadConfig: The file is missing, no YAML, or holds a key or value that is not one of the recipe's.
    """
    config = read_yaml(path, Config)
    try:
        members = [config.member(index) for index in range(len(config.members))]
    except BadConfig as e:
        raise BadConfig(f"{path}: {e}") from e
    if not any(member.loss.frames for member in members):
        raise BadConfig(f"{path}: loss.frames is 0 in all members: none would say when a sound is heard")
    return config
