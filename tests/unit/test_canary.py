"""What the canary says of a service that is right, wrong, exchanged or away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from monitoring.canary import Canary, ReferenceClip, read_clips, sample_clips
from soundstage.sample import TRUTH

SAID = ReferenceClip(name="reading", audio=b"RIFF", task="speech", truth="It was the best of times, in 1859.")
SIREN = ReferenceClip(name="siren", audio=b"RIFF", task="sounds", truth="siren")
RAIN = ReferenceClip(name="rain", audio=b"RIFF", task="sounds", truth="rain")


class Service:
    """Answers as it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.text = SAID.truth
        self.labels = {"siren": "siren", "rain": "rain"}
        self.models = {"speech": {"ears": "1"}, "sounds": {"sounds": "1"}}
        self.status = 200
        self.is_away = False
        self.requests: list[httpx.Request] = []
        self.registry = CollectorRegistry()
        client = httpx.Client(base_url="http://service", transport=httpx.MockTransport(self._answer))
        self.canary = Canary(client, self.registry)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.is_away:
            raise httpx.ConnectError("refused")
        if self.status == 502:
            return httpx.Response(502, text="Bad Gateway")
        if self.status != 200:
            return httpx.Response(
                self.status, json={"error": {"code": "overloaded", "message": "m", "request_id": "r"}}
            )
        task = request.url.params["tasks"]
        name = next(name for name in ("reading", "siren", "rain") if f'filename="{name}"'.encode() in request.read())
        tags = [{"label": self.labels[name], "score": 0.9}] if name in self.labels else []
        return httpx.Response(200, json={"text": self.text, "tags": tags, "models": self.models[task]})

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"soundstage_canary_{name}", labels)


@pytest.fixture
def service() -> Service:
    return Service()


def test_words_are_compared_as_the_field_does(service: Service) -> None:
    service.text = "it was the best of times in eighteen fifty nine"
    service.canary.ask(SAID)
    assert service.value("word_error_ratio", model="ears", version="1") == 0
    service.text = "it was the worst of in 1859 indeed"
    service.canary.ask(SAID)
    assert service.value("word_error_ratio", model="ears", version="1") == pytest.approx(3 / 8)


def test_sounds_are_right_where_the_first_one_is(service: Service) -> None:
    service.labels["rain"] = "sea_waves"
    for clip in (SIREN, RAIN):
        service.canary.ask(clip)
    assert service.value("top1_ratio", model="sounds", version="1") == 0.5
    service.labels["rain"] = "rain"
    service.canary.ask(RAIN)
    assert service.value("top1_ratio", model="sounds", version="1") == 1
    service.labels = {}
    service.canary.ask(RAIN)
    assert service.value("top1_ratio", model="sounds", version="1") == 0.5


def test_figures_are_those_of_the_version_that_answers(service: Service) -> None:
    service.labels["siren"] = "dog"
    service.canary.ask(SIREN)
    service.canary.ask(RAIN)
    service.models["sounds"] = {"sounds": "2"}
    service.canary.ask(RAIN)
    assert service.value("top1_ratio", model="sounds", version="1") is None
    assert service.value("top1_ratio", model="sounds", version="2") == 1


def test_speech_that_is_not_found_is_all_wrong(service: Service) -> None:
    service.canary.ask(SAID)
    service.text, service.models["speech"] = "", {}
    service.canary.ask(SAID)
    assert service.value("word_error_ratio", model="ears", version="1") == 1


def test_what_is_not_answered_is_counted_and_judged_by_nobody(service: Service) -> None:
    service.canary.ask(SIREN)
    service.status = 503
    assert service.canary.ask(SIREN) == "overloaded"
    service.status = 502
    assert service.canary.ask(SIREN) == "http_502"
    service.is_away = True
    assert service.canary.ask(SIREN) == "unreachable"
    results = {"ok": 1, "overloaded": 1, "http_502": 1, "unreachable": 1}
    assert {result: service.value("requests_total", result=result) for result in results} == results
    assert service.value("latency_seconds_count") == 1
    assert service.value("top1_ratio", model="sounds", version="1") == 1


def test_availability_is_known_before_the_first_failure(service: Service) -> None:
    assert service.value("requests_total", result="unreachable") == 0


def test_each_request_is_one_trace(service: Service) -> None:
    for _ in range(2):
        service.canary.ask(SIREN)
    traces = [request.headers["traceparent"].split("-") for request in service.requests]
    assert [(len(trace), len(span), flags) for _, trace, span, flags in traces] == [(32, 16, "01")] * 2
    assert traces[0][1] != traces[1][1]


def test_the_sample_has_speech_and_sounds_that_nothing_else_is_heard_with() -> None:
    clips = sample_clips()
    assert [clip.truth for clip in clips if clip.task == "speech"] == [TRUTH.speech[0].text]
    assert [clip.truth for clip in clips if clip.task == "sounds"] == ["car_horn", "door_knock", "clock_alarm", "siren"]
    assert all(clip.audio.startswith(b"RIFF") for clip in clips)


def test_a_folder_brings_clips_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "clips.csv").write_text("file,text,label\na.wav,good morning,rain\na.wav,,dog\n", encoding="utf-8")
    found: list[Any] = [(clip.task, clip.truth, clip.audio) for clip in read_clips(tmp_path)]
    assert found == [("speech", "good morning", b"RIFF"), ("sounds", "rain", b"RIFF"), ("sounds", "dog", b"RIFF")]
    (tmp_path / "clips.csv").write_text("file,words\na.wav,good morning\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no column label, text"):
        read_clips(tmp_path)
