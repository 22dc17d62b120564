"""A real service on ports of its own: Ray, HAProxy, the real configuration and the real models."""

from __future__ import annotations

import os
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from deployments.auth import hash_key
from deployments.local import CONFIG, LocalCluster, Ports
from soundstage.models.registry import ModelSources
from soundstage.speech import weights

KEY = "a key for the tests"


@dataclass(frozen=True)
class Service:
    """The running service and a client that holds its key."""

    cluster: LocalCluster
    document: dict[str, Any]
    client: httpx.Client
    models: ModelSources

    @property
    def url(self) -> str:
        return self.cluster.url

    def analyze(self, audio: bytes, media_type: str = "audio/wav", **params: Any) -> httpx.Response:
        return self.client.post("/v1/analyze", params=params, content=audio, headers={"Content-Type": media_type})


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    state_dir = tmp_path_factory.mktemp("cluster")
    models = ModelSources(cache_dir=state_dir / "models", registry=str(state_dir / "registry"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDSTAGE_MODELS_DIR", str(models.cache))
        weights.fetch()
    keys = state_dir / "keys"
    keys.write_text(f"tests:{hash_key(KEY)}\n")
    document = yaml.safe_load(CONFIG.read_text())
    document["applications"][0]["args"]["auth"] = {"api_keys_file": str(keys)}
    document["applications"][0]["args"]["models"] = models.model_dump(mode="json")
    cluster = LocalCluster(state_dir=state_dir, ports=Ports.free(), n_cpus=max(2, len(os.sched_getaffinity(0))))
    try:
        cluster.start()
        cluster.deploy_document(document)
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=cluster.url, headers=headers, timeout=120) as client:
            yield Service(cluster, document, client, models)
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def speech() -> bytes:
    """Ten seconds of a person who speaks, 16 kHz WAV."""
    return _asset("beckett.wav").read_bytes()


@pytest.fixture(scope="session")
def speech_file() -> Path:
    """Forty-four seconds of a person who speaks, 48 kHz WAV."""
    return _asset("two_cities.wav")


def _asset(name: str) -> Path:
    files = distribution("moonshine-voice").files or []
    return Path(str(next(file for file in files if file.name == name).locate()))


def wav_bytes(samples: np.ndarray, sample_rate: int = 16_000) -> bytes:
    """16-bit WAV of float samples (n_samples,)."""
    import io

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
