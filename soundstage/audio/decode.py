"""Files of any accepted container, or raw PCM, to blocks of samples, in bounded memory.

PyAV (FFmpeg) reads the containers. What arrives is not trusted: the container is told by its first bytes and its
demuxer forced, codecs come from a list of audio codecs, nothing but the given bytes can be opened, and limits hold
while decoding, since an hour of silence is 181 KB of FLAC.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

import av
import numpy as np
from av.audio import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from numpy.typing import NDArray

from soundstage.errors import InvalidRequest, TooLarge, UnsupportedMedia, UnusableAudio
from soundstage.params import Limits
from soundstage.types import AudioBlock, EncodedAudio, PcmEncoding

PCM_ENCODINGS: dict[str, PcmEncoding] = {
    "audio/pcm": "s16le",
    "audio/x-raw": "s16le",
    "audio/l16": "s16be",
}
"""Media types of raw PCM and the encoding each means by itself. Source: RFC 2586 for the byte order of L16."""

ACCEPTED = "WAV, RF64, W64, AIFF, CAF, FLAC, MP3, AAC, Ogg, MP4, MOV, M4A, MKV, WebM and MXF"

_PCM_DTYPES = {"s16le": "<i2", "s16be": ">i2", "f32le": "<f4"}
_OTHER_MEDIA_TYPES = frozenset(
    {"application/octet-stream", "binary/octet-stream", "application/ogg", "application/mxf"}
)

_MAGIC: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), demuxer)
    for pattern, demuxer in (
        (rb"(RIFF|RF64|BW64)....WAVE", "wav"),
        (rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00", "w64"),
        (rb"FORM....AIF[FC]", "aiff"),
        (rb"caff\x00", "caf"),
        (rb"fLaC", "flac"),
        (rb"OggS\x00", "ogg"),
        (rb"\x1a\x45\xdf\xa3", "matroska"),
        (rb"....(ftyp|moov|mdat|wide|free|skip|pnot)", "mov"),
        # A partition pack, SMPTE ST 377-1; a run-in of up to 64 KiB may precede it.
        (rb".{0,65536}?\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", "mxf"),
    )
)
_MPEG_AUDIO = "mp3,aac"  # without a magic number; FFmpeg looks for a run of frame headers
_ADTS_SYNC = re.compile(rb"\xff[\xf0\xf1\xf8\xf9]")
_FAMILIES = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}
"""FFmpeg's full names of demuxers that have several."""
_HEAD_BYTES = 80 * 1024

_TIMED = frozenset({"mov", "matroska", "mxf"})  # their timestamps say when audio sounds against the picture
_SELF_SYNCHRONISING = frozenset({"mp3", "aac"})  # stray bytes between and around frames are usual
_MAX_STRAY_RATIO = 0.01
_CODECS = frozenset(
    (
        "aac",
        "aac_latm",
        "ac3",
        "alac",
        "eac3",
        "flac",
        "mp1",
        "mp1float",
        "mp2",
        "mp2float",
        "mp3",
        "mp3float",
        "opus",
        "libopus",
        "vorbis",
        "wavpack",
        "adpcm_ima_qt",
        "adpcm_ima_wav",
        "adpcm_ms",
        "pcm_alaw",
        "pcm_mulaw",
        "pcm_s8",
        "pcm_u8",
        "pcm_s16be",
        "pcm_s16le",
        "pcm_s24be",
        "pcm_s24le",
        "pcm_s32be",
        "pcm_s32le",
        "pcm_f32be",
        "pcm_f32le",
        "pcm_f64be",
        "pcm_f64le",
        "pcm_bluray",
        "pcm_dvd",
        "s302m",
    )
)
_GROWING = frozenset({"ogg", "matroska"})
_GROWING_CODECS = frozenset({"opus", "libopus"})
_INTEGER_SCALE = {"s16": 2.0**-15, "s32": 2.0**-31}

