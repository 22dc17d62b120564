"""`soundstage analyze`: files in, one analysis each, every output rendered from it."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from soundstage.captions.choice import TimecodeChoice
from soundstage.client import MEDIA_TYPES, OnProgress, ServiceUnreachable
from soundstage.commands.outputs import atomic_file, probe, rendered, suffix
from soundstage.errors import ServiceError
from soundstage.pipeline import DEFAULT_MIN_SCORE, AnalysisCollector, AnalysisOptions, Pipeline, without_faint
from soundstage.types import Analysis, ClipSummary, JsonObject

Analyze = Callable[[Path, OnProgress], Analysis]
"""Analyses a file: by a service or in this process."""


class Stopped(Exception):
    """The person at the keyboard stopped the command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One input and where its outputs go.

    Attributes:
        path: The media file.
        outputs: Format to path. With None in place of a path, the only output goes to standard output.
        problem: Why it cannot be done; None where nothing speaks against it.
    """

    path: Path
    outputs: dict[str, Path | None]
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one input.

    Attributes:
        status: "skipped" where every output was there already.
        outputs: Those that were written.
        duration_s: Of the audio; None where it was not analysed.
        error: Why it failed.
        text: What goes to standard output.
    """

    path: Path
    status: Literal["done", "skipped", "failed"]
    outputs: tuple[Path, ...] = ()
    duration_s: float | None = None
    error: str | None = None
    text: str | None = None

    @property
    def record(self) -> JsonObject:
        """The line of `--json`."""
        fields: JsonObject = {
            "file": str(self.path),
            "status": self.status,
            "outputs": [str(path) for path in self.outputs],
            "duration_s": None if self.duration_s is None else round(self.duration_s, 3),
        }
        return fields if self.error is None else {**fields, "error": self.error}


def plan(files: Sequence[Path], formats: Sequence[str], output_dir: Path | None, *, to_stdout: bool) -> list[Job]:
    """Which files are read and what they become.

    Args:
        files: Media files, and folders that stand for every media file in them, however deep.
        formats: Of OUTPUT_FORMATS.
        output_dir: What lies in a folder keeps its place below it. None writes beside each input.
        to_stdout: Writes no file.
    """
    jobs: list[Job] = []
    taken: dict[Path, Path] = {}
    for path, subfolder in _inputs(files):
        if path.is_dir():
            jobs.append(Job(path=path, outputs={}, problem="the folder holds no media file"))
            continue
        folder = path.parent if output_dir is None else output_dir / subfolder
        outputs = {name: None if to_stdout else folder / f"{path.stem}{suffix(name)}" for name in formats}
        problem = None
        for target in outputs.values():
            if target is not None and taken.setdefault(target, path) != path:
                problem = f"would write {target} like {taken[target]}; analyse it alone, with another --output"
        jobs.append(Job(path=path, outputs=outputs, problem=problem))
    return jobs


