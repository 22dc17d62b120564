"""`soundstage live`, as a person or a program calls it, against a small server that speaks the protocol."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import srt
import webvtt
from rich.console import Console
from typer.testing import CliRunner, Result

from soundstage import cli
from soundstage.commands.live import PlainLines, Screen, meter
from soundstage.commands.live_output import growing_file
from soundstage.commands.live_source import Source, SourceChoice, SourceError, open_source
from soundstage.errors import NotAuthorized, Overloaded, UnusableAudio
from soundstage.params import LiveClientParams
from tests.unit.audio_files import encode, tone
from tests.unit.live_server import Event, LiveServer, running, unused_port

ROOT = Path(__file__).parents[2]
CLI_RATE = 8_000
N_SECONDS = 9


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    """Stands behind the URL that the command line uses."""
    patience = LiveClientParams(first_wait_s=0.0, max_wait_s=0.0)
    monkeypatch.setattr("soundstage.live_client.LiveClientParams", lambda: patience)
    monkeypatch.delenv("SOUNDSTAGE_API_KEY", raising=False)
    live = LiveServer()
    with running(live) as url:
        monkeypatch.setenv("SOUNDSTAGE_URL", url)
        yield live


@pytest.fixture
def take(tmp_path: Path) -> Path:
    """A WAV file each of whose seconds holds its number; the test's server "recognises" it."""
    path = tmp_path / "take 1, café.wav"
    samples = np.repeat(np.arange(N_SECONDS, dtype=np.float32) / np.float32(32768), CLI_RATE)[:, None]
    path.write_bytes(encode("wav", samples, sample_rate=CLI_RATE))
    return path


def soundstage(*args: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["live", *(str(arg) for arg in args)])


def events_of(result: Result) -> list[Event]:
    return [json.loads(line) for line in result.stdout.splitlines()]


SPOKEN = [f"0:00:0{i}  second {i}." for i in range(N_SECONDS)]
HEARD = [f"0:00:0{i}  [dog barking]" for i in (1, 5)]


def test_lines_where_there_is_no_terminal(server: LiveServer, take: Path) -> None:
    result = soundstage(take, "--fast")
    assert result.exit_code == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == sorted(SPOKEN + HEARD)
    assert [line for line in result.stdout.splitlines() if "second" in line] == SPOKEN
    assert "\x1b" not in result.stdout
    assert server.hellos[0]["sample_rate"] == CLI_RATE


def test_a_file_is_sent_as_fast_as_it_sounds(server: LiveServer, tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    path.write_bytes(encode("wav", tone(1.2, CLI_RATE), sample_rate=CLI_RATE))
    begun = time.monotonic()
    assert soundstage(path).exit_code == 0
    assert time.monotonic() - begun > 1.2


def test_json_is_every_event_on_a_line(server: LiveServer, take: Path) -> None:
    result = soundstage(take, "--fast", "--json")
    assert result.exit_code == 0, result.stderr
    events = events_of(result)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert {event["type"] for event in events} == {"ready", "partial", "final", "sound", "levels", "caption", "done"}
    assert events[-1]["duration_s"] == N_SECONDS


def test_a_connection_cut_in_the_middle_changes_nothing(server: LiveServer, take: Path) -> None:
    server.cuts = [4 * CLI_RATE, 9 * CLI_RATE]
    result = soundstage(take, "--fast")
    assert result.exit_code == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if "second" in line] == SPOKEN
    assert "reconnecting" in result.stderr
    assert "resumed" in result.stderr


def test_a_busy_service_is_waited_for(server: LiveServer, take: Path) -> None:
    server.refusals = [Overloaded("busy"), 503, Overloaded("busy")]
    result = soundstage(take, "--fast")
    assert result.exit_code == 0, result.stderr
    assert len(server.hellos) == 3


@pytest.mark.parametrize(
    ("refusal", "message"),
    [(NotAuthorized("this key opens nothing"), "this key opens nothing"), (404, "no live streams")],
)
def test_what_the_service_says_is_shown(server: LiveServer, take: Path, refusal: Any, message: str) -> None:
    server.refusals = [refusal]
    result = soundstage(take, "--fast", "--output", take.with_suffix(".vtt"))
    assert result.exit_code == 1
    assert message in result.stderr
    assert not take.with_suffix(".vtt").exists(), "what never began leaves nothing behind"


