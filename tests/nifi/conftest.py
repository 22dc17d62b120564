"""A real NiFi and a real service on ports of their own, and a front between them that can refuse."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.results import RESULTS_DIR, write_result
from deployments.auth import hash_key
from deployments.local import CONFIG, LocalCluster, Ports, free_port
from nifi.canvas import Canvas
from nifi.local import LocalNiFi, NiFiUnavailable, assemble

KEY = "a key for the flow"
TIMEOUT_S = 1800
SUFFIXES = (".json", ".srt", ".sdh.srt", ".csv")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of all waits for NiFi and the service to start."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


class Front:
    """Passes connections on to the service; while it is busy it answers every request 503 itself.

    It counts requests to analyse, so that tests can say how often the service was asked.
    """

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.n_requests = 0
        self.n_refused = 0
        self._target_port = target_port
        self._is_busy = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", self.port), self._loop
        ).result(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set_busy(self, is_busy: bool) -> None:
        """Whether to refuse from now on; what is under way is cut off."""
        self._is_busy = is_busy

        def cut() -> None:
            for writer in self._writers:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(cut)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self.set_busy(True)

        async def end() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._is_busy:
                await self._refuse(reader, writer)
            else:
                await self._pass_on(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_refused += 1
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        body = b'{"error": {"code": "overloaded", "message": "busy", "request_id": "x"}}'
        writer.write(
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service_reader, service_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers.add(service_writer)
        try:
            await asyncio.gather(
                self._copy(reader, service_writer, counts=True), self._copy(service_reader, writer, counts=False)
            )
        finally:
            self._writers.discard(service_writer)
            service_writer.close()
            with suppress(OSError):
                await service_writer.wait_closed()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool) -> None:
        while data := await reader.read(65536):
            if counts:
                self.n_requests += data.count(b"POST /v1/analyze")
            writer.write(data)
            await writer.drain()
        writer.close()


@dataclass
class Proof:
    """The flow at work: a watch folder, and what comes of it."""

    nifi: LocalNiFi
    cluster: LocalCluster
    document: dict[str, Any]
    front: Front
    folder: Path
    push_port: int
    canvas: Canvas = field(init=False)

    @property
    def watch(self) -> Path:
        return self.folder / "watch"

    @property
    def delivery(self) -> Path:
        return self.folder / "delivery"

    @property
    def quarantine(self) -> Path:
        return self.folder / "quarantine"

    def connect(self) -> None:
        self.canvas = Canvas(self.nifi.url)

    def values(self) -> dict[str, str]:
        return {
            "watch_folder": str(self.watch),
            "delivery_folder": str(self.delivery),
            "quarantine_folder": str(self.quarantine),
            "work_folder": str(self.folder / "work"),
            "service_url": self.front.url,
            "authorization": f"Bearer {KEY}",
            "scan_interval": "1 sec",
            "settle_time": "1 sec",
            "max_bytes": "100000000",
            "push_port": str(self.push_port),
            "cache_port": str(self.cache_port),
        }

    @property
    def cache_port(self) -> int:
        return self.push_port + 1

    def delivered(self, under: str = "") -> set[str]:
        """Documents below the delivery folder, by path; none that is still being written."""
        root = self.delivery / under
        found = (path for path in root.rglob("*") if path.is_file()) if root.is_dir() else ()
        return {str(path.relative_to(self.delivery)) for path in found if not path.name.startswith(".")}

    def n_whole(self, expected: dict[str, set[str]]) -> int:
        """How many sources have all their documents."""
        there = self.delivered()
        return sum(documents <= there for documents in expected.values())

    def reason(self, source: str) -> dict[str, Any] | None:
        """Why a file is in quarantine; None while it is not."""
        path = self.quarantine / f"{source}.reason.json"
        reason: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return reason

    def report(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What the flow reports of all that happened since the last report: sums by day, and every event."""
        reports = self.folder / "work" / "reports"
        before = set(reports.glob("*.json"))
        self.wait_until_empty(60)
        self.canvas.report()
        wait_for(lambda: len(set(reports.glob("*.json")) - before) == 2, 60, "the report")
        events, summary = sorted(set(reports.glob("*.json")) - before, key=lambda path: path.suffixes)
        return json.loads(summary.read_text(encoding="utf-8")), json.loads(events.read_text(encoding="utf-8"))

    def events(self) -> list[dict[str, Any]]:
        """Every event since the last report."""
        return self.report()[1]

    def wait_until_empty(self, timeout_s: float = 120) -> None:
        """Until no file waits in a queue of the flow, seen twice: one between two queues may be overlooked."""
        wait_for(lambda: not any(self.canvas.status().n_queued for _ in range(2)), timeout_s, "queues to be empty")

    def kill_service(self) -> None:
        """End every process of the service at once, as when its machine fails."""
        for pid in self.cluster.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def restart_service(self) -> None:
        """Bring a killed service back."""
        self.cluster.stop()
        self.cluster.start()
        self.cluster.deploy_document(self.document)


def wait_for(is_done: Callable[[], Any], timeout_s: float, what: str, *, every_s: float = 0.25) -> float:
    """Seconds until something is so."""
    start = time.monotonic()
    while not is_done():
        if time.monotonic() - start > timeout_s:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(every_s)
    return time.monotonic() - start


def measured(name: str, **figures: object) -> None:
    """Print figures where a person who runs the proof sees them; SOUNDSTAGE_NIFI_KEEP=1 keeps them."""
    print(f"\nMEASURED {name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    if os.environ.get("SOUNDSTAGE_NIFI_KEEP"):
        kept = RESULTS_DIR / "nifi.json"
        before = json.loads(kept.read_text(encoding="utf-8"))["figures"] if kept.exists() else {}
        write_result("nifi", {**before, **{f"{name}_{key}": value for key, value in figures.items()}})


@pytest.fixture(scope="session")
def nifi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNiFi]:
    try:
        assemble()
    except NiFiUnavailable as e:
        pytest.skip(f"SKIPPED, NOT PROVEN: no NiFi: {e}")
    instance = LocalNiFi(folder=tmp_path_factory.mktemp("nifi"), port=free_port())
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalCluster, dict[str, Any]]]:
    state_dir = tmp_path_factory.mktemp("cluster")
    keys = state_dir / "keys"
    keys.write_text(f"flow:{hash_key(KEY)}\n")
    document = yaml.safe_load(CONFIG.read_text())
    document["applications"][0]["args"]["auth"] = {"api_keys_file": str(keys)}
    service = LocalCluster(state_dir=state_dir, ports=Ports.free(), n_cpus=max(4, len(os.sched_getaffinity(0))))
    try:
        service.start()
        service.deploy_document(document)
        yield service, document
    finally:
        service.stop()


@pytest.fixture(scope="session")
def proof(
    nifi: LocalNiFi,
    cluster: tuple[LocalCluster, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proof]:
    service, document = cluster
    front = Front(service.ports.http)
    folder = tmp_path_factory.mktemp("proof")
    for name in ("watch", "work/inbox", "quarantine/replay"):
        (folder / name).mkdir(parents=True)
    proof = Proof(
        nifi=nifi, cluster=service, document=document, front=front, folder=folder, push_port=_two_free_ports()
    )
    try:
        proof.connect()
        proof.canvas.deploy(proof.values())
        proof.canvas.start()
        yield proof
    finally:
        front.close()


def _two_free_ports() -> int:
    """A free port whose next one is free too."""
    port, following = free_port(), free_port()
    while following != port + 1:
        port, following = following, free_port()
    return port