def _inputs(files: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Each media file once, with the folder it has below the folder that was named."""
    seen: set[Path] = set()
    for given in files:
        found = [given]
        if given.is_dir():
            media = (path for path in given.rglob("*") if path.suffix.lower() in MEDIA_TYPES and path.is_file())
            # Names that start with a dot are other programs' leftovers, such as macOS's ._NAME.
            shown = (path for path in media if not any(part.startswith(".") for part in path.relative_to(given).parts))
            found = sorted(shown) or [given]
        for path in found:
            if path not in seen:
                seen.add(path)
                yield path, path.relative_to(given).parent if path != given else Path()


def local_analyzer(pipeline: Pipeline, options: AnalysisOptions, min_score: float | None) -> Analyze:
    """Analyses in this process."""
    least = DEFAULT_MIN_SCORE if min_score is None else min_score

    def analyze(path: Path, on_progress: OnProgress) -> Analysis:
        collector = AnalysisCollector()
        for part in pipeline.stream(path, options):
            if isinstance(part, ClipSummary):
                return collector.finish(part, request_id="", language=options.language)
            collector.push(without_faint(part, least))
            on_progress(part.end_s)
        raise AssertionError("a pipeline ends with the summary")

    return analyze


class Runner:
    """Carries out jobs side by side.

    Args:
        analyze: Called from several threads.
        timecode: What the caller said about it.
        overwrite: Replaces outputs that exist; else they are kept, and only what is missing is written.
        console: On standard error.
        stopped: Ends the work at the next chunk.
    """

    def __init__(
        self,
        analyze: Analyze,
        *,
        timecode: TimecodeChoice,
        overwrite: bool,
        console: Console,
        stopped: threading.Event,
    ) -> None:
        self._analyze = analyze
        self._timecode = timecode
        self._overwrite = overwrite
        self._console = console
        self._stopped = stopped
        self._unreachable: ServiceUnreachable | None = None

    @property
    def unreachable(self) -> bool:
        """Whether nothing answered at the URL."""
        return self._unreachable is not None

    def run(self, jobs: Sequence[Job], n_jobs: int) -> Iterator[Outcome]:
        """The outcome of each job, as it is done."""
        with self._progress() as progress, ThreadPoolExecutor(n_jobs, "analyze") as executor:
            futures = [executor.submit(self._outcome, job, progress) for job in jobs]
            try:
                yield from _results(futures)
            except BaseException:
                # Also where the consumer ends early: files that have not begun are left alone.
                self._stopped.set()
                executor.shutdown(wait=False, cancel_futures=True)
                raise

    def _outcome(self, job: Job, progress: Progress) -> Outcome:
        try:
            return self._done(job, progress)
        except (ServiceError, OSError) as e:
            return Outcome(path=job.path, status="failed", error=_message(e, job.path))
        except ServiceUnreachable as e:
            self._unreachable = e
            return Outcome(path=job.path, status="failed", error=str(e))

    def _done(self, job: Job, progress: Progress) -> Outcome:
        if job.problem is not None:
            return Outcome(path=job.path, status="failed", error=job.problem)
        kept = {} if self._overwrite else {n: p for n, p in job.outputs.items() if p is not None and p.exists()}
        wanted = {name: path for name, path in job.outputs.items() if name not in kept}
        if not wanted:
            return Outcome(path=job.path, status="skipped")
        if self._unreachable is not None:  # another file has waited for it in vain
            raise self._unreachable
        for path in wanted.values():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                if not os.access(path.parent, os.W_OK):  # better known before the analysis than after
                    raise PermissionError(f"{path.parent} cannot be written to")
        info = probe(job.path)
        with self._bar(progress, job.path, None if info is None else info.duration_s) as on_progress:
            analysis = self._analyze(job.path, on_progress)
        options = self._timecode.options(info, title=printable(job.path.name))
        written: list[Path] = []
        text = None
        for name, path in wanted.items():
            if path is None:
                text = rendered(analysis, name, options)
            else:
                with atomic_file(path) as file:
                    file.write(rendered(analysis, name, options).encode())
                written.append(path)
        return Outcome(path=job.path, status="done", outputs=tuple(written), duration_s=analysis.duration_s, text=text)

    @contextmanager
    def _bar(self, progress: Progress, path: Path, duration_s: float | None) -> Iterator[OnProgress]:
        """A bar that moves with each chunk; it pulses where the header does not tell the length."""
        task: TaskID = progress.add_task(escape(printable(path.name)), total=duration_s, heard="")

        def on_progress(end_s: float) -> None:
            if self._stopped.is_set():
                raise Stopped
            progress.update(task, completed=end_s, heard=_clock(end_s))

        try:
            yield on_progress
        finally:
            progress.remove_task(task)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[heard]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )


def report(outcome: Outcome, console: Console, *, as_json: bool) -> None:
    """Tell what became of one input: on standard output for programs, on standard error for people."""
    if as_json:
        sys.stdout.write(json.dumps(outcome.record) + "\n")
        sys.stdout.flush()
    elif outcome.text is not None:
        sys.stdout.write(outcome.text)
        sys.stdout.flush()
    name = printable(outcome.path)
    match outcome.status:
        case "failed":
            line = f"failed: {name}: {outcome.error}"
        case "skipped":
            line = f"skipped: {name}: its outputs are there already (--overwrite replaces them)"
        case "done":
            line = f"done: {name}"
            if outcome.outputs:
                line += " -> " + ", ".join(printable(path.name) for path in outcome.outputs)
    if outcome.status == "failed" or not as_json:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def printable(name: Path | str) -> str:
    """A name for people; bytes of it that are no UTF-8 become replacement characters."""
    return str(name).encode(errors="surrogateescape").decode(errors="replace")


def _results(futures: Sequence[Future[Outcome]]) -> Iterator[Outcome]:
    for future in as_completed(futures):
        yield future.result()


def _message(error: ServiceError | OSError, path: Path) -> str:
    if isinstance(error, ServiceError):
        return error.detail
    reason = error.strerror or str(error)
    other = error.filename is not None and str(error.filename) != str(path)
    return f"{error.filename}: {reason}" if other else reason


def _clock(time_s: float) -> str:
    minutes, seconds = divmod(int(time_s), 60)
    return f"{minutes}:{seconds:02d}"
