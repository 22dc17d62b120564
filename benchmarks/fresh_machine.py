"""`make run` as a newcomer meets it: `python -m benchmarks.fresh_machine`.

Clones this checkout into an empty folder with an empty home, so without any cache, runs `make run` twice and
`make stop`. Port 8000 has to be free. The last line printed is JSON: `first_run_s`, `second_run_s`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import typer
from rich.console import Console

from benchmarks.results import write_result

ROOT = Path(__file__).parents[1]
PASSED_ON = (
    "PATH",
    "LANG",
    "PIP_INDEX_URL",
    "PIP_CERT",
    "PIP_FIND_LINKS",
    "UV_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "SSL_CERT_FILE",
)
"""Of the environment: where the package index is, and nothing that an earlier set-up left."""

_console = Console(stderr=True)


def main() -> None:
    """Time the first and the second `make run` of a fresh clone."""
    with tempfile.TemporaryDirectory(prefix="fresh-") as folder:
        home, clone = Path(folder) / "home", Path(folder) / "soundstage"
        home.mkdir()
        env = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"HOME": str(home)}
        git, make = shutil.which("git"), shutil.which("make")
        assert git is not None
        assert make is not None
        subprocess.run([git, "clone", "--quiet", str(ROOT), str(clone)], check=True)
        times = []
        try:
            for _ in range(2):
                start = time.perf_counter()
                done = subprocess.run([make, "run"], cwd=clone, env=env, check=True, stdout=subprocess.PIPE, text=True)
                times.append(round(time.perf_counter() - start, 1))
                _console.print(done.stdout, markup=False, highlight=False)
                if "-->" not in done.stdout:
                    raise SystemExit("make run showed no caption")
        finally:
            subprocess.run([make, "stop"], cwd=clone, env=env, check=True)
    figures = {"first_run_s": times[0], "second_run_s": times[1]}
    write_result("fresh_machine", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
