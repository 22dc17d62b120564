"""What may be sent, what comes out of it, and what is refused with which error."""

from __future__ import annotations

import io
import struct
import threading
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from soundstage.audio.decode import SourceInfo, decode, decode_pcm, open_audio
from soundstage.errors import InvalidRequest, ServiceError, TooLarge, UnsupportedMedia, UnusableAudio
from soundstage.params import Limits
from soundstage.types import EncodedAudio, PcmEncoding
from tests.unit.audio_files import CONTAINERS, LOSSLESS, WITH_VIDEO, encode, tone

LIMITS = Limits()
DURATION_S = 1.2  # whole frames of picture, as MXF writes
INDEX_FIRST = {"mp4", "m4a", "mov"}


def read(
    data: bytes | memoryview | NDArray[np.uint8], media_type: str = "application/octet-stream", limits: Limits = LIMITS
) -> tuple[SourceInfo, NDArray[np.float32]]:
    with open_audio(EncodedAudio(data=data, media_type=media_type), limits) as audio:
        return audio.info, np.concatenate([block.samples for block in audio.blocks])


def encoded(name: str, duration_s: float = DURATION_S, *, video: bool = False) -> bytes:
    muxer_options = {"movflags": "faststart"} if name in INDEX_FIRST else None
    rate = CONTAINERS[name][2]
    return encode(name, tone(duration_s, rate, n_channels=2), options=muxer_options, video=video)


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_back_its_audio(name: str) -> None:
    rate = CONTAINERS[name][2]
    info, samples = read(encoded(name))
    assert info.sample_rate == rate
    assert info.n_channels == samples.shape[1] == 2
    expected = tone(DURATION_S, rate, n_channels=2)
    # ADTS says nothing about the encoder's delay.
    tolerance_s = 0.06 if name == "adts" else 0.0
    assert abs(len(samples) - len(expected)) <= tolerance_s * rate
    if name != "adts":
        tolerance = 1e-4 if name in LOSSLESS else 0.01 if name == "wav_8_bit" else 0.06
        inner = slice(rate // 10, -rate // 10)
        assert np.abs(samples[inner] - expected[inner]).max() < tolerance


@pytest.mark.parametrize("name", WITH_VIDEO)
def test_video_files_give_their_sound_and_frame_rate(name: str) -> None:
    info, samples = read(encoded(name, video=True), "video/mp4")
    assert info.frame_rate == 25
    assert len(samples) / info.sample_rate == pytest.approx(DURATION_S, abs=0.01)


@pytest.mark.parametrize("name", ["mp4", "mov", "mkv", "webm"])
def test_audio_that_starts_late_is_preceded_by_silence(name: str) -> None:
    rate = CONTAINERS[name][2]
    info, samples = read(encode(name, tone(1.0, rate), video=True, audio_start_s=1.5))
    first_loud = np.flatnonzero(np.abs(samples[:, 0]) > 0.05)[0]
    assert first_loud / rate == pytest.approx(1.5, abs=0.01)
    assert len(samples) / rate == pytest.approx(2.5, abs=0.02)
    assert info.frame_rate == 25


@pytest.mark.parametrize("name", ["mov", "mxf", "mkv"])
def test_start_timecode_comes_from_the_file(name: str) -> None:
    data = encode(name, tone(0.5, 48_000), video=True, metadata={"timecode": "10:00:00:00"})
    assert read(data)[0].start_timecode == "10:00:00:00"


def test_broadcast_wave_tells_when_it_was_recorded() -> None:
    data = encode(
        "wav", tone(0.5, 48_000), metadata={"time_reference": str(3600 * 48_000)}, options={"write_bext": "1"}
    )
    assert read(data)[0].time_reference_s == 3600.0


@pytest.mark.parametrize("name", sorted(set(CONTAINERS) - {"adts"}))
def test_half_a_file_is_an_error(name: str) -> None:
    data = encoded(name)
    with pytest.raises(UnusableAudio, match=r"cut short|damaged"):
        read(data[: len(data) // 2])


# In the others the last bytes are less than a frame or lie behind the audio.
@pytest.mark.parametrize("name", sorted(set(CONTAINERS) - {"adts", "aiff", "mkv", "webm", "mxf", "mp3"}))
def test_a_file_that_lacks_its_last_bytes_is_an_error(name: str) -> None:
    with pytest.raises(UnusableAudio, match=r"cut short|damaged"):
        read(encoded(name)[:-3])


def test_a_file_without_its_index_is_an_error() -> None:
    data = encode("mp4", tone(1.0, 48_000), video=True)
    with pytest.raises(UnusableAudio, match="cut short"):
        read(data[: data.index(b"moov") - 4])


@pytest.mark.parametrize("name", ["flac", "ogg_vorbis", "ogg_opus", "m4a", "mkv"])
def test_damage_in_the_middle_is_an_error(name: str) -> None:
    data = bytearray(encoded(name, 3.0))
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    with pytest.raises(UnusableAudio):
        read(bytes(data))


@pytest.mark.parametrize("name", sorted(set(CONTAINERS)))
def test_bytes_after_the_audio_are_of_no_account(name: str) -> None:
    _, samples = read(encoded(name) + b"\x55trailing" * 100)
    assert len(samples) / CONTAINERS[name][2] == pytest.approx(DURATION_S, abs=0.06)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF - 36, 0xFFFFFFFF])
def test_wav_from_recorders_that_never_knew_its_length_is_read_to_its_end(size: int) -> None:
    data = encoded("wav")
    start = data.index(b"data")
    riff_size = struct.pack("<I", (size + 36) & 0xFFFFFFFF)
    data = data[:4] + riff_size + data[8 : start + 4] + struct.pack("<I", size) + data[start + 8 :]
    assert len(read(data)[1]) == round(DURATION_S * 48_000)


def test_mp3_with_a_cover_picture_and_tags_is_audio() -> None:
    picture = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8_000  # larger than FFmpeg looks
    frame = b"APIC" + struct.pack(">I", len(picture) + 14) + b"\0\0" + b"\0image/jpeg\0\3\0" + picture
    size = len(frame)
    tag = b"ID3\x03\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + frame
    _, samples = read(tag + encoded("mp3") + b"TAG" + bytes(125))
    assert len(samples) == round(DURATION_S * 44_100)


@pytest.mark.parametrize("as_type", [bytes, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_the_bytes_may_lie_in_any_buffer(as_type: type[bytes]) -> None:
    data = encoded("flac")
    assert len(read(as_type(data))[1]) == round(DURATION_S * 48_000)


def test_files_and_streams_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "clip.txt"
    path.write_bytes(encoded("flac"))
    from_path = np.concatenate([block.samples for block in decode(path, LIMITS)])
    from_stream = np.concatenate([block.samples for block in decode(io.BytesIO(path.read_bytes()), LIMITS)])
    assert np.array_equal(from_path, from_stream)


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "mp4"])
def test_blocks_are_short_and_decoding_starts_no_thread(name: str) -> None:
    data = encoded(name, 5.0)
    tasks = Path("/proc/self/task")
    n_before = len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()
    with open_audio(EncodedAudio(data=data, media_type="audio/any"), LIMITS) as audio:
        for block in audio.blocks:
            assert len(block.samples) <= block.sample_rate
        assert (len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()) <= n_before


@pytest.mark.parametrize("media_type", ["text/plain", "image/png", "application/json", ""])
def test_what_says_that_it_is_no_audio_is_not_opened(media_type: str) -> None:
    with pytest.raises(UnsupportedMedia):
        read(encoded("wav"), media_type)


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"1\n00:00:00,000 --> 00:00:01,000\nHello\n",
        "text in another encoding".encode("utf-16"),
        b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(100),
        bytes(5000),
        bytes(np.random.default_rng(1).integers(0, 256, 5000, np.uint8)),
    ],
    ids=["playlist", "concat", "image", "subtitles", "utf-16", "avi", "zeros", "noise"],
)
def test_what_is_no_audio_is_refused_whatever_it_says_it_is(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        read(data, "audio/wav")


def test_an_unknown_codec_is_unsupported() -> None:
    data = encoded("wav")
    start = data.index(b"fmt ") + 8
    with pytest.raises(UnsupportedMedia, match="codec"):
        read(data[:start] + b"\x61\x01" + data[start + 2 :])  # Windows Media Audio 2


def test_video_without_sound_is_unusable() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((72, 64), np.uint8), format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UnusableAudio, match="no audio stream"):
        read(file.getvalue())


