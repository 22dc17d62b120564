"""`python -m nifi`: the flow that carries rushes to captions, in a running NiFi."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import IntEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, NoReturn

import httpx
import typer
from rich.console import Console
from rich.table import Table

from nifi import flow, picture
from nifi import metrics as figures
from nifi.canvas import Canvas, FlowError, Login, Status, is_local
from nifi.flow import PARAMETERS, Tuning

ENVIRONMENT = "SOUNDSTAGE_NIFI_"
FOLDERS = ("watch_folder", "delivery_folder", "quarantine_folder", "work_folder")


class Exit(IntEnum):
    """Exit codes."""

    FAILED = 1
    """NiFi cannot be reached or refuses, or a check failed."""
    USAGE = 2
    NOT_RUNNING = 3
    """The flow is deployed, but not or not wholly running."""


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="The NiFi flow that carries rushes to captions. Exit codes: 0 done, 1 NiFi cannot be reached or refuses,"
    " 2 usage, 3 the flow is not running (status, verify).",
)
_console = Console(stderr=True)
_out = Console()

Url = Annotated[str, typer.Option("--url", envvar="SOUNDSTAGE_NIFI_URL", help="Of NiFi's API; it ends in /nifi-api.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
DEFAULT_URL = "http://127.0.0.1:8480/nifi-api"


@contextmanager
def _canvas(url: str) -> Iterator[Canvas]:
    """A NiFi; what goes wrong is told without a traceback."""
    try:
        yield Canvas(url, _login())
    except FlowError as e:
        _fail(str(e))


def _login() -> Login:
    """From the environment."""
    ca_file = os.environ.get("SOUNDSTAGE_NIFI_CA")
    return Login(
        username=os.environ.get("SOUNDSTAGE_NIFI_USERNAME"),
        password=os.environ.get("SOUNDSTAGE_NIFI_PASSWORD"),
        ca_file=Path(ca_file) if ca_file else None,
    )


def _fail(message: str, code: Exit = Exit.FAILED) -> NoReturn:
    _console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


@app.command(
    epilog="Example:  SOUNDSTAGE_API_KEY=… python -m nifi deploy --set watch_folder=/rushes --set"
    " delivery_folder=/rushes --set quarantine_folder=/quarantine --set work_folder=/var/lib/soundstage-nifi --start"
)
def deploy(  # noqa: PLR0917 - options, not positions
    url: Url = DEFAULT_URL,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter; may be repeated.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--parameters", exists=True, dir_okay=False, help='A TOML file of NAME = "VALUE".')
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, max=256, help="Requests at once.")] = None,
    open_service: Annotated[bool, typer.Option(help="The service has no API keys.")] = False,
    start_it: Annotated[bool, typer.Option("--start", help="Start it as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring NiFi to what the code says; run again, it changes only what differs.

    Parameters come from --set, else from the environment (SOUNDSTAGE_NIFI_WATCH_FOLDER, …; SOUNDSTAGE_API_KEY gives
    the authorization), else from --parameters, else they stay as they are. A flow that ran, runs again after.
    """
    values = _values(assignments or [], file, open_service=open_service)
    with _canvas(url) as canvas:
        if is_local(url):
            _prepare_folders(values)
        done = canvas.deploy(values, tuning=None if concurrency is None else Tuning(concurrency=concurrency))
        if start_it:
            canvas.start()
        missing = canvas.missing_parameters()
    if as_json:
        print(json.dumps({**asdict(done), "missing": missing}))
        return
    for difference in done.changed:
        _out.print(str(difference), markup=False, highlight=False)
    for name in done.parameters:
        _out.print(f"set {name}", markup=False, highlight=False)
    if done.is_new:
        _out.print("deployed")
    elif not done.changed and not done.parameters:
        _out.print("nothing to change")
    if missing:
        given = [
            "SOUNDSTAGE_API_KEY=… in the environment" if name == "authorization" else f"--set {name}=…"
            for name in missing
        ]
        _out.print(f"before it can start: {', '.join(given)}", markup=False, highlight=False)


