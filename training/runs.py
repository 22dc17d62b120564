"""A training run that can be broken off in any way and goes on, and what processes that share runs need."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tensorboardX import SummaryWriter

Arrays = dict[str, NDArray[np.float32]]

_LOG_STEPS = 10


class Diverged(RuntimeError):
    """Training leads nowhere; the message says since when, and where the last good weights are."""


class WrongRun(ValueError):
    """A folder holds another run than the one that is to go on."""


@dataclass(frozen=True, slots=True)
class Progress:
    """After each step.

    Attributes:
        losses: The whole, under "loss", and its parts.
    """

    step: int
    n_steps: int
    losses: dict[str, float]


class Run:
    """One network's training, in a folder from which it goes on after a break of any kind.

    Args:
        folder: Holds checkpoint.safetensors while it runs, and weights.safetensors when it is done.
        fingerprint: Of the recipe and the data. A folder that holds another is refused.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self._fingerprint = folder, fingerprint
        self._checkpoint, self._result = folder / "checkpoint.safetensors", folder / "weights.safetensors"

    @property
    def is_done(self) -> bool:
        """Whether the weights are there.

        Raises:
            WrongRun: They are those of another run.
        """
        return self.read(self._result) is not None

    @property
    def n_done(self) -> int:
        """Steps up to the last checkpoint.

        Raises:
            WrongRun: It is one of another run.
        """
        found = self.read(self._checkpoint)
        return 0 if found is None else found[1]

    def weights(self) -> Arrays:
        """What has been learnt, by the names of the model folder.

        Raises:
            WrongRun: The folder holds another run, or no end of it.
        """
        found = self.read(self._result)
        if found is None:
            raise WrongRun(f"{self.folder} holds no finished run")
        return found[0]

    def steps(
        self,
        model: keras.Model,
        batch: Callable[[int], tuple[Any, Any]],
        n_steps: int,
        *,
        checkpoint_steps: int,
    ) -> Iterator[Progress]:
        """Go on from the last checkpoint, reporting after each step.

        A checkpoint is written once the report of its step has been dealt with.

        Args:
            model: At its start, compiled.
            batch: Gives each step its inputs and targets.
            n_steps: In all.
            checkpoint_steps: After how many steps a checkpoint is written.

        Raises:
            Diverged: The loss or a weight is not finite.
            OSError: The disk refuses; the last checkpoint stays.
            WrongRun: The folder holds another run.
        """
        variables = {f"{i:03d}": v for i, v in enumerate(model.variables + model.optimizer.variables)}
        first = self._restore(variables)
        for step in range(first, n_steps):
            losses = model.train_on_batch(*batch(step), return_dict=True)
            losses = {name: float(value) for name, value in losses.items()}
            if not np.isfinite(losses["loss"]):
                raise self.diverged(f"the loss is {losses['loss']} at step {step + 1} of {n_steps}")
            yield Progress(step + 1, n_steps, losses)
            if (step + 1) % checkpoint_steps == 0 and step + 1 < n_steps:
                arrays = {name: variable.numpy() for name, variable in variables.items()}
                if not all(np.isfinite(array).all() for array in arrays.values()):
                    raise self.diverged(f"weights are no numbers any more after step {step + 1} of {n_steps}")
                self.write(self._checkpoint, arrays, step + 1)

    def finish(self, weights: Arrays, step: int) -> None:
        """Keep what has been learnt; the run is done.

        Raises:
            Diverged: A weight is not finite.
            OSError: The disk refuses.
        """
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise self.diverged(f"weights are no numbers any more after step {step}, the last one")
        self.write(self._result, weights, step)
        self._checkpoint.unlink(missing_ok=True)

    def diverged(self, what: str) -> Diverged:
        """The error that says so, and where the last good weights are."""
        is_kept = self._checkpoint.exists()
        kept = f"The last good weights are in {self._checkpoint}" if is_kept else "No checkpoint had been written"
        return Diverged(f"{what} of {self.folder}: the rates are too high, or the numbers too coarse. {kept}")

    def _restore(self, variables: Mapping[str, Any]) -> int:
        """Fill the variables from the checkpoint; the number of steps that are done."""
        found = self.read(self._checkpoint)
        if found is None:
            return 0
        arrays, step = found
        if arrays.keys() != variables.keys():
            raise WrongRun(f"{self._checkpoint} was written by another version; remove it to start again")
        for name, variable in variables.items():
            variable.assign(arrays[name])
        return step

    def read(self, path: Path) -> tuple[Arrays, int] | None:
        """Arrays of this run and the step after which they were written; None where there is no such file.

        Raises:
            WrongRun: The file is damaged, or of another run.
        """
        if not path.exists():
            return None
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata()
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as e:
            raise WrongRun(f"{path} is damaged; remove it to start again: {e}") from e
        if about["fingerprint"] != self._fingerprint:
            raise WrongRun(
                f"{path} is of a run with another recipe or other clips: name another folder with --runs, or remove it"
            )
        return arrays, int(about["step"])

    def write(self, path: Path, arrays: Mapping[str, NDArray[Any]], step: int) -> None:
        """Arrays of this run, whole or not at all."""
        about = {"fingerprint": self._fingerprint, "step": str(step)}
        write_whole(path, save({k: np.asarray(v, order="C") for k, v in arrays.items()}, about))


def shown(reports: Iterator[Progress], title: str, log: SummaryWriter, console: Console) -> Iterator[Progress]:
    """Reports of a run, passed on, with a bar (or lines, where there is no terminal) and losses for TensorBoard."""
    with bar(console) as shown_bar:
        task = shown_bar.add_task(title, total=None, note="")
        for progress in reports:
            loss = progress.losses["loss"]
            shown_bar.update(task, completed=progress.step, total=progress.n_steps, note=f"loss {loss:.3f}")
            if progress.step % _LOG_STEPS == 0:
                for name, value in progress.losses.items():
                    log.add_scalar(f"loss/{name}", value, progress.step)
            if progress.step % max(1, progress.n_steps // 20) == 0 and not console.is_terminal:
                console.print(f"{title}: step {progress.step} of {progress.n_steps}, loss {loss:.3f}", highlight=False)
            yield progress


def bar(console: Console) -> Bar:
    """How far something is; tasks have a field `note`."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[note]}")
    return Bar(*(TextColumn(c) if isinstance(c, str) else c for c in columns), console=console)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process alone may work on something; the claim ends with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file so that there is the old one or the new one, but never a part.

    Raises:
        OSError: The disk refuses; it names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    try:
        with scratch.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as e:
        scratch.unlink(missing_ok=True)
        raise OSError(e.errno, os.strerror(e.errno or 0), str(path)) from e


def schedule(n_steps: int, *, warm_up: float, final: float, rate: float = 1.0) -> Any:
    """A learning rate over a run: linear warm-up, then cosine.

    Args:
        n_steps: In all.
        warm_up: Share of the steps in which it rises.
        final: Share of the rate at the end.
        rate: The highest.
    """
    n_warm_up = round(warm_up * n_steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0 if n_warm_up else rate,
        max(1, n_steps - n_warm_up),
        alpha=final,
        warmup_target=rate if n_warm_up else None,
        warmup_steps=n_warm_up,
    )


def fingerprint(*parts: object) -> str:
    """Of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
