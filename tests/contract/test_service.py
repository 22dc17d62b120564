"""What the running service promises: every route, what it hears, batches that fill, changes without a restart."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import srt
import webvtt

from deployments.auth import hash_key
from soundstage.models import registry
from soundstage.pipeline import DEFAULT_MIN_SCORE, SOUND_MODEL, Pipeline
from soundstage.sound.listener import SoundListener
from soundstage.types import EncodedAudio
from tests.contract.conftest import KEY, Service, wav_bytes

NEXT_KEY = "the key of next year"


def poll(is_done: Callable[[], bool], timeout_s: float, complaint: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > deadline:
            pytest.fail(complaint)
        time.sleep(0.1)


def test_alive_ready_and_documented(service: Service) -> None:
    assert service.client.get("/healthz").json() == {"status": "ok"}
    assert service.client.get("/readyz").json() == {"status": "ready"}
    assert "/v1/analyze" in service.client.get("/openapi.json").json()["paths"]
    assert "swagger" in service.client.get("/docs").text


def test_a_key_is_rotated_while_it_runs(service: Service) -> None:
    file = Path(service.document["applications"][0]["args"]["auth"]["api_keys_file"])
    before = file.read_text()

    def replace(text: str) -> None:
        other = file.with_suffix(".new")
        other.write_text(text)
        other.rename(file)

    def status_of(key: str) -> int:
        return httpx.get(f"{service.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

    assert status_of(NEXT_KEY) == 403
    try:
        replace(f"{before}next-year:{hash_key(NEXT_KEY)}\n")
        assert (status_of(KEY), status_of(NEXT_KEY)) == (200, 200)
        replace(f"next-year:{hash_key(NEXT_KEY)}\n")
        assert (status_of(KEY), status_of(NEXT_KEY)) == (403, 200)
    finally:
        replace(before)
    assert (status_of(KEY), status_of(NEXT_KEY)) == (200, 403)


def test_models_show_version_licence_and_accuracy(service: Service) -> None:
    models = {model["kind"]: model for model in service.client.get("/v1/models").json()["data"]}
    assert set(models) == {"speech", "sound"}
    assert all(model["version"] and model["licence"] for model in models.values())
    assert {"speech", "music", "silence", "dog"} <= set(models["sound"]["labels"])
    assert models["sound"]["metrics"]
    assert service.client.get(f"/v1/models/{models['sound']['id']}").json() == models["sound"]


def test_speech_is_written_down(service: Service, speech: bytes) -> None:
    answer = service.analyze(speech).json()
    assert "fail better" in answer["text"].lower()
    assert answer["tags"][0]["label"] == "speech"
    assert answer["levels"]["integrated_lufs"] < 0
    assert set(answer["models"]) == {model["id"] for model in service.client.get("/v1/models").json()["data"]}


@pytest.mark.shared_data
@pytest.mark.parametrize("label", ["dog", "rooster", "siren"])
def test_sounds_are_heard(service: Service, shared_data: Path, label: str) -> None:
    rows = (shared_data / "esc50" / "meta.csv").read_text().splitlines()[1:]
    names = [row.split(",")[0] for row in rows if f",{label}," in row][:8]
    tops = []
    for name in names:
        answer = service.analyze((shared_data / "esc50" / "audio" / name).read_bytes(), "audio/ogg").json()
        tops.append(answer["tags"][0]["label"] if answer["tags"] else None)
    assert tops.count(label) >= len(names) - 1, tops


def test_events_are_those_of_the_command_line(service: Service, speech: bytes) -> None:
    answer = service.analyze(speech, tasks="sounds").json()
    listener = SoundListener(registry.find(SOUND_MODEL, answer["models"][SOUND_MODEL], service.models))
    analysis = Pipeline(None, listener).analyze(EncodedAudio(data=speech, media_type="audio/wav"))
    ours = [(event.label, event.start_s, event.end_s) for event in analysis.events if event.score >= DEFAULT_MIN_SCORE]
    assert ours
    assert [event["label"] for event in answer["events"]] == [label for label, *_ in ours]
    for event, (_, start_s, end_s) in zip(answer["events"], ours, strict=True):
        assert (event["start_s"], event["end_s"]) == pytest.approx((start_s, end_s), abs=0.002)


@pytest.mark.shared_data
def test_expected_names_are_written(service: Service, shared_data: Path) -> None:
    """By both routes; a request without hints beside them is not touched."""
    clip = (shared_data / "ljspeech" / "audio" / "LJ001-0027.flac").read_bytes()
    form = {"file": ("take.flac", clip, "audio/flac")}
    url = "/v1/audio/transcriptions"
    asks = [
        lambda: service.analyze(clip, "audio/flac", hints="Schoeffer").json()["text"],
        lambda: service.analyze(clip, "audio/flac").json()["text"],
        lambda: service.client.post(url, files=form, data={"model": "whisper-1", "prompt": "Schoeffer"}).json()["text"],
    ]
    with ThreadPoolExecutor(len(asks)) as pool:
        texts = list(pool.map(lambda ask: ask(), asks))
    assert ["Schoeffer" in text for text in texts] == [True, False, True]


def test_silence_is_a_success_with_nothing_in_it(service: Service) -> None:
    answer = service.analyze(wav_bytes(np.zeros(5 * 16_000)))
    assert answer.status_code == 200
    body = answer.json()
    assert (body["segments"], body["text"], body["levels"]["integrated_lufs"]) == ([], "", None)
    assert [event["label"] for event in body["events"]] == ["silence"]


def test_progress_comes_chunk_by_chunk(service: Service, speech_file: Path) -> None:
    with service.client.stream(
        "POST", "/v1/analyze", params={"response_format": "ndjson"}, content=speech_file.read_bytes(),
        headers={"Content-Type": "audio/wav"},
    ) as answer:  # fmt: skip
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert [line["type"] for line in lines] == ["chunk"] * (len(lines) - 1) + ["summary"]
    assert len(lines) > 2
    ends = [line["end_s"] for line in lines[:-1]]
    assert ends == sorted(ends)
    assert lines[-1]["duration_s"] == pytest.approx(ends[-1], abs=0.01)
    whole = service.analyze(speech_file.read_bytes()).json()
    assert [segment for line in lines[:-1] for segment in line["segments"]] == whole["segments"]


def test_one_analysis_is_written_in_every_format(service: Service, speech: bytes) -> None:
    names = ("json", "srt", "sdh_srt", "edl", "csv")
    answer = service.analyze(speech, response_format="ndjson", documents=",".join(names))
    documents = {each["format"]: each["text"] for each in json.loads(answer.text.splitlines()[-1])["documents"]}
    assert tuple(documents) == names
    for name in names[1:]:
        assert documents[name] == service.analyze(speech, response_format=name).text


def test_caption_files_are_read_back(service: Service, speech: bytes) -> None:
    assert (
        "fail better"
        in " ".join(caption.content for caption in srt.parse(service.analyze(speech, response_format="srt").text))
        .replace("\n", " ")
        .lower()
    )
    for response_format in ("vtt", "sdh_vtt"):
        text = service.analyze(speech, response_format=response_format).text
        assert "fail better" in " ".join(caption.text for caption in webvtt.from_string(text).captions).lower()
    for response_format in ("sdh_srt", "audacity", "csv", "edl", "otio"):
        answer = service.analyze(speech, response_format=response_format)
        assert answer.status_code == 200
        assert answer.text


def test_concurrent_requests_share_batches_and_answers_stay_the_same(service: Service, speech: bytes) -> None:
    alone = service.analyze(speech, tasks="speech,sounds").json()
    before = large_batches(service)
    with ThreadPoolExecutor(32) as pool:
        answers = [
            answer.json() for answer in pool.map(lambda _: service.analyze(speech, tasks="speech,sounds"), range(64))
        ]
    for answer in answers:
        assert answer["segments"] == alone["segments"]
        assert answer["events"] == alone["events"]
        assert answer["tags"] == alone["tags"]

    poll(
        lambda: all(large_batches(service)[stage] > before[stage] for stage in STAGES),
        30,
        f"no batch was joined from several clips: {before} {large_batches(service)}",
    )


STAGES = {"VoiceRecognizer": 32, "SoundClassifier": 16}
"""Seconds of audio that take more clips than one; bounds of Serve's histogram."""