def test_an_error_in_the_middle_leaves_what_was_said(server: LiveServer, take: Path) -> None:
    server.late_errors = [(3 * 2 * CLI_RATE, UnusableAudio("not finite"))]
    out = take.with_suffix(".srt")
    result = soundstage(take, "--fast", "--output", out)
    assert result.exit_code == 1
    assert "not finite" in result.stderr
    assert [caption.content for caption in srt.parse(out.read_text(encoding="utf-8"))] == ["second 0.", "second 1."]


def test_no_service_is_an_exit_code_of_its_own(server: LiveServer, take: Path) -> None:
    result = soundstage(take, "--fast", "--url", f"http://127.0.0.1:{unused_port()}")
    assert result.exit_code == 3
    assert "no service answers" in result.stderr


def test_the_key_is_read_from_the_environment(server: LiveServer, take: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUNDSTAGE_API_KEY", "open sesame")
    result = soundstage(take, "--fast", "--json")
    assert result.exit_code == 0
    assert server.requests[0].headers["Authorization"] == "Bearer open sesame"
    assert "sesame" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-"], "--sample-rate"),
        (["gone.wav"], "no such file"),
        (["TAKE", "--output", "captions.txt"], ".vtt, .srt, .ndjson"),
        (["TAKE", "--output", "TAKE.vtt"], "--overwrite"),
        (["TAKE", "--tasks", "smells"], "smells"),
        (["TAKE", "--option", "listen"], "NAME=VALUE"),
        (["TAKE", "--url", "ftp://host"], "URL"),
        (["srt://127.0.0.1:9000"], "- --format mpegts"),
    ],
)
def test_wrong_usage_is_told(server: LiveServer, take: Path, args: list[str], message: str) -> None:
    take.with_suffix(".vtt").write_text("WEBVTT\n\n", encoding="utf-8")
    result = soundstage(
        *(arg.replace("TAKE.vtt", str(take.with_suffix(".vtt"))).replace("TAKE", str(take)) for arg in args)
    )
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("\u2502", " ").split())
    assert not server.hellos


def test_a_file_that_is_no_audio_fails_by_name(server: LiveServer, tmp_path: Path) -> None:
    path = tmp_path / "notes.wav"
    path.write_text("not audio at all, but long enough to look at", encoding="utf-8")
    result = soundstage(path)
    assert result.exit_code == 1
    assert "notes.wav" in result.stderr


# Outputs


def test_the_growing_vtt_is_valid_at_every_moment(server: LiveServer, take: Path) -> None:
    out = take.with_suffix(".vtt")
    seen: list[int] = []
    problems: list[Exception] = []
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.is_set():
            if out.exists() and out.stat().st_size:
                try:
                    seen.append(len(webvtt.read(str(out))))
                except Exception as e:  # noqa: BLE001  # any is a failure of the test
                    problems.append(e)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = soundstage(take, "--fast", "--output", out)
    finally:
        stopped.set()
        watcher.join()
    assert result.exit_code == 0, result.stderr
    assert not problems
    assert seen == sorted(seen)
    captions = webvtt.read(str(out)).captions
    assert [caption.text for caption in captions if "second" in caption.text] == [f"second {i}." for i in range(9)]
    starts = [caption.start_in_seconds + int(caption.start[-3:]) / 1000 for caption in captions]
    assert starts == sorted(starts), "sounds are told late and stand where they belong"
    assert [caption.identifier for caption in captions] == [str(i + 1) for i in range(len(captions))]


