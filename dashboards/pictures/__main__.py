"""Draws each dashboard from its committed JSON and a Prometheus: `python -m dashboards.pictures`.

Grafana's own components draw lines, numbers, bars and frames in a headless Chromium; the page around them, the
substitution of variables and the heat maps are stand-ins (`page.jsx`). So these are no screenshots of Grafana, and
each picture says so. Needs npm and chromium; Grafana's packages (450 MB) are kept in the user's cache.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer
from PIL import Image
from platformdirs import user_cache_path

from dashboards.__main__ import OUTPUT
from dashboards.boards import BOARDS
from dashboards.panels import GRID_COLUMNS

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
ROW_HEIGHT = 30
TITLE_HEIGHT = 68
N_COLOURS = 128
"""Of the picture's palette: enough for lines and text, and a third of the size."""
NOTE = "Drawn with Grafana's components from the committed JSON and real figures; not a screenshot of Grafana."
ESBUILD = (
    "--bundle", "--minify", "--loader:.svg=dataurl", "--loader:.ttf=empty", "--define:global=window",
    '--define:process.env.NODE_ENV="production"', "--log-level=warning",
)  # fmt: skip
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing of each file."""


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _run(*command: object, cwd: Path, is_chatty: bool = False) -> None:
    errors = subprocess.DEVNULL if is_chatty else None
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=errors)  # noqa: S603


def _packages() -> Path:
    """A folder with Grafana's packages; installed once."""
    folder = user_cache_path("soundstage") / "pictures"
    wanted = (HERE / "package.json").read_text(encoding="utf-8")
    done = folder / "installed.json"
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(wanted, encoding="utf-8")
        _run("npm", "install", "--legacy-peer-deps", "--no-audit", "--no-fund", "--no-package-lock", cwd=folder)
        done.write_text(wanted, encoding="utf-8")
    return folder


def draw(prometheus: str, *, from_s: float, to_s: float, width: int, output: Path) -> None:
    """Draw every dashboard into a folder, as NAME.png.

    Args:
        prometheus: Its URL.
        from_s: Unix time at which the picture begins.
        to_s: Unix time at which it ends.
        width: In pixels.
        output: The folder.
    """
    packages = _packages()
    output.mkdir(parents=True, exist_ok=True)
    icons = packages / "public" / "build" / "img"
    shutil.copytree(packages / "node_modules/@grafana/ui/dist/public/img/icons", icons / "icons", dirs_exist_ok=True)
    shutil.copy(HERE / "page.jsx", packages)
    html = '<link rel="stylesheet" href="/page.css"><div id="root"></div><script src="/page.js"></script>'
    (packages / "public" / "index.html").write_text(f"<!doctype html><meta charset=utf-8>{html}", encoding="utf-8")
    with _served(packages / "public") as url, tempfile.TemporaryDirectory() as scratch:
        for board in BOARDS:
            path = OUTPUT / "dashboards" / f"{board.uid}.json"
            built = ("--outfile=public/page.js", f"--alias:board={path.absolute()}")
            _run("node_modules/.bin/esbuild", "page.jsx", *ESBUILD, *built, cwd=packages)
            grids = [panel["gridPos"] for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]]
            assert max(grid["x"] + grid["w"] for grid in grids) <= GRID_COLUMNS
            height = TITLE_HEIGHT + ROW_HEIGHT * max(grid["y"] + grid["h"] for grid in grids)
            query = urlencode({"prometheus": prometheus, "from": from_s, "to": to_s, "width": width, "note": NOTE})
            shot = Path(scratch) / "shot.png"
            size = f"--window-size={width},{height}"
            page = f"{url}/index.html?{query}"
            _run("chromium", *CHROMIUM, f"--screenshot={shot}", size, page, cwd=packages, is_chatty=True)
            target = output / f"{board.uid}.png"
            with Image.open(shot) as image:
                image.convert("RGB").quantize(N_COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
            print(f"{target}: {target.stat().st_size // 1024} KB")


def main(
    prometheus: Annotated[str, typer.Option(help="What `make monitor` started.")] = "http://127.0.0.1:9090",
    minutes: Annotated[float, typer.Option(help="How far back.")] = 10.0,
    to: Annotated[float | None, typer.Option(help="Unix time of the end; now if left out.")] = None,
    width: Annotated[int, typer.Option(help="In pixels.")] = 1300,
    output: Annotated[Path, typer.Option(help="Folder.")] = DOCS,
) -> None:
    """Draw each dashboard from its JSON and what Prometheus has."""
    to_s = to or time.time()
    draw(prometheus, from_s=to_s - 60 * minutes, to_s=to_s, width=width, output=output)


if __name__ == "__main__":
    typer.run(main)
