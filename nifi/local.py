"""A NiFi on this machine: `python -m nifi.local assemble | up | down | status`.

It is put together once from Maven artifacts (`nifi/assembly`), kept in a cache folder, and started on loopback. To try
the flow and to prove it; a production has its own NiFi, where `python -m nifi deploy` does the rest.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import string
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import httpx
import platformdirs
import typer

HERE = Path(__file__).parent
STATE_DIR = HERE.parent / ".run" / "nifi"
NIFI_VERSION = "2.3.0"
MIN_JAVA = 21
"""NiFi 2 ends on an older one with UnsupportedClassVersionError."""

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0
ASSEMBLE_TIMEOUT_S = 1800


_children: dict[int, subprocess.Popen[bytes]] = {}
"""NiFis that this process began, to be told when they have ended."""


class NiFiUnavailable(RuntimeError):
    """NiFi cannot be put together or started here; the message says why."""


def java() -> Path:
    """The java command of the first Java that NiFi runs on: of JAVA_HOME, the PATH, or where systems put them.

    Raises:
        NiFiUnavailable: There is none.
    """
    candidates = [Path(home) / "bin" / "java" for home in [os.environ.get("JAVA_HOME")] if home]
    candidates += [Path(found) for found in [shutil.which("java")] if found]
    candidates += sorted(Path("/usr/lib/jvm").glob("*/bin/java"), reverse=True)
    for candidate in candidates:
        with suppress(OSError):
            told = subprocess.run([candidate, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603
            version = re.search(r'version "(\d+)', told)
            if version is not None and int(version[1]) >= MIN_JAVA:
                return candidate
    raise NiFiUnavailable(f"NiFi needs Java {MIN_JAVA} or newer; install one, or name it with JAVA_HOME")


def cache_dir() -> Path:
    """Where assembled NiFis are kept: $SOUNDSTAGE_NIFI_CACHE, else the user's cache folder."""
    given = os.environ.get("SOUNDSTAGE_NIFI_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("soundstage") / "nifi"


def assemble() -> Path:
    """The folder of NiFi's jars and NARs; put together by Maven where it is not there yet.

    The first time takes minutes and 400 MB of downloads into Maven's own repository, through whatever mirrors Maven is
    set up with.

    Raises:
        NiFiUnavailable: Java or Maven is missing, or an artifact cannot be had.
    """
    recipe = sorted(path for path in (HERE / "assembly").rglob("pom.xml") if "target" not in path.parts)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in recipe)).hexdigest()[:12]
    lib = cache_dir() / f"{NIFI_VERSION}-{digest}"
    if lib.is_dir():
        return lib
    java_home = java().resolve().parents[1]
    maven = shutil.which("mvn")
    if maven is None:
        raise NiFiUnavailable("putting NiFi together needs Maven (mvn)")
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="assembling-") as folder:
        for path in recipe:
            copy = Path(folder) / path.relative_to(HERE / "assembly")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        try:
            done = subprocess.run(  # noqa: S603
                [maven, "-B", "-ntp", "-q", "package"],
                cwd=folder, env={**os.environ, "JAVA_HOME": str(java_home)},
                capture_output=True, text=True, check=False, timeout=ASSEMBLE_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as e:
            raise NiFiUnavailable(f"Maven took longer than {ASSEMBLE_TIMEOUT_S} s; try again") from e
        if done.returncode != 0:
            errors = [line for line in done.stdout.splitlines() if "ERROR" in line][:5]
            raise NiFiUnavailable("Maven could not put NiFi together:\n" + "\n".join(errors))
        built = Path(folder) / "layout" / "target" / "nifi" / "lib"
        with suppress(OSError):  # another process was faster
            built.rename(lib)
    return lib


def install() -> None:
    """Java and Maven from the system's packages, where they are missing and apt-get may be called.

    Raises:
        NiFiUnavailable: It may not, or the system has no Java that is new enough.
    """
    missing = [] if shutil.which("mvn") else ["maven"]
    has_java = False
    with suppress(NiFiUnavailable):
        java()
        has_java = True
    if has_java and not missing:
        return
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise NiFiUnavailable(
            f"install Java {MIN_JAVA} or newer and Maven; only root on a system with apt-get is helped"
        )
    _run([apt, "update", "-qq"])
    if not has_java:
        known = _run(["apt-cache", "pkgnames", "openjdk-"]).split()
        versions = {int(name[1]) for name in map(re.compile(r"openjdk-(\d+)-jdk-headless$").match, known) if name}
        if not (fit := [version for version in versions if version >= MIN_JAVA]):
            raise NiFiUnavailable(f"this system has no package of Java {MIN_JAVA} or newer; name one with JAVA_HOME")
        missing.append(f"openjdk-{max(fit)}-jdk-headless")
    _run([apt, "install", "-y", "-qq", "--no-install-recommends", *missing])


def _run(command: list[str]) -> str:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if done.returncode != 0:
        raise NiFiUnavailable(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNiFi:
    """One instance.

    Attributes:
        folder: Holds its configuration, repositories and logs; what is in its queues survives in it.
        port: Of its web page and API, on loopback.
        heap: Of Java.
    """

    folder: Path = STATE_DIR
    port: int = 8480
    heap: str = "512m"

    @property
    def url(self) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self.port}/nifi-api"

    @property
    def canvas_url(self) -> str:
        """Of its web page."""
        return f"http://127.0.0.1:{self.port}/nifi/"

    @property
    def pid(self) -> int | None:
        """Of its process; None where it does not run."""
        with suppress(OSError, ValueError):
            pid = int((self.folder / "nifi.pid").read_text(encoding="ascii"))
            # The number alone could be somebody else's after a restart of the machine.
            if b"org.apache.nifi.NiFi" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def start(self) -> None:
        """Start it and wait until its API answers; does nothing if it runs.

        Raises:
            NiFiUnavailable: It cannot be put together, or does not start.
        """
        if self.pid is not None:
            return
        self._lay_out(assemble())
        jars = ":".join(f"./{jar.relative_to(self.folder)}" for jar in sorted((self.folder / "lib").glob("*.jar")))
        command = [
            str(java()), "--class-path", f"./conf:{jars}",
            "-Dorg.apache.nifi.bootstrap.config.log.dir=./logs",
            "-Dnifi.properties.file.path=./conf/nifi.properties",
            f"-Dorg.apache.nifi.management.server.address=127.0.0.1:{free_port()}",
            f"-Xms{self.heap}", f"-Xmx{self.heap}",
            "-Djava.awt.headless=true", "-Dsun.net.http.allowRestrictedHeaders=true",
            "org.apache.nifi.NiFi",
        ]  # fmt: skip
        with (self.folder / "logs" / "console.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - NiFi outlives this process
                command, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        _children[process.pid] = process
        (self.folder / "nifi.pid").write_text(str(process.pid), encoding="ascii")
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise NiFiUnavailable(f"NiFi did not start; see {self.folder / 'logs'}\n{self._log_tail()}")
            time.sleep(0.2)

    def answers(self) -> bool:
        """Whether its API is there: it answers once the flow is loaded."""
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/flow/about", timeout=5.0).is_success
        return False

    def stop(self) -> None:
        """End it in good order; kill it where that takes long."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def resident_mb(self) -> float:
        """Memory of the process in megabytes."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024 / 1e6

    def _end(self, sign: Literal[signal.Signals.SIGTERM, signal.Signals.SIGKILL]) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while (pid := self.pid) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, sign if time.monotonic() < deadline else signal.SIGKILL)
            if (child := _children.get(pid)) is not None:
                child.poll()
            time.sleep(0.1)
        for child in list(_children.values()):
            if child.poll() is not None:
                del _children[child.pid]
        (self.folder / "nifi.pid").unlink(missing_ok=True)

    def _lay_out(self, lib: Path) -> None:
        for name in ("conf", "logs", "extensions"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "lib").unlink(missing_ok=True)
        (self.folder / "lib").symlink_to(lib)
        for template in sorted((HERE / "conf").iterdir()):
            target = self.folder / "conf" / template.name
            if template.name != "nifi.properties":
                shutil.copy(template, target)
            elif not target.exists():  # its key opens what is in the flow
                text = string.Template(template.read_text(encoding="utf-8"))
                target.touch(mode=0o600)
                target.write_text(text.substitute(port=self.port, key=secrets.token_hex(24)), encoding="utf-8")

    def _log_tail(self) -> str:
        lines: list[str] = []
        for name in ("nifi-app.log", "console.log"):
            with suppress(OSError):
                lines += (self.folder / "logs" / name).read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
        return "\n".join(lines)


app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)