@pytest.mark.parametrize("suffix", [".vtt", ".srt"])
def test_each_caption_makes_the_file_longer_and_leaves_it_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"captions{suffix}"
    file = growing_file(path)
    texts = {}
    try:
        for i, start_s in enumerate([0.0, 4.0, 2.0, 8.0, 8.0, 1.0, 3700.5]):
            texts[i] = start_s
            lines = [f"<i>caption</i> {i} --> {'é' * i}", "& more"]
            file.write(
                {"type": "caption", "start_s": start_s, "end_s": start_s + 1.5, "lines": lines, "is_sound": False}
            )
            file.write({"type": "partial"})
            text = path.read_text(encoding="utf-8")
            if suffix == ".vtt":
                found = [int(c.text.split()[1]) for c in webvtt.from_string(text, strict=True).captions]
            else:
                parsed = list(srt.parse(text, ignore_errors=False))
                assert [c.index for c in parsed] == list(range(1, i + 2))
                found = [int(c.content.split()[1]) for c in parsed]
            assert found == sorted(texts, key=lambda number: texts[number])
    finally:
        file.close()


def test_ndjson_holds_every_event(server: LiveServer, take: Path) -> None:
    out = take.with_suffix(".ndjson")
    result = soundstage(take, "--fast", "--json", "--output", out)
    assert out.read_text(encoding="utf-8") == result.stdout


# The person at the keyboard


@contextmanager
def process(url: str, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "soundstage.cli", "live", *args]
    env = {**os.environ, "SOUNDSTAGE_URL": url}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as running_process:
        try:
            yield running_process
        finally:
            running_process.kill()


