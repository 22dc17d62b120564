"""The `openai` package's realtime client against the real service."""

from __future__ import annotations

import base64
import wave
from io import BytesIO
from typing import Any

import openai

from tests.contract.conftest import KEY, Service

COMPLETED = "conversation.item.input_audio_transcription.completed"


async def test_a_transcription_session_writes_down_what_is_said(service: Service, speech: bytes) -> None:
    with wave.open(BytesIO(speech)) as clip:
        rate, pcm = clip.getframerate(), clip.readframes(clip.getnframes())
    client = openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=KEY)
    asked: Any = {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": rate},
                "transcription": {"model": "whisper-1"},
                "turn_detection": None,
            }
        },
    }
    deltas: list[str] = []
    event: Any = None
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        await connection.session.update(session=asked)
        for start in range(0, len(pcm), 2 * rate):
            await connection.input_audio_buffer.append(audio=base64.b64encode(pcm[start : start + 2 * rate]).decode())
        await connection.input_audio_buffer.commit()
        async for event in connection:
            assert event.type != "error", event
            if event.type == "conversation.item.input_audio_transcription.delta":
                deltas.append(event.delta or "")
            if event.type == COMPLETED:
                assert "fail better" in event.transcript.lower()
                assert event.transcript.startswith("".join(deltas))
                break
    assert event is not None
    assert event.type == COMPLETED
    assert deltas