@pytest.mark.parametrize("name", ["wav", "flac", "aiff"])
def test_no_samples_are_unusable(name: str) -> None:
    with pytest.raises(UnusableAudio):
        read(encode(name, np.empty((0, 2), np.float32)))


def test_an_empty_body_is_unusable(tmp_path: Path) -> None:
    for media_type in ("audio/wav", "audio/pcm"):
        with pytest.raises(UnusableAudio, match="empty"):
            read(b"", media_type)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(UnusableAudio, match="empty"):
        list(decode(tmp_path / "empty.wav", LIMITS))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_no_audio_are_unusable(value: float) -> None:
    samples = tone(1.0, 44_100)
    data = encode("wav_float", samples)
    data = data[:-400] + struct.pack("<f", value) + data[-396:]
    with pytest.raises(UnusableAudio, match="not finite"):
        read(data)


def test_too_many_channels_are_too_large() -> None:
    with pytest.raises(TooLarge, match="channels"):
        read(encode("wav", tone(0.1, 48_000, n_channels=3)), limits=Limits(max_channels=2))


def test_sixty_four_channels_are_read() -> None:
    assert read(encode("wav", tone(0.1, 48_000, n_channels=64)))[1].shape == (4800, 64)


@pytest.mark.parametrize("rate", [4_000, 384_000])
def test_a_rate_outside_the_limits_is_unusable(rate: int) -> None:
    with pytest.raises(UnusableAudio, match="sample rate"):
        read(encode("wav", tone(0.1, rate), sample_rate=rate))


