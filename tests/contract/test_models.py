"""A trained model goes live, and comes back, while clients ask without a break; candidates are tried out unseen."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from soundstage.models import registry
from soundstage.models.registry import STABLE, ModelFolder
from soundstage.pipeline import SOUND_MODEL, SPEECH_MODEL
from tests.contract.conftest import Service
from tests.contract.test_service import poll

pytestmark = pytest.mark.slow

NEW, DAMAGED = "1000.0.0", "1000.0.1"
"""Newer than any version that comes with the package."""
N_CLIENTS = 2


def copied(folder: ModelFolder, version: str, root: Path) -> ModelFolder:
    """The same model under another version."""
    path = root / folder.card.name / version
    shutil.copytree(folder.path, path)
    card = json.loads((path / registry.CARD_NAME).read_text())
    (path / registry.CARD_NAME).write_text(json.dumps({**card, "version": version}))
    return registry.open_folder(path)


@pytest.fixture(scope="module", autouse=True)
def old(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The version of the sound model that is live; the registry has a newer one, and one whose weights are damaged."""
    trained, home = tmp_path_factory.mktemp("trained"), service.models.home
    for name in (SOUND_MODEL, SPEECH_MODEL):
        folder = registry.find(name, None, service.models)
        registry.set_aliases(name, {STABLE: folder.card.version}, home)
        registry.publish(copied(folder, NEW, trained), home)
    sounds = registry.find(SOUND_MODEL, None, service.models)
    registry.publish(copied(sounds, DAMAGED, trained), home)
    weights = sounds.path.joinpath(registry.WEIGHTS_NAME).read_bytes()
    home.write(weights[:-1000], SOUND_MODEL, DAMAGED, registry.WEIGHTS_NAME)
    try:
        yield sounds.card.version
    finally:
        service.cluster.deploy_document(service.document)
        shutil.rmtree(home.url)


def document_with(service: Service, **user_configs: dict[str, Any]) -> dict[str, Any]:
    document = copy.deepcopy(service.document)
    for deployment in document["applications"][0]["deployments"]:
        deployment["user_config"] |= user_configs.get(deployment["name"], {})
    return document


def served(service: Service, kind: str = "sound") -> dict[str, Any]:
    """The one version that serves, as the API shows it."""
    bodies = [body for body in service.client.get("/v1/models").json()["data"] if body["kind"] == kind]
    assert len(bodies) == 1, bodies
    body: dict[str, Any] = bodies[0]
    return body


def until_served(service: Service, version: str) -> None:
    poll(lambda: served(service)["version"] == version, 30, f"{version} does not serve")


@dataclass
class Clients:
    """What clients that ask without a break were answered."""

    codes: list[int] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)


@contextmanager
def asking(service: Service, clip: bytes) -> Iterator[Clients]:
    clients, is_over = Clients(), threading.Event()

    def keep_asking() -> None:
        while not is_over.is_set():
            answer = service.analyze(clip, tasks="sounds")
            clients.codes.append(answer.status_code)
            clients.versions.append(answer.json().get("models", {}).get(SOUND_MODEL, answer.text))

    with ThreadPoolExecutor(N_CLIENTS) as pool:
        pending = [pool.submit(keep_asking) for _ in range(N_CLIENTS)]
        try:
            yield clients
        finally:
            is_over.set()
        for client in pending:
            client.result()


def test_a_new_version_goes_live_and_a_damaged_one_does_not(service: Service, speech: bytes, old: str) -> None:
    with asking(service, speech) as clients:
        poll(lambda: old in clients.versions, 30, "nothing was answered")
        service.cluster.deploy_document(document_with(service, SoundClassifier={"version": NEW}))
        until_served(service, NEW)
        poll(lambda: NEW in clients.versions, 30, "the new version does not answer")
        n_before = len(clients.versions)

        service.cluster.deploy_document(document_with(service, SoundClassifier={"version": DAMAGED}))
        poll(lambda: served(service)["refused"] is not None, 30, "the refusal is not shown")
        body = served(service)
        assert body["version"] == NEW
        assert body["refused"]["version"] == DAMAGED
        assert "weights.safetensors is damaged" in body["refused"]["reason"]
        refused = {"stage": "SoundClassifier", "version": DAMAGED}
        poll(lambda: metric(service, "soundstage_model_refused", **refused) == 1, 30, "no metric of the refusal")
        poll(lambda: len(clients.versions) > n_before + N_CLIENTS, 30, "nothing was answered any more")

        service.cluster.deploy_document(service.document)
        until_served(service, old)
        assert served(service)["refused"] is None
        poll(lambda: metric(service, "soundstage_model_refused", **refused) == 0, 30, "the refusal is still told")
    assert set(clients.codes) == {200}
    assert set(clients.versions) == {old, NEW}