def _values(assignments: list[str], file: Path | None, *, open_service: bool) -> dict[str, str]:
    """Parameters, from everywhere they may come from."""
    values: dict[str, str] = {}
    if file is not None:
        try:
            values.update({name: str(value) for name, value in tomllib.loads(file.read_text(encoding="utf-8")).items()})
        except tomllib.TOMLDecodeError as e:
            _fail(f"{file}: {e}", Exit.USAGE)
    for parameter in PARAMETERS:
        if (given := os.environ.get(f"{ENVIRONMENT}{parameter.name.upper()}")) is not None:
            values[parameter.name] = given
    if key := os.environ.get("SOUNDSTAGE_API_KEY"):
        values["authorization"] = f"Bearer {key}"
    if open_service:
        values["authorization"] = "Bearer none"
    sensitive = {parameter.name for parameter in PARAMETERS if parameter.sensitive}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            _fail(f"--set {assignment}: expected NAME=VALUE", Exit.USAGE)
        if name in sensitive:
            _fail(f"--set {name}: a command line is no place for a secret; use the environment or a file", Exit.USAGE)
        values[name] = value
    return values


def _prepare_folders(values: dict[str, str]) -> None:
    """Where NiFi is on this machine: the folders that it looks into must be there before it does."""
    if (watch := values.get("watch_folder")) is not None and not Path(watch).is_dir():
        _fail(f"watch_folder: there is no folder {watch}", Exit.USAGE)
    for name in FOLDERS:
        if name in values and not Path(values[name]).is_absolute():
            _fail(f"{name}: {values[name]} must be absolute; NiFi has a working folder of its own", Exit.USAGE)
    for name, inside in (("work_folder", "inbox"), ("quarantine_folder", "replay")):
        if name in values:
            (Path(values[name]) / inside).mkdir(parents=True, exist_ok=True)