_BLOCK_S = 0.5
_MAX_GAP_S = 0.05
_MAX_MISSING_S = 0.1  # two frames of AAC at 22.05 kHz
_MAX_MAGNITUDE = 1e6  # +120 dBFS: no audio, but integers or noise read as floating point
_STREAMING_WAV_BYTES = 0x7FFF0000  # recorders that cannot seek promise about 2 or 4 GiB, or nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What the file says about itself.

    Attributes:
        container: FFmpeg's name of the demuxer, or "pcm".
        codec: FFmpeg's name of the decoder, or the encoding of raw PCM.
        sample_rate: Hz.
        n_channels: Of the audio stream that is read.
        duration_s: None where only decoding can tell.
        start_timecode: Of the first frame, such as "10:00:00:00", from MOV, MXF or Matroska.
        time_reference_s: Seconds since midnight at the first sample, from the bext chunk of a Broadcast Wave file
            (EBU Tech 3285).
        frame_rate: Pictures a second.
    """

    container: str
    codec: str
    sample_rate: int
    n_channels: int
    duration_s: float | None = None
    start_timecode: str | None = None
    time_reference_s: float | None = None
    frame_rate: Fraction | None = None


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """An opened source: what it says about itself, and its audio, which can be read once."""

    info: SourceInfo
    blocks: Iterator[AudioBlock]


@contextmanager
def open_audio(source: EncodedAudio | Path | BinaryIO, limits: Limits) -> Iterator[DecodedAudio]:
    """Open audio for reading.

    The first audio stream is read. Time 0 is where the file starts: audio that begins later than the picture, or
    pauses, is preceded by silence. Raw PCM has the media type audio/pcm, audio/x-raw or audio/L16; for all else the
    media type is a hint, and the content decides.

    Args:
        source: Bytes with their media type, a file, or a seekable binary stream.
        limits: Held while the blocks are read.

    Yields:
        The source; its blocks are float32 (n_samples, n_channels) and last at most a second. Reading them raises
        TooLarge and UnusableAudio as below.

    Raises:
        InvalidRequest: Raw PCM without a rate, of half a sample, or with a rate or encoding that is not accepted.
        TooLarge: Too many bytes, channels or seconds.
        UnsupportedMedia: No audio by its media type, or an unknown container or codec by its content.
        UnusableAudio: Empty, damaged, cut short, without an audio stream, with samples that are not finite, or a file
            whose sample rate lies outside the limits.
    """
    if isinstance(source, Path):
        with source.open("rb") as file, _open_container(file, limits) as audio:
            yield audio
        return
    if not isinstance(source, EncodedAudio):
        with _open_container(source, limits) as audio:
            yield audio
        return
    data = memoryview(source.data).cast("B")  # type: ignore[arg-type]  # arrays are buffers; typed so from 3.12 on
    if not len(data):
        raise UnusableAudio("the body is empty; send the audio file as the body")
    if len(data) > limits.max_upload_bytes:
        raise TooLarge(f"{len(data)} bytes are more than the {limits.max_upload_bytes} accepted; send a shorter file")
    media_type = source.media_type.partition(";")[0].strip().lower()
    if media_type in PCM_ENCODINGS:
        yield _open_pcm(source, data, PCM_ENCODINGS[media_type], limits)
    elif media_type.startswith(("audio/", "video/")) or media_type in _OTHER_MEDIA_TYPES:
        with _open_container(_MemoryFile(data), limits) as audio:
            yield audio
    else:
        raise UnsupportedMedia(f"{media_type!r} is no audio; send audio/*, video/* or application/octet-stream")


def decode(source: EncodedAudio | Path | BinaryIO, limits: Limits) -> Iterator[AudioBlock]:
    """The audio of a source, block by block; see open_audio for what it accepts and raises."""
    with open_audio(source, limits) as audio:
        yield from audio.blocks


def decode_pcm(
    data: bytes | bytearray | memoryview | NDArray[np.uint8], encoding: PcmEncoding, n_channels: int
) -> NDArray[np.float32]:
    """Interleaved raw PCM to float32 (n_samples, n_channels).

    Raises:
        InvalidRequest: The bytes are no whole number of samples.
    """
    dtype = np.dtype(_PCM_DTYPES[encoding])
    _check_whole(len(data), pcm_frame_bytes(encoding, n_channels))
    samples = np.frombuffer(data, dtype).reshape(-1, n_channels).astype(np.float32)
    if dtype.kind == "i":
        samples *= np.float32(_INTEGER_SCALE["s16"])
    return samples


def _check_whole(n_bytes: int, frame_bytes: int) -> None:
    if n_bytes % frame_bytes:
        raise InvalidRequest(
            f"{n_bytes} bytes are no whole number of samples of {frame_bytes} bytes over all channels; send whole"
            " samples, and check n_channels and the encoding"
        )


class _MemoryFile(io.RawIOBase):
    """A file over bytes that lie in memory; copies no more than is asked for."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        end = len(self._data) if size < 0 else self._position + size
        data = bytes(self._data[self._position : end])
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        if base + offset < 0:
            raise OSError("seek to before the first byte")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position


