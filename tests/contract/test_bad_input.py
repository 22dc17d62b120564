"""Every row of the error table over HTTP, on the real service; the request after it is unharmed."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from tests.contract.conftest import KEY, Service, wav_bytes

SECOND = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) * 0.1


def encoded(container: str, codec: str, seconds: float, sample_rate: int = 16_000) -> bytes:
    """Silence in any container."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=sample_rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        n_left, block = round(seconds * sample_rate), np.zeros((1, sample_rate), np.int16)
        while n_left > 0:
            n_samples = min(n_left, sample_rate)
            frame = av.AudioFrame.from_ndarray(block[:, :n_samples], format="s16", layout="mono")
            frame.sample_rate = sample_rate
            output.mux(stream.encode(frame))
            n_left -= n_samples
        output.mux(stream.encode(None))
    return buffer.getvalue()


def header_only(**changes: int) -> bytes:
    """A WAV whose header says something that its maker should not have said."""
    fields = {"channels": 1, "rate": 16_000, **changes}
    block = 2 * fields["channels"]
    data = bytes(block * 100)
    return b"".join(
        (
            b"RIFF", (36 + len(data)).to_bytes(4, "little"), b"WAVEfmt ", (16).to_bytes(4, "little"),
            (1).to_bytes(2, "little"), fields["channels"].to_bytes(2, "little"), fields["rate"].to_bytes(4, "little"),
            (fields["rate"] * block).to_bytes(4, "little"), block.to_bytes(2, "little"), (16).to_bytes(2, "little"),
            b"data", len(data).to_bytes(4, "little"), data,
        )
    )  # fmt: skip


FLAC = encoded("flac", "flac", 5)

BAD: dict[str, tuple[bytes, str, dict[str, Any], int, str]] = {
    "empty body": (b"", "audio/wav", {}, 422, "unusable_audio"),
    "truncated FLAC": (FLAC[: len(FLAC) // 2], "audio/flac", {}, 422, "unusable_audio"),
    "text named wav": (b"Dear sound engineer, ...\n" * 100, "audio/wav", {}, 415, "unsupported_media"),
    "text": (b"hello", "text/plain", {}, 415, "unsupported_media"),
    "odd PCM length": (bytes(3201), "audio/pcm", {"sample_rate": 16_000}, 400, "invalid_request"),
    "PCM without a rate": (bytes(3200), "audio/pcm", {}, 400, "invalid_request"),
    "200 channels": (header_only(channels=200), "audio/wav", {}, 413, "too_large"),
    "1 Hz": (header_only(rate=1), "audio/wav", {}, 422, "unusable_audio"),
    "unknown task": (wav_bytes(SECOND), "audio/wav", {"tasks": "smell"}, 400, "invalid_request"),
    "unknown format": (wav_bytes(SECOND), "audio/wav", {"response_format": "docx"}, 400, "invalid_request"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_the_next_request_unharmed(service: Service, case: str) -> None:
    audio, media_type, params, status_code, code = BAD[case]
    answer = service.analyze(audio, media_type, **params)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status_code, code), answer.text
    assert len(answer.json()["error"]["message"]) > 20
    assert answer.headers["X-Request-ID"] == answer.json()["error"]["request_id"]
    assert service.analyze(wav_bytes(SECOND)).status_code == 200


def test_samples_that_are_no_numbers(service: Service) -> None:
    samples = np.zeros(16_000, "<f4")
    samples[5000] = np.nan
    answer = service.analyze(samples.tobytes(), "audio/pcm", encoding="f32le", sample_rate=16_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unusable_audio")


@pytest.mark.parametrize(("header", "status_code"), [({}, 401), ({"Authorization": "Bearer wrong"}, 403)])
def test_credentials(service: Service, header: dict[str, str], status_code: int) -> None:
    answer = httpx.post(f"{service.url}/v1/analyze", content=wav_bytes(SECOND), headers=header)
    assert answer.status_code == status_code
    assert KEY not in answer.text


def test_unknown_route_and_model(service: Service) -> None:
    assert service.client.get("/v1/nothing").status_code == 404
    assert service.client.get("/v1/models/nothing").json()["error"]["code"] == "not_found"


def test_more_bytes_than_may_be_uploaded(service: Service) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(600):
            yield bytes(1024**2)

    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        try:
            answer = client.post("/v1/analyze", content=endless(), headers={"Content-Type": "audio/wav"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        except httpx.WriteError:
            # The answer was sent and the connection closed while this client was still writing.
            pass
    assert service.analyze(wav_bytes(SECOND)).status_code == 200


@pytest.mark.slow
def test_an_hour_of_silence_is_fine_and_ten_hours_are_not(service: Service) -> None:
    hour = encoded("flac", "flac", 3600)
    assert len(hour) < 1e6
    answer = service.analyze(hour, "audio/flac", tasks="speech,levels")
    assert answer.status_code == 200, answer.text
    assert answer.json()["duration_s"] == pytest.approx(3600, abs=0.1)
    before = service.cluster.resident_mb()
    answer = service.analyze(encoded("flac", "flac", 36_000, 8000), "audio/flac", tasks="speech")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert service.cluster.resident_mb() - before < 200


def test_a_client_that_leaves_half_way(service: Service, speech_file: Path) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    audio = speech_file.read_bytes()
    request = (
        f"POST /v1/analyze HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\nContent-Type: audio/wav\r\n"
        f"Content-Length: {len(audio)}\r\n\r\n"
    ).encode()
    for n_bytes in (0, len(audio) // 2, len(audio)):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(request + audio[:n_bytes])
    start = time.monotonic()
    assert service.analyze(wav_bytes(SECOND)).status_code == 200
    assert time.monotonic() - start < 60