@pytest.mark.parametrize("name", CONTAINERS)
def test_too_long_is_noticed_while_decoding(name: str) -> None:
    with pytest.raises(TooLarge, match="longer"):
        read(encoded(name, 3.0), limits=Limits(max_duration_s=2.0))


def test_a_bomb_of_silence_meets_the_limit_in_flat_memory() -> None:
    data = encode("flac", np.zeros((8_000 * 600, 1), np.float32), sample_rate=8_000)
    # As from a stream: no length in the header, which would be refused at once.
    data = data[:21] + bytes([data[21] & 0xF0]) + bytes(4) + data[26:]
    assert len(data) < 2 * 8_000 * 600 / 50
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            for _ in decode(EncodedAudio(data=data, media_type="audio/flac"), Limits(max_duration_s=500)):
                pass
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_too_many_bytes_are_too_large() -> None:
    with pytest.raises(TooLarge, match="bytes"):
        read(bytes(100), "audio/pcm", Limits(max_upload_bytes=99))


@pytest.mark.parametrize(
    ("media_type", "encoding", "dtype", "scale"),
    [
        ("audio/pcm", None, "<i2", 32768),
        ("audio/x-raw", None, "<i2", 32768),
        ("audio/L16; rate=16000", None, ">i2", 32768),
        ("audio/pcm", "f32le", "<f4", 1),
    ],
)
def test_raw_pcm(media_type: str, encoding: PcmEncoding | None, dtype: str, scale: int) -> None:
    expected = tone(1.7, 16_000, n_channels=2)
    data = (expected * scale).astype(dtype).tobytes()
    source = EncodedAudio(data=data, media_type=media_type, sample_rate=16_000, n_channels=2, encoding=encoding)
    with open_audio(source, LIMITS) as audio:
        assert audio.info.duration_s == 1.7
        samples = np.concatenate([block.samples for block in audio.blocks])
    assert np.abs(samples - expected).max() <= 1 / 32768


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (EncodedAudio(data=bytes(200), media_type="audio/pcm"), InvalidRequest),
        (EncodedAudio(data=bytes(201), media_type="audio/pcm", sample_rate=16_000), InvalidRequest),
        (EncodedAudio(data=bytes(202), media_type="audio/pcm", sample_rate=16_000, n_channels=2), InvalidRequest),
        (EncodedAudio(data=bytes(200), media_type="audio/pcm", sample_rate=0), InvalidRequest),
        (EncodedAudio(data=bytes(200), media_type="audio/pcm", sample_rate=1_000_000), InvalidRequest),
        (EncodedAudio(data=bytes(200), media_type="audio/pcm", sample_rate=16_000, n_channels=0), InvalidRequest),
        (EncodedAudio(data=bytes(260), media_type="audio/pcm", sample_rate=16_000, n_channels=65), TooLarge),
        (
            EncodedAudio(data=b"\0\0\xc0\x7f", media_type="audio/pcm", sample_rate=16_000, encoding="f32le"),
            UnusableAudio,
        ),
    ],
    ids=["no rate", "odd", "half a frame", "rate 0", "rate 1 MHz", "no channel", "65 channels", "nan"],
)
def test_raw_pcm_that_is_refused(source: EncodedAudio, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        list(decode(source, LIMITS))


def test_live_pcm_of_half_a_sample_is_refused() -> None:
    assert decode_pcm(bytes(8), "s16le", 2).shape == (2, 2)
    with pytest.raises(InvalidRequest, match="whole"):
        decode_pcm(bytes(7), "s16le", 1)


@pytest.mark.shared_data
def test_real_recordings_are_read_at_their_length(shared_data: Path) -> None:
    clips = sorted((shared_data / "esc50/audio").glob("*.ogg"))[:40]
    assert clips
    for clip in clips:
        with open_audio(clip, LIMITS) as audio:
            n_samples = sum(len(block.samples) for block in audio.blocks)
        assert n_samples / audio.info.sample_rate == pytest.approx(5.0, abs=0.05), clip.name
    for sentence in sorted((shared_data / "ljspeech/audio").glob("*.flac"))[:10]:
        with open_audio(sentence, LIMITS) as audio:
            n_samples = sum(len(block.samples) for block in audio.blocks)
        assert n_samples / 22_050 == audio.info.duration_s
