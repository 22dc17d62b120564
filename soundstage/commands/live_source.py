"""Where live audio comes from: a file at the speed at which it sounds, standard input, a microphone, or any URL.

All of it becomes 16-bit PCM in pieces. What is live cannot wait and is opened again where it breaks; the time without
it is filled with silence, so that the times of captions stay those of the clock.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import re
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import av
import numpy as np
from av.audio import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from numpy.typing import NDArray

from soundstage.audio.decode import open_audio
from soundstage.errors import ServiceError
from soundstage.params import Limits

STDIN = "-"
MICROPHONE = "mic"

PIECE_S = 0.1
"""Of audio in one piece, about."""
_OPEN_TIMEOUT_S = 10.0
_SILENT_TIMEOUT_S = 10.0
"""A live source that gives nothing for so long is broken."""
_FIRST_WAIT_S, _MAX_WAIT_S = 0.5, 10.0
_N_PIECES_READ = 16
"""Read before they are wanted, at most."""
_SAMPLE_BYTES = 2
_URL = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)


class SourceError(Exception):
    """The source cannot be opened, or broke; the message says what to do."""


class SourceMisused(SourceError):
    """The source was named in a way that cannot work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChoice:
    """What is to be listened to.

    Attributes:
        name: A file, "-", "mic", "mic:NAME", or a URL or device of FFmpeg.
        input_format: FFmpeg's name of a container or device; None lets it find out. For "-", None is raw PCM.
        options: Of FFmpeg's protocol or device.
        sample_rate: Hz, of raw PCM; of a microphone, where not its own.
        n_channels: Of raw PCM and of a microphone.
        encoding: Of raw PCM.
        is_fast: A recording is not held to the speed at which it sounds.
        reconnect: What is live is opened again where it breaks or ends.
    """

    name: str
    input_format: str | None = None
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    sample_rate: int | None = None
    n_channels: int = 1
    encoding: Literal["s16le", "f32le"] = "s16le"
    is_fast: bool = False
    reconnect: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An opened source.

    Attributes:
        sample_rate: Hz.
        n_channels: Interleaved.
        layout: FFmpeg's name of what the channels are, where it is known.
        is_live: It is being recorded and waits for nobody.
        pieces: PCM, s16le, read once; raises SourceError where the source breaks.
    """

    sample_rate: int
    n_channels: int
    layout: str = ""
    is_live: bool
    pieces: Generator[bytes]

    def duration_s(self, piece: bytes) -> float:
        """How long a piece of it lasts."""
        return len(piece) / (_SAMPLE_BYTES * self.n_channels * self.sample_rate)

    def silence(self, duration_s: float) -> Iterator[bytes]:
        """Pieces of nothing, as long as that all together."""
        n_left = max(0, round(duration_s * self.sample_rate))
        n_piece = round(PIECE_S * self.sample_rate)
        for first in range(0, n_left, n_piece):
            yield bytes(min(n_piece, n_left - first) * _SAMPLE_BYTES * self.n_channels)


OnTrouble = Callable[[str], object]
"""Is told what became of a source that is opened again."""


def open_source(choice: SourceChoice, stopped: threading.Event, on_trouble: OnTrouble) -> Source:
    """Open a source, and keep it open where it is live.

    Args:
        choice: What is to be listened to.
        stopped: Ends the pieces.
        on_trouble: Called in the thread that takes the pieces.

    Raises:
        SourceMisused: It was named in a way that cannot work.
        SourceError: It cannot be opened.
    """
    source = _opened(choice, stopped)
    if source.is_live and choice.reconnect:
        pieces = _kept_up(choice, source, stopped, on_trouble)
    elif source.is_live or choice.is_fast or choice.name == STDIN:
        pieces = source.pieces
    else:
        pieces = _at_its_speed(source, stopped)
    return Source(sample_rate=source.sample_rate, n_channels=source.n_channels, is_live=source.is_live, pieces=pieces)


class Pieces:
    """The pieces of a source for an event loop, taken in a thread, which may wait for ever for one that is silent.

    Args:
        pieces: What is read.
        stopped: Is set once nobody takes any more.
    """

    def __init__(self, pieces: Iterator[bytes], stopped: threading.Event) -> None:
        self._pieces = pieces
        self._stopped = stopped
        self._loop = asyncio.get_running_loop()
        self._taken: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self._room = threading.Semaphore(_N_PIECES_READ)

    def stop(self) -> None:
        """End behind what was read, whatever the source does."""
        self._stopped.set()
        self._taken.put_nowait(None)

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        threading.Thread(target=self._read, name="live source", daemon=True).start()
        try:
            while (item := await self._taken.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                self._room.release()
                yield item
        finally:
            self._stopped.set()

    def _read(self) -> None:
        end: BaseException | None = None
        try:
            for piece in self._pieces:
                while not self._room.acquire(timeout=0.1):
                    if self._stopped.is_set():
                        return
                self._hand_over(piece)
        except BaseException as e:  # noqa: BLE001  # told to whoever takes the pieces
            end = e
        self._hand_over(end)

    def _hand_over(self, item: bytes | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody takes any more
            self._loop.call_soon_threadsafe(self._taken.put_nowait, item)


def _opened(choice: SourceChoice, stopped: threading.Event, like: Source | None = None) -> Source:
    """Open a source, with the rate and channels of another one where it takes its place."""
    if choice.name == STDIN and choice.input_format is None:
        return _standard_input(choice)
    if choice.name == MICROPHONE or choice.name.startswith(f"{MICROPHONE}:"):
        return _microphone(choice, stopped)
    if choice.name != STDIN and choice.input_format is None:
        if (path := Path(choice.name)).exists():
            return _file(path)
        if not _URL.match(choice.name):
            raise SourceMisused(
                f"{choice.name}: no such file; for a device name its kind with --format, for a microphone say mic"
            )
    return _stream(choice, stopped, like)


def _at_its_speed(source: Source, stopped: threading.Event) -> Generator[bytes]:
    """Each piece when it would have been said."""
    begun = time.monotonic()
    given_s = 0.0
    for piece in source.pieces:
        given_s += source.duration_s(piece)
        if stopped.wait(max(0.0, begun + given_s - time.monotonic())):
            return
        yield piece


def _kept_up(choice: SourceChoice, first: Source, stopped: threading.Event, on_trouble: OnTrouble) -> Generator[bytes]:
    """The pieces of a live source, which is opened again where it breaks or ends; silence in between."""
    begun = time.monotonic()
    given_s = 0.0
    source: Source | None = first
    wait_s = _FIRST_WAIT_S
    while not stopped.is_set():
        if source is not None:
            reason = "it ended"
            try:
                for piece in source.pieces:
                    given_s += first.duration_s(piece)
                    wait_s = _FIRST_WAIT_S
                    yield piece
            except SourceError as e:
                reason = str(e)
            if stopped.is_set():
                return
            on_trouble(f"{choice.name} is gone ({reason}); opening it again")
        if stopped.wait(wait_s):
            return
        wait_s = min(2 * wait_s, _MAX_WAIT_S)
        try:
            source = _opened(choice, stopped, first)
            on_trouble(f"{choice.name} is back")
        except SourceError:
            source = None
        # By the clock, not by the length of the outage: sources that send ahead when they begin do so again.
        for piece in first.silence(time.monotonic() - begun - given_s):
            given_s += first.duration_s(piece)
            yield piece


# Files and standard input


def _file(path: Path) -> Source:
    stack = ExitStack()
    try:
        audio = stack.enter_context(open_audio(path, Limits()))
    except (ServiceError, OSError) as e:
        raise SourceError(f"{path}: {e}") from e

    def pieces() -> Generator[bytes]:
        n_piece = round(PIECE_S * audio.info.sample_rate)
        try:
            with stack:
                for block in audio.blocks:
                    for first in range(0, len(block.samples), n_piece):
                        yield _pcm(block.samples[first : first + n_piece])
        except ServiceError as e:
            raise SourceError(f"{path}: {e}") from e

    return Source(sample_rate=audio.info.sample_rate, n_channels=audio.info.n_channels, is_live=False, pieces=pieces())


def _pcm(samples: NDArray[np.float32]) -> bytes:
    """float32 in [-1, 1] to s16le."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes()


