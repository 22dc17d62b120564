"""Models of the registry as TensorFlow Serving wants them; see docs/tensorflow_serving.md."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "float16"]
"""In which the weights are stored. The graph computes in float32 with either."""
