"""The service on this machine: `python -m deployments.local up | down | status`.

`make run` and `make stop` call this, and the tests do, on ports of their own.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import yaml
from pydantic import ValidationError
from rich.console import Console

from deployments.settings import USER_CONFIGS, AppArgs
from soundstage import sample
from soundstage.models import registry
from soundstage.params import Params

ROOT = Path(__file__).parents[1]
STATE_DIR = ROOT / ".run"
CONFIG = ROOT / "serve_config.yaml"
OBJECT_STORE_BYTES = 1024**3
"""Ray's shared memory: uploads, and chunks on their way to the models."""

FREE_PORTS = range(20_100, 30_000)
"""Above what Ray's workers listen on (10002 to 19999), below Serve's own ports and those that systems hand out."""
_turns = itertools.count(secrets.randbelow(len(FREE_PORTS)))
"""Which of them free_port tries next, counted around."""

START_TIMEOUT_S = 300.0
PORT_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 5.0

_console = Console(stderr=True)


class LocalError(RuntimeError):
    """The cluster could not be started or ended; the message says what to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where a cluster listens.

    Ray's dashboard must lie outside its worker ports, 10002 to 19999. HAProxy opens its statistics and metrics on all
    interfaces and without a password: keep these ports off the network.
    """

    http: int = 8000
    dashboard: int = 8265
    gcs: int = 6379
    ray_client: int = 10001
    haproxy_stats: int = 8404
    haproxy_metrics: int = 9101
    ray_metrics: int = 9102

    @classmethod
    def free(cls) -> Ports:
        """Ports that nobody uses now."""
        return cls(**{field.name: free_port() for field in fields(cls)})


def free_port() -> int:
    """A port of loopback that nobody uses now, that Ray does not take meanwhile, and that is not given out twice.

    Raises:
        LocalError: All are taken.
    """
    for turn in itertools.islice(_turns, len(FREE_PORTS)):
        port = FREE_PORTS[turn % len(FREE_PORTS)]
        if _bind_error(port) is None:
            return port
    raise LocalError(f"no free port between {FREE_PORTS.start} and {FREE_PORTS.stop}")


