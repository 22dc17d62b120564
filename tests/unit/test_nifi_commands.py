"""The flow's commands, without a NiFi: parameters, secrets, exit codes, what differs, replay."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from nifi import __main__ as commands
from nifi import flow, local
from nifi.canvas import Canvas, Deployed, FlowError, Login, Status, is_local
from nifi.differences import differences
from nifi.flow import Tuning

REMOTE = "https://nifi.example.org/nifi-api"


class KnownCanvas:
    """Stands in for a NiFi: remembers what it was given, answers what it is told to."""

    given: ClassVar[dict[str, str]] = {}
    tuning_given: ClassVar[Tuning | None] = None
    login: ClassVar[Login | None] = None
    missing: ClassVar[list[str]] = []
    found: ClassVar[Status] = Status(state="running", n_queued=0)

    def __init__(self, url: str, login: Login | None = None) -> None:
        type(self).login = login
        if url == "http://nowhere/nifi-api":
            raise FlowError("no NiFi answers")

    def deploy(self, values: Mapping[str, str], *, tuning: Tuning | None = None) -> Deployed:
        type(self).given, type(self).tuning_given = dict(values), tuning
        return Deployed(is_new=True, parameters=sorted(values))

    def missing_parameters(self) -> list[str]:
        return self.missing

    def status(self) -> Status:
        return self.found

    def differences(self, tuning: Tuning | None = None) -> list[object]:
        return []

    def tuning(self) -> Tuning:
        return Tuning()


@pytest.fixture
def canvas(monkeypatch: pytest.MonkeyPatch) -> type[KnownCanvas]:
    for name in list(os.environ):
        if name.startswith("SOUNDSTAGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(commands, "Canvas", KnownCanvas)
    monkeypatch.setattr(KnownCanvas, "missing", [])
    monkeypatch.setattr(KnownCanvas, "found", Status(state="running", n_queued=0))
    return KnownCanvas


def run(*arguments: object, code: int = 0, **environment: str) -> str:
    result = CliRunner().invoke(commands.app, [str(argument) for argument in arguments], env=environment)
    assert result.exit_code == code, result.output
    return result.output


# Parameters


def test_an_option_counts_more_than_the_environment_and_that_more_than_the_file(
    canvas: type[KnownCanvas], tmp_path: Path
) -> None:
    file = tmp_path / "flow.toml"
    file.write_text('watch_folder = "/file"\ndelivery_folder = "/file"\nwork_folder = "/file"\npush_port = 9000\n')
    run(
        "deploy", "--url", REMOTE, "--parameters", file, "--set", "watch_folder=/option", "--concurrency", 3,
        SOUNDSTAGE_NIFI_WATCH_FOLDER="/environment", SOUNDSTAGE_NIFI_DELIVERY_FOLDER="/environment",
        SOUNDSTAGE_API_KEY="secret",
    )  # fmt: skip
    assert canvas.given == {
        "watch_folder": "/option", "delivery_folder": "/environment", "work_folder": "/file", "push_port": "9000",
        "authorization": "Bearer secret",
    }  # fmt: skip
    assert canvas.tuning_given == Tuning(concurrency=3)


def test_a_secret_has_no_place_on_a_command_line_and_is_not_shown(canvas: type[KnownCanvas]) -> None:
    assert "environment or a file" in run("deploy", "--url", REMOTE, "--set", "authorization=Bearer x", code=2)
    told = run("deploy", "--url", REMOTE, SOUNDSTAGE_API_KEY="secret")
    assert "set authorization" in told
    assert "secret" not in told
    run("status", "--url", REMOTE, SOUNDSTAGE_NIFI_USERNAME="me", SOUNDSTAGE_NIFI_PASSWORD="secret")
    assert canvas.login is not None
    assert (canvas.login.username, canvas.login.password) == ("me", "secret")
    assert "secret" not in repr(canvas.login)


def test_what_is_missing_before_the_start_is_named(canvas: type[KnownCanvas], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "missing", ["authorization", "work_folder"])
    told = " ".join(run("deploy", "--url", REMOTE).split())
    assert "before it can start: SOUNDSTAGE_API_KEY=… in the environment, --set work_folder=…" in told
    assert json.loads(run("deploy", "--url", REMOTE, "--json"))["missing"] == ["authorization", "work_folder"]
    assert "authorization is not set" in run("verify", "--url", REMOTE, code=1)


def test_folders_of_this_machine_are_looked_at_first(canvas: type[KnownCanvas], tmp_path: Path) -> None:
    assert is_local(commands.DEFAULT_URL)
    assert not is_local(REMOTE)
    assert "there is no folder" in run("deploy", "--set", f"watch_folder={tmp_path}/none", code=2)
    assert "must be absolute" in run("deploy", "--set", "work_folder=work", code=2)
    run("deploy", "--set", f"work_folder={tmp_path}/work", "--set", f"quarantine_folder={tmp_path}/quarantine")
    assert (tmp_path / "work" / "inbox").is_dir()
    assert (tmp_path / "quarantine" / "replay").is_dir()


def test_mistakes_are_told_without_a_traceback(canvas: type[KnownCanvas], tmp_path: Path) -> None:
    assert "expected NAME=VALUE" in run("deploy", "--url", REMOTE, "--set", "watch_folder", code=2)
    broken = tmp_path / "broken.toml"
    broken.write_text("watch_folder = ")
    assert "broken.toml" in run("deploy", "--url", REMOTE, "--parameters", broken, code=2)
    assert "no NiFi answers" in run("status", "--url", "http://nowhere/nifi-api", code=1)
    with pytest.raises(FlowError, match="ends in /nifi-api"):
        Canvas("http://127.0.0.1:8480")


# The canvas, as far as it decides without a NiFi


class HalfCanvas(Canvas):
    """A canvas whose NiFi is not asked."""

    def __init__(self, values: Mapping[str, str | None], n_queued: int = 0) -> None:
        self._values, self._queued = values, n_queued

    def _needed(self) -> str:
        return "group"

    def _parameter_values(self) -> dict[str, str | None]:
        return dict(self._values)

    def status(self) -> Status:
        return Status(state="running", n_queued=self._queued)

    def group_id(self) -> str | None:
        return "group"


ALL = {parameter.name: "x" for parameter in flow.PARAMETERS}


def test_a_flow_without_its_secret_or_folders_is_not_started() -> None:
    for name in ("authorization", "watch_folder", "delivery_folder", "quarantine_folder", "work_folder"):
        canvas = HalfCanvas({**ALL, name: None})
        assert canvas.missing_parameters() == [name]
        with pytest.raises(FlowError, match=f"{name} not set"):
            canvas.start()
    assert HalfCanvas(ALL).missing_parameters() == []


def test_parameters_that_the_flow_does_not_have_are_refused() -> None:
    with pytest.raises(FlowError, match="no parameter colour"):
        HalfCanvas(ALL).deploy({"colour": "red"})


def test_a_flow_with_files_in_it_is_not_removed() -> None:
    with pytest.raises(FlowError, match="3 files wait"):
        HalfCanvas(ALL, n_queued=3).remove()


def test_a_file_between_two_queues_is_not_overlooked_when_the_flow_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([0, 1])
    done: list[str] = []
    monkeypatch.setattr(HalfCanvas, "status", lambda _: Status(state="running", n_queued=next(counts)))
    monkeypatch.setattr(HalfCanvas, "stop", lambda _: done.append("stopped"))
    monkeypatch.setattr(HalfCanvas, "start", lambda _: done.append("started"))
    with pytest.raises(FlowError, match="1 files wait"):
        HalfCanvas(ALL).remove()
    assert done == ["stopped", "started"]


# Status


def test_status_is_one_screen_and_says_by_its_exit_whether_it_runs(
    canvas: type[KnownCanvas], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = {"name": "3 Analyse", "queued": 7, "bytes": 5_000_000, "threads": 8, "in": 10, "out": 3}
    found = Status(
        state="partly running", n_queued=7, queues=[(f"a > b{number}", 7, 5_000_000) for number in range(20)],
        groups=[group] * 5, problems=["Ask the service: no URL"],
        bulletins=[("10:00:00 UTC", "ERROR", "Ask the service", "x" * 500)] * 20, differs=True,
    )  # fmt: skip
    monkeypatch.setattr(canvas, "found", found)
    told = run("status", "--url", REMOTE, code=3, COLUMNS="100")
    assert "partly running" in told
    assert "7 files in queues" in told
    assert "differs from the code" in told
    assert "invalid: Ask the service: no URL" in told
    assert len(told.splitlines()) <= 40
    assert json.loads(run("status", "--url", REMOTE, "--json", code=3))["n_queued"] == 7
    monkeypatch.setattr(canvas, "found", Status(state="running", n_queued=0))
    run("status", "--url", REMOTE)
    run("verify", "--url", REMOTE)


# What differs


def test_differences_are_by_part_and_field() -> None:
    wanted = flow.build()
    running = copy.deepcopy(wanted)
    assert differences(running, wanted, {}) == []
    group = running["flowContents"]["processGroups"][0]
    part = group["processors"][0]
    part["properties"]["Recurse Subdirectories"] = "false"
    part["position"]["x"] += 100.0  # where it lies is the operator's
    part["scheduledState"] = "RUNNING"
    added = {**copy.deepcopy(group["processors"][1]), "identifier": "an operator's own", "name": "Own"}
    group["processors"].append(added)
    gone = group["connections"].pop()
    found = {(each.action, each.kind, each.identifier): each.fields for each in differences(running, wanted, {})}
    assert found == {
        ("change", "processor", part["identifier"]): ("Recurse Subdirectories",),
        ("remove", "processor", "an operator's own"): (),
        ("add", "queue", gone["identifier"]): (),
    }


def test_a_property_that_has_its_default_does_not_differ() -> None:
    wanted = flow.build()
    running = copy.deepcopy(wanted)
    part: dict[str, Any] = running["flowContents"]["processGroups"][0]["processors"][0]
    part["properties"]["Batch Size"] = "100"
    assert differences(running, wanted, {part["identifier"]: {"Batch Size": "100"}}) == []
    assert differences(running, wanted, {part["identifier"]: {"Batch Size": "50"}})


# Export, replay


def test_export_check_tells_an_old_file(tmp_path: Path) -> None:
    target = tmp_path / "flow.json"
    assert "python -m nifi export" in run("export", "--output", target, "--check", code=1)
    run("export", "--output", target, "--no-draw")
    run("export", "--output", target, "--check")
    assert json.loads(target.read_text(encoding="utf-8")) == flow.build()


def test_replay_moves_files_and_takes_their_reasons_away(tmp_path: Path) -> None:
    names = ("News/Reel 1/é take.wav", "News/Reel 2/take.wav", "other.wav")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.with_name(f"{path.name}.reason.json").write_text("{}")
    (tmp_path / "News" / ".being written.wav").touch()
    assert json.loads(run("replay", tmp_path, "News/*", "--json")) == {"replayed": sorted(names[:2])}
    assert (tmp_path / "replay" / names[0]).read_text() == names[0]
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == {
        f"replay/{names[0]}", f"replay/{names[1]}", "other.wav", "other.wav.reason.json", "News/.being written.wav",
    }  # fmt: skip


# A NiFi of one's own


def fake_java(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    path.chmod(0o755)
    return path


def test_the_first_java_that_is_new_enough_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = fake_java(tmp_path / "old/bin/java", "17.0.15"), fake_java(tmp_path / "new/bin/java", "21.0.2")
    monkeypatch.setenv("PATH", str(old.parent), prepend=os.pathsep)
    monkeypatch.setenv("JAVA_HOME", str(new.parents[1]))
    assert local.java() == new


def test_without_maven_it_is_said_that_nifi_cannot_be_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = fake_java(tmp_path / "bin/java", "21.0.2")
    monkeypatch.setenv("SOUNDSTAGE_NIFI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAVA_HOME", str(java.parents[1]))
    monkeypatch.setenv("PATH", str(java.parent))
    with pytest.raises(local.NiFiUnavailable, match="Maven"):
        local.assemble()
    with pytest.raises(local.NiFiUnavailable, match="install Java 21"):
        local.install()


def test_an_instance_listens_on_loopback_and_keeps_its_key(tmp_path: Path) -> None:
    instance = local.LocalNiFi(folder=tmp_path / "nifi", port=8499)
    instance._lay_out(tmp_path)
    properties = (tmp_path / "nifi/conf/nifi.properties").read_text(encoding="utf-8")
    assert "nifi.web.http.host=127.0.0.1" in properties
    assert "nifi.web.http.port=8499" in properties
    assert (tmp_path / "nifi/conf/nifi.properties").stat().st_mode & 0o077 == 0
    instance._lay_out(tmp_path)
    assert (tmp_path / "nifi/conf/nifi.properties").read_text(encoding="utf-8") == properties
    assert instance.pid is None
