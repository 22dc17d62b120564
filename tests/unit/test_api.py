"""The HTTP application with an engine of known answers: formats, errors, admission."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from fractions import Fraction

import httpx
import pytest
import srt
import webvtt

from deployments.answers import LiveAnswer, ServedModel
from deployments.api.routes import create_app
from deployments.auth import ApiKeys, hash_key
from deployments.settings import AppArgs, Deadlines, IngressConfig
from soundstage.captions.formats import FORMATS
from soundstage.errors import ERRORS, ServiceError, UnusableAudio
from soundstage.live.events import Job
from soundstage.models.registry import ModelCard
from soundstage.params import Limits
from soundstage.pipeline import AnalysisOptions, ReadingParams, Task
from soundstage.types import ChunkAnalysis, ClipSummary, EncodedAudio, Segment, SoundEvent, Tag

CARD = ModelCard(name="ears", version="1", kind="sound", description="d", licence="l", source="s", labels=("dog",))
AUDIO = b"RIFF"
WAV = {"Content-Type": "audio/wav"}


class KnownEngine:
    """Says "Is anybody home?" and hears a dog, a faint wind, and what it was asked."""

    def __init__(self) -> None:
        self.audio: list[EncodedAudio] = []
        self.options: list[AnalysisOptions] = []
        self.error: ServiceError | None = None
        self.error_after: ServiceError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_closed = False

    async def analyze(
        self, audio: EncodedAudio, options: AnalysisOptions
    ) -> AsyncIterator[ChunkAnalysis | ClipSummary]:
        self.audio.append(audio)
        self.options.append(options)
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            yield ChunkAnalysis(
                index=0,
                is_last=False,
                start_s=0,
                end_s=5,
                segments=(Segment(start_s=1.1004, end_s=2.6, text="Is anybody home?"),),
                events=(SoundEvent(label="dog", score=0.97, start_s=3.2, end_s=4.8),),
                tags=(Tag(label="dog", score=0.97), Tag(label="wind", score=0.1)),
            )
            if self.error_after is not None:
                raise self.error_after
            yield ChunkAnalysis(index=1, is_last=True, start_s=5, end_s=9, tags=(Tag(label="dog", score=0.5),))
            yield ClipSummary(duration_s=9.0, start_timecode="10:00:00:00", frame_rate=Fraction(25))
        finally:
            self.is_closed = True

    async def run(self, job: Job) -> LiveAnswer:
        raise NotImplementedError("no live stream is asked for")

    async def models(self) -> list[ServedModel]:
        return [ServedModel(CARD)]


@pytest.fixture
def engine() -> KnownEngine:
    return KnownEngine()


def client_of(engine: KnownEngine, *, args: AppArgs | None = None, keys: ApiKeys | None = None) -> httpx.AsyncClient:
    app = create_app(engine, args or AppArgs(), keys or ApiKeys({}), IngressConfig)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service")


async def analyze(engine: KnownEngine, **params: str) -> httpx.Response:
    async with client_of(engine) as client:
        return await client.post("/v1/analyze", params=params, content=AUDIO, headers=WAV)


async def test_json_holds_all_that_was_found(engine: KnownEngine) -> None:
    answer = (await analyze(engine)).json()
    assert answer["text"] == "Is anybody home?"
    assert answer["segments"][0]["start_s"] == 1.1
    assert answer["events"] == [{"label": "dog", "score": 0.97, "start_s": 3.2, "end_s": 4.8}]
    assert answer["tags"] == [{"label": "dog", "score": 0.97}]
    assert answer["duration_s"] == 9.0
    assert len(answer["request_id"]) == 32


async def test_faint_tags_come_when_asked_for(engine: KnownEngine) -> None:
    answer = (await analyze(engine, min_score="0")).json()
    assert [tag["label"] for tag in answer["tags"]] == ["dog", "wind"]


async def test_a_client_may_name_its_request(engine: KnownEngine) -> None:
    async with client_of(engine) as client:
        headers = {**WAV, "X-Request-ID": "reel-7_take-2"}
        answer = await client.post("/v1/analyze", content=AUDIO, headers=headers)
        assert answer.json()["request_id"] == "reel-7_take-2"
        headers["X-Request-ID"] = "not one word"
        answer = await client.post("/v1/analyze", content=AUDIO, headers=headers)
        assert answer.json()["request_id"] != headers["X-Request-ID"]


async def test_ndjson_is_a_line_a_chunk_and_a_summary(engine: KnownEngine) -> None:
    answer = await analyze(engine, response_format="ndjson")
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["type"] for line in lines] == ["chunk", "chunk", "summary"]
    assert lines[0]["segments"][0]["text"] == "Is anybody home?"
    assert lines[2]["tags"] == [{"label": "dog", "score": 0.97}]


async def test_one_request_gives_progress_and_files_in_every_format(engine: KnownEngine) -> None:
    names = ["json", *FORMATS]
    answer = await analyze(engine, response_format="ndjson", documents=",".join(names))
    last = json.loads(answer.text.splitlines()[-1])
    assert len(engine.audio) == 1
    assert [document["format"] for document in last["documents"]] == names
    for document in last["documents"]:
        alone = await analyze(engine, response_format=document["format"])
        assert alone.headers["Content-Type"].startswith(document["media_type"])
        if document["format"] != "json":
            assert document["suffix"] == FORMATS[document["format"]].suffix
            assert document["text"] == alone.text
    whole = json.loads(last["documents"][0]["text"])
    assert (whole["text"], whole["request_id"]) == ("Is anybody home?", last["request_id"])
    assert "10:00:03:05" in last["documents"][names.index("csv")]["text"]  # timecode of the file: 3.2 s at 25


async def test_documents_come_once_each_and_none_unasked(engine: KnownEngine) -> None:
    answer = await analyze(engine, response_format="ndjson", documents="srt, srt,vtt,")
    assert [each["format"] for each in json.loads(answer.text.splitlines()[-1])["documents"]] == ["srt", "vtt"]
    answer = await analyze(engine, response_format="ndjson")
    assert json.loads(answer.text.splitlines()[-1])["documents"] == []


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"response_format": "ndjson", "documents": "srt,pdf"}, "'pdf' is not one of json, srt"),
        ({"response_format": "json", "documents": "srt"}, "documents go with response_format=ndjson"),
    ],
)
async def test_documents_that_cannot_be_are_refused(engine: KnownEngine, params: dict[str, str], said: str) -> None:
    answer = await analyze(engine, **params)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert engine.audio == []


async def test_an_error_before_the_first_line_has_its_own_status(engine: KnownEngine) -> None:
    engine.error = UnusableAudio("no sound in it")
    assert (await analyze(engine, response_format="ndjson")).status_code == 422


async def test_an_error_after_the_first_line_is_the_last_line(engine: KnownEngine) -> None:
    engine.error_after = UnusableAudio("cut short")
    answer = await analyze(engine, response_format="ndjson")
    assert answer.status_code == 200
    last = json.loads(answer.text.splitlines()[-1])
    assert last["type"] == "error"
    assert last["error"]["code"] == "unusable_audio"


@pytest.mark.parametrize("response_format", sorted(FORMATS))
async def test_every_caption_format_is_served_with_its_type(engine: KnownEngine, response_format: str) -> None:
    answer = await analyze(engine, response_format=response_format)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(FORMATS[response_format].media_type)
    assert answer.text


async def test_captions_can_be_read_back(engine: KnownEngine) -> None:
    captions = list(srt.parse((await analyze(engine, response_format="sdh_srt")).text))
    assert any("Is anybody home?" in caption.content for caption in captions)
    assert any("[" in caption.content for caption in captions)
    assert (
        webvtt.from_string((await analyze(engine, response_format="vtt")).text).captions[0].text == "Is anybody home?"
    )


async def test_the_files_own_timecode_is_used_unless_another_is_given(engine: KnownEngine) -> None:
    assert "10:00:03:05" in (await analyze(engine, response_format="csv")).text
    given = await analyze(engine, response_format="csv", start_timecode="01:00:00:00")
    assert "01:00:03:05" in given.text


async def test_only_what_was_asked_for_is_done(engine: KnownEngine) -> None:
    await analyze(engine, tasks="speech, levels", language="en")
    assert engine.options[0].tasks == {Task.SPEECH, Task.LEVELS}


async def test_hints_and_profanity_reach_the_engine(engine: KnownEngine) -> None:
    await analyze(engine, hints="Ophelia, King Claudius", profanity="mask")
    async with client_of(engine) as client:
        files = {"file": ("take.wav", AUDIO, "audio/wav")}
        await client.post("/v1/analyze", files=files, data={"hints": "Ophelia\nKing Claudius"})
        await client.post("/v1/audio/transcriptions", files=files, data={"prompt": "Ophelia, King Claudius"})
    assert [options.hints for options in engine.options] == [("Ophelia", "King Claudius")] * 3
    assert [options.profanity for options in engine.options] == ["mask", "keep", "keep"]


@pytest.mark.parametrize(
    ("params", "hint"),
    [
        ({"tasks": "speech,smell"}, "speech, sounds, levels"),
        ({"tasks": ","}, "no task"),
        ({"response_format": "docx"}, "sdh_srt"),
        ({"min_score": "2"}, "min_score"),
        ({"language": "tlh"}, "tlh"),
        ({"start_timecode": "25 o'clock"}, "timecode"),
        ({"frame_rate": "13"}, "frame"),
        ({"colour": "red"}, "colour"),
        ({"hints": "x" * 61}, "60 characters"),
        ({"hints": ",".join(f"name {i}" for i in range(301))}, "300 phrases"),
        ({"profanity": "bleep"}, "profanity"),
    ],
)
async def test_a_wrong_parameter_is_named_before_anything_is_done(
    engine: KnownEngine, params: dict[str, str], hint: str
) -> None:
    answer = await analyze(engine, **params)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"
    assert hint in answer.json()["error"]["message"]
    assert not engine.audio


async def test_a_form_brings_file_and_fields(engine: KnownEngine) -> None:
    async with client_of(engine) as client:
        answer = await client.post(
            "/v1/analyze",
            files={"file": ("take 7.wav", AUDIO, "audio/x-wav")},
            data={"tasks": "sounds", "response_format": "csv"},
        )
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert engine.options[0].tasks == {Task.SOUNDS}
    assert (bytes(engine.audio[0].data), engine.audio[0].media_type) == (AUDIO, "audio/x-wav")


async def test_a_form_without_file_says_so(engine: KnownEngine) -> None:
    async with client_of(engine) as client:
        answer = await client.post("/v1/analyze", files={"audio": ("a.wav", AUDIO, "audio/wav")})
    assert answer.status_code == 400
    assert "'file'" in answer.json()["error"]["message"]


async def test_an_empty_body_is_no_audio(engine: KnownEngine) -> None:
    async with client_of(engine) as client:
        answer = await client.post("/v1/analyze", content=b"", headers=WAV)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unusable_audio")


@pytest.mark.parametrize("n_bytes", [100, 3 * 1024**2])
async def test_audio_arrives_whole_from_memory_and_from_disk(engine: KnownEngine, n_bytes: int) -> None:
    audio = bytes(range(256)) * (n_bytes // 256 + 1)
    async with client_of(engine) as client:
        await client.post("/v1/analyze", content=audio, headers=WAV)
        await client.post("/v1/analyze", files={"file": ("a.wav", audio, "audio/wav")})
    assert [bytes(sent.data) for sent in engine.audio] == [audio, audio]


async def test_too_many_bytes_are_refused_while_they_are_read(engine: KnownEngine) -> None:
    args = AppArgs(reading=ReadingParams(limits=Limits(max_upload_bytes=1000)))
    n_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal n_sent
        for _ in range(10_000):
            n_sent += 1
            yield bytes(1024)

    async with client_of(engine, args=args) as client:
        answer = await client.post("/v1/analyze", content=endless(), headers=WAV)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        assert n_sent < 100
        form = await client.post("/v1/analyze", files={"file": ("a.wav", bytes(200_000), "audio/wav")})
        assert (form.status_code, form.json()["error"]["code"]) == (413, "too_large")
    assert not engine.audio


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
async def test_every_error_of_the_table_has_its_answer(engine: KnownEngine, error: type[ServiceError]) -> None:
    engine.error = error("what happened")
    answer = await analyze(engine)
    assert answer.status_code == error.status_code
    body = answer.json()["error"]
    assert body["code"] == error.code
    assert len(body["request_id"]) == 32
    assert ("Retry-After" in answer.headers) == (error.retry_after_s is not None)
    assert (body["message"] == "what happened") == (error.code != "internal_error")


async def test_our_own_bug_is_not_explained_to_strangers(
    engine: KnownEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> list[ModelCard]:
        raise KeyError("secret detail")

    monkeypatch.setattr(engine, "models", broken)
    async with client_of(engine) as client:
        answer = await client.get("/v1/models")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text


async def test_routes_that_do_not_exist(engine: KnownEngine) -> None:
    async with client_of(engine) as client:
        assert (await client.get("/v2/analyze")).json()["error"]["code"] == "not_found"
        assert (await client.get("/v1/analyze")).json()["error"]["code"] == "method_not_allowed"
        assert (await client.get("/v1/models/nose")).json()["error"]["code"] == "not_found"


async def test_models_show_licence_and_version(engine: KnownEngine) -> None:
    async with client_of(engine) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        one = (await client.get("/v1/models/ears")).json()
    assert listed == [one]
    assert (one["id"], one["version"], one["licence"], one["labels"]) == ("ears", "1", "l", ["dog"])


async def test_health(engine: KnownEngine) -> None:
    async with client_of(engine) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).json() == {"status": "ready"}


async def test_keys_are_asked_for_before_the_body_is_read(engine: KnownEngine) -> None:
    async def untouched() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    async with client_of(engine, keys=ApiKeys({"studio": hash_key("k")})) as client:
        assert (await client.post("/v1/analyze", content=untouched())).status_code == 401
        wrong = {"Authorization": "Bearer no"}
        assert (await client.post("/v1/analyze", content=untouched(), headers=wrong)).status_code == 403
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer k"})).status_code == 200
        for route in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert (await client.get(route)).status_code == 200


async def test_beyond_what_it_can_take_the_service_says_when_to_come_back(engine: KnownEngine) -> None:
    engine.gate.clear()
    async with client_of(engine, args=AppArgs(max_concurrent_requests=2)) as client:
        waiting = [asyncio.create_task(client.post("/v1/analyze", content=AUDIO, headers=WAV)) for _ in range(2)]
        async with asyncio.timeout(10):
            while len(engine.audio) < 2:
                await asyncio.sleep(0)
        refused = await client.post("/v1/analyze", content=AUDIO, headers=WAV)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
        assert (await client.get("/readyz")).status_code == 200
        engine.gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert (await client.post("/v1/analyze", content=AUDIO, headers=WAV)).status_code == 200


async def test_a_request_that_takes_too_long_is_ended_and_lets_go(engine: KnownEngine) -> None:
    engine.gate.clear()
    async with client_of(engine, args=AppArgs(deadlines=Deadlines(request_s=0.05))) as client:
        answer = await client.post("/v1/analyze", content=AUDIO, headers=WAV)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert engine.is_closed


async def test_documentation_names_every_route_and_error(engine: KnownEngine) -> None:
    async with client_of(engine) as client:
        schema = (await client.get("/openapi.json")).json()
    assert set(schema["paths"]) == {
        "/healthz", "/readyz", "/v1/models", "/v1/models/{name}", "/v1/analyze", "/v1/audio/transcriptions",
    }  # fmt: skip
    responses = schema["paths"]["/v1/analyze"]["post"]["responses"]
    assert {str(error.status_code) for error in ERRORS} <= set(responses)
    assert schema["components"]["schemas"]["AnalysisBody"]["example"]["text"] == "Is anybody home?"
    assert "application/x-ndjson" in responses["200"]["content"]
    assert "multipart/form-data" in schema["paths"]["/v1/analyze"]["post"]["requestBody"]["content"]