def _bind_error(port: int) -> OSError | None:
    """Why a port cannot be had."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as e:
            return e
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCluster:
    """A Ray cluster of one node with the service on it.

    Attributes:
        state_dir: Holds the token and the log; one cluster a folder.
        ports: Where it listens.
        n_cpus: What Ray may give to replicas; None for all there are.
    """

    state_dir: Path = STATE_DIR
    ports: Ports = Ports()
    n_cpus: int | None = None

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self.ports.http}"

    @property
    def dashboard_url(self) -> str:
        """Of Ray's dashboard."""
        return f"http://127.0.0.1:{self.ports.dashboard}"

    @property
    def metrics_url(self) -> str:
        """Of the node's Prometheus metrics: Ray's, Serve's and ours."""
        return f"http://127.0.0.1:{self.ports.ray_metrics}/metrics"

    @property
    def token_file(self) -> Path:
        """The token that opens Ray and its dashboard."""
        return self.state_dir / "ray-token"

    @property
    def session_file(self) -> Path:
        """The session of the cluster's processes."""
        return self.state_dir / "session"

    @property
    def log_file(self) -> Path:
        """What Ray's head process printed."""
        return self.state_dir / "ray.log"

    def environment(self) -> dict[str, str]:
        """Of every process of the cluster, and of commands that talk to it."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_STATS_PORT": str(self.ports.haproxy_stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(self.ports.haproxy_metrics),
            "RAY_SERVE_HAPROXY_NBTHREAD": "2",
            # Series that nobody looks at; a scrape takes a tenth of a millisecond for each.
            "RAY_event_stats": "0",
            "RAY_metric_cardinality_level": "low",
            "RAY_SERVE_COMPACT_LONG_POLL_METRIC_TAGS": "1",
            "RAY_SERVE_REQUEST_LATENCY_BUCKETS_MS": "5,10,20,50,100,200,500,1000,2000,5000,10000,30000",
            "RAY_SERVE_REPLICA_STARTUP_SHUTDOWN_LATENCY_BUCKETS_MS": "1000,5000,10000,20000,30000,60000,120000,240000",
            # A client that has gone silent in the middle of an upload is let go after two minutes, not an hour.
            "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "120",
            # Ray's workers are at niceness 15 otherwise, behind everything else on the machine.
            "RAY_worker_niceness": "0",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }

    def start(self) -> None:
        """Start Ray; does nothing if it runs.

        Raises:
            LocalError: A port is taken, or Ray does not come up.
        """
        if self.is_running():
            return
        self._refuse_taken_ports()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(secrets.token_hex(32), encoding="ascii")
        command = [
            "ray", "start", "--head", "--block",
            "--node-ip-address=127.0.0.1",
            f"--port={self.ports.gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.ports.dashboard}",
            f"--ray-client-server-port={self.ports.ray_client}",
            f"--metrics-export-port={self.ports.ray_metrics}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--disable-usage-stats",
        ]  # fmt: skip
        if self.n_cpus is not None:
            command.append(f"--num-cpus={self.n_cpus}")
        env = self.environment()
        ray = shutil.which("ray", path=env["PATH"])
        if ray is None:
            raise LocalError("ray is not installed; run `make run`")
        # Not subprocess: Ray outlives this process, and nobody waits for it.
        pid = os.posix_spawn(
            ray,
            command,
            env,
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log_file), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        self.session_file.write_text(str(pid), encoding="ascii")
        self._poll(lambda: self._ask_dashboard("/api/version") is not None, "Ray did not start")

    def deploy(self, config: Path = CONFIG) -> None:
        """Deploy a configuration, with this cluster's HTTP port in it, and wait until the service is ready.

        Raises:
            LocalError: Serve refuses it, or it does not become ready.
        """
        self.deploy_document(yaml.safe_load(config.read_text(encoding="utf-8")))

    def deploy_document(self, document: dict[str, Any]) -> None:
        """The same for a configuration that was already read.

        Raises:
            LocalError: A setting is wrong, Serve refuses it, or the service does not become ready.
        """
        document = {
            **document,
            "http_options": {**document["http_options"], "port": self.ports.http},
            "applications": [_with_models(application) for application in document["applications"]],
        }
        _check(document)
        env = self.environment()
        serve = shutil.which("serve", path=env["PATH"])
        if serve is None:
            raise LocalError("ray[serve] is not installed; run `make run`")
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=self.state_dir, encoding="utf-8") as file:
            yaml.safe_dump(document, file)
            file.flush()
            done = subprocess.run(  # noqa: S603
                [serve, "deploy", "--address", self.dashboard_url, file.name],
                env=env, capture_output=True, text=True, check=False,
            )  # fmt: skip
        if done.returncode != 0:
            raise LocalError(f"serve deploy failed:\n{done.stdout}{done.stderr}")
        self._poll(self._is_deployed, "the service did not become ready")

    def watch(self, ended: threading.Event) -> None:
        """Wait for the event.

        Raises:
            LocalError: Ray ended before.
        """
        while not ended.wait(1.0):
            if not self.is_running():
                raise LocalError(f"Ray has ended; see {self.log_file}")

    def finish(self) -> None:
        """Take no more requests, and wait for those that are there as long as the configuration says."""
        env = self.environment()
        subprocess.run(  # noqa: S603
            [shutil.which("serve", path=env["PATH"]) or "serve", "shutdown", "--yes", "--address", self.dashboard_url],
            env=env, capture_output=True, check=False,
        )  # fmt: skip

    def stop(self) -> None:
        """End the processes of this cluster, and no others.

        Raises:
            LocalError: Some do not end.
        """
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, sign)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while self.pids() and time.monotonic() < deadline:
                time.sleep(0.1)
        if self.pids():
            raise LocalError(f"processes {self.pids()} do not end")
        with suppress(FileNotFoundError, ChildProcessError):
            os.waitpid(int(self.session_file.read_text(encoding="ascii")), 0)  # where it was this process that began it
        self.session_file.unlink(missing_ok=True)

    def is_running(self) -> bool:
        """Whether Ray is there."""
        return bool(self.pids())

    def is_ready(self) -> bool:
        """Whether every stage of the service is able to answer."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    def _ask_dashboard(self, path: str) -> Any:
        """What the dashboard answers, or None while it does not."""
        headers = {"Authorization": f"Bearer {self.token_file.read_text(encoding='ascii')}"}
        try:
            return httpx.get(f"{self.dashboard_url}{path}", headers=headers, timeout=5.0).raise_for_status().json()
        except httpx.HTTPError:
            return None

    def _is_deployed(self) -> bool:
        """Whether Serve has done what the last configuration says, and the service answers.

        Raises:
            LocalError: Serve has given up.
        """
        answer = self._ask_dashboard("/api/serve/applications/")
        applications = answer["applications"].values() if answer else []
        for application in applications:
            if application["status"] == "DEPLOY_FAILED":
                reasons = [application["message"]]
                for name, deployment in application["deployments"].items():
                    if deployment["message"]:
                        reasons.append(f"{name}: {deployment['message']}")
                raise LocalError("\n".join(reasons))
        are_running = bool(applications) and all(entry["status"] == "RUNNING" for entry in applications)
        return are_running and self.is_ready()

    def _refuse_taken_ports(self) -> None:
        # A process that was killed a moment ago may hold its port still, while the kernel takes its memory apart.
        deadline = time.monotonic() + PORT_TIMEOUT_S
        for name, port in asdict(self.ports).items():
            while (error := _bind_error(port)) is not None:
                if time.monotonic() > deadline:
                    raise LocalError(f"port {port} ({name}) is in use by another program; end it first") from error
                time.sleep(0.1)

    def _poll(self, is_done: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if is_done():
                return
            if not self.pids():
                break
            time.sleep(0.2)
        tail = "".join(self.log_file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-20:])
        raise LocalError(f"{complaint}; see {self.log_file}:\n{tail}")

    def pids(self) -> list[int]:
        """Processes of this cluster: those of the session that Ray's head process leads.

        Ray's processes rename themselves over their environment, and lose their parent when Ray ends; their session
        stays. Its number alone could be somebody else's after a restart of the machine, so their names count too.
        """
        try:
            session = int(self.session_file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return []
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # pid (name) state ppid pgrp session ...; a name may hold anything, a parenthesis too.
                state, _, _, of_session = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:4]
                name = (stat.parent / "cmdline").read_bytes()
                if int(of_session) == session and state != "Z" and (b"ray" in name or b"haproxy" in name):
                    found.append(int(stat.parent.name))
        return found

    def resident_mb(self) -> float:
        """Memory of all processes of this cluster together in megabytes, shared pages counted once."""
        n_kb = 0
        for pid in self.pids():
            with suppress(OSError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
                n_kb += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return n_kb * 1024 / 1e6


def _with_models(application: dict[str, Any]) -> dict[str, Any]:
    """The application with the places of models that this process knows, which may be others than when Ray began."""
    args = application.get("args", {})
    models = {"cache_dir": str(registry.cache_dir().absolute())}
    if url := os.environ.get("SOUNDSTAGE_REGISTRY"):
        models["registry"] = url if "://" in url else str(Path(url).absolute())
    return {**application, "args": {**args, "models": {**models, **args.get("models", {})}}}


def _check(document: dict[str, Any]) -> None:
    """Refuse wrong settings before they reach a running service.

    Raises:
        LocalError: There are some.
    """
    for application in document["applications"]:
        settings: list[tuple[str, type[Params], Any]] = [("args", AppArgs, application["args"])]
        settings += [
            (f"{deployment['name']}.user_config", USER_CONFIGS[deployment["name"]], deployment.get("user_config", {}))
            for deployment in application.get("deployments", [])
            if deployment["name"] in USER_CONFIGS
        ]
        for place, config, values in settings:
            try:
                config.model_validate(values)
            except ValidationError as e:
                raise LocalError(f"{place}: {registry.told(e)}") from e


app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)


