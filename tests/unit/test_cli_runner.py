"""How jobs are carried out side by side: what a person sees, and what is left alone when they stop it."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from soundstage.captions.choice import TimecodeChoice
from soundstage.client import OnProgress
from soundstage.commands.analyze import Analyze, Job, Runner, Stopped
from soundstage.types import Analysis
from tests.unit.audio_files import encode, tone


def runner(analyze: Analyze, console: Console, stopped: threading.Event | None = None) -> Runner:
    return Runner(
        analyze, timecode=TimecodeChoice(), overwrite=False, console=console, stopped=stopped or threading.Event()
    )


def test_a_bar_moves_with_each_chunk(tmp_path: Path) -> None:
    path = tmp_path / "take [b]1.wav"
    path.write_bytes(encode("wav", tone(1.0, 8_000), sample_rate=8_000))
    screen = io.StringIO()

    def analyze(_: Path, on_progress: OnProgress) -> Analysis:
        on_progress(65.0)
        deadline = time.monotonic() + 10
        while "1:05" not in screen.getvalue():  # drawn by a thread of its own
            assert time.monotonic() < deadline, screen.getvalue()
            time.sleep(0.01)
        return Analysis(request_id="", duration_s=1.0)

    console = Console(file=screen, force_terminal=True, width=100)
    (outcome,) = runner(analyze, console).run([Job(path=path, outputs={"json": None})], 1)
    assert outcome.status == "done"
    assert "take [b]1.wav" in screen.getvalue()


def test_what_has_not_begun_is_left_alone_when_it_ends_early(tmp_path: Path) -> None:
    jobs = [Job(path=tmp_path / f"{i}.wav", outputs={"srt": tmp_path / f"{i}.srt"}) for i in range(50)]
    begun: list[Path] = []
    stopped = threading.Event()

    def analyze(path: Path, on_progress: OnProgress) -> Analysis:
        begun.append(path)
        if len(begun) > 1:
            assert stopped.wait(10)
            on_progress(1.0)
        return Analysis(request_id="", duration_s=1.0)

    outcomes = runner(analyze, Console(file=io.StringIO()), stopped).run(jobs, 1)
    assert next(outcomes).status == "done"
    outcomes.close()  # type: ignore[attr-defined]
    assert len(begun) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["0.srt"]


def test_a_stop_ends_the_file_at_its_next_chunk(tmp_path: Path) -> None:
    stopped = threading.Event()

    def analyze(_: Path, on_progress: OnProgress) -> Analysis:
        stopped.set()
        on_progress(1.0)
        raise AssertionError("went on")

    with pytest.raises(Stopped):
        list(runner(analyze, Console(file=io.StringIO()), stopped).run([Job(path=tmp_path, outputs={"srt": None})], 1))
