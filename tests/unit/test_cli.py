"""The command line, as a person or a program calls it, against the real application over an engine of known answers."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import srt
import typer.main
from typer.core import TyperGroup
from typer.testing import CliRunner, Result

from deployments.api.schemas import AnalysisBody
from deployments.auth import ApiKeys, hash_key
from deployments.settings import IngressConfig
from soundstage import cli
from soundstage.captions.formats import FORMATS
from soundstage.commands.outputs import OUTPUT_FORMATS, analysis_body, atomic_file
from soundstage.errors import Overloaded, UnusableAudio
from soundstage.models import registry
from soundstage.models.registry import ModelCard
from soundstage.params import ClientParams, Params
from soundstage.pipeline import DEFAULT_MIN_SCORE, AnalysisCollector
from tests.unit.audio_files import encode, tone
from tests.unit.served_app import CHUNKS, SUMMARY, TEXT, KnownEngine, serving, unused_url

WAV = encode("wav", tone(0.5, 48_000))


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, KnownEngine]]:
    engine = KnownEngine()
    with serving(engine) as url:
        yield url, engine


@pytest.fixture
def engine(running: tuple[str, KnownEngine], monkeypatch: pytest.MonkeyPatch) -> KnownEngine:
    """Stands behind the URL that the command line uses."""
    monkeypatch.setenv("SOUNDSTAGE_URL", running[0])
    monkeypatch.delenv("SOUNDSTAGE_API_KEY", raising=False)
    running[1].reset()
    return running[1]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another at once."""
    patience = ClientParams.model_copy(ClientParams(), update={"first_wait_s": 0.0, "max_wait_s": 0.0})
    monkeypatch.setattr("soundstage.client.ClientParams", lambda: patience)


@pytest.fixture
def take(tmp_path: Path) -> Path:
    path = tmp_path / "take 1, café.wav"
    path.write_bytes(WAV)
    return path