def test_promoting_puts_live_without_a_deployment_and_back(service: Service, speech: bytes, old: str) -> None:
    def promote(version: str) -> None:
        command = [str(Path(sys.executable).parent / "soundstage"), "models", "promote", SOUND_MODEL]
        options = ["--version", version, "--to", service.models.home.url]
        env = {**os.environ, "SOUNDSTAGE_MODELS_DIR": str(service.models.cache)}
        done = subprocess.run([*command, *options], env=env, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr

    service.cluster.deploy_document(document_with(service, SoundClassifier={"follow_s": 0.5}))
    with asking(service, speech) as clients:
        promote(NEW)
        until_served(service, NEW)
        poll(lambda: clients.versions[-1] == NEW, 30, f"{NEW} does not answer")
        registry.set_aliases(SOUND_MODEL, {STABLE: old}, service.models.home)  # the same without the seconds of a check
        until_served(service, old)
        poll(lambda: clients.versions[-1] == old, 30, f"{old} does not answer")
    assert set(clients.codes) == {200}
    assert set(clients.versions) == {old, NEW}


def test_a_version_that_is_not_there_is_refused(service: Service, speech: bytes, old: str) -> None:
    service.cluster.deploy_document(document_with(service, SoundClassifier={"version": "99.0"}))
    poll(lambda: served(service)["refused"] is not None, 30, "the refusal is not shown")
    assert served(service)["version"] == old
    assert f"no model {SOUND_MODEL} 99.0" in served(service)["refused"]["reason"]
    assert service.analyze(speech).json()["models"][SOUND_MODEL] == old


def test_a_candidate_is_tried_out_unseen(service: Service, speech: bytes, old: str) -> None:
    n_clips = 5
    before = service.analyze(speech).json()
    shadow = {"shadow": {"version": NEW, "share": 1.0}}
    service.cluster.deploy_document(document_with(service, SoundClassifier=shadow, VoiceRecognizer=shadow))
    for kind in ("sound", "speech"):
        poll(partial(has_candidate, service, kind), 30, "no candidate is tried out")
        assert served(service, kind)["candidate"] == {"version": NEW, "share": 1.0, "refused": None}
    for _ in range(n_clips):
        answer = service.analyze(speech).json()
        assert {**answer, "request_id": ""} == {**before, "request_id": ""}

    for stage, version in (("SoundClassifier", old), ("VoiceRecognizer", served(service, "speech")["version"])):
        labels = {"stage": stage, "version": version, "candidate": NEW}

        for name in ("compared_total", "agreed_total", "served_seconds_count", "candidate_seconds_count"):
            poll(partial(is_counted, service, n_clips, f"soundstage_shadow_{name}", labels), 60, f"{stage}: {name}")
        for name in ("served_seconds_sum", "candidate_seconds_sum"):
            assert 0 < (metric(service, f"soundstage_shadow_{name}", **labels) or 0) < 60
        assert metric(service, "soundstage_model_served", stage=stage, version=version) == 1

    shadow = {"shadow": {"version": DAMAGED, "share": 1.0}}
    service.cluster.deploy_document(document_with(service, SoundClassifier=shadow))
    poll(lambda: served(service)["candidate"]["refused"] is not None, 30, "the refusal is not shown")
    assert "damaged" in served(service)["candidate"]["refused"]["reason"]
    assert service.analyze(speech).status_code == 200


def has_candidate(service: Service, kind: str) -> bool:
    return served(service, kind)["candidate"] is not None


def is_counted(service: Service, n: int, name: str, labels: dict[str, str]) -> bool:
    return metric(service, name, **labels) == n


def metric(service: Service, name: str, **labels: str) -> float | None:
    """The sum of a metric over all replicas, as Prometheus sees it; None where there is none with these labels."""
    text = httpx.get(service.cluster.metrics_url, timeout=10).text
    values = [
        float(value)
        for found, value in re.findall(rf"^ray_{name}\{{([^}}]*)\}} (\S+)$", text, re.MULTILINE)
        if labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found)).items()
    ]
    return sum(values) if values else None
