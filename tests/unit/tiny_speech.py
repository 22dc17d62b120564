"""A speech model of a few thousand weights, and recordings to train it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_letters, punctuation

import numpy as np
from numpy.typing import NDArray

from soundstage.models import registry
from soundstage.models.registry import ModelCard, ModelFolder
from soundstage.params import MoonshineParams
from soundstage.speech import weights
from soundstage.speech.shapes import weight_shapes
from soundstage.speech.tokenizer import TOKENIZER_NAME
from tests.unit.tiny_clips import RATE, write_table, write_wav

MERGED = ("▁t", "he", "▁the", "in", "▁s", "ea", "▁sea", "er", "▁w", "▁wi", "▁win", "▁wind")
PIECES = [
    *(b"<unk>", b"<s>", b"</s>"),
    *(bytes([byte]) for byte in range(256)),
    *(piece.encode() for piece in MERGED),
    *(letter.encode() for letter in f"▁{ascii_letters}{punctuation}"),
]
TINY = MoonshineParams(
    hidden_size=16,
    n_heads=2,
    n_encoder_layers=2,
    n_decoder_layers=2,
    rotary_size=4,
    vocabulary_size=len(PIECES),
    alignment_layer=1,
    alignment_heads=(1,),
)
SENTENCES = (
    "the sea",
    "a wind",
    "the wind",
    "the inn",
    "win the sea",
    "then see",
    "he is in",
    "we win",
    "tea",
    "the tin",
)


def random_weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Of a model that writes nothing: whatever it hears, the end comes first."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: np.asarray(rng.normal(0, 0.1, shape) + name.endswith(".scale"), np.float32)
        for name, shape in weight_shapes(TINY).items()
    }
    towards_the_end = np.tile([1.0, -1.0], TINY.hidden_size // 2)
    arrays["decoder.embedding"] += towards_the_end.astype(np.float32)
    arrays["decoder.embedding"][TINY.end_token_id] *= 2
    return arrays


def write_model(models: Path, extra: Mapping[str, bytes] | None = None) -> ModelFolder:
    """In a registry, by the name of the speech model, with further files."""
    return registry.write_folder(
        models,
        ModelCard(
            name=weights.NAME,
            version=weights.VERSION,
            kind="speech",
            description="A few random weights.",
            licence="CC0-1.0",
            source="test",
            languages=("en",),
        ),
        params=TINY,
        weights=random_weights(),
        readme="",
        extra={
            TOKENIZER_NAME: b"".join(bytes([len(piece)]) + piece for piece in PIECES),
            "LICENSE": b"CC0",
            **(extra or {}),
        },
    )


def voice(seed: int, duration_s: float = 1.5) -> NDArray[np.float32]:
    """A tone, another for each seed."""
    t = np.arange(round(duration_s * RATE)) / RATE
    return np.asarray(0.3 * np.sin(2 * np.pi * (200 + 60 * seed) * t), np.float32)


def write_recordings(folder: Path, sentences: Sequence[str] = SENTENCES, splits: Sequence[str] | None = None) -> Path:
    """A folder of recordings, each as long as `voice`, with the table that training reads."""
    columns = ("filename", "transcript") if splits is None else ("filename", "transcript", "split")
    names = [f"{i}.wav" for i in range(len(sentences))]
    write_table(folder, columns, list(zip(names, sentences, *([splits] if splits else []), strict=True)))
    for i, name in enumerate(names):
        write_wav(folder / name, voice(i))
    return folder
