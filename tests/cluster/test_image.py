"""The image, by its own steps in a bare Debian: what is in it works, and what is not needed is not in it."""

from __future__ import annotations

import json
import shutil
import stat as modes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.binaries import CannotBuild
from tests.cluster.image import Builder, Stage

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Builder, Stage]]:
    work = tmp_path_factory.mktemp("stages")
    builder = Builder(ROOT, ROOT / "cluster" / "Dockerfile", work)
    try:
        yield builder, builder.build("cpu")
    except CannotBuild as e:
        pytest.skip(f"THE IMAGE IS NOT PROVEN: {e}")
    finally:
        shutil.rmtree(work)  # gigabytes, of which pytest would keep those of three runs


def test_the_machine_is_as_the_service_needs_it(built: tuple[Builder, Stage]) -> None:
    builder, stage = built
    report = json.loads(builder.run(stage, ["soundstage", "doctor", "--json"]))
    states = {check["name"]: check["state"] for check in report}
    assert states.pop("service") == "warning", "it does not run yet"
    assert set(states.values()) <= {"ok", "warning"}, states
    assert states["model moonshine-tiny-en"] == states["model soundstage-sounds"] == states["HAProxy"] == "ok"


def test_it_captions_a_clip_without_the_service_as_its_own_user(built: tuple[Builder, Stage]) -> None:
    builder, stage = built
    assert stage.user == "10001:10001"
    script = "from soundstage import sample; from pathlib import Path; sample.write(Path('/tmp/clip.wav'))"
    builder.run(stage, ["python", "-c", script])
    builder.run(stage, ["soundstage", "analyze", "/tmp/clip.wav", "--local", "--format", "sdh_srt", "--output", "/tmp"])
    captions = next((stage.root / "tmp").glob("clip*.srt")).read_text()
    assert "It was the best of times" in captions


def test_what_installs_and_builds_stays_outside(built: tuple[Builder, Stage]) -> None:
    root = built[1].root
    there = {
        file.name for folder in ("usr/bin", "usr/local/bin", "opt/soundstage/bin") for file in (root / folder).iterdir()
    }
    assert not there & {"uv", "gcc", "cc", "make", "git", "cyclonedx-py", "hatchling", "curl", "wget"}
    site = root / "opt/soundstage/lib/python3.11/site-packages"
    assert not any(
        (site / name).exists() for name in ("uv", "hatchling", "moonshine_voice/__init__.py", "pytest", "pip")
    )
    assert not (root / "source").exists()
    assert not list(root.glob("etc/pip.conf")) or not (root / "etc/pip.conf").read_bytes(), "settings of the builder"


def test_the_list_of_what_is_in_it_names_every_package(built: tuple[Builder, Stage]) -> None:
    site = built[1].root / "opt/soundstage/lib/python3.11/site-packages"
    bill = json.loads((built[1].root / "opt/soundstage/sbom.cdx.json").read_text())
    named = {component["name"].lower().replace("_", "-") for component in bill["components"]}
    installed = {folder.name.split("-")[0].lower().replace("_", "-") for folder in site.glob("*.dist-info")}
    assert installed <= named
    assert {"ray", "tensorflow-cpu", "soundstage"} <= named


def test_nobody_but_root_may_change_it(built: tuple[Builder, Stage]) -> None:
    builder, stage = built
    command = "find /opt /etc /usr -xdev -writable ! -type l -print | head -5"
    assert builder.run(stage, ["/bin/bash", "-c", command]).strip() == ""


def test_compose_s_secrets_are_made_once_each_for_its_reader(built: tuple[Builder, Stage]) -> None:
    builder, stage = built
    as_root = replace(stage, user="0:0")
    shutil.copy(ROOT / "cluster" / "compose" / "secrets.sh", stage.root / "tmp" / "secrets.sh")
    owners = {"ray": 10001, "service": 10001, "client": 10001, "grafana": 472, "nifi": 1000, "jenkins": 1000}
    for folder in (*(f"secrets/{name}" for name in owners), "ray/head", "ray/worker", "media"):
        (stage.root / folder).mkdir(parents=True, exist_ok=True)
    builder.run(as_root, ["sh", "/tmp/secrets.sh"])
    files = [path for path in (stage.root / "secrets").rglob("*") if path.is_file()]
    assert {path.parent.name: path.stat().st_uid for path in files} == owners
    assert {modes.S_IMODE(path.stat().st_mode) for path in files} == {0o400}
    before = {path: path.read_bytes() for path in files}
    builder.run(as_root, ["sh", "/tmp/secrets.sh"])
    assert {path: path.read_bytes() for path in files} == before, "a second start changes nothing"
    key = builder.run(as_root, ["sh", "/tmp/secrets.sh", "show", "api-key"]).strip()
    keys = "auth.ApiKeys.read(Path('/secrets/service/keys'))"
    check = f"from deployments import auth; from pathlib import Path; {keys}.check('Bearer {key}')"
    builder.run(stage, ["python", "-c", check])