def until(is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_the_final_captions(tmp_path: Path, number: signal.Signals) -> None:
    live = LiveServer()
    out = tmp_path / "captions.vtt"
    with running(live) as url, process(url, "-", "--sample-rate", "8000", "--output", str(out)) as listening:
        assert listening.stdin is not None
        for i in range(4):
            listening.stdin.write(np.full(8000, i, "<i2").tobytes())
        listening.stdin.flush()  # and stays open: the source does not end by itself
        until(lambda: bool(live.streams) and len(live.streams["s0"].audio) == 4 * 2 * 8000)
        listening.send_signal(number)
        stdout, stderr = listening.communicate(timeout=30)
    assert listening.returncode == 0, stderr
    assert [line for line in stdout.decode().splitlines() if "second" in line] == SPOKEN[:4]
    assert live.streams["s0"].is_ended
    assert len(webvtt.read(str(out))) == 5


def test_a_second_ctrl_c_ends_at_once() -> None:
    live = LiveServer()
    live.is_deaf = True
    with running(live) as url, process(url, "-", "--sample-rate", "8000") as listening:
        assert listening.stdin is not None
        assert listening.stderr is not None
        listening.stdin.write(bytes(16_000))
        listening.stdin.flush()
        until(lambda: bool(live.streams) and bool(live.streams["s0"].audio))
        listening.send_signal(signal.SIGINT)
        assert b"again to end at once" in listening.stderr.readline()
        listening.send_signal(signal.SIGINT)
        assert listening.wait(timeout=30) == 130
        # The server may hang up in between, which is told; nothing else is, no traceback least of all.
        assert all(line.startswith(b"reconnecting") for line in listening.stderr.read().splitlines())


def broadcast(duration_s: float, to: str | io.BytesIO | None = None, muxer: str = "mpegts") -> bytes:
    """Silence in AAC, stereo, as stations send it."""
    buffer = io.BytesIO()
    with av.open(buffer if to is None else to, "w", format=muxer) as output:
        stream = output.add_stream("aac", rate=48_000, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        samples = np.zeros((2, round(48_000 * duration_s)), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def test_a_container_on_standard_input() -> None:
    live = LiveServer()
    clip = broadcast(3.0)
    with running(live) as url, process(url, "-", "--format", "mpegts") as listening:
        stdout, stderr = listening.communicate(clip, timeout=60)
    assert listening.returncode == 0, stderr
    assert live.hellos[0]["sample_rate"] == 48_000
    assert len(stdout.splitlines()) == 3


# What FFmpeg opens


@contextmanager
def radio(clip: bytes, media_type: str = "audio/mpeg") -> Iterator[tuple[str, list[str]]]:
    """A station whose connection ends after the clip, as often as it is called; and who called."""
    calls: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", media_type)
            self.send_header("icy-name", "test")
            self.end_headers()
            self.wfile.write(clip)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    station = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=station.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{station.server_port}/stream", calls
    finally:
        station.shutdown()
        thread.join()
        station.server_close()


MP3 = encode("mp3", tone(2.5, 44_100), sample_rate=44_100)


def test_a_radio_stream_is_heard_until_it_ends(server: LiveServer) -> None:
    with radio(MP3) as (url, calls):
        result = soundstage(url, "--no-reconnect")
    assert result.exit_code == 0, result.stderr
    assert calls == ["/stream"]
    assert server.hellos[0]["sample_rate"] == 44_100
    assert len(result.stdout.splitlines()) == 2


def test_a_radio_stream_that_ends_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soundstage.commands.live_source._FIRST_WAIT_S", 0.01)
    stopped = threading.Event()
    troubles: list[str] = []
    with radio(MP3) as (url, calls):
        source = open_source(SourceChoice(name=url), stopped, troubles.append)
        assert source.is_live
        n_heard_s = 0.0
        for piece in source.pieces:
            n_heard_s += source.duration_s(piece)
            if len(calls) == 3:
                stopped.set()
    assert n_heard_s > 5.0, "two clips, whole"
    assert ["is gone" in trouble for trouble in troubles] == [True, False] * 2


def test_the_time_without_a_source_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soundstage.commands.live_source._FIRST_WAIT_S", 0.3)
    stopped = threading.Event()
    n_opened = itertools.count()

    def opened(*_: object) -> Source:
        n = next(n_opened)
        if n == 1:
            raise SourceError("still gone")
        sound = (np.full(80, n + 1, "<i2").tobytes() for _ in range(1))
        return Source(sample_rate=8000, n_channels=1, is_live=True, pieces=sound)

    monkeypatch.setattr("soundstage.commands.live_source._opened", opened)
    source = open_source(SourceChoice(name="rtmp://x"), stopped, lambda _: None)
    begun = time.monotonic()
    heard = bytearray()
    for piece in source.pieces:
        heard += piece
        if piece.startswith(b"\x03"):
            stopped.set()
    samples = np.frombuffer(bytes(heard), "<i2")
    assert samples[0] == 1
    assert samples[-1] == 3
    assert len(samples) / 8000 == pytest.approx(time.monotonic() - begun, abs=0.2)
    assert np.count_nonzero(samples) == 160


PUBLISH = """
import sys, time, av
from tests.unit.test_cli_live import broadcast
print("ready", flush=True)
for attempt in range(400):
    try:
        broadcast(2.0, sys.argv[1], "flv")
        break
    except av.error.ConnectionRefusedError:  # nobody listens yet
        time.sleep(0.05)
"""


def test_a_publisher_may_push_by_rtmp() -> None:
    url = f"rtmp://127.0.0.1:{unused_port()}/live/stage"
    choice = SourceChoice(name=url, options={"listen": "1"}, reconnect=False)
    # In a process of its own: PyAV keeps the interpreter to itself while it connects.
    with subprocess.Popen([sys.executable, "-c", PUBLISH, url], cwd=ROOT, stdout=subprocess.PIPE) as publisher:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == b"ready\n"
        source = open_source(choice, threading.Event(), lambda _: None)
        duration_s = sum(source.duration_s(piece) for piece in source.pieces)
        assert publisher.wait(timeout=30) == 0
    assert source.is_live
    assert (source.sample_rate, source.n_channels) == (48_000, 2)
    assert duration_s == pytest.approx(2.0, abs=0.15)


def test_a_url_at_which_nothing_is_fails_by_name(server: LiveServer) -> None:
    result = soundstage(f"http://127.0.0.1:{unused_port()}/radio.mp3")
    assert result.exit_code == 1
    assert "radio.mp3 cannot be opened: Connection refused" in result.stderr


# Microphones


class FakePortAudio:
    """What sounddevice does with a microphone, as far as it is called."""

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def query_devices(self, device: object = None, kind: object = None) -> Any:
        if kind is None:
            return [{"index": 3, "name": "USB", "max_input_channels": 1, "default_samplerate": 44_100.0}]
        if device not in {None, 3, "USB"}:
            raise ValueError(f"No input device matching {device!r}")
        return self.query_devices()[0]

    def RawInputStream(self, **kwargs: Any) -> Any:  # noqa: N802  # its name
        self.asked.append(kwargs)
        stream = SimpleNamespace(start=lambda: kwargs["callback"](b"\x01\x00" * kwargs["blocksize"], None, None, None))

        @contextmanager
        def recording() -> Iterator[None]:
            yield

        context = recording()
        return type("Stream", (), {"start": lambda _: stream.start(), "__enter__": lambda _: context.__enter__(),
                                   "__exit__": lambda _, *args: context.__exit__(*args)})()  # fmt: skip


@pytest.mark.parametrize(("name", "device"), [("mic", None), ("mic:3", 3), ("mic:USB", "USB")])
def test_a_microphone_is_heard_at_its_own_rate(monkeypatch: pytest.MonkeyPatch, name: str, device: object) -> None:
    port_audio = FakePortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", port_audio)
    source = open_source(SourceChoice(name=name), stopped := threading.Event(), lambda _: None)
    piece = next(source.pieces)
    stopped.set()
    assert source.is_live
    assert source.sample_rate == 44_100
    assert source.duration_s(piece) == pytest.approx(0.1)
    assert port_audio.asked[0]["device"] == device


def test_a_microphone_that_is_not_there_is_told_with_those_that_are(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakePortAudio())
    result = soundstage("mic:Neumann")
    assert result.exit_code == 1
    assert "mic:3 (USB)" in result.stderr


# The terminal


def shown(*events: Event) -> tuple[str, str]:
    """What scrolled, and what the last frame below it was."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None, legacy_windows=False)
    with Screen(console) as screen:
        for event in events:
            screen.show(event)
        before_end = file.getvalue()
    frames = before_end.split("\x1b[2K")
    return before_end, frames[-1]


PARTIAL = {"type": "partial", "utterance": 0, "committed": "Is anybody", "tentative": "home", "start_s": 1, "end_s": 2}
FINAL = {"type": "final", "utterance": 0, "text": "Is anybody home?", "start_s": 3661.0, "end_s": 3663.0}
LEVELS = {"type": "levels", "start_s": 0, "end_s": 3.0, "momentary_lufs": -23.04, "short_term_lufs": -24.0,
          "sample_peak_dbfs": -12.0}  # fmt: skip


def test_what_is_being_said_stands_below_until_it_is_final() -> None:
    _, bottom = shown(LEVELS, PARTIAL)
    assert "Is anybody home" in bottom
    assert "-23.0 LUFS" in bottom
    scrolled, bottom = shown(LEVELS, PARTIAL, FINAL)
    assert "1:01:01  Is anybody home?" in scrolled
    assert "Is anybody home\n" not in bottom


def test_a_sound_stands_below_while_it_sounds_and_scrolls_as_a_caption() -> None:
    sound = {"type": "sound", "sound": 0, "label": "car_horn", "score": 0.9, "start_s": 1.0, "end_s": None}
    caption = {"type": "caption", "start_s": 1.0, "end_s": 2.5, "lines": ["[car horn honks]"], "is_sound": True}
    _, bottom = shown({**sound, "state": "started"})
    assert "car horn" in bottom
    scrolled, bottom = shown({**sound, "state": "started"}, caption, {**sound, "state": "ended", "end_s": 2.0})
    assert "0:00:01  [car horn honks]" in scrolled
    assert "car horn" not in bottom


@pytest.mark.parametrize(
    ("peak_dbfs", "n_cells", "colour"),
    [
        (None, 0, "green"),
        (-60.0, 0, "green"),
        (-30.0, 12, "green"),
        (-5.0, 22, "yellow"),
        (0.0, 24, "red"),
        (3, 24, "red"),
    ],
)
def test_the_meter_shows_the_peak(peak_dbfs: float | None, n_cells: int, colour: str) -> None:
    drawn = meter({**LEVELS, "sample_peak_dbfs": peak_dbfs, "momentary_lufs": None})
    bars = [span for span in drawn.spans if span.style == colour]
    assert sum(span.end - span.start for span in bars) == n_cells
    assert "silence" in drawn.plain


def test_markup_in_what_was_said_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    PlainLines(Console(stderr=True)).show({**FINAL, "text": "[bold]see[/bold]"})
    assert "[bold]see[/bold]" in capsys.readouterr().out
    scrolled, _ = shown({**FINAL, "text": "[bold]see[/bold]"})
    assert "[bold]see[/bold]" in scrolled