def _standard_input(choice: SourceChoice) -> Source:
    if choice.sample_rate is None:
        raise SourceMisused(
            "raw PCM on standard input needs --sample-rate; for a container on it, name it with --format"
        )

    def pieces() -> Generator[bytes]:
        frame_bytes = (4 if choice.encoding == "f32le" else 2) * choice.n_channels
        rest = b""
        while read := os.read(sys.stdin.fileno(), 1 << 16):
            data = rest + read
            n_whole = len(data) // frame_bytes * frame_bytes
            rest = data[n_whole:]
            if n_whole:
                yield data[:n_whole] if choice.encoding == "s16le" else _pcm(np.frombuffer(data[:n_whole], "<f4"))

    return Source(sample_rate=choice.sample_rate, n_channels=choice.n_channels, is_live=False, pieces=pieces())


# Microphones


def _microphone(choice: SourceChoice, stopped: threading.Event) -> Source:
    # By PortAudio, which knows the devices of Linux, macOS and Windows by the names that users see. PyAV's wheels carry
    # an ALSA of their own that finds neither the system's devices nor its sound server, and no PulseAudio.
    try:
        import sounddevice  # noqa: PLC0415  # optional, and looks for a library of the system when imported
    except (ImportError, OSError) as e:
        raise SourceError(
            f"no microphone without PortAudio ({e}): install soundstage[microphone], and on Linux libportaudio2"
        ) from e
    name = choice.name.partition(":")[2]
    device = int(name) if name.isdecimal() else name or None
    captured: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    try:
        rate = choice.sample_rate or round(sounddevice.query_devices(device, "input")["default_samplerate"])
        stream = sounddevice.RawInputStream(
            samplerate=rate,
            blocksize=round(PIECE_S * rate),
            device=device,
            channels=choice.n_channels,
            dtype="int16",
            callback=lambda data, *_: captured.put(bytes(data)),
        )
        stream.start()
    except (sounddevice.PortAudioError, ValueError) as e:
        raise SourceError(f"{choice.name}: {e}; there are: {_microphones(sounddevice)}") from e

    def pieces() -> Generator[bytes]:
        with stream:
            while not stopped.is_set():
                try:
                    yield captured.get(timeout=_SILENT_TIMEOUT_S)
                except queue.Empty:
                    raise SourceError("it gives nothing") from None

    return Source(sample_rate=rate, n_channels=choice.n_channels, is_live=True, pieces=pieces())


