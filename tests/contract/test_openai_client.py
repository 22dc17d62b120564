"""The real `openai` package against the real service."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import openai
import pytest
import srt
import webvtt

from tests.contract.conftest import KEY, Service

MODEL = "whisper-1"


@pytest.fixture(scope="module")
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=KEY, max_retries=0)


def test_json(client: openai.OpenAI, speech: bytes) -> None:
    answer = client.audio.transcriptions.create(model=MODEL, file=("beckett.wav", speech))
    assert "fail better" in answer.text.lower()


def test_text(client: openai.OpenAI, speech: bytes) -> None:
    answer = client.audio.transcriptions.create(model=MODEL, file=("beckett.wav", speech), response_format="text")
    assert "fail better" in str(answer).lower()


def test_srt_and_vtt(client: openai.OpenAI, speech: bytes) -> None:
    subtitles = client.audio.transcriptions.create(model=MODEL, file=("b.wav", speech), response_format="srt")
    assert list(srt.parse(str(subtitles)))
    subtitles = client.audio.transcriptions.create(model=MODEL, file=("b.wav", speech), response_format="vtt")
    assert webvtt.from_string(str(subtitles)).captions


def test_verbose_json_with_segments(client: openai.OpenAI, speech_file: Path) -> None:
    with speech_file.open("rb") as file:
        answer = client.audio.transcriptions.create(
            model=MODEL, file=file, response_format="verbose_json", timestamp_granularities=["segment"]
        )
    assert answer.language == "english"
    assert float(answer.duration) == pytest.approx(44, abs=1)
    assert answer.segments is not None
    assert " ".join(segment.text for segment in answer.segments) == answer.text
    assert all(segment.start < segment.end for segment in answer.segments)


def test_verbose_json_with_words(client: openai.OpenAI, speech: bytes) -> None:
    answer = client.audio.transcriptions.create(
        model=MODEL,
        file=("b.wav", speech),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert answer.segments
    words = answer.words or []
    assert [word.word for word in words] == answer.text.split()
    assert all(word.start < word.end for word in words)
    assert all(left.end <= right.start for left, right in pairwise(words))


def test_stream(client: openai.OpenAI, speech_file: Path) -> None:
    with speech_file.open("rb") as file:
        events = list(client.audio.transcriptions.create(model=MODEL, file=file, stream=True))
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1)
    last = events[-1]
    assert last.type == "transcript.text.done"
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == last.text


def test_models(client: openai.OpenAI) -> None:
    assert "moonshine-tiny-en" in {model.id for model in client.models.list()}


def test_errors_are_the_packages_own(client: openai.OpenAI, service: Service, speech: bytes) -> None:
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.audio.transcriptions.create(model="whisper-99", file=("b.wav", speech))
    with pytest.raises(openai.BadRequestError, match="granularities"):
        client.audio.transcriptions.create(
            model=MODEL, file=("b.wav", speech), response_format="json", timestamp_granularities=["word"]
        )
    with pytest.raises(openai.UnprocessableEntityError):
        client.audio.transcriptions.create(model=MODEL, file=("b.wav", b""))
    stranger = openai.OpenAI(base_url=f"{service.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.PermissionDeniedError):
        stranger.models.list()
