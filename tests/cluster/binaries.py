"""The cluster's own programs, built once at pinned versions from the Go module proxy; no container engine is needed.

`python -m tests.cluster.binaries` builds what is not there yet, and says how long each took. The programs and Go's
build cache go to $SOUNDSTAGE_CLUSTER_CACHE, by default ~/.cache/soundstage/cluster; the build cache (about 5 GB) may be
deleted afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

CACHE_DIR = Path(os.environ.get("SOUNDSTAGE_CLUSTER_CACHE", "~/.cache/soundstage/cluster")).expanduser()

KUBERNETES = "1.35.4"
KUBERAY_MODULE = ("github.com/ray-project/kuberay/ray-operator", "v1.6.2")
KWOK_MODULE = ("sigs.k8s.io/kwok", "v0.8.0")
GATEWAY_API_MODULE = ("sigs.k8s.io/gateway-api", "v1.4.1")
PROMETHEUS_OPERATOR_MODULE = ("github.com/prometheus-operator/prometheus-operator", "v0.85.0")
COMPOSE_MODULE = ("github.com/docker/compose/v2", "v2.40.3")


class CannotBuild(Exception):
    """A program of the cluster is not to be had on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program of a Go module.

    Attributes:
        module: The module that holds it.
        version: Of the module.
        package: The package to build; the module itself where it is left out.
        siblings: How modules that live in the same repository (`replace` with a relative path, which counts only in the
            main module) are published: their version.
        ldflags: For the linker.
    """

    module: str
    version: str
    package: str = ""
    siblings: str = ""
    ldflags: str = "-s -w"


def _kubernetes(name: str) -> Program:
    minor = KUBERNETES.split(".")[1]
    # Else it calls itself v0.0.0-master, and clients refuse it.
    flags = [
        f"-X {package}.gitVersion=v{KUBERNETES} -X {package}.gitMajor=1 -X {package}.gitMinor={minor}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    ]
    return Program(
        module="k8s.io/kubernetes",
        version=f"v{KUBERNETES}",
        package=f"k8s.io/kubernetes/cmd/{name}",
        siblings=f"v0.{KUBERNETES.removeprefix('1.')}",
        ldflags=" ".join(["-s -w", *flags]),
    )


# Debian 12's etcd 3.4 lacks RequestWatchProgress: watches fail and come back only after minutes.
PROGRAMS = {
    "etcd": Program(module="go.etcd.io/etcd/server/v3", version="v3.6.16", siblings="v3.6.16"),
    "kube-apiserver": _kubernetes("kube-apiserver"),
    "kubectl": _kubernetes("kubectl"),
    "kube-controller-manager": _kubernetes("kube-controller-manager"),
    "kube-scheduler": _kubernetes("kube-scheduler"),
    "ray-operator": Program(module=KUBERAY_MODULE[0], version=KUBERAY_MODULE[1]),
    "kwok": Program(module=KWOK_MODULE[0], version=KWOK_MODULE[1], package="sigs.k8s.io/kwok/cmd/kwok"),
    "docker-compose": Program(
        module=COMPOSE_MODULE[0], version=COMPOSE_MODULE[1], package="github.com/docker/compose/v2/cmd"
    ),
}


def program(name: str) -> Path:
    """Where the program is, built first if need be.

    Raises:
        CannotBuild: Go is missing, or the module proxy does not serve the module.
    """
    wanted = PROGRAMS[name]
    binary = CACHE_DIR / "bin" / f"{name}-{wanted.version}"
    if not binary.exists():
        _build(wanted, binary)
    return binary


def module_dir(module: str, version: str) -> Path:
    """The module's files, downloaded first if need be.

    Raises:
        CannotBuild: The module proxy does not serve it.
    """
    answer = _go(["mod", "download", "-json", f"{module}@{version}"], cwd=Path("/"))
    return Path(json.loads(answer)["Dir"])


def debian_packages(name: str, *packages: str) -> Path:
    """Files of Debian packages, fetched and unpacked into the cache, not installed; `name` is the folder.

    Raises:
        CannotBuild: This is no Debian, or it reaches no mirror.
    """
    root = CACHE_DIR / name
    if root.exists():
        return root
    if shutil.which("apt-get") is None:
        raise CannotBuild(f"no {name}, and no apt-get to fetch it with")
    part = root.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    fetch = ["apt-get", "download", *packages]
    done = subprocess.run(fetch, cwd=part, capture_output=True, text=True, check=False)
    if done.returncode != 0:  # the list of packages is missing or old
        subprocess.run(["apt-get", "update"], capture_output=True, check=False)
        done = subprocess.run(fetch, cwd=part, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotBuild(f"{name} cannot be fetched: {done.stderr}")
    for package in part.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(part)], check=True)
    part.rename(root)
    return root


def _build(wanted: Program, binary: Path) -> None:
    source = module_dir(wanted.module, wanted.version)
    work = CACHE_DIR / "build" / binary.name
    work.mkdir(parents=True, exist_ok=True)
    # A module of our own that requires exactly this version: `go install MODULE@VERSION` refuses modules with
    # `replace`, and asks for the list of versions, which not every proxy gives. With the module's own go.mod and go.sum
    # every dependency stays pinned.
    text = (source / "go.mod").read_text(encoding="utf-8")
    text = re.sub(r"^module .*$", "module soundstage.test/build", text, count=1, flags=re.MULTILINE)
    siblings = re.findall(r"^(?:replace)?\s*(\S+)(?: v\S+)? => \.{1,2}/\S*$", text, flags=re.MULTILINE)
    text = re.sub(r"^(?:replace)?\s*\S+(?: v\S+)? => \.{1,2}/\S*\n", "", text, flags=re.MULTILINE)
    (work / "go.mod").write_text(text, encoding="utf-8")
    shutil.copyfile(source / "go.sum", work / "go.sum")
    edits = [f"-require={wanted.module}@{wanted.version}"]
    for name in siblings:
        # Each is there at the same version; those named as replacements only (never required) stay out.
        if name != wanted.module and re.search(rf"^(?:require)?\s*{re.escape(name)} v", text, flags=re.MULTILINE):
            edits += [f"-require={name}@{wanted.siblings}", f"-replace={name}={name}@{wanted.siblings}"]
    _go(["mod", "edit", *edits], cwd=work)
    binary.parent.mkdir(parents=True, exist_ok=True)
    part = binary.with_suffix(".part")
    package = wanted.package or wanted.module
    _go(["build", "-p", "2", "-trimpath", "-ldflags", wanted.ldflags, "-o", str(part), package], cwd=work)
    part.rename(binary)


def _go(args: list[str], *, cwd: Path) -> str:
    go = shutil.which("go")
    if go is None:
        raise CannotBuild("Go is not installed; the real API server and operator are built with it")
    env = {
        **os.environ,
        "GOFLAGS": "-buildvcs=false -mod=mod",
        "GOCACHE": str(CACHE_DIR / "go-build"),
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
        "GOMAXPROCS": os.environ.get("GOMAXPROCS", "2"),
    }
    done = subprocess.run([go, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotBuild(f"go {' '.join(args)}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def main() -> None:
    """Build all of them."""
    for name in PROGRAMS:
        start = time.monotonic()
        path = program(name)
        print(f"{name}\t{time.monotonic() - start:.0f} s\t{path.stat().st_size / 1e6:.0f} MB\t{path}", flush=True)


if __name__ == "__main__":
    main()
