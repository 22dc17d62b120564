"""The client of the service, against the real application and against servers that misbehave."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from deployments.auth import ApiKeys, hash_key
from soundstage.client import MEDIA_TYPES, AnalysisRequest, ServiceClient, ServiceUnreachable
from soundstage.errors import (
    ERRORS,
    NotAuthenticated,
    NotAuthorized,
    Overloaded,
    ServiceError,
    UnsupportedMedia,
    UnusableAudio,
)
from soundstage.params import ClientParams
from soundstage.pipeline import ALL_TASKS, Task
from soundstage.types import Levels
from tests.unit.served_app import CHUNKS, TEXT, KnownEngine, answer, answering, serving, unused_url

CLIP = b"RIFF" + bytes(1000)


class Waits(list[float]):
    """Stands in for sleeping: notes how long it would have been."""

    def __call__(self, wait_s: float) -> None:
        self.append(wait_s)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "take 1, café.wav"
    path.write_bytes(CLIP)
    return path


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, KnownEngine]]:
    engine = KnownEngine()
    with serving(engine) as url:
        yield url, engine


@pytest.fixture
def url(running: tuple[str, KnownEngine]) -> str:
    return running[0]


@pytest.fixture
def engine(running: tuple[str, KnownEngine]) -> KnownEngine:
    running[1].reset()
    return running[1]


def test_reads_an_analysis_whole(url: str, engine: KnownEngine, clip: Path) -> None:
    progress: list[float] = []
    with ServiceClient(url) as client:
        analysis = client.analyze(clip, on_progress=progress.append)
    assert analysis.duration_s == 9.0
    assert [segment.text for segment in analysis.segments] == [TEXT]
    assert analysis.segments[0].words[0].confidence == pytest.approx(0.9123)
    assert [(event.label, event.score) for event in analysis.events] == [("dog", 0.9712)]
    assert [tag.label for tag in analysis.tags] == ["dog"]
    assert isinstance(analysis.levels, Levels)
    assert analysis.levels.integrated_lufs == -23.12
    assert analysis.model_versions == (("ears", "1"),)
    assert len(analysis.request_id) == 32
    assert progress == [pytest.approx(chunk.end_s, abs=1e-3) for chunk in CHUNKS]
    assert engine.requests[0][:2] == ("audio/wav", len(CLIP))


def test_asks_for_what_it_was_told(url: str, engine: KnownEngine, clip: Path) -> None:
    request = AnalysisRequest(tasks=frozenset({Task.SPEECH, Task.SOUNDS}), language="en", min_score=0.05)
    with ServiceClient(url) as client:
        analysis = client.analyze(clip, request)
    assert engine.requests[0][2].tasks == {Task.SPEECH, Task.SOUNDS}
    assert engine.requests[0][2].language == "en"
    assert [tag.label for tag in analysis.tags] == ["dog", "wind"]
    assert analysis.levels is None


def test_more_hints_than_a_url_holds_reach_the_service(url: str, engine: KnownEngine, clip: Path) -> None:
    hints = tuple(f"Małgorzata {i}" for i in range(300))
    with ServiceClient(url) as client:
        client.analyze(clip, AnalysisRequest(hints=hints, profanity="mask", language="en"))
    media_type, n_bytes, options = engine.requests[0]
    assert (media_type, n_bytes) == ("audio/wav", len(CLIP))
    assert (options.hints, options.profanity, options.language) == (hints, "mask", "en")


def test_a_large_file_is_sent_piece_by_piece(url: str, engine: KnownEngine, tmp_path: Path) -> None:
    path = tmp_path / "long.mov"
    n_bytes = 48 * 1024**2
    with path.open("wb") as file:
        file.truncate(n_bytes)
    with ServiceClient(url) as client:
        tracemalloc.start()
        try:
            client.analyze(path)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert engine.requests[0][:2] == ("video/quicktime", n_bytes)
    assert peak_bytes < n_bytes / 4


@pytest.mark.parametrize("path", ["a.xyz", "noext"])
def test_an_unknown_suffix_is_sent_as_bytes(url: str, engine: KnownEngine, tmp_path: Path, path: str) -> None:
    (tmp_path / path).write_bytes(CLIP)
    with ServiceClient(url) as client:
        client.analyze(tmp_path / path)
    assert engine.requests[0][0] == "application/octet-stream"


def test_media_types_are_ones_that_the_decoder_takes() -> None:
    assert all(
        media_type.startswith(("audio/", "video/")) or media_type == "application/mxf"
        for media_type in MEDIA_TYPES.values()
    )


def test_a_busy_service_is_asked_again_after_the_time_it_names(url: str, engine: KnownEngine, clip: Path) -> None:
    engine.errors = [Overloaded("busy"), Overloaded("busy")]
    waits = Waits()
    with ServiceClient(url, sleep=waits) as client:
        assert client.analyze(clip).duration_s == 9.0
    assert len(engine.requests) == 3
    assert waits == [Overloaded.retry_after_s, Overloaded.retry_after_s]


def test_waits_grow_where_the_service_names_no_time(clip: Path) -> None:
    waits = Waits()
    with (
        answering(answer(503, b"no server is available")) as url,
        ServiceClient(url, sleep=waits) as client,
        pytest.raises(Overloaded, match=r"503.*asked 6 times"),
    ):
        client.analyze(clip)
    assert [round(wait_s / 0.5 / 2**i, 0) for i, wait_s in enumerate(waits)] == [1] * 5
    assert len(set(waits)) == 5


def test_retry_after_may_be_a_date(clip: Path) -> None:
    waits = Waits()
    busy = answer(503, b"", Retry_After=formatdate(time.time() + 20, usegmt=True))
    params = ClientParams(n_attempts=2)
    with answering(busy) as url, ServiceClient(url, sleep=waits, params=params) as client, pytest.raises(Overloaded):
        client.analyze(clip)
    assert 15 < waits[0] <= 21


@pytest.mark.parametrize("header", ["soon", "-5", ""])
def test_a_retry_after_that_means_nothing_is_no_obstacle(clip: Path, header: str) -> None:
    waits = Waits()
    params = ClientParams(n_attempts=2)
    with (
        answering(answer(503, b"", Retry_After=header)) as url,
        ServiceClient(url, sleep=waits, params=params) as client,
        pytest.raises(Overloaded),
    ):
        client.analyze(clip)
    assert 0 < waits[0] < 1


def test_nobody_is_made_to_wait_for_ever(clip: Path) -> None:
    waits = Waits()
    params = ClientParams(n_attempts=2, max_wait_s=7)
    with (
        answering(answer(503, b"", Retry_After="86400")) as url,
        ServiceClient(url, sleep=waits, params=params) as client,
        pytest.raises(Overloaded),
    ):
        client.analyze(clip)
    assert waits == [7]


def test_a_replica_that_dies_on_the_way_is_made_up_for(url: str, engine: KnownEngine, clip: Path) -> None:
    engine.late_errors = [Overloaded("the replica left")]
    progress: list[float] = []
    waits = Waits()
    with ServiceClient(url, sleep=waits) as client:
        analysis = client.analyze(clip, on_progress=progress.append)
    assert len(analysis.segments) == 1, "what came before the error counts once"
    assert len(progress) == 3
    assert len(waits) == 1


@pytest.mark.parametrize("missing_bytes", [0, 10])
def test_a_connection_that_ends_early_is_made_again(clip: Path, missing_bytes: int) -> None:
    waits = Waits()
    cut = answer(200, b'{"type": "chunk", "index": 0', missing_bytes=missing_bytes)
    empty = answer(200, b"")
    done = b'{"type":"summary","request_id":"r","duration_s":1.0,"language":"en","tags":[],"levels":null,"models":{}}\n'
    first = cut if missing_bytes else empty
    with answering(first, answer(502, b""), answer(200, done)) as url, ServiceClient(url, sleep=waits) as client:
        assert client.analyze(clip).request_id == "r"
    assert len(waits) == 2


def test_a_service_that_always_hangs_up_is_given_up(clip: Path) -> None:
    with (
        answering(answer(200, b"")) as url,
        ServiceClient(url, sleep=Waits()) as client,
        pytest.raises(ServiceError, match="hung up 6 times"),
    ):
        client.analyze(clip)


@pytest.mark.parametrize("body", [b"<html>\n", b'{"type":"chunk"}\n', b'{"type":"summary","levels":3}\n', b"[1]\n"])
def test_an_answer_of_something_else_is_told_as_such(clip: Path, body: bytes) -> None:
    with (
        answering(answer(200, body)) as url,
        ServiceClient(url, sleep=Waits()) as client,
        pytest.raises(ServiceError, match="does not understand"),
    ):
        client.analyze(clip)


def test_unknown_fields_and_lines_of_a_newer_service_are_passed_over(clip: Path) -> None:
    body = (
        b'{"type":"novelty"}\n'
        b'{"type":"chunk","index":0,"is_last":true,"start_s":0,"end_s":1,"segments":[],"events":[],"tags":[],"new":1}\n'
        b'{"type":"summary","request_id":"r","duration_s":1,"language":"en","levels":null,"models":{},"new":[]}\n'
    )
    with answering(answer(200, body)) as url, ServiceClient(url) as client:
        assert client.analyze(clip).duration_s == 1


@pytest.mark.parametrize("error", [error for error in ERRORS if error is not Overloaded])
def test_each_error_arrives_as_what_it_was_and_is_not_asked_again(
    url: str, engine: KnownEngine, clip: Path, error: type[ServiceError]
) -> None:
    engine.errors = [error("this is why")]
    waits = Waits()
    with (
        ServiceClient(url, sleep=waits) as client,
        pytest.raises(ServiceError) as caught,
    ):
        client.analyze(clip)
    assert type(caught.value).code == error.code
    assert caught.value.detail == "this is why" or error.status_code == 500
    assert waits == []


def test_an_error_after_the_first_chunk_is_an_error(url: str, engine: KnownEngine, clip: Path) -> None:
    engine.late_errors = [UnusableAudio("cut short")]
    with ServiceClient(url) as client, pytest.raises(UnusableAudio, match="cut short"):
        client.analyze(clip)


def test_an_error_without_our_body_shows_its_status(clip: Path) -> None:
    with answering(answer(418, b"tea")) as url, ServiceClient(url) as client, pytest.raises(ServiceError, match="418"):
        client.analyze(clip)


def test_the_key_opens_the_service(clip: Path) -> None:
    engine = KnownEngine()
    with serving(engine, ApiKeys({"me": hash_key("open sesame")})) as url:
        with ServiceClient(url, api_key="open sesame") as client:
            assert client.analyze(clip).duration_s == 9.0
        with ServiceClient(url) as client, pytest.raises(NotAuthenticated):
            client.analyze(clip)
        with ServiceClient(url, api_key="guess") as client, pytest.raises(NotAuthorized):
            client.analyze(clip)


def test_a_large_upload_that_is_refused_unread_still_says_why(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.truncate(48 * 1024**2)
    waits = Waits()
    with (
        serving(KnownEngine(), ApiKeys({"me": hash_key("k")})) as url,
        ServiceClient(url, sleep=waits) as client,
        pytest.raises(NotAuthenticated),
    ):
        client.analyze(path)
    assert waits == []


def test_nothing_at_the_url_is_found_out_after_several_tries(clip: Path) -> None:
    waits = Waits()
    with ServiceClient(unused_url(), sleep=waits) as client, pytest.raises(ServiceUnreachable, match="tried 6 times"):
        client.analyze(clip)
    assert len(waits) == 5


def test_a_file_that_cannot_be_read_is_no_matter_of_the_service(tmp_path: Path) -> None:
    with ServiceClient(unused_url(), sleep=Waits()) as client, pytest.raises(FileNotFoundError):
        client.analyze(tmp_path / "gone.wav")


def test_readiness_is_that_of_every_stage(url: str, engine: KnownEngine) -> None:
    with ServiceClient(url) as client:
        client.check_ready()
        engine.errors = [Overloaded("no replica of SoundClassifier")]
        with pytest.raises(Overloaded, match="SoundClassifier"):
            client.check_ready()
    with ServiceClient(unused_url()) as client, pytest.raises(ServiceUnreachable):
        client.check_ready()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://host:port"])
def test_a_url_of_no_service_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        ServiceClient(url)


def test_all_tasks_are_asked_for_by_default() -> None:
    assert set(AnalysisRequest().query["tasks"].split(",")) == set(ALL_TASKS)


def test_refusals_keep_their_class(url: str, engine: KnownEngine, clip: Path) -> None:
    engine.refused = {"audio/wav": UnsupportedMedia("no WAV today")}
    with ServiceClient(url) as client, pytest.raises(UnsupportedMedia, match="no WAV today"):
        client.analyze(clip)