_File = BinaryIO | _MemoryFile


class GrowingFile(Protocol):
    """A file that is still being written; it cannot be sought in."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes, as soon as there is one; none at the end."""
        ...


def check_format(info: SourceInfo, limits: Limits, rate_error: type[InvalidRequest | UnusableAudio]) -> None:
    """Refuse what lies outside the limits.

    Raises:
        TooLarge: Too many channels or seconds.
        InvalidRequest, UnusableAudio: The rate, with `rate_error`.
    """
    if info.n_channels > limits.max_channels:
        raise TooLarge(f"{info.n_channels} channels are more than the {limits.max_channels} accepted; send fewer")
    if not limits.min_sample_rate <= info.sample_rate <= limits.max_sample_rate:
        raise rate_error(
            f"a sample rate of {info.sample_rate} Hz lies outside {limits.min_sample_rate} to"
            f" {limits.max_sample_rate} Hz; resample the audio"
        )
    if info.duration_s is not None and info.duration_s > limits.max_duration_s:
        _refuse_length(limits)


def _refuse_length(limits: Limits) -> NoReturn:
    raise TooLarge(f"the audio is longer than the {limits.max_duration_s:g} s accepted; split it")


def _within(blocks: Iterator[AudioBlock], limits: Limits) -> Iterator[AudioBlock]:
    """Blocks as they come, as long as they are audio and within the limits."""
    n_samples = 0
    for block in blocks:
        n_samples += len(block.samples)
        if n_samples > limits.max_duration_s * block.sample_rate:
            _refuse_length(limits)
        check_samples(block)
        yield block
    if not n_samples:
        raise UnusableAudio("the file holds no audio samples; was the recording stopped before it began?")


def check_samples(block: AudioBlock) -> None:
    """Refuse what is no audio.

    Raises:
        UnusableAudio: Samples that are not finite or far beyond full scale.
    """
    # NaN fails each comparison.
    if not (block.samples.max() <= _MAX_MAGNITUDE and block.samples.min() >= -_MAX_MAGNITUDE):
        raise UnusableAudio("the audio holds samples that are not finite or far beyond full scale; export it anew")


# Raw PCM


def pcm_frame_bytes(encoding: PcmEncoding, n_channels: int) -> int:
    """Size of one sample of all channels."""
    return np.dtype(_PCM_DTYPES[encoding]).itemsize * n_channels


def _open_pcm(source: EncodedAudio, data: memoryview, usual: PcmEncoding, limits: Limits) -> DecodedAudio:
    if source.sample_rate is None:
        raise InvalidRequest("raw PCM needs its rate; add sample_rate in hertz")
    n_channels = 1 if source.n_channels is None else source.n_channels
    if n_channels < 1:
        raise InvalidRequest(f"n_channels must be at least 1, got {n_channels}")
    encoding = source.encoding or usual
    if encoding not in _PCM_DTYPES:
        raise InvalidRequest(f"{encoding!r} is no accepted encoding; use one of {', '.join(_PCM_DTYPES)}")
    frame_bytes = pcm_frame_bytes(encoding, n_channels)
    info = SourceInfo(
        container="pcm",
        codec=encoding,
        sample_rate=source.sample_rate,
        n_channels=n_channels,
        duration_s=len(data) / frame_bytes / max(1, source.sample_rate),
    )
    check_format(info, limits, InvalidRequest)
    _check_whole(len(data), frame_bytes)
    block_bytes = math.ceil(_BLOCK_S * info.sample_rate) * frame_bytes
    blocks = (
        AudioBlock(
            samples=decode_pcm(data[start : start + block_bytes], encoding, n_channels), sample_rate=info.sample_rate
        )
        for start in range(0, len(data), block_bytes)
    )
    return DecodedAudio(info, _within(blocks, limits))


# Containers