@app.command(epilog="Example:  python -m nifi status --json")
def status(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show on one screen what runs, what waits, and what went wrong; exit 3 if it does not wholly run."""
    with _canvas(url) as canvas:
        found = canvas.status()
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        _show(found)
    if found.state != "running":
        raise typer.Exit(Exit.NOT_RUNNING)


def _show(found: Status) -> None:
    colour = "green" if found.state == "running" else "red"
    version = "" if not found.differs else "  [yellow]differs from the code: python -m nifi deploy[/yellow]"
    _out.print(f"[bold {colour}]{found.state}[/]  {found.n_queued} files in queues{version}")
    table = Table("group", "waiting", "MB", "active", "in (5 min)", "out (5 min)", box=None)
    for group in sorted(found.groups, key=lambda each: str(each["name"])):
        table.add_row(
            group["name"],
            *(str(group[key]) for key in ("queued",)),
            f"{group['bytes'] / 1e6:.0f}",
            *(str(group[key]) for key in ("threads", "in", "out")),
        )
    _out.print(table)
    for name, n_files, n_bytes in found.queues[:8]:
        _out.print(f"  {n_files:>7} {n_bytes / 1e6:>9.1f} MB  {name}", markup=False, highlight=False)
    for problem in found.problems:
        _out.print(f"invalid: {problem}", style="red", markup=False, highlight=False)
    for timestamp, level, source, message in found.bulletins[-6:]:
        _out.print(f"{timestamp} {level} {source}: {message}"[:200], style="yellow", markup=False, highlight=False)


@app.command(epilog="Example:  python -m nifi verify && echo as it should be")
def verify(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Check that NiFi has this flow, complete, valid and with all its parameters; exit 1 if not."""
    with _canvas(url) as canvas:
        found = canvas.status()
        checks = {
            "same as the code": [str(each) for each in canvas.differences(canvas.tuning())],
            "parameters set": [f"{name} is not set" for name in canvas.missing_parameters()],
            "valid": list(found.problems),
            "running": [] if found.state == "running" else [f"it is {found.state}"],
        }
    if as_json:
        print(json.dumps(checks))
    else:
        for name, problems in checks.items():
            _out.print(f"{'[red]✗' if problems else '[green]✓'}[/] {name}")
            for problem in problems:
                _out.print(f"    {problem}", markup=False, highlight=False)
    if any(problems for name, problems in checks.items() if name != "running"):
        raise typer.Exit(Exit.FAILED)
    if checks["running"]:
        raise typer.Exit(Exit.NOT_RUNNING)


@app.command(epilog="Example:  python -m nifi start")
def start(url: Url = DEFAULT_URL) -> None:
    """Start every part; refused while a parameter is missing."""
    _do(url, Canvas.start, "running")


@app.command(epilog="Example:  python -m nifi stop")
def stop(url: Url = DEFAULT_URL) -> None:
    """Stop every part; files stay in their queues."""
    _do(url, Canvas.stop, "stopped")


@app.command(epilog="Example:  python -m nifi report")
def report(url: Url = DEFAULT_URL) -> None:
    """Write the report of all since the last one now, into work_folder/reports; else it comes after midnight."""
    _do(url, Canvas.report, "the report is being written to work_folder/reports")


def _do(url: str, action: Callable[[Canvas], None], done: str) -> None:
    with _canvas(url) as canvas:
        action(canvas)
    _out.print(done)


@app.command(epilog="Example:  SOUNDSTAGE_NIFI_USERNAME=… SOUNDSTAGE_NIFI_PASSWORD=… python -m nifi metrics")
def metrics(
    url: Url = DEFAULT_URL,
    port: Annotated[int, typer.Option(help="Where Prometheus finds the figures.")] = figures.PORT,
    host: Annotated[str, typer.Option(help="The address that it listens on.")] = "127.0.0.1",
    any_certificate: Annotated[
        bool, typer.Option(help="Take NiFi's own certificate unseen; only inside a network of your own.")
    ] = False,
) -> None:
    """Tell Prometheus NiFi's figures, which NiFi itself tells only to those who log in; until it is ended."""
    login = _login()
    verify: ssl.SSLContext | bool = not any_certificate
    if login.ca_file is not None:
        verify = ssl.create_default_context(cafile=str(login.ca_file))
    with httpx.Client(base_url=url, verify=verify, timeout=30) as client:
        server = figures.server(figures.Figures(client, login), host, port)
        for number in (signal.SIGTERM, signal.SIGINT):
            # Of another thread: serve_forever would wait for itself.
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        with server:
            server.serve_forever()


@app.command(epilog="Example:  python -m nifi export --check")
def export(
    output: Annotated[Path, typer.Option(help="Where to.")] = flow.DEFINITION,
    check: Annotated[bool, typer.Option(help="Write nothing; exit 1 if the file is another flow.")] = False,
    draw: Annotated[bool, typer.Option(help="Also draw it: docs/nifi.svg.")] = True,
) -> None:
    """Write the flow definition for people who import by hand; it needs no NiFi, and holds no path and no secret."""
    text = flow.to_json(flow.build())
    if check:
        if not output.exists() or output.read_text(encoding="utf-8") != text:
            _fail(f"{output} is not what the code builds; python -m nifi export")
        return
    output.write_text(text, encoding="utf-8")
    if draw:
        picture.PICTURE.write_text(picture.draw(json.loads(text)), encoding="utf-8")


@app.command(epilog="Example:  python -m nifi replay /quarantine 'News/*/take 7.wav'")
def replay(
    folder: Annotated[Path, typer.Argument(help="The quarantine folder.", exists=True, file_okay=False)],
    pattern: Annotated[str, typer.Argument(help="Of paths below it, as in a shell.")] = "*",
    as_json: AsJson = False,
) -> None:
    """Try again what is in quarantine: moves files into its folder `replay`, and takes their reasons away."""
    moved: list[str] = []
    for path in sorted(folder.rglob("*")):
        source = path.relative_to(folder)
        if source.parts[0] == "replay" or not path.is_file() or path.name.endswith(".reason.json"):
            continue
        if not path.name.startswith(".") and fnmatch(str(source), pattern):
            target = folder / "replay" / source
            target.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f"{path.name}.reason.json").unlink(missing_ok=True)
            shutil.move(path, target)
            moved.append(str(source))
    if as_json:
        print(json.dumps({"replayed": moved}))
    else:
        _out.print(f"{len(moved)} files are tried again")


@app.command(epilog="Example:  python -m nifi remove --drop")
def remove(
    url: Url = DEFAULT_URL,
    drop: Annotated[bool, typer.Option("--drop", help="Also where files wait in its queues.")] = False,
) -> None:
    """Take the flow out of NiFi; refused while files wait in its queues."""
    with _canvas(url) as canvas:
        n_dropped = canvas.remove(drop=drop)
    _out.print("removed" + (f"; {n_dropped} files were dropped from its queues" if n_dropped else ""))


if __name__ == "__main__":
    sys.exit(app())
