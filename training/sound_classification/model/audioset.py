"""Which of YAMNet's classes a label means: where the head starts from what YAMNet already knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from soundstage.sound.model import EXTRA_LABELS, N_EMBEDDING

START_SCALE = 0.5
"""YAMNet's rows score 1 s patches with a sigmoid; as a start for the softmax over whole windows they are softened."""

MEANINGS: dict[str, tuple[str, ...]] = {
    "airplane": ("Fixed-wing aircraft, airplane", "Aircraft", "Jet engine"),
    "brushing_teeth": ("Toothbrush", "Electric toothbrush"),
    "can_opening": ("Burst, pop",),
    "car_horn": ("Vehicle horn, car horn, honking", "Toot"),
    "cat": ("Cat", "Meow"),
    "chirping_birds": ("Bird vocalization, bird call, bird song", "Chirp, tweet"),
    "church_bells": ("Church bell", "Change ringing (campanology)"),
    "clock_alarm": ("Alarm clock", "Beep, bleep"),
    "clock_tick": ("Tick", "Tick-tock"),
    "coughing": ("Cough",),
    "cow": ("Moo", "Cattle, bovinae"),
    "crackling_fire": ("Crackle", "Fire"),
    "crickets": ("Cricket",),
    "crow": ("Crow", "Caw"),
    "crying_baby": ("Baby cry, infant cry",),
    "dog": ("Dog", "Bark"),
    "door_knock": ("Knock",),
    "door_wood_creaks": ("Creak", "Squeak"),
    "drinking_sipping": ("Liquid",),
    "engine": ("Engine", "Idling"),
    "fireworks": ("Fireworks", "Firecracker"),
    "footsteps": ("Walk, footsteps",),
    "frog": ("Frog", "Croak"),
    "glass_breaking": ("Shatter", "Glass"),
    "hand_saw": ("Sawing", "Filing (rasp)"),
    "hen": ("Cluck", "Fowl"),
    "insects": ("Fly, housefly", "Bee, wasp, etc.", "Mosquito"),
    "keyboard_typing": ("Computer keyboard", "Typing"),
    "laughing": ("Laughter",),
    "mouse_click": ("Clicking",),
    "pig": ("Pig", "Oink"),
    "pouring_water": ("Pour", "Fill (with liquid)"),
    "rain": ("Rain", "Rain on surface"),
    "rooster": ("Crowing, cock-a-doodle-doo", "Chicken, rooster"),
    "sea_waves": ("Waves, surf", "Ocean"),
    "sheep": ("Sheep", "Bleat"),
    "sneezing": ("Sneeze",),
    "thunderstorm": ("Thunder", "Thunderstorm"),
    "train": ("Train", "Railroad car, train wagon"),
    "vacuum_cleaner": ("Vacuum cleaner",),
    "washing_machine": ("Mechanisms",),
    "water_drops": ("Drip", "Plop"),
}
"""Labels of ESC-50 that AudioSet names otherwise. Any label that is one of AudioSet's names needs no entry."""


def start_head(
    sounds: Sequence[str], names: Sequence[str], kernel: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A head that begins with YAMNet's opinion.

    Args:
        sounds: Labels that exclude one another.
        names: AudioSet's, one for each row.
        kernel: float32 (n_names, 1024), YAMNet's classifier.
        rng: For the labels that AudioSet does not have.

    Returns:
        Kernel float32 (2048, n_sounds + 4), for mean and maximum over time, and bias (n_sounds + 4,).
    """
    rows = {name.lower(): row for name, row in zip(names, kernel, strict=True)}
    centre = kernel.mean(axis=0)
    n_logits = len(sounds) + 1 + len(EXTRA_LABELS)
    limit = np.sqrt(6 / (2 * N_EMBEDDING + n_logits))  # Glorot & Bengio 2010, as Keras starts a dense layer
    head = rng.uniform(-limit, limit, (2 * N_EMBEDDING, n_logits)).astype(np.float32)
    for i, label in enumerate(sounds):
        meant = MEANINGS.get(label, (label.replace("_", " "),))
        found = [rows[name.lower()] for name in meant if name.lower() in rows]
        if found:
            row = START_SCALE * (np.mean(found, axis=0) - centre)
            # Half of it by the mean over time, half by the maximum: a short sound is loud in the second only.
            head[:, i] = np.concatenate([row, row]) / 2
    return head, np.zeros(n_logits, np.float32)
