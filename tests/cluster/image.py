"""Runs a Dockerfile's own steps without a container engine: each stage is a folder, each RUN a chroot into it.

A base image that cannot be had is stood in for by a Debian that debootstrap makes, of the same release. What this does
not know (anything beyond FROM, ARG, ENV, SHELL, COPY, RUN, WORKDIR, USER and what only describes), it refuses.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from tests.cluster.binaries import CACHE_DIR, CannotBuild, debian_packages

DEBIAN_MIRROR = os.environ.get("SOUNDSTAGE_DEBIAN_MIRROR")
"""Where debootstrap fetches from; its own default unless given."""
BASE_PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
DESCRIPTIVE = {"LABEL", "EXPOSE", "HEALTHCHECK", "CMD", "ENTRYPOINT", "VOLUME", "STOPSIGNAL"}
HOST_VARIABLES = ("SSL_CERT_FILE", "UV_DEFAULT_INDEX", "PIP_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
HOST_SETTINGS = ("etc/pip.conf", "etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt")
"""Of this machine: how it reaches a package index. Bound into a RUN, never copied."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of a Dockerfile: its name in capitals, its flags (`--from=x`), and the rest."""

    name: str
    flags: tuple[tuple[str, str], ...]
    rest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage, or where building it has come to.

    Attributes:
        root: Its file system.
        env: Variables of ENV and ARG.
        labels_and_more: Descriptive instructions, last one wins.
    """

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    workdir: str = "/"
    user: str = "0:0"
    described: dict[str, str] = field(default_factory=dict)


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    instructions = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        flags = []
        while match := re.match(r"\s*--(\w+)=(\S+)\s+", rest):
            flags.append((match[1], match[2]))
            rest = rest[match.end() :]
        instructions.append(Instruction(name.upper(), tuple(flags), rest.strip()))
    return instructions


def is_ignored(path: PurePosixPath, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves a file of the context out: the last pattern that fits it or a parent decides.

    Source: github.com/moby/patternmatcher, MatchesOrParentMatches.
    """
    ignored = False
    candidates = [path, *list(path.parents)[:-1]]
    for line in patterns:
        pattern = line.strip().removeprefix("!")
        if any(_fits(candidate, pattern) for candidate in candidates):
            ignored = not line.startswith("!")
    return ignored


