"""The dashboards' JSON has the shape that Grafana's own types ask for.

The types are newer (13.2) than the library that wrote the JSON (11.6), and leave out what a panel's `custom` holds.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from dashboards.__main__ import OUTPUT
from tests.observability.tools import how_to_get, missing

PACKAGES = ("typescript@5.9.3", "@grafana/schema@13.2.2")
# Enumerations of text accept their literals, which is what JSON has.
TYPED = """\
import type {{ Dashboard }} from '@grafana/schema';
type Literal<T> = T extends string ? (string extends T ? T : `${{T}}`) : T extends (infer U)[] ? Literal<U>[]
  : T extends object ? {{ [K in keyof T]: Literal<T[K]> }} : T;
export const board = {document} satisfies Partial<Literal<Dashboard>>;
"""
TSC = (
    "--noEmit",
    "--strict",
    "--skipLibCheck",
    "--moduleResolution",
    "bundler",
    "--module",
    "esnext",
    "--target",
    "es2022",
)
BOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(OUTPUT.glob("dashboards/*.json"))}


@pytest.fixture(scope="module")
def packages() -> Path:
    if absent := missing("npm"):
        pytest.skip(f"SKIPPED, NOT PROVEN: {how_to_get(absent)}")
    folder = user_cache_path("soundstage") / "grafana-schema"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "@grafana" / "schema").is_dir():
        (folder / "package.json").write_text('{"private": true}', encoding="utf-8")
        install = ["npm", "install", "--legacy-peer-deps", "--no-audit", "--no-fund", "--no-package-lock", *PACKAGES]
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"SKIPPED, NOT PROVEN: npm cannot install {', '.join(PACKAGES)}: {done.stderr[-300:]}")
    return folder


def complaints(packages: Path, boards: dict[str, object]) -> str:
    files = {f"{uid}.ts": TYPED.format(document=json.dumps(board)) for uid, board in boards.items()}
    for name, text in files.items():
        (packages / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["node_modules/.bin/tsc", *TSC, *files], cwd=packages, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_grafanas_types_take_every_dashboard(packages: Path) -> None:
    assert complaints(packages, dict(BOARDS)) == ""


@pytest.mark.parametrize("wrong", [{"graphTooltip": 7}, {"titel": "misspelt"}, {"refresh": 30}], ids=str)
def test_a_wrong_shape_is_noticed(packages: Path, wrong: dict[str, object]) -> None:
    assert "error TS" in complaints(packages, {"wrong": {**BOARDS["soundstage-heard"], **wrong}})