@dataclass(frozen=True, slots=True)
class _Promise:
    """What the first bytes say about the rest.

    Attributes:
        demuxer: FFmpeg's name, or several of which FFmpeg chooses.
        is_exact: The duration in the header was counted, not estimated from the bit rate.
        is_open_ended: A WAV file whose length was not known when its header was written, or a live stream.
    """

    demuxer: str
    is_exact: bool
    is_open_ended: bool = False


def _sniff(file: _File) -> _Promise:
    """Tell the container by its first bytes and check the promises that FFmpeg does not.

    Raises:
        UnsupportedMedia: None of the accepted containers.
        UnusableAudio: The file is empty or cut short.
    """
    n_bytes = file.seek(0, io.SEEK_END)
    head, tag_bytes = b"", 0
    while True:  # ID3 tags precede MP3, and sometimes AAC and FLAC; a cover picture makes them large
        file.seek(tag_bytes)
        head = file.read(_HEAD_BYTES)
        if len(head) < 10 or not head.startswith(b"ID3"):
            break
        tag_bytes += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    file.seek(0)
    if not n_bytes:
        raise UnusableAudio("the file is empty; send the audio itself")
    if tag_bytes and not head:
        raise UnusableAudio("the file is cut short: it ends within its ID3 tag; send it again")
    demuxer = next((name for pattern, name in _MAGIC if pattern.match(head)), None)
    if demuxer is None:
        # The run of frame headers may lie beyond what FFmpeg looks at where a large tag comes first.
        demuxer = ("aac" if _ADTS_SYNC.match(head) else "mp3") if tag_bytes else _MPEG_AUDIO
        return _Promise(demuxer, is_exact=b"Xing" in head[:4096] or b"Info" in head[:4096])
    if demuxer == "wav":
        return _Promise(demuxer, is_exact=False, is_open_ended=_is_open_ended_wav(head, n_bytes))
    if demuxer == "ogg":
        _check_last_ogg_page(file, n_bytes)
    return _Promise(demuxer, is_exact=demuxer != "ogg")


def _is_open_ended_wav(head: bytes, n_bytes: int) -> bool:
    """Whether the header leaves the length open; FFmpeg shortens what a header promises without a word."""
    if not head.startswith(b"RIFF"):
        return False
    start = 12
    while start + 8 <= len(head):
        name, size = head[start : start + 4], int.from_bytes(head[start + 4 : start + 8], "little")
        start += 8
        if name == b"data":
            if size == 0 or size >= _STREAMING_WAV_BYTES:
                return True
            if start + size > n_bytes:
                missing_bytes = start + size - n_bytes
                raise UnusableAudio(
                    f"the WAV file is cut short: {missing_bytes} of {size} bytes are missing; send it again"
                )
            return False
        start += size + size % 2
    return False


def _check_last_ogg_page(file: _File, n_bytes: int) -> None:
    """A page of Ogg names its length; what follows the last one is of no account. Source: RFC 3533 section 6."""
    file.seek(max(0, n_bytes - 2 * 65_307))  # the longest page is 65,307 bytes
    tail = file.read()
    file.seek(0)
    page = tail[max(0, tail.rfind(b"OggS\x00")) :]
    n_lacing = page[26] if len(page) > 26 else 255
    if len(page) < 27 + n_lacing or len(page) < 27 + n_lacing + sum(page[27 : 27 + n_lacing]):
        raise UnusableAudio("the Ogg file is cut short: its last page is not whole; send it again")


def _refuse_reference(*_: object) -> NoReturn:
    raise PermissionError("files that refer to other files are not followed")


@contextmanager
def _open_container(file: _File, limits: Limits) -> Iterator[DecodedAudio]:
    promise = _sniff(file)
    with _opened(file, promise, {}) as container:
        stream, info = _describe(container, promise, limits)
        blocks = _joined(_timeline(container, stream, info, promise), info.sample_rate)
        yield DecodedAudio(info, _within(blocks, limits))