def large_batches(service: Service) -> dict[str, float]:
    """How many batches of more than so many seconds each stage has run, as Prometheus sees them."""
    found = dict.fromkeys(STAGES, 0.0)
    text = httpx.get(service.cluster.metrics_url, timeout=10).text
    pattern = r"^ray_serve_actual_batch_size_bucket\{([^}]*)\} (\S+)$"
    for labels, value in re.findall(pattern, text, re.MULTILINE):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        stage = tags["deployment"]
        if stage in found and tags["le"] in {"+Inf", f"{STAGES[stage]}.0"}:
            found[stage] += float(value) * (1 if tags["le"] == "+Inf" else -1)
    return found


def test_settings_change_while_it_runs(service: Service, speech: bytes) -> None:
    """New thresholds are live without a restart: replicas keep their processes, and no request fails."""
    replicas = replicas_of(service)
    document = copy.deepcopy(service.document)
    deployments = {entry["name"]: entry for entry in document["applications"][0]["deployments"]}
    deployments["Ingress"]["user_config"]["min_score"] = 0.0
    deployments["SoundClassifier"]["user_config"]["batch"] = {"max_batch_s": 64, "wait_s": 0.01}
    done = threading.Event()
    codes: list[int] = []

    def keep_asking() -> None:
        while not done.is_set():
            codes.append(service.analyze(speech, tasks="sounds").status_code)

    def n_tags() -> int:
        return len(service.analyze(speech).json()["tags"])

    before = n_tags()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(keep_asking)
        try:
            service.cluster.deploy_document(document)
            poll(lambda: n_tags() > before, 30, "the new threshold is not live")
        finally:
            service.cluster.deploy_document(service.document)
            done.set()
        asking.result()
    poll(lambda: n_tags() == before, 30, "the old threshold did not come back")
    assert set(codes) == {200}
    assert replicas <= replicas_of(service)


def replicas_of(service: Service, deployment: str = "") -> set[int]:
    """Processes of the replicas."""
    return {
        pid
        for pid in service.cluster.pids()
        if Path(f"/proc/{pid}/cmdline").read_text().startswith(f"ray::ServeReplica:soundstage:{deployment}")
    }


@pytest.mark.parametrize("deployment", ["VoiceRecognizer", "SoundClassifier", "Preprocessor"])
@pytest.mark.slow
def test_a_replica_that_dies_loses_nothing_silently(service: Service, speech: bytes, deployment: str) -> None:
    """Every request is answered: with its analysis, or with 503 and when to come back."""
    expected = service.analyze(speech).json()["text"]
    victim = replicas_of(service, deployment).pop()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(service.analyze, speech) for _ in range(24)]
        os.kill(victim, signal.SIGKILL)
        for answer in [pending.result() for pending in answers]:
            if answer.status_code == 200:
                assert answer.json()["text"] == expected
            else:
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["Retry-After"]) > 0
    poll(lambda: service.analyze(speech).status_code == 200, 90, "the service did not come back")
