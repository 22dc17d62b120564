"""The bytes of a live stream, in pieces of any size, give the audio of the whole, and hostile ones an error."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.errors import InvalidRequest, ServiceError, TooLarge, UnsupportedMedia, UnusableAudio
from soundstage.live.decode import Encoding, StreamDecoder, open_stream
from soundstage.params import Limits
from tests.unit.audio_files import encode, tone

LIMITS = Limits()
PIECES = (1, 17, 509, 44_100, 10_000_000)


def opened(encoding: Encoding, n_channels: int = 1, limits: Limits = LIMITS) -> StreamDecoder:
    return open_stream(encoding, sample_rate=48_000, n_channels=n_channels, limits=limits)


def audio_of(decoder: StreamDecoder, data: bytes, piece_bytes: int) -> NDArray[np.float32]:
    """All of it, float32 (n_samples, n_channels)."""
    blocks = [
        block.samples
        for start in range(0, len(data), piece_bytes)
        for block in decoder.push(data[start : start + piece_bytes])
    ]
    blocks += [block.samples for block in decoder.finish()]
    decoder.close()
    return np.concatenate(blocks)


def opus(container: str, duration_s: float = 1.0, **options: str) -> bytes:
    """A tone as a live encoder writes it."""
    buffer = io.BytesIO()

    class Unseekable:
        def write(self, data: bytes) -> int:
            return buffer.write(data)

    with av.open(Unseekable(), "w", format=container, options=options) as output:
        stream = output.add_stream("libopus", rate=48_000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        pcm = (tone(duration_s, 48_000)[:, 0] * 32767).astype(np.int16)
        for first in range(0, len(pcm), 960):
            frame = av.AudioFrame.from_ndarray(pcm[None, first : first + 960], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48_000, first
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def n_threads() -> int:
    return sum(thread.name == "opus" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert n_threads() == 0


@pytest.mark.parametrize("piece_bytes", PIECES)
@pytest.mark.parametrize(("encoding", "dtype"), [("pcm_s16le", "<i2"), ("pcm_f32le", "<f4")])
def test_a_sample_may_be_split_between_messages(encoding: Encoding, dtype: str, piece_bytes: int) -> None:
    samples = tone(0.1 if piece_bytes == 1 else 2.0, 48_000, n_channels=3)
    samples[:, 1] *= -0.5
    data = (samples * 32768 if dtype == "<i2" else samples).astype(dtype).tobytes()
    decoded = audio_of(opened(encoding, 3), data, piece_bytes)
    np.testing.assert_allclose(decoded, samples, atol=2**-15)


def test_half_a_sample_at_the_end_is_counted() -> None:
    decoder = opened("pcm_s16le", 2)
    assert sum(len(block.samples) for block in decoder.push(bytes(4 * 10 + 3))) == 10
    assert decoder.n_pending_bytes == 3


@pytest.mark.parametrize("piece_bytes", PIECES)
@pytest.mark.parametrize("container", ["ogg", "webm"])
def test_opus_in_pieces_is_opus_at_once(container: str, piece_bytes: int) -> None:
    data = opus(container)
    decoded = audio_of(opened("opus"), data, piece_bytes)
    assert decoded.shape == (48_000, 1)
    np.testing.assert_array_equal(decoded, audio_of(opened("opus"), data, 10_000_000))
    assert 0.4 < np.abs(decoded[4_800:]).max() < 0.6


@pytest.mark.parametrize(("container", "options"), [("ogg", {"page_duration": "20000"}), ("webm", {"live": "1"})])
def test_audio_comes_with_its_packet_and_not_later(container: str, options: dict[str, str]) -> None:
    decoder = opened("opus")
    data = opus(container, 2.0, **options)
    heard_s = [
        (start / len(data) * 2.0, sum(len(block.samples) for block in decoder.push(data[start : start + 256])) / 48_000)
        for start in range(0, len(data), 256)
    ]
    decoder.close()
    delays_s = [sent_s - total_s for (sent_s, _), total_s in zip(heard_s, np.cumsum([s for _, s in heard_s]))]  # noqa: B905
    assert max(delays_s) < 0.15


@pytest.mark.parametrize("container", ["ogg", "webm"])
def test_a_stream_that_ends_within_a_packet_keeps_what_came_before(container: str) -> None:
    data = opus(container, 1.0, **({"page_duration": "20000"} if container == "ogg" else {"live": "1"}))
    decoded = audio_of(opened("opus"), data[: len(data) * 3 // 4], 509)
    assert 30_000 < len(decoded) < 40_000


def test_memory_is_held_by_who_takes_the_audio() -> None:
    # Two minutes come in one piece; one block of them is taken.
    decoder = opened("opus")
    blocks = decoder.push(opus("ogg", 20.0))
    assert len(next(blocks).samples) <= 0.6 * 48_000
    assert n_threads() == 1
    decoder.close()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", UnsupportedMedia),
        (b"\x00" * 64, UnsupportedMedia),
        (b"OggS\x00" + b"\xff" * 4_000, UnusableAudio),
        (b"\x1a\x45\xdf\xa3" + b"\x00" * 4_000, UnusableAudio),
        (b"Ogg", UnsupportedMedia),
        (encode("ogg_vorbis", tone(0.5, 48_000, n_channels=2)), UnsupportedMedia),
        (encode("mkv", tone(0.5, 48_000)), UnsupportedMedia),
        (encode("flac", tone(0.5, 48_000)), UnsupportedMedia),
    ],
)
@pytest.mark.parametrize("piece_bytes", [7, 100_000])
def test_what_is_not_opus_is_refused_by_name(data: bytes, error: type[ServiceError], piece_bytes: int) -> None:
    decoder = opened("opus")
    with pytest.raises(error):
        audio_of(decoder, data, piece_bytes)
    decoder.close()


def test_opus_that_breaks_in_the_middle_is_damaged_or_goes_on() -> None:
    data = opus("ogg", 2.0, page_duration="20000")
    broken = data[:8_000] + bytes(len(data[8_000:9_000])) + data[9_000:]
    decoder = opened("opus")
    # Ogg finds its next page again; what was lost is silence, so that all else keeps its time.
    assert abs(len(audio_of(decoder, broken, 509)) - 96_000) < 1_000


def test_limits_hold_for_streams() -> None:
    with pytest.raises(InvalidRequest, match="sample_rate"):
        open_stream("pcm_s16le", sample_rate=None, n_channels=1, limits=LIMITS)
    with pytest.raises(InvalidRequest, match="lies outside"):
        open_stream("pcm_s16le", sample_rate=4_000, n_channels=1, limits=LIMITS)
    with pytest.raises(TooLarge):
        opened("pcm_s16le", 65)
    with pytest.raises(UnusableAudio, match="not finite"):
        list(opened("pcm_f32le").push(np.full(10, np.nan, "<f4").tobytes()))
    decoder = opened("opus", limits=Limits(max_duration_s=0.5))
    with pytest.raises(TooLarge):
        audio_of(decoder, opus("ogg"), 509)
    decoder.close()
