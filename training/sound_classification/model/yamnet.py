"""YAMNet's TFLite file: its weights as the start of training, its opinions as a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from soundstage.sound.model import LAYER_NAMES

N_INPUT = 15_600
"""Samples at 16 kHz the file takes at once."""


class NotYamnet(ValueError):
    """The file does not hold YAMNet's layers."""


class Yamnet:
    """The file, opened so that its inner tensors can be seen.

    Source: the int8 model MediaPipe publishes as audio_classifier/yamnet/float32/1 (Apache-2.0).
    """

    def __init__(self, path: Path) -> None:
        try:
            self._interpreter = Interpreter(
                str(path),
                # delegates hide the inner tensors
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
                num_threads=1,
            )
        except ValueError as e:
            raise NotYamnet(f"{path} is not a TFLite file: {e}") from e
        self._interpreter.allocate_tensors()
        self._tensors: dict[int, dict[str, Any]] = {d["index"]: d for d in self._interpreter.get_tensor_details()}
        ops = self._interpreter._get_ops_details()  # private, but the only way to the graph
        self._convolutions = [op for op in ops if op["op_name"] in {"CONV_2D", "DEPTHWISE_CONV_2D"}]
        if len(self._convolutions) != len(LAYER_NAMES):
            raise NotYamnet(f"{path} has {len(self._convolutions)} convolutions, YAMNet has {len(LAYER_NAMES)}")
        self._mean = next(op for op in ops if op["op_name"] == "MEAN")
        self._last = [op for op in ops if op["op_name"] == "FULLY_CONNECTED"][-1]

    def _dequantised(self, index: int) -> NDArray[np.float32]:
        """A weight tensor in float32, scaled along its own axis."""
        detail = self._tensors[index]
        quantised = self._interpreter.get_tensor(index)
        parameters = detail["quantization_parameters"]
        shape = [1] * quantised.ndim
        shape[parameters["quantized_dimension"]] = -1
        scales = parameters["scales"].reshape(shape)
        zeros = parameters["zero_points"].reshape(shape)
        return np.asarray((quantised.astype(np.float64) - zeros) * scales, np.float32)

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Kernels in Keras layout and biases, by the names of the body's layers."""
        arrays: dict[str, NDArray[np.float32]] = {}
        for name, op in zip(LAYER_NAMES, self._convolutions, strict=True):
            kernel, bias = (self._dequantised(index) for index in op["inputs"][1:3])
            kernel = kernel.transpose(1, 2, 3, 0)  # OHWI -> HWIO; depthwise 1HWC -> HWC1
            arrays |= {f"{name}/kernel": kernel[0, 0] if name.startswith("pointwise") else kernel, f"{name}/bias": bias}
        return arrays

    def classifier(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Kernel (1024, 521) and bias (521,) of the last layer."""
        kernel, bias = (self._dequantised(index) for index in self._last["inputs"][1:3])
        return kernel.T.copy(), bias

    def scores(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (521,) of float32 (15600,) samples at 16 kHz."""
        interpreter = self._interpreter
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], samples)
        interpreter.invoke()
        result: NDArray[np.float32] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]
        return result

    def _activation(self, index: int) -> NDArray[np.float32]:
        scale, zero = self._tensors[index]["quantization"]
        return np.asarray((self._interpreter.get_tensor(index).astype(np.float32) - zero) * scale, np.float32)

    def embedding(self) -> NDArray[np.float32]:
        """The mean over the map, (1024,), of the last scored samples."""
        return self._activation(self._mean["outputs"][0]).reshape(-1)

    def layers(self) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32], float]]:
        """Name, input, output and output step of each convolution for the last scored samples."""
        found = []
        for name, op in zip(LAYER_NAMES, self._convolutions, strict=True):
            step = self._tensors[op["outputs"][0]]["quantization"][0]
            found.append((name, self._activation(op["inputs"][0]), self._activation(op["outputs"][0]), float(step)))
        return found
