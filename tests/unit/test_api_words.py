"""Words with their times in the answers of the HTTP application, asked for with the real `openai` package."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import httpx
import openai
import pytest

from soundstage.pipeline import AnalysisOptions
from soundstage.types import ChunkAnalysis, ClipSummary, EncodedAudio, Segment, Word
from tests.unit.served_app import KnownEngine, serving


def segment(start_s: float, text: str) -> Segment:
    """Half a second a word."""
    texts = text.split()
    words = tuple(
        Word(text=text, start_s=start_s + i / 2, end_s=start_s + i / 2 + 0.40004, confidence=0.98764)
        for i, text in enumerate(texts)
    )
    return Segment(start_s=start_s, end_s=start_s + len(texts) / 2, text=text, words=words)


class Speaker(KnownEngine):
    """Says two segments."""

    async def analyze(
        self, audio: EncodedAudio, options: AnalysisOptions
    ) -> AsyncIterator[ChunkAnalysis | ClipSummary]:
        segments = segment(1.0, "Is anybody home?"), segment(4.0, "No.")
        yield ChunkAnalysis(index=0, is_last=True, start_s=0, end_s=6, segments=segments)
        yield ClipSummary(duration_s=6.0)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Speaker()) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


WORDS = [("Is", 1.0, 1.4), ("anybody", 1.5, 1.9), ("home?", 2.0, 2.4), ("No.", 4.0, 4.4)]


def test_words_alone(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        model="whisper-1",
        file=("a.wav", b"RIFF"),
        response_format="verbose_json",
        timestamp_granularities=["word"],
    )
    assert [(word.word, word.start, word.end) for word in answer.words or []] == WORDS
    assert answer.segments is None
    assert answer.text == "Is anybody home? No."


def test_words_and_segments(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        model="whisper-1",
        file=("a.wav", b"RIFF"),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert [word.word for word in answer.words or []] == answer.text.split()
    assert [part.text for part in answer.segments or []] == ["Is anybody home?", "No."]


def test_segments_alone_unless_words_are_asked_for(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        model="whisper-1", file=("a.wav", b"RIFF"), response_format="verbose_json"
    )
    assert answer.words is None
    assert len(answer.segments or []) == 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"response_format": "json", "timestamp_granularities[]": "word"}, "verbose_json"),
        ({"timestamp_granularities[]": "segment"}, "verbose_json"),
        ({"response_format": "verbose_json", "timestamp_granularities[]": ["word", "letter"]}, "segment, word"),
        ({"response_format": "verbose_json", "timestamp_granularities[]": "word", "stream": "true"}, "stream"),
    ],
)
def test_times_that_have_no_place_are_refused(url: str, fields: dict[str, str | list[str]], said: str) -> None:
    answer = httpx.post(f"{url}/v1/audio/transcriptions", data=fields, files={"file": ("a.wav", b"RIFF")})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize("response_format", ["json", "ndjson"])
def test_words_of_an_analysis(url: str, response_format: str) -> None:
    answer = httpx.post(f"{url}/v1/analyze", params={"response_format": response_format}, content=b"RIFF")
    first = json.loads(answer.text.split("\n")[0])
    for part in first["segments"]:
        assert " ".join(word["text"] for word in part["words"]) == part["text"]
    assert first["segments"][0]["words"][0] == {"text": "Is", "start_s": 1.0, "end_s": 1.4, "confidence": 0.9876}
