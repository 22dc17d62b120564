"""Sizes and shapes of the speech model, for whatever computes it."""

from __future__ import annotations

from typing import Any

from soundstage.params import MoonshineParams

HOP_LENGTH = 64
"""Samples from one window of the first convolution to the next."""
MIN_SAMPLES = 895
"""Shorter audio gives no frame: the receptive field of the three convolutions."""


def n_frames_of(n_samples: Any) -> Any:
    """Encoder frames of so many samples, for integers and integer tensors alike."""
    return ((n_windows_of(n_samples) - 7) // 3 + 1 - 3) // 2 + 1


def n_windows_of(n_samples: Any) -> Any:
    """Whole windows of the first convolution in so many samples, likewise."""
    return (n_samples - 127) // HOP_LENGTH + 1


def pad_length(n_samples: int) -> int:
    """The shortest length from n_samples on that `encode` takes."""
    return -(-max(n_samples, MIN_SAMPLES) // HOP_LENGTH) * HOP_LENGTH


def weight_shapes(params: MoonshineParams) -> dict[str, tuple[int, ...]]:
    """Every stored array of the model and its shape."""
    d = params.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.kernel": (127, 1, d),
        "encoder.conv2.kernel": (7, d, 2 * d),
        "encoder.conv2.bias": (2 * d,),
        "encoder.conv3.kernel": (3, 2 * d, d),
        "encoder.conv3.bias": (d,),
        "encoder.group_norm.scale": (d,),
        "encoder.group_norm.bias": (d,),
        "encoder.norm.scale": (d,),
        "decoder.embedding": (params.vocabulary_size, d),
        "decoder.norm.scale": (d,),
    }
    stacks = (
        ("encoder", params.n_encoder_layers, ("self",), 4 * d),
        ("decoder", params.n_decoder_layers, ("self", "cross"), 8 * d),  # half of it is the gate
    )
    for stack, n_layers, attentions, fc1_size in stacks:
        for i in range(n_layers):
            layer = f"{stack}.layers.{i}"
            for attention in attentions:
                shapes[f"{layer}.{attention}_norm.scale"] = (d,)
                shapes.update({f"{layer}.{attention}_attention.{name}.kernel": (d, d) for name in "qkvo"})
            shapes[f"{layer}.mlp_norm.scale"] = (d,)
            shapes[f"{layer}.mlp.fc1.kernel"] = (d, fc1_size)
            shapes[f"{layer}.mlp.fc1.bias"] = (fc1_size,)
            shapes[f"{layer}.mlp.fc2.kernel"] = (4 * d, d)
            shapes[f"{layer}.mlp.fc2.bias"] = (d,)
    return shapes
