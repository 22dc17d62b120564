"""Our Moonshine computes what the published graph computes.

The reference is the graph itself, run by ONNX Runtime with its quantised products replaced by float32 ones of the same
weights: the published one rounds activations to 8 bits on the way, which changes the text of some clips.
"""

from __future__ import annotations

from collections.abc import Callable
from graphlib import TopologicalSorter
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from soundstage.audio.resample import decode_mono
from soundstage.models.registry import ModelFolder
from soundstage.params import Limits, MoonshineParams
from soundstage.speech import model, shapes, weights

LOGIT_TOLERANCE = 1e-3
"""Of logits that span about 40; two float32 implementations differ by 5e-4."""


def _attributes(node: Any) -> dict[str, Any]:
    read: dict[int, Callable[[Any], Any]] = {
        1: lambda a: a.F(),
        2: lambda a: a.I(),
        3: lambda a: a.S(),
        4: lambda a: numpy_helper.from_array(_array(a.T())),
        7: lambda a: a.IntsAsNumpy().tolist() if a.IntsLength() else [],
    }
    attributes = (node.Attributes(i) for i in range(node.AttributesLength()))
    return {attribute.Name().decode(): read[attribute.Type()](attribute) for attribute in attributes}


def _array(tensor: Any) -> NDArray[Any]:
    shape = tensor.DimsAsNumpy() if tensor.DimsLength() else ()
    dtype = helper.tensor_dtype_to_np_dtype(tensor.DataType())
    array: NDArray[Any] = tensor.RawDataAsNumpy().view(dtype).reshape(shape)
    return array


def _session(graph: weights._Graph, inputs: dict[str, tuple[int, int]], output: str) -> onnxruntime.InferenceSession:
    """The graph with float32 products. Inputs: name to element type and rank."""
    constants = {name: numpy_helper.from_array(_array(t), name) for name, t in graph.initializers.items()}
    nodes: dict[str, onnx.NodeProto] = {}
    producers: dict[str, str] = {}

    def add(op_type: str, node_inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> None:
        name = outputs[0]
        nodes[name] = helper.make_node(op_type, node_inputs, outputs, name=name, domain=domain, **attributes)
        producers.update(dict.fromkeys(outputs, name))

    for name, node in graph.nodes.items():
        op_type = node.OpType().decode()
        node_inputs = [node.Inputs(i).decode() for i in range(node.InputsLength())]
        outputs = [node.Outputs(i).decode() for i in range(node.OutputsLength())]
        if op_type == "DynamicQuantizeLinear":
            continue
        if op_type in weights._QUANTISED_INPUTS:
            bias = weights._QUANTISED_INPUTS[op_type][3]
            has_bias = len(node_inputs) > bias and node_inputs[bias] != ""
            product = graph.dense(name.removesuffix("/MatMul_quant"), bias=has_bias)
            constants[f"{name}/kernel"] = numpy_helper.from_array(product["kernel"], f"{name}/kernel")
            source = node_inputs[0].removesuffix("_quantized")
            add("MatMul", [source, f"{name}/kernel"], [f"{name}/product"] if has_bias else outputs)
            if has_bias:
                add("Add", [f"{name}/product", node_inputs[bias]], outputs)
            continue
        add(op_type, node_inputs, outputs, node.Domain().decode(), **_attributes(node))

    before = {name: {producers[i] for i in node.input if i in producers} for name, node in nodes.items()}
    ordered = [nodes[name] for name in TopologicalSorter(before).static_order()]
    proto = helper.make_model(
        helper.make_graph(
            ordered,
            "rebuilt",
            [helper.make_tensor_value_info(name, t, [None] * rank) for name, (t, rank) in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * 3)],
            list(constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def speech_folder() -> ModelFolder:
    return weights.fetch()


@pytest.fixture(scope="module")
def beckett() -> NDArray[np.float32]:
    path = distribution(weights.DISTRIBUTION).locate_file("moonshine_voice/assets/beckett.wav")
    return decode_mono(Path(str(path)), Limits()).samples


def test_logits_are_those_of_the_published_graph(speech_folder: ModelFolder, beckett: NDArray[np.float32]) -> None:
    encoder = _session(
        weights._Graph.read(weights._read_asset(weights.ENCODER_NAME)),
        {"input_values": (TensorProto.FLOAT, 2), "attention_mask": (TensorProto.INT64, 2)},
        "last_hidden_state",
    )
    decoder = _session(
        weights._Graph.read(weights._read_asset(weights.DECODER_NAME)).branch("optimum::if", "else_branch"),
        {
            "input_ids": (TensorProto.INT64, 2),
            "encoder_hidden_states": (TensorProto.FLOAT, 3),
            "encoder_attention_mask": (TensorProto.INT64, 2),
        },
        "logits",
    )
    token_ids = np.concatenate([[[1]], np.random.default_rng(0).integers(3, 32_000, (1, 19))], axis=1)
    mask = np.ones((1, len(beckett)), np.int64)
    (states,) = encoder.run(None, {"input_values": beckett[None], "attention_mask": mask})
    (expected,) = decoder.run(
        None, {"input_ids": token_ids, "encoder_hidden_states": states, "encoder_attention_mask": mask}
    )

    params = speech_folder.params(MoonshineParams)
    ready = model.prepare(speech_folder.weights(), params)
    padded = np.zeros((1, shapes.pad_length(len(beckett)) + 6400), np.float32)  # padding must not show
    padded[0, : len(beckett)] = beckett
    n_samples = np.array([len(beckett)], np.int32)
    ours = model.encoder_states(ready, params, padded, n_samples)
    np.testing.assert_allclose(ours[:, : states.shape[1]], states, atol=LOGIT_TOLERANCE)
    encoded = model.encode(ready, params, padded, n_samples)
    logits, _ = model.decode(
        ready, params, tf.constant(token_ids, tf.int32), model.empty_cache(params, 1), encoded, position=0
    )

    assert expected.std() > 1
    np.testing.assert_allclose(logits, expected, atol=LOGIT_TOLERANCE)
