"""YAMNet as it is published, listening in our labels: what the sound model is compared with."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from soundstage.sound.model import MUSIC, SILENCE, SPEECH
from soundstage.types import SAMPLE_RATE, FrameScores, Waveform
from training.sound_classification.model.yamnet import N_INPUT

HOP_S = 0.24
"""A quarter of its patch; 0.48, as published, gives lower figures."""
EXTRA_MEANINGS = {
    SPEECH: ("Speech", "Child speech, kid speaking", "Conversation", "Narration, monologue"),
    MUSIC: ("Music",),
    SILENCE: ("Silence",),
}

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


class YamnetListener:
    """YAMNet's own file, its 521 scores taken for our labels: the highest of those that a label means.

    Args:
        path: TFLite file.
        sounds: Our labels.
        n_threads: For the interpreter.
    """

    def __init__(self, path: Path, sounds: Sequence[str], *, n_threads: int) -> None:
        with zipfile.ZipFile(path) as metadata:
            names = metadata.read(metadata.namelist()[0]).decode().lower().splitlines()
        meanings = {label: MEANINGS.get(label, (label.replace("_", " "),)) for label in sounds} | EXTRA_MEANINGS
        self.labels = tuple(meanings)
        self._rows = [
            [names.index(name.lower()) for name in meant if name.lower() in names] for meant in meanings.values()
        ]
        self._interpreter = Interpreter(str(path), num_threads=n_threads)
        self._interpreter.allocate_tensors()

    def _patch_scores(self, patch: NDArray[np.float32]) -> NDArray[np.float32]:
        self._interpreter.set_tensor(self._interpreter.get_input_details()[0]["index"], patch)
        self._interpreter.invoke()
        scores: NDArray[np.float32] = self._interpreter.get_tensor(self._interpreter.get_output_details()[0]["index"])[
            0
        ]
        return scores

    def listen(self, waveform: Waveform) -> FrameScores:
        """Scores of a patch around every 0.24 s."""
        hop = round(HOP_S * SAMPLE_RATE)
        n_frames = -(-len(waveform.samples) // hop)
        padded = np.pad(waveform.samples, (N_INPUT // 2, N_INPUT // 2 + hop))
        firsts = range(hop // 2, hop // 2 + n_frames * hop, hop)
        patches = np.stack([self._patch_scores(padded[first : first + N_INPUT]) for first in firsts])
        scores = np.stack([patches[:, rows].max(axis=1, initial=0.0) for rows in self._rows], axis=1)
        return FrameScores(
            scores=scores,
            labels=self.labels,
            start_s=waveform.start_s + HOP_S / 2,
            hop_s=HOP_S,
            window_s=N_INPUT / SAMPLE_RATE,
            tags=scores.max(axis=0),
        )
