"""The bytes of a live stream to blocks of samples, as they come.

Nothing is kept but what the next sample or packet still lacks. A block is handed out before the bytes after it are
looked at, so that whoever takes blocks at their pace holds the memory: an hour of silence in a kilobyte of Opus stays
a kilobyte until somebody asks for more of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Literal, Protocol

import numpy as np

from soundstage.audio.decode import SourceInfo, check_format, check_samples, decode_pcm, open_growing, pcm_frame_bytes
from soundstage.errors import InvalidRequest
from soundstage.params import Limits
from soundstage.types import AudioBlock, PcmEncoding

Encoding = Literal["pcm_s16le", "pcm_f32le", "opus"]
"""How a stream is written; Opus comes in Ogg or WebM."""

_PCM: dict[str, PcmEncoding] = {"pcm_s16le": "s16le", "pcm_f32le": "f32le"}
_BLOCK_S = 0.5
_MAGIC_BYTES = 4


class StreamDecoder(Protocol):
    """Decodes one stream. Not thread-safe."""

    def push(self, data: bytes) -> Iterator[AudioBlock]:
        """The audio that the next bytes complete; take all of it before the next push.

        Raises:
            ServiceError: As the error table says.
        """
        ...

    def finish(self) -> Iterator[AudioBlock]:
        """The audio that only the end completes; no push follows.

        Raises:
            ServiceError: As the error table says.
        """
        ...

    def close(self) -> None:
        """Let go of everything; at any time, and more than once."""
        ...

    @property
    def n_pending_bytes(self) -> int:
        """Bytes that wait for what completes their sample; of no use once the stream has ended."""
        ...


def open_stream(
    encoding: Encoding, *, sample_rate: int | None, n_channels: int | None, limits: Limits
) -> StreamDecoder:
    """The decoder of a stream.

    Args:
        encoding: Of its bytes.
        sample_rate: Hz; PCM needs it, Opus tells it by itself.
        n_channels: Of PCM; 1 if None.
        limits: Of rates, channels and the length.

    Raises:
        InvalidRequest: PCM without a rate, or with one that is not accepted.
        TooLarge: Too many channels.
    """
    if encoding == "opus":
        return OpusDecoder(limits)
    if sample_rate is None:
        raise InvalidRequest("PCM needs its rate; add sample_rate in hertz")
    return PcmDecoder(_PCM[encoding], sample_rate, 1 if n_channels is None else n_channels, limits)


class PcmDecoder:
    """Interleaved PCM in pieces of any size; a sample may be split between two.

    Args:
        encoding: Of one sample.
        sample_rate: Hz.
        n_channels: Interleaved.
        limits: Of both.

    Raises:
        InvalidRequest: The rate is not accepted.
        TooLarge: Too many channels.
    """

    def __init__(self, encoding: PcmEncoding, sample_rate: int, n_channels: int, limits: Limits) -> None:
        info = SourceInfo(container="pcm", codec=encoding, sample_rate=sample_rate, n_channels=n_channels)
        check_format(info, limits, InvalidRequest)
        self._info = info
        self._encoding = encoding
        self._frame_bytes = pcm_frame_bytes(encoding, n_channels)
        self._rest = b""

    @property
    def n_pending_bytes(self) -> int:
        """Bytes of a sample that is not whole yet."""
        return len(self._rest)

    def push(self, data: bytes) -> Iterator[AudioBlock]:
        """Blocks of at most half a second.

        Raises:
            UnusableAudio: Samples that are not finite.
        """
        data = self._rest + data
        n_whole = len(data) - len(data) % self._frame_bytes
        self._rest = data[n_whole:]
        block_bytes = int(_BLOCK_S * self._info.sample_rate) * self._frame_bytes
        whole = memoryview(data)[:n_whole]
        for start in range(0, n_whole, block_bytes):
            samples = decode_pcm(whole[start : start + block_bytes], self._encoding, self._info.n_channels)
            block = AudioBlock(samples=samples, sample_rate=self._info.sample_rate)
            check_samples(block)
            yield block

    def finish(self) -> Iterator[AudioBlock]:
        """Nothing more."""
        return iter(())

    def close(self) -> None:
        """Nothing to let go of."""


class _Starved:
    """Says that the decoder waits for bytes."""


class OpusDecoder:
    """Opus in Ogg or WebM, in pieces of any size.

    FFmpeg asks for bytes when it needs them, so it runs in a thread of its own; one of the two sides waits for the
    other at any time.

    Args:
        limits: Of channels and the length.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._head = b""
        self._thread: threading.Thread | None = None
        self._given: SimpleQueue[bytes] = SimpleQueue()
        self._unread = b""
        self._decoded: SimpleQueue[AudioBlock | _Starved | Exception | None] = SimpleQueue()
        self._taken: SimpleQueue[None] = SimpleQueue()
        self._has_ended = self._is_closed = False

    @property
    def n_pending_bytes(self) -> int:
        """None: a packet that is not whole is of no use, and no mistake."""
        return 0

    def push(self, data: bytes) -> Iterator[AudioBlock]:
        """Blocks of at most half a second of what the packets hold that are whole now.

        Raises:
            UnsupportedMedia: Another container or codec.
            UnusableAudio: Damaged.
            TooLarge: Too long, or with too many channels.
        """
        if self._thread is None:
            self._head += data
            if len(self._head) < _MAGIC_BYTES:
                return
            self._start()
            yield from self._blocks()
        elif data:
            self._given.put(data)
            yield from self._blocks()

    def finish(self) -> Iterator[AudioBlock]:
        """The rest; nothing where there was not one byte.

        Raises:
            UnsupportedMedia, UnusableAudio: As for push; also where the headers are not whole.
        """
        if self._thread is None:
            if not self._head:
                return
            self._start()
            yield from self._blocks()
        self._given.put(b"")
        yield from self._blocks()

    def close(self) -> None:
        """End the thread."""
        self._is_closed = True
        self._given.put(b"")
        self._taken.put(None)
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        # The bytes come first: a thread that found none would say at once that it waits, before any was decoded.
        self._given.put(self._head)
        self._thread = threading.Thread(target=self._decode, name="opus", daemon=True)
        self._thread.start()

    def _blocks(self) -> Iterator[AudioBlock]:
        """What comes until the other side waits for bytes, packets joined."""
        packets: list[AudioBlock] = []
        duration_s = 0.0
        while not self._has_ended:
            item = self._decoded.get()
            if isinstance(item, AudioBlock):
                packets.append(item)
                duration_s += len(item.samples) / item.sample_rate
                if duration_s >= _BLOCK_S:
                    yield _joined(packets)
                    packets, duration_s = [], 0.0
                self._taken.put(None)
                continue
            if packets:
                yield _joined(packets)
                packets = []
            if isinstance(item, _Starved):
                return
            self._has_ended = True
            if item is not None:
                raise item

    # In the thread

    def read(self, size: int) -> bytes:
        """The next bytes, for FFmpeg."""
        while not self._unread:
            if self._is_closed:
                return b""
            if self._given.empty():
                self._decoded.put(_Starved())
            self._unread = self._given.get()
            if not self._unread:
                self._given.put(b"")  # the end stays the end
                return b""
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    def _decode(self) -> None:
        try:
            with open_growing(self, self._head, self._limits) as audio:
                for block in audio.blocks:
                    self._decoded.put(block)
                    self._taken.get()
                    if self._is_closed:
                        return
        except Exception as e:  # noqa: BLE001  # raised on the other side
            self._decoded.put(e)
        else:
            self._decoded.put(None)


def _joined(packets: list[AudioBlock]) -> AudioBlock:
    samples = np.concatenate([packet.samples for packet in packets])
    return AudioBlock(samples=samples, sample_rate=packets[0].sample_rate)
