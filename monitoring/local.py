"""Prometheus, Alertmanager and the canary beside `make run`, on this machine: `make monitor`.

They run in the foreground and end together. Figures stay in .run/monitor between runs.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import yaml

from deployments.local import STATE_DIR, LocalCluster

HERE = Path(__file__).parent
HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
INSTALL = "apt-get install prometheus prometheus-alertmanager, or https://prometheus.io/download"


class MonitorError(RuntimeError):
    """Something is not installed, or does not start; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """Where everything listens and writes.

    Attributes:
        cluster: The service that is watched.
        state_dir: For configuration, figures and logs.
        prometheus_port: Of its pages and API.
        alertmanager_port: The same.
        canary_port: Of its metrics.
        canary_every_s: From one clip to the next.
        nifi_port: Of `python -m nifi metrics`; None where it does not run.
        scrape_interval_s: Between two looks.
    """

    cluster: LocalCluster
    state_dir: Path
    prometheus_port: int = 9090
    alertmanager_port: int = 9093
    canary_port: int = 9105
    canary_every_s: float = 15.0
    scrape_interval_s: int = 15
    nifi_port: int | None = None

    @property
    def prometheus_url(self) -> str:
        """Of its pages and API."""
        return f"http://{HOST}:{self.prometheus_port}"

    @property
    def alertmanager_url(self) -> str:
        """The same."""
        return f"http://{HOST}:{self.alertmanager_port}"

    def write_configuration(self) -> None:
        """Put the configuration and the targets of this machine into the state folder."""
        config: dict[str, Any] = yaml.safe_load((HERE / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
        interval = f"{self.scrape_interval_s}s"
        config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
        targets = self.state_dir / "targets"
        targets.mkdir(parents=True, exist_ok=True)
        (self.state_dir / "prometheus.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        shutil.copytree(HERE / "prometheus" / "rules", self.state_dir / "rules", dirs_exist_ok=True)
        shutil.copy(HERE / "alertmanager" / "alertmanager.yml", self.state_dir)
        ports = {
            "ray": self.cluster.ports.ray_metrics,
            "haproxy": self.cluster.ports.haproxy_metrics,
            "canary": self.canary_port,
            "prometheus": self.prometheus_port,
            "alertmanager": self.alertmanager_port,
            **({} if self.nifi_port is None else {"nifi": self.nifi_port}),
        }
        (targets / "nifi.json").unlink(missing_ok=True)
        for job, port in ports.items():
            (targets / f"{job}.json").write_text(json.dumps([{"targets": [f"{HOST}:{port}"]}]), encoding="utf-8")

    def commands(self) -> dict[str, list[str]]:
        """What is started, by name.

        Raises:
            MonitorError: Something is not installed.
        """
        return {
            "prometheus": [
                _program("prometheus"),
                f"--config.file={self.state_dir / 'prometheus.yml'}",
                f"--storage.tsdb.path={self.state_dir / 'figures'}",
                f"--web.listen-address={HOST}:{self.prometheus_port}",
                "--enable-feature=exemplar-storage",
                "--web.enable-lifecycle",
            ],
            "alertmanager": [
                # Debian's name comes first: its `alertmanager` may be something else.
                _program("prometheus-alertmanager", "alertmanager"),
                f"--config.file={self.state_dir / 'alertmanager.yml'}",
                f"--storage.path={self.state_dir / 'alerts'}",
                f"--web.listen-address={HOST}:{self.alertmanager_port}",
                "--cluster.listen-address=",
            ],
            "canary": [
                sys.executable, "-m", "monitoring.canary", "--url", self.cluster.url, "--port", str(self.canary_port),
                "--every", str(self.canary_every_s),
            ],
        }  # fmt: skip

    def start(self, *names: str) -> dict[str, subprocess.Popen[bytes]]:
        """Start everything, or what is named, and wait until it answers.

        Raises:
            MonitorError: Something is not installed, or does not start.
        """
        commands = self.commands()
        commands = {name: commands[name] for name in names or commands}
        self.write_configuration()
        running = {}
        for name, command in commands.items():
            with (self.state_dir / f"{name}.log").open("wb") as log:
                running[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=HERE.parent)  # noqa: S603
        ready = {
            "prometheus": f"{self.prometheus_url}/-/ready",
            "alertmanager": f"{self.alertmanager_url}/-/ready",
            "canary": f"http://{HOST}:{self.canary_port}/metrics",
        }
        deadline_s = time.monotonic() + START_TIMEOUT_S
        for name, process in running.items():
            while not _answers(ready[name]):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    stop(running)
                    tail = (self.state_dir / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-1000:]
                    raise MonitorError(f"{name} did not start; see {self.state_dir / name}.log:\n{tail}")
                time.sleep(0.1)
        return running


def stop(running: dict[str, subprocess.Popen[bytes]]) -> None:
    """End what `start` started, and nothing else."""
    for process in running.values():
        process.terminate()
    for process in running.values():
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _program(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise MonitorError(f"{names[0]} is not installed: {INSTALL}")
    return found


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command(epilog="Example:  python -m monitoring.local --prometheus-port 9190")
def main(
    prometheus_port: Annotated[int, typer.Option(help="Of Prometheus.")] = 9090,
    alertmanager_port: Annotated[int, typer.Option(help="Of Alertmanager.")] = 9093,
    canary_port: Annotated[int, typer.Option(help="Of the canary's metrics.")] = 9105,
    nifi_port: Annotated[int | None, typer.Option(help="Of `python -m nifi metrics`, where it runs.")] = None,
) -> None:
    """Watch the service that `make run` started, until Ctrl-C."""
    monitor = Monitor(
        cluster=LocalCluster(),
        state_dir=STATE_DIR / "monitor",
        prometheus_port=prometheus_port,
        alertmanager_port=alertmanager_port,
        canary_port=canary_port,
        nifi_port=nifi_port,
    )
    if not monitor.cluster.is_ready():
        print("the service does not run (yet): `make run` starts it", file=sys.stderr)
    print("starting Prometheus, Alertmanager and the canary", file=sys.stderr)
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    try:
        running = monitor.start()
    except MonitorError as e:
        print(e, file=sys.stderr)
        raise typer.Exit(1) from e
    dashboards = HERE.parent / "dashboards" / "grafana"
    print(f"""
Prometheus     {monitor.prometheus_url}/graph     targets: {monitor.prometheus_url}/targets
Alerts         {monitor.prometheus_url}/alerts    sent to: {monitor.alertmanager_url}
Canary         http://{HOST}:{canary_port}/metrics
Dashboards     with a Grafana of yours (11 or later):
  docker run --network host -e PROMETHEUS_URL={monitor.prometheus_url} \\
    -v {dashboards}/provisioning:/etc/grafana/provisioning:ro \\
    -v {dashboards}/dashboards:/etc/grafana/soundstage/dashboards:ro -v /tmp/ray:/tmp/ray:ro grafana/grafana:11.6.0
What to look at, and what to do about alerts: docs/operations.md
End it with Ctrl-C.""", flush=True)  # fmt: skip
    while not end.wait(1.0):
        ended = [name for name, process in running.items() if process.poll() is not None]
        if ended:
            stop(running)
            print(f"{', '.join(ended)} ended; see {monitor.state_dir}", file=sys.stderr)
            raise typer.Exit(1)
    stop(running)


if __name__ == "__main__":
    app()