Folder = Annotated[Path, typer.Option(help="Holds the instance; its queues survive in it.")]


@app.command("assemble", epilog="Example:  python -m nifi.local assemble")
def assemble_command(
    install_missing: Annotated[
        bool, typer.Option("--install", help="Java and Maven from the system's packages, if they are missing.")
    ] = False,
) -> None:
    """Put NiFi together from Maven artifacts; minutes the first time, nothing after."""
    try:
        if install_missing:
            install()
        print(assemble())
    except NiFiUnavailable as e:
        typer.echo(str(e), err=True)
        raise typer.Exit(1) from e


@app.command(epilog="Example:  python -m nifi.local up --port 8480")
def up(folder: Folder = STATE_DIR, port: Annotated[int, typer.Option(help="Of the web page and API.")] = 8480) -> None:
    """Start a NiFi on this machine, on loopback, without login."""
    nifi = LocalNiFi(folder=folder.absolute(), port=port)
    try:
        nifi.start()
    except NiFiUnavailable as e:
        typer.echo(str(e), err=True)
        raise typer.Exit(1) from e
    print(f"NiFi is at {nifi.canvas_url}, its API at {nifi.url}\nThe flow:  python -m nifi deploy --url {nifi.url}")


@app.command(epilog="Example:  python -m nifi.local down")
def down(folder: Folder = STATE_DIR) -> None:
    """End the NiFi that `up` started; what is in its queues stays for the next time."""
    LocalNiFi(folder=folder.absolute()).stop()
    print("stopped")


@app.command(epilog="Example:  python -m nifi.local status && echo runs")
def status(folder: Folder = STATE_DIR) -> None:
    """Say whether it runs; exit 0 if it does, 1 if not."""
    is_running = LocalNiFi(folder=folder.absolute()).pid is not None
    print("runs" if is_running else "does not run")
    raise typer.Exit(0 if is_running else 1)


if __name__ == "__main__":
    app()