def _microphones(sounddevice: Any) -> str:
    devices = (device for device in sounddevice.query_devices() if device["max_input_channels"])
    return ", ".join(f"mic:{device['index']} ({device['name']})" for device in devices) or "none"


# Whatever FFmpeg opens


def _stream(choice: SourceChoice, stopped: threading.Event, like: Source | None) -> Source:
    """A URL, a device, or a container on standard input."""
    name = "pipe:0" if choice.name == STDIN else choice.name
    try:
        container = av.open(
            name,
            "r",
            format=choice.input_format,
            options=dict(choice.options),
            metadata_errors="replace",
            timeout=(_OPEN_TIMEOUT_S, None if choice.name == STDIN else _SILENT_TIMEOUT_S),
        )
    except av.error.ProtocolNotFoundError as e:
        protocol = name.partition(":")[0]
        raise SourceMisused(
            f"{choice.name}: this build of FFmpeg does not speak {protocol}; receive it with another program and pipe"
            " it in: `... | soundstage live - --format mpegts`"
        ) from e
    except (av.FFmpegError, ValueError) as e:
        raise SourceError(f"{choice.name} cannot be opened: {_reason(e)}") from e
    if not container.streams.audio:
        container.close()
        raise SourceError(f"{choice.name} has no audio")
    stream = container.streams.audio[0]
    rate = like.sample_rate if like else stream.codec_context.sample_rate
    layout = like.layout if like else stream.codec_context.layout.name
    return Source(
        sample_rate=rate,
        n_channels=like.n_channels if like else stream.codec_context.channels,
        layout=layout,
        is_live=not container.duration and choice.name != STDIN,
        pieces=_decoded(container, rate, layout, stopped),
    )


def _decoded(container: InputContainer, rate: int, layout: str, stopped: threading.Event) -> Generator[bytes]:
    stream = container.streams.audio[0]
    resampler: AudioResampler | None = None
    heard: tuple[object, ...] = ()
    with container:
        try:
            for packet in container.demux(stream):
                if stopped.is_set():
                    return
                for frame in _frames(packet):
                    # Stations change their format between programmes.
                    if (kind := (frame.format.name, frame.layout.name, frame.sample_rate)) != heard:
                        heard, resampler = kind, AudioResampler(format="s16", layout=layout, rate=rate)
                    assert resampler is not None
                    for resampled in resampler.resample(frame):
                        yield resampled.to_ndarray().tobytes()
        except av.FFmpegError as e:
            # HTTP without a length, and RTMP, end so: that a connection was closed is all there is to know.
            if container.duration or e.errno != errno.EIO:
                raise SourceError(_reason(e)) from e


def _frames(packet: av.Packet[Any]) -> list[AudioFrame]:
    """What a packet holds; nothing where it came damaged, since the next one may be whole."""
    try:
        return packet.decode()  # type: ignore[return-value]  # of an audio stream
    except av.InvalidDataError:
        return []


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
