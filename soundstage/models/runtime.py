"""What of the machine TensorFlow takes."""

from __future__ import annotations

from pathlib import Path

import keras

from soundstage.errors import ModelError


def limit_threads(n_threads: int) -> None:
    """Give TensorFlow this many threads in this process, instead of one for each core of the machine.

    Has to come before the first TensorFlow operation; asking again for the same number is fine. Where Keras runs on
    something else, it has no effect.

    Args:
        n_threads: Threads that share one operation. Operations run one after the other, so that they do not
            multiply.

    Raises:
        ModelError: TensorFlow already runs with another number; it cannot change while it runs.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf  # noqa: PLC0415  # not there where models are trained on another backend

    if tf.config.threading.get_intra_op_parallelism_threads() == n_threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(n_threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError as e:
        raise ModelError(
            f"TensorFlow already runs; limit it to {n_threads} threads before the first model loads"
        ) from e


def multiplies_bfloat16() -> bool:
    """Whether the processor does (AVX-512 BF16); on the others it takes many times as long as float32."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and " avx512_bf16 " in cpuinfo.read_text(encoding="utf-8")