def soundstage(*args: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def records(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def known_body() -> dict[str, object]:
    """What the service answers about every clip, less what differs from request to request."""
    collector = AnalysisCollector()
    for chunk in CHUNKS:
        collector.push(chunk)
    analysis = collector.finish(SUMMARY, request_id="r")
    assert analysis_body(analysis) == AnalysisBody.of(analysis).model_dump(mode="json")
    assert list(analysis_body(analysis)) == list(AnalysisBody.model_fields)
    return analysis_body(analysis)


def test_json_is_the_body_of_the_api(engine: KnownEngine, take: Path) -> None:
    result = soundstage("analyze", take, "--min-score", "0")
    assert result.exit_code == 0, result.stderr
    written = json.loads(take.with_suffix(".json").read_text(encoding="utf-8"))
    assert {**written, "request_id": "r"} == known_body()
    assert written["text"] == TEXT


def test_one_upload_gives_every_format(engine: KnownEngine, take: Path) -> None:
    result = soundstage("analyze", take, "--format", ",".join(OUTPUT_FORMATS))
    assert result.exit_code == 0, result.stderr
    assert len(engine.requests) == 1
    for name in FORMATS:
        path = take.parent / f"{take.stem}{FORMATS[name].suffix}"
        assert path.read_text(encoding="utf-8").strip(), name
    captions = list(srt.parse((take.parent / "take 1, café.sdh.srt").read_text(encoding="utf-8")))
    assert any("home" in caption.content for caption in captions)
    assert any("bark" in caption.content.lower() for caption in captions)
    assert re.search(r"^TITLE: +take 1, ", take.with_suffix(".edl").read_text(encoding="utf-8"), re.MULTILINE)


def test_a_folder_stands_for_the_media_in_it(engine: KnownEngine, tmp_path: Path) -> None:
    rushes = tmp_path / "rushes"
    for name in ("a.wav", "day 2/b.MOV", "day 2/c.flac", "notes.txt", "day 2/._b.MOV", ".trash/d.wav"):
        path = rushes / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(WAV)
    out = tmp_path / "out"
    result = soundstage("analyze", rushes, "--output", out, "--format", "srt", "--jobs", "2")
    assert result.exit_code == 0, result.stderr
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == {"a.srt", "day 2/b.srt", "day 2/c.srt"}
    assert {media_type for media_type, _, _ in engine.requests} == {"audio/wav", "video/quicktime", "audio/flac"}


def test_a_folder_without_media_is_a_failure_that_is_named(engine: KnownEngine, tmp_path: Path) -> None:
    result = soundstage("analyze", tmp_path)
    assert result.exit_code == 1
    assert "holds no media file" in result.stderr


def test_json_lines_alone_are_on_standard_output(engine: KnownEngine, take: Path, tmp_path: Path) -> None:
    engine.refused = {"audio/flac": UnusableAudio("the FLAC file is cut short")}
    (tmp_path / "bad.flac").write_bytes(b"fLaC")
    result = soundstage("analyze", take, tmp_path / "bad.flac", tmp_path / "gone.wav", "--json", "--format", "srt,csv")
    assert result.exit_code == 1
    told = {str(record["file"]): record for record in records(result)}
    assert told[str(take)] == {
        "file": str(take),
        "status": "done",
        "outputs": [str(take.with_suffix(".srt")), str(take.with_suffix(".csv"))],
        "duration_s": 9.0,
    }
    assert told[str(tmp_path / "bad.flac")] == {
        "file": str(tmp_path / "bad.flac"),
        "status": "failed",
        "outputs": [],
        "duration_s": None,
        "error": "the FLAC file is cut short",
    }
    assert told[str(tmp_path / "gone.wav")]["error"] == "No such file or directory"
    assert "bad.flac: the FLAC file is cut short" in result.stderr


def test_failures_are_named_and_the_others_done(engine: KnownEngine, take: Path, tmp_path: Path) -> None:
    result = soundstage("analyze", tmp_path / "gone.wav", take)
    assert result.exit_code == 1
    assert re.search(r"failed: .*gone\.wav: No such file", result.stderr)
    assert take.with_suffix(".json").exists()
    assert result.stdout == ""


def test_no_bars_where_nobody_looks(engine: KnownEngine, take: Path) -> None:
    assert soundstage("analyze", take).stderr == f"done: {take} -> {take.stem}.json\n"


def test_outputs_that_are_there_are_kept(engine: KnownEngine, take: Path) -> None:
    take.with_suffix(".srt").write_text("corrected by hand", encoding="utf-8")
    result = soundstage("analyze", take, "--format", "srt,vtt", "--json")
    assert result.exit_code == 0
    assert records(result)[0]["outputs"] == [str(take.with_suffix(".vtt"))]
    assert take.with_suffix(".srt").read_text(encoding="utf-8") == "corrected by hand"
    again = soundstage("analyze", take, "--format", "srt,vtt", "--json")
    assert again.exit_code == 0
    assert records(again)[0]["status"] == "skipped"
    assert len(engine.requests) == 1, "a file whose outputs are there costs nothing"


def test_overwrite_replaces_outputs(engine: KnownEngine, take: Path) -> None:
    take.with_suffix(".srt").write_text("old", encoding="utf-8")
    assert soundstage("analyze", take, "--format", "srt", "--overwrite").exit_code == 0
    assert "home" in take.with_suffix(".srt").read_text(encoding="utf-8")


def test_two_inputs_never_write_one_output(engine: KnownEngine, tmp_path: Path) -> None:
    for name in ("take.mov", "take.wav"):
        (tmp_path / name).write_bytes(WAV)
    result = soundstage("analyze", tmp_path, "--json")
    assert result.exit_code == 1
    told = {Path(str(record["file"])).name: record for record in records(result)}
    assert told["take.mov"]["status"] == "done"
    assert "take.mov" in str(told["take.wav"]["error"])


def test_standard_output_takes_one_file_in_one_format(engine: KnownEngine, take: Path) -> None:
    result = soundstage("analyze", take, "--format", "csv", "--output", "-")
    assert result.exit_code == 0
    assert any("dog" in field for row in csv.reader(result.stdout.splitlines()) for field in row)
    assert sorted(take.parent.iterdir()) == [take]
    assert soundstage("analyze", take, "--format", "csv,srt", "--output", "-").exit_code == 2
    assert soundstage("analyze", take, take.parent / "b.wav", "--output", "-").exit_code == 2
    assert soundstage("analyze", take, "--json", "--output", "-").exit_code == 2


@pytest.mark.parametrize(
    "args",
    [
        ["--format", "docx"],
        ["--format", ""],
        ["--format", "ndjson"],
        ["--tasks", "smell"],
        ["--tasks", ""],
        ["--language", "tlh"],
        ["--min-score", "2"],
        ["--hints", "x" * 61],
        ["--profanity", "bleep"],
        ["--jobs", "0"],
        ["--jobs", "2", "--local"],
        ["--frame-rate", "17"],
        ["--start-timecode", "25:00:00:00"],
        ["--start-timecode", "10:00:00;00", "--frame-rate", "25"],
        ["--url", "nowhere"],
        ["--api-key", "secret"],
        ["--colour"],
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(engine: KnownEngine, take: Path, args: list[str]) -> None:
    result = soundstage("analyze", take, *args)
    assert result.exit_code == 2, result.stderr
    assert engine.requests == []
    assert sorted(take.parent.iterdir()) == [take]


def test_an_unreachable_service_ends_it_soon(take: Path, tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.wav").write_bytes(WAV)
    result = soundstage("analyze", tmp_path, "--url", unused_url(), "--json", "--jobs", "1")
    assert result.exit_code == 3
    assert len(records(result)) == 21
    assert all("no service answers" in str(record["error"]) for record in records(result))


def test_a_busy_service_is_asked_again(engine: KnownEngine, take: Path) -> None:
    engine.errors = [Overloaded("busy")] * 3
    assert soundstage("analyze", take).exit_code == 0
    engine.errors = [Overloaded("busy")] * 100
    result = soundstage("analyze", take, "--overwrite")
    assert result.exit_code == 1, "the service answered; it was not unreachable"
    assert "busy" in result.stderr


def test_the_key_comes_from_the_environment(take: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(KnownEngine(), ApiKeys({"me": hash_key("sesame")})) as url:
        refused = soundstage("analyze", take, "--url", url)
        assert refused.exit_code == 1
        assert "API key" in refused.stderr
        monkeypatch.setenv("SOUNDSTAGE_API_KEY", "sesame")
        assert soundstage("analyze", take, "--url", url).exit_code == 0


def test_options_reach_the_service(engine: KnownEngine, take: Path) -> None:
    soundstage("analyze", take, "--tasks", "speech,sounds", "--language", "en", "--min-score", "0.6")
    assert {str(task) for task in engine.requests[0][2].tasks} == {"speech", "sounds"}
    assert engine.requests[0][2].language == "en"
    body = json.loads(take.with_suffix(".json").read_text(encoding="utf-8"))
    assert [tag["label"] for tag in body["tags"]] == ["dog"]
    assert body["levels"] is None


def test_hints_are_words_or_a_file_of_them(engine: KnownEngine, take: Path, tmp_path: Path) -> None:
    names = tmp_path / "cast.txt"
    names.write_text("Ophelia\nZoë\n", encoding="utf-8")
    for hints in ("Ophelia, Zoë", str(names)):
        assert soundstage("analyze", take, "--hints", hints, "--profanity", "mask", "--overwrite").exit_code == 0
    assert [options.hints for _, _, options in engine.requests] == [("Ophelia", "Zoë")] * 2
    assert {options.profanity for _, _, options in engine.requests} == {"mask"}
    names.write_bytes(b"\xff\xfe\x00")
    assert soundstage("analyze", take, "--hints", names).exit_code == 2
    names.write_text("name, " * 10_000, encoding="utf-8")
    assert soundstage("analyze", take, "--hints", names).exit_code == 2


def timecodes(path: Path) -> set[str]:
    return set(re.findall(r"\d\d:\d\d:\d\d[:;]\d\d", path.read_text(encoding="utf-8")))


def test_timecode_is_the_callers_else_the_files(engine: KnownEngine, tmp_path: Path) -> None:
    film = tmp_path / "film.mov"
    film.write_bytes(encode("mov", tone(1.0, 48_000), video=True, metadata={"timecode": "10:00:00:00"}))
    assert soundstage("analyze", film, "--format", "edl").exit_code == 0
    assert any(timecode.startswith("10:00:0") for timecode in timecodes(film.with_suffix(".edl")))
    soundstage("analyze", film, "--format", "edl", "--start-timecode", "07:00:00:00", "--overwrite")
    assert any(timecode.startswith("07:00:0") for timecode in timecodes(film.with_suffix(".edl")))
    assert not any(timecode.startswith("10:") for timecode in timecodes(film.with_suffix(".edl")))


def test_timecode_of_a_broadcast_wave_file_is_its_time_of_day(engine: KnownEngine, tmp_path: Path) -> None:
    path = tmp_path / "boom.wav"
    metadata = {"time_reference": str(13 * 3600 * 48_000), "originator": "recorder"}
    path.write_bytes(encode("wav", tone(1.0, 48_000), metadata=metadata, options={"write_bext": "1"}))
    assert soundstage("analyze", path, "--format", "edl").exit_code == 0
    assert any(timecode.startswith("13:00:0") for timecode in timecodes(path.with_suffix(".edl")))


def test_a_name_of_no_encoding_is_no_obstacle(engine: KnownEngine, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/[b]caf\xe9.wav"))
    path.write_bytes(WAV)
    result = soundstage("analyze", path, "--format", "edl,otio", "--json")
    assert result.exit_code == 0, result.stderr
    assert all(Path(str(output)).exists() for output in records(result)[0]["outputs"])  # type: ignore[attr-defined]
    assert soundstage("analyze", path, "--format", "edl", "--overwrite").exit_code == 0


def test_a_folder_that_cannot_be_written_is_told_before_the_analysis(
    engine: KnownEngine, take: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file in the place of a folder", encoding="utf-8")
    result = soundstage("analyze", take, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "out" in result.stderr
    assert engine.requests == []


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.srt"
    target.write_text("old", encoding="utf-8")

    def be_stopped_half_way() -> None:
        with atomic_file(target) as file:
            file.write(b"half")
            assert target.read_text(encoding="utf-8") == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_stopped_half_way()
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]
    with atomic_file(target) as file:
        file.write(b"new")
    assert target.read_text(encoding="utf-8") == "new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


def test_levels_in_this_process_need_neither_service_nor_models(take: Path) -> None:
    result = soundstage("analyze", take, "--local", "--tasks", "levels", "--url", unused_url())
    assert result.exit_code == 0, result.stderr
    body = json.loads(take.with_suffix(".json").read_text(encoding="utf-8"))
    assert list(body) == list(AnalysisBody.model_fields)
    assert body["duration_s"] == 0.5
    assert body["levels"]["sample_peak_dbfs"] == pytest.approx(-6.02, abs=0.02)


def test_missing_models_are_told_with_what_to_do(take: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUNDSTAGE_MODELS_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(registry, "SHIPPED_DIR", tmp_path / "shipped")
    result = soundstage("analyze", take, "--local")
    assert result.exit_code == 1
    assert "soundstage models fetch" in result.stderr


def test_both_ways_leave_out_the_same_faint_sounds() -> None:
    assert IngressConfig().min_score == DEFAULT_MIN_SCORE


# Models


@pytest.fixture
def ears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    monkeypatch.setenv("SOUNDSTAGE_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setattr(registry, "SHIPPED_DIR", tmp_path / "shipped")
    card = ModelCard(name="ears", version="1.2", kind="sound", description="Hears.", licence="MIT", source="here")
    return registry.write_folder(tmp_path / "models", card, params=Params(), weights={}, readme="# Ears\n").card


def test_models_are_listed(ears: ModelCard) -> None:
    table = soundstage("models", "list")
    assert table.exit_code == 0
    assert "ears" in table.stdout
    assert "1.2" in table.stdout
    (entry,) = json.loads(soundstage("models", "list", "--json").stdout)
    assert entry.items() >= ears.model_dump(mode="json", exclude={"files"}).items()


def test_a_model_is_shown(ears: ModelCard) -> None:
    assert "# Ears" in soundstage("models", "show", "ears").stdout
    shown = json.loads(soundstage("models", "show", "ears", "--version", "1.2", "--json").stdout)
    assert shown["files"] == ears.files
    assert Path(shown["path"], "weights.safetensors").is_file()


@pytest.mark.parametrize("args", [["nose"], ["ears", "--version", "9"], ["../ears"]])
def test_a_model_that_is_not_there(ears: ModelCard, args: list[str]) -> None:
    result = soundstage("models", "show", *args)
    assert result.exit_code == 1
    assert result.stderr.startswith("failed: ")


# Keys


def test_a_new_key_opens_the_service(tmp_path: Path) -> None:
    result = soundstage("keys", "new", "newsroom")
    key, line = result.stdout.splitlines()
    assert len(key) >= 43
    (tmp_path / "keys").write_text(line, encoding="utf-8")
    ApiKeys.read(tmp_path / "keys").check(f"Bearer {key}")
    assert soundstage("keys", "new", "newsroom").stdout.splitlines()[0] != key


def test_keys_are_appended_to_a_file_of_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "api_keys"
    path.write_text(f"# keys\nold:{hash_key('k')}", encoding="utf-8")
    path.chmod(0o644)
    made = [soundstage("keys", "new", name, "--append", path).stdout.strip() for name in ("a", "b")]
    keys = ApiKeys.read(path)
    assert list(keys.digests) == ["old", "a", "b"]
    for key in (*made, "k"):
        keys.check(f"Bearer {key}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(key in path.read_text(encoding="utf-8") for key in made)


def test_a_new_file_of_keys_is_its_owners_from_the_start(tmp_path: Path) -> None:
    soundstage("keys", "new", "a", "--append", tmp_path / "api_keys")
    assert stat.S_IMODE((tmp_path / "api_keys").stat().st_mode) == 0o600


def test_a_key_never_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "api_keys"
    soundstage("keys", "new", "a", "--append", path)
    before = path.read_bytes()
    result = soundstage("keys", "new", "a", "--append", path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "a:b", "two words", "a\nb", "é"])
def test_a_name_that_the_file_cannot_hold(name: str) -> None:
    assert soundstage("keys", "new", "--", name).exit_code == 2


# Help


def commands(group: TyperGroup) -> Iterator[tuple[str, ...]]:
    """The words of each command and group of commands."""
    yield ()
    for name, command in group.commands.items():
        for words in commands(command) if isinstance(command, TyperGroup) else [()]:
            yield (name, *words)


def root() -> TyperGroup:
    command = typer.main.get_command(cli.app)
    assert isinstance(command, TyperGroup)
    return command


@pytest.mark.parametrize("path", list(commands(root())), ids=" ".join)
def test_every_command_has_examples_that_can_be_called(path: tuple[str, ...]) -> None:
    result = soundstage(*path, "--help")
    assert result.exit_code == 0
    examples = re.findall(r"^ +soundstage (.+)$", result.stdout.partition("Examples:")[2], re.MULTILINE)
    assert examples
    for example in examples:
        args = shlex.split(example.partition(" | ")[0])
        command = root().commands[args.pop(0)]
        while isinstance(command, TyperGroup):
            command = command.commands[args.pop(0)]
        command.make_context(example, args)  # raises on an unknown option, a wrong value, a missing argument


def test_help_was_read_of_every_command() -> None:
    assert {" ".join(words) for words in commands(root())} >= {"analyze", "models show", "keys new", "doctor", "sample"}


def test_the_installed_program_runs(take: Path) -> None:
    program = Path(sys.executable).with_name("soundstage")
    url = unused_url()
    result = subprocess.run(
        [program, "analyze", take, "--tasks", "smell", "--url", url], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "choose from" in result.stderr
    assert result.stdout == ""
