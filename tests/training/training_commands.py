"""What tests of training share: commands as a person gives them, full disks, checkpoints."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

from tests.conftest import ROOT


def commands_of(readme: Path) -> list[str]:
    """Those of its first console block."""
    block = re.search(r"```console\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return [line.removeprefix("$ ") for line in block[1].splitlines()]


def started(arguments: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A command, in a folder from which the checkout's `training` can be seen."""
    program = {"python": sys.executable, "soundstage": str(Path(sys.executable).parent / "soundstage")}
    own = {
        "PYTHONPATH": str(ROOT),
        "SOUNDSTAGE_MODELS_DIR": str(folder / "registry"),
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "200",
    }
    return subprocess.Popen(
        [program[arguments[0]], *arguments[1:]],
        cwd=folder,
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(arguments: list[str], folder: Path, **environment: str) -> tuple[int, str, str]:
    process = started(arguments, folder, **environment)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, " ".join(stderr.split())


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """As on a full disk: no file of this process grows beyond it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def step_of(checkpoint: Path) -> int:
    with safe_open(checkpoint, "numpy") as file:
        return int(file.metadata()["step"])


def killed_after(step: int, checkpoint: Path, command: list[str], folder: Path) -> str:
    """Start a run, end it by force once its checkpoint is of a later step than this; returns what it said."""
    process = started(command, folder)
    try:
        while not (checkpoint.exists() and step_of(checkpoint) > step):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
    finally:
        process.kill()
        _, stderr = process.communicate()
    return " ".join(stderr.split())