@app.command(
    epilog="Examples:  python -m deployments.local up    python -m deployments.local up --config my_config.yaml"
)
def up(
    config: Annotated[Path, typer.Option(help="A Serve configuration.")] = CONFIG,
    demo: Annotated[bool, typer.Option(help="Analyse the sample clip and show its captions.")] = True,
) -> None:
    """Start the service on this machine, or bring the running one up to date."""
    cluster = LocalCluster()
    try:
        with _console.status("starting Ray"):
            cluster.start()
        with _console.status("deploying the service and loading its models"):
            cluster.deploy(config)
    except LocalError as e:
        _console.print(f"[red]{e}[/red]", highlight=False)
        raise typer.Exit(1) from e
    if demo:
        _show_sample(cluster)
    print(f"""
API            {cluster.url}/v1/analyze
Documentation  {cluster.url}/docs
Ray dashboard  {cluster.dashboard_url}  (token: {cluster.token_file})
Log            {cluster.log_file}

Try it         soundstage analyze YOUR_FILE --format sdh_srt
End it         make stop""")


@app.command(
    epilog="Example:  python -m deployments.local serve --config serve_config.yaml --state-dir /tmp/soundstage"
)
def serve(
    config: Annotated[Path, typer.Option(help="A Serve configuration.")] = CONFIG,
    state_dir: Annotated[Path, typer.Option(help="For the token and the log.")] = STATE_DIR,
) -> None:
    """Run the service in the foreground, as a container does, until SIGTERM or Ctrl-C; what has begun is finished."""
    cluster = LocalCluster(state_dir=state_dir)
    ended = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: ended.set())
    try:
        cluster.start()
        cluster.deploy(config)
        print(f"ready at {cluster.url}", flush=True)
        cluster.watch(ended)
        cluster.finish()
    except LocalError as e:
        _console.print(f"[red]{e}[/red]", highlight=False)
        raise typer.Exit(1) from e
    finally:
        cluster.stop()