@contextmanager
def open_growing(file: GrowingFile, head: bytes, limits: Limits) -> Iterator[DecodedAudio]:
    """Open Opus in Ogg or WebM that is still being written.

    No more is read than what the next block needs, and each block is handed out as soon as it is decoded. Timestamps
    that leave something out stand for silence.

    Args:
        file: Its `read` waits for the next bytes, and gives none at the end.
        head: Its first bytes, at least four, which `read` gives again.
        limits: Held while the blocks are read.

    Yields:
        The source, as from open_audio; its blocks last as long as a packet.

    Raises:
        TooLarge: Too many channels or seconds.
        UnsupportedMedia: Another container or codec.
        UnusableAudio: Damaged, without an audio stream, or with a changing format.
    """
    demuxer = next((name for pattern, name in _MAGIC if name in _GROWING and pattern.match(head + b"\0")), None)
    if demuxer is None:
        raise UnsupportedMedia("the stream is neither Ogg nor WebM; send Opus in one of them, or PCM by its encoding")
    promise = _Promise(demuxer, is_exact=False, is_open_ended=True)
    # What FFmpeg has to know is in the headers: it need not wait for seconds of audio to guess it.
    with _opened(file, promise, {"probesize": "32", "analyzeduration": "0"}) as container:
        stream, info = _describe(container, promise, limits)
        if info.codec not in _GROWING_CODECS:
            raise UnsupportedMedia(f"the stream's codec is {info.codec!r}; send Opus, or PCM by its encoding")
        blocks = (
            AudioBlock(samples=samples, sample_rate=info.sample_rate)
            for samples in _timeline(container, stream, info, promise)
            if len(samples)
        )
        yield DecodedAudio(info, _within(blocks, limits))


@contextmanager
def _opened(file: _File | GrowingFile, promise: _Promise, more_options: dict[str, str]) -> Iterator[InputContainer]:
    demuxer = promise.demuxer
    options = {
        "format_whitelist": _FAMILIES.get(demuxer, demuxer),
        "protocol_whitelist": "none",
        "codec_whitelist": ",".join(sorted(_CODECS)),
        **more_options,
    }
    try:
        container = av.open(
            file,
            "r",
            format=None if demuxer == _MPEG_AUDIO else demuxer,
            options=options,
            metadata_errors="replace",
            io_open=_refuse_reference,
        )
    except (av.FFmpegError, ValueError, PermissionError) as e:
        if demuxer == _MPEG_AUDIO:
            raise UnsupportedMedia(f"this is no audio that can be read; send {ACCEPTED}") from e
        raise UnusableAudio(f"the {demuxer} file is damaged or cut short: its header cannot be read") from e
    with container:
        yield container


def _describe(container: InputContainer, promise: _Promise, limits: Limits) -> tuple[AudioStream, SourceInfo]:
    name = container.format.name.split(",")[0]
    if not container.streams.audio:
        raise UnusableAudio("the file has no audio stream; send one with audio")
    stream = container.streams.audio[0]
    context = stream.codec_context
    if context is None or context.name not in _CODECS:
        codec = "unknown" if context is None else context.name
        raise UnsupportedMedia(f"the audio codec {codec!r} is not accepted; send PCM, FLAC, AAC, MP3, Opus or Vorbis")
    if not context.channels or not context.sample_rate:
        raise UnusableAudio(f"the {name} file is damaged: it holds no readable audio")
    context.thread_count = 1
    if context.name == "flac":
        context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
    duration_s = None
    if stream.duration and stream.time_base:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration:
        duration_s = container.duration / av.time_base
    metadata = {key.lower(): value for s in (container, *container.streams) for key, value in s.metadata.items()}
    pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    time_reference = metadata.get("time_reference", "")
    info = SourceInfo(
        container=name,
        codec=context.name,
        sample_rate=context.sample_rate,
        n_channels=context.channels,
        duration_s=duration_s if promise.is_exact or name == "wav" else None,
        start_timecode=metadata.get("timecode"),
        time_reference_s=int(time_reference) / context.sample_rate if time_reference.isdecimal() else None,
        frame_rate=pictures[0].average_rate if pictures else None,
    )
    check_format(info, limits, UnusableAudio)
    return stream, info


