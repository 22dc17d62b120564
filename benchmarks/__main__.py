"""Every figure that needs only the service and a folder of audio: `python -m benchmarks --data DIR`.

DIR holds `ljspeech` and `esc50`, each with meta.csv beside its audio, and `yamnet`; what is missing is left out, and
said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import serving, streaming
from benchmarks.results import write_overview, write_result

EVALUATIONS = {
    "voice_recognition": ("training.voice_recognition.evaluate", "ljspeech", "LJ Speech, which it was not trained on"),
    "sound_classification": (
        "training.sound_classification.evaluate",
        "esc50",
        "nearly all of it was trained on: a check of the service, not of the model's accuracy, which its card has",
    ),
}

BESIDE_THE_SERVICE = {
    "benchmarks.sound_events": ("esc50", "ljspeech", "yamnet"),
    "benchmarks.word_times": ("ljspeech",),
    "benchmarks.speech": ("ljspeech",),
    "benchmarks.long_form": ("ljspeech", "esc50"),
}
"""Modules that measure the models themselves and write their results, and the folders they need."""


def main(
    data: Annotated[Path, typer.Option(help="Folder of audio with labels.")] = Path("data"),
) -> None:
    """Measure the service and write benchmarks/results/."""
    with serving.running_cluster() as cluster:
        figures, detail = serving.measure(cluster, rounds=5, hour=True)
        write_result("serving", figures, detail)
        if _are_there("streaming", data, "ljspeech", "esc50"):
            for n_streams, n_bulk in streaming.RUNS:
                streaming.write(
                    *streaming.measure(
                        cluster.url, data, n_streams=n_streams, duration_s=120.0, n_bulk=n_bulk, cluster=cluster
                    )
                )
        for name, (module, folder, what) in EVALUATIONS.items():
            if not _are_there(name, data, folder):
                continue
            command = [sys.executable, "-m", module, "--data", str(data / folder), "--url", cluster.url]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            write_result(name, json.loads(done.stdout.splitlines()[-1]), {"through": "HTTP", "what": what})
    for module, folders in BESIDE_THE_SERVICE.items():
        if _are_there(module.rpartition(".")[2], data, *folders):
            subprocess.run([sys.executable, "-m", module, "--data", str(data)], check=True)
    print(write_overview())


def _are_there(name: str, data: Path, *folders: str) -> bool:
    missing = [str(data / folder) for folder in folders if not (data / folder).is_dir()]
    if missing:
        print(f"NOT MEASURED: {name}, since there is no {' and no '.join(missing)}", file=sys.stderr)
    return not missing


if __name__ == "__main__":
    typer.run(main)
