"""What Ray has given to a replica."""

from __future__ import annotations

import math

import ray


def n_assigned_cores() -> int:
    """Whole cores that this replica may keep busy: its num_cpus, rounded up.

    Decoding and TensorFlow take this many threads; else every replica would take every core of the machine.
    """
    assigned: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    return max(1, math.ceil(assigned.get("CPU", 1.0)))