@app.command(epilog="Example:  python -m deployments.local down")
def down() -> None:
    """End the service that `up` started, and nothing else."""
    try:
        LocalCluster().stop()
    except LocalError as e:
        _console.print(f"[red]{e}[/red]", highlight=False)
        raise typer.Exit(1) from e
    print("stopped")


@app.command(epilog="Example:  python -m deployments.local status && echo ready")
def status() -> None:
    """Say whether the service is ready; exit 0 if it is, 1 if not."""
    cluster = LocalCluster()
    is_ready = cluster.is_ready()
    print("ready" if is_ready else "running, not ready" if cluster.is_running() else "not running")
    raise typer.Exit(0 if is_ready else 1)


def _show_sample(cluster: LocalCluster) -> None:
    clip = cluster.state_dir / "sample.wav"
    sample.write(clip)
    answer = httpx.post(
        f"{cluster.url}/v1/analyze",
        params={"response_format": "sdh_srt"},
        content=clip.read_bytes(),
        headers={"Content-Type": "audio/wav", **_authorization()},
        timeout=120.0,
    )
    if answer.is_success:
        print(f"SDH captions of {clip}:\n\n{answer.text}")
    else:
        _console.print(f"[yellow]the sample was answered {answer.status_code}:[/yellow] {answer.text}")


def _authorization() -> dict[str, str]:
    key = os.environ.get("SOUNDSTAGE_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


if __name__ == "__main__":
    app()