def _fits(path: PurePosixPath, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(path.name, pattern[3:])
    parts = PurePosixPath(pattern).parts
    return len(parts) == len(path.parts) and all(map(fnmatch.fnmatchcase, path.parts, parts))


def context_files(root: Path) -> list[PurePosixPath]:
    """What is sent to a builder: tracked files that .dockerignore does not leave out."""
    patterns = [line for line in (root / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    files = [PurePosixPath(name) for name in listed if name and (root / name).is_file()]
    return [file for file in files if not is_ignored(file, patterns)]


def debian(release: str) -> Path:
    """A bare Debian with Python, made once.

    Raises:
        CannotBuild: Without root, or where no mirror is reached.
    """
    root = CACHE_DIR / f"debian-{release}"
    if root.exists():
        return root
    if os.geteuid() != 0:
        raise CannotBuild("a bare Debian needs root")
    debootstrap, env = shutil.which("debootstrap"), dict(os.environ)
    if debootstrap is None:
        package = debian_packages("debootstrap", "debootstrap")
        debootstrap = str(package / "usr" / "sbin" / "debootstrap")
        env["DEBOOTSTRAP_DIR"] = str(package / "usr" / "share" / "debootstrap")
    part = root.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    command = [debootstrap, "--variant=minbase", f"--include={BASE_PACKAGES}", release, str(part)]
    command += [DEBIAN_MIRROR] if DEBIAN_MIRROR else []
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotBuild(f"debootstrap: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    part.rename(root)
    return root


class Builder:
    """Builds targets of one Dockerfile.

    Args:
        context: The folder that `docker build` is given.
        dockerfile: In it.
        work: For the stages.
    """

    def __init__(self, context: Path, dockerfile: Path, work: Path) -> None:
        self.context, self.work = context, work
        self._files = context_files(context)
        self._stages: dict[str, list[Instruction]] = {}
        self._global_args: dict[str, str] = {}
        self._built: dict[str, Stage] = {}
        current: list[Instruction] | None = None
        for instruction in parse(dockerfile.read_text(encoding="utf-8")):
            if instruction.name == "FROM":
                image, _, name = instruction.rest.partition(" AS ")
                current = [replace(instruction, rest=image)]
                self._stages[name or str(len(self._stages))] = current
            elif current is None:
                name, _, value = instruction.rest.partition("=")
                self._global_args[name] = value
            else:
                current.append(instruction)

    def build(self, target: str) -> Stage:
        """Build a stage and all that it stands on.

        Raises:
            CannotBuild: A step is none that this knows, or this machine cannot run it.
            CalledProcessError: A step failed.
        """
        if target in self._built:
            return self._built[target]
        first, *steps = self._stages[target]
        image = self._expanded(first.rest, self._global_args)
        root = self.work / target
        if image in self._stages:
            below = self.build(image)
            _copy(below.root, root)
            stage = replace(below, root=root)
        elif image == "scratch":
            root.mkdir(parents=True)
            stage = Stage(root=root)
        else:
            match = re.fullmatch(r"python:3\.11\.\d+-slim-(\w+)", image)
            if match is None:
                raise CannotBuild(f"nothing stands in for {image}")
            _copy(debian(match[1]), root)
            stage = Stage(root=root, env={"PATH": "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"})
        for step in steps:
            stage = self._step(stage, step)
        self._built[target] = stage
        return stage

    def run(self, stage: Stage, command: list[str]) -> str:
        """Run a command in a stage as its user; returns what it printed.

        Raises:
            CalledProcessError: It failed.
        """
        binds = [name for name in HOST_SETTINGS if Path("/", name).exists()]
        for name in binds:
            (stage.root / name).parent.mkdir(parents=True, exist_ok=True)
        mounts = "".join(
            f"touch {target} 2>/dev/null; mount --bind /{name} {target}; "
            for name in binds
            for target in [shlex.quote(str(stage.root / name))]
        )
        root = shlex.quote(str(stage.root))
        inside = shlex.join(["cd", stage.workdir]) + " && exec " + shlex.join(command)
        script = (
            f"{mounts} mount -t proc proc {root}/proc; mount --bind /dev {root}/dev; "
            f"mount -t tmpfs tmpfs {root}/dev/shm; "
            f"exec chroot --userspec={stage.user} {root} /bin/bash -c {shlex.quote(inside)}"
        )
        outside = {name: os.environ[name] for name in HOST_VARIABLES if name in os.environ}
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "/bin/bash", "-c", script],
            env={**outside, **stage.env, **stage.args}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:])
            done.check_returncode()
        return done.stdout

    def _step(self, stage: Stage, step: Instruction) -> Stage:
        match step.name:
            case name if name in DESCRIPTIVE:
                stage = replace(stage, described={**stage.described, name: step.rest})
            case "ARG":
                name, _, value = step.rest.partition("=")
                stage = replace(stage, args={**stage.args, name: value})
            case "ENV":
                pairs = (pair.partition("=") for pair in shlex.split(step.rest))
                own = {name: self._expanded(value, stage.env) for name, _, value in pairs}
                stage = replace(stage, env={**stage.env, **own})
            case "SHELL":
                stage = replace(stage, shell=tuple(json.loads(step.rest)))
            case "USER":
                stage = replace(stage, user=step.rest)
            case "WORKDIR":
                (stage.root / step.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
                stage = replace(stage, workdir=step.rest)
            case "COPY":
                self._copy(stage, step)
            case "RUN":
                self.run(stage, [*stage.shell, step.rest])
            case _:
                raise CannotBuild(f"{step.name} is not known")
        return stage

    def _copy(self, stage: Stage, step: Instruction) -> None:
        *sources, target = step.rest.split()
        into = stage.root / (PurePosixPath(stage.workdir) / target).relative_to("/")
        origin = dict(step.flags).get("from")
        for source in sources:
            if origin is not None:
                _copy(self.build(origin).root / source.lstrip("/"), into)
                continue
            wanted = PurePosixPath(source)
            found = [file for file in self._files if file == wanted or wanted in file.parents]
            if not found:
                raise CannotBuild(f"COPY {source}: not in the context")
            for file in found:
                is_file = file == wanted
                inner = into / file.name if is_file and target.endswith(("/", ".")) else into / file.relative_to(wanted)
                inner.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.context / file, inner)

    @staticmethod
    def _expanded(text: str, values: dict[str, str]) -> str:
        return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], ""), text)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    inside = "/." if source.is_dir() else ""
    if inside:
        target.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", f"{source}{inside}", str(target)], check=True)