def _frames(
    container: InputContainer, stream: AudioStream, info: SourceInfo, promise: _Promise
) -> Iterator[AudioFrame]:
    """Decoded frames in order.

    Raises:
        UnusableAudio: Damaged or cut short.
    """
    damaged = UnusableAudio(f"the {info.container} file is damaged: its {info.codec} audio cannot be decoded")
    cut_short = UnusableAudio(f"the {info.container} file is cut short; send it again")
    n_packets = n_stray = 0
    end_s = 0.0  # of any stream: Matroska knows the length of the whole alone
    try:
        for packet in container.demux():
            if packet.pts is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            if packet.is_corrupt and not promise.is_open_ended:
                raise cut_short
            n_packets += 1
            try:
                frames = stream.decode(packet)
            except av.InvalidDataError as e:
                n_stray += 1
                if info.container not in _SELF_SYNCHRONISING:
                    raise damaged from e
                continue
            yield from frames
    except av.FFmpegError as e:
        raise damaged from e
    if n_stray > max(2, _MAX_STRAY_RATIO * n_packets):
        raise damaged
    if info.container == "matroska" and info.duration_s is not None and end_s < info.duration_s - _MAX_MISSING_S:
        raise cut_short


def _timeline(
    container: InputContainer, stream: AudioStream, info: SourceInfo, promise: _Promise
) -> Iterator[NDArray[np.float32]]:
    """Samples of each frame, float32 (n_samples, n_channels), with silence where none sound, on the file's timeline.

    Raises:
        UnusableAudio: Damaged, cut short, or of changing format.
    """
    rate, n_channels = info.sample_rate, info.n_channels
    start_s: float | None = None
    if info.container in _TIMED and container.start_time is not None:
        start_s = container.start_time / av.time_base
    n_samples = n_decoded = 0  # with and without the silence put in
    held = np.empty((0, n_channels), np.float32)
    for frame in _frames(container, stream, info, promise):
        if (frame.sample_rate, frame.layout.nb_channels) != (rate, n_channels):
            raise UnusableAudio("the sample rate or the channels change within the file; export it with one format")
        yield held
        if frame.time is not None:
            start_s = frame.time if start_s is None else start_s
            n_missing = round((frame.time - start_s) * rate) - n_samples
            if n_missing > _MAX_GAP_S * rate:
                if info.container not in _TIMED | _SELF_SYNCHRONISING and not promise.is_open_ended:
                    raise UnusableAudio(
                        f"the {info.container} file is damaged: {n_missing / rate:.2f} s of audio are missing within it"
                    )
                n_samples += n_missing
                yield from _silence(n_missing, info)
        held = _to_float(frame)
        n_samples += len(held)
        n_decoded += len(held)
    if info.duration_s is not None and promise.is_exact and info.container != "matroska":
        n_excess = n_decoded - round(info.duration_s * rate)
        if -n_excess > _MAX_MISSING_S * rate:
            raise UnusableAudio(
                f"the {info.container} file is cut short: {n_decoded / rate:.2f} of {info.duration_s:.2f} s are there;"
                " send it again"
            )
        if info.container == "mov" and 0 < n_excess < len(held):  # the last frame of AAC is filled up with silence
            held = held[:-n_excess]
    yield held


def _silence(n_samples: int, info: SourceInfo) -> Iterator[NDArray[np.float32]]:
    piece = round(_BLOCK_S * info.sample_rate)
    for first in range(0, n_samples, piece):
        yield np.zeros((min(piece, n_samples - first), info.n_channels), np.float32)


def _joined(parts: Iterator[NDArray[np.float32]], sample_rate: int) -> Iterator[AudioBlock]:
    """Frames are short; blocks are long enough that the work per block is of no account."""
    pending: list[NDArray[np.float32]] = []
    n_pending = 0
    for part in parts:
        pending.append(part)
        n_pending += len(part)
        if n_pending >= _BLOCK_S * sample_rate:
            yield AudioBlock(samples=np.concatenate(pending), sample_rate=sample_rate)
            pending, n_pending = [], 0
    if n_pending:
        yield AudioBlock(samples=np.concatenate(pending), sample_rate=sample_rate)


def _to_float(frame: AudioFrame) -> NDArray[np.float32]:
    """Samples of one frame, float32 (n_samples, n_channels)."""
    array: NDArray[Any] = frame.to_ndarray()
    array = array.T if frame.format.is_planar else array.reshape(frame.samples, -1)
    name = frame.format.name.removesuffix("p")
    if name == "u8":
        return (array.astype(np.float32) - 128.0) * np.float32(1 / 128)
    samples = array.astype(np.float32, order="C")
    if name in _INTEGER_SCALE:
        samples *= np.float32(_INTEGER_SCALE[name])
    return samples
