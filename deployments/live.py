"""The live streams of one ingress replica: each goes on by itself, whether a connection listens to it or not.

What is in memory is bounded everywhere: audio that has come is taken only as fast as the models answer, so that a
burst waits at its sender; messages that nobody reads are replaced by newer ones where they can be, and at a limit the
reader is sent away; and what was sent is kept for a resumption up to another limit.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Protocol, TypeVar

from deployments.answers import LiveAnswer
from deployments.api.engine import Engine
from deployments.api.schemas import levels_body
from deployments.api.stream_messages import (
    DoneMessage,
    FinalMessage,
    LevelsMessage,
    PartialMessage,
    ReadyMessage,
    ServerMessage,
    StartMessage,
    WarningCode,
    WarningMessage,
    message_of,
)
from deployments.settings import AppArgs, IngressConfig, LiveSettings
from soundstage.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServiceError,
    TooLarge,
)
from soundstage.live.decode import StreamDecoder, open_stream
from soundstage.live.events import Final, Job, LiveEvent, Partial, Sound, StreamOptions
from soundstage.live.session import LiveSession
from soundstage.speech.hints import parse_hints
from soundstage.types import AudioBlock

MAX_INBOX_BYTES = 1024**2
"""Audio of a stream that was taken and not looked at yet; a message more may come on top."""
PIECE_BYTES = 64 * 1024
"""Small messages are looked at together where several wait."""
PIECE_S = 0.5
"""Audio after which answers are looked at, too."""
RETRY_S = 0.25
"""Between attempts at a stage that is busy."""
HYPOTHESIS_S = 5.0
"""Until a hypothesis is given up, wherever it is."""
GATHER_S, MAX_GATHER_S = 0.01, 0.08
"""So long, for each stream that is open and at most, small messages are gathered before they are looked at: each look
has a cost of its own, whatever it holds.
"""
METER_S = 5.0
"""Between looks at how far a stream is behind."""

_log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


class LiveMeter(Protocol):
    """What is counted of live streams; delays count from when the audio came."""

    def streams(self, n_streams: int) -> None:
        """So many are open now."""
        ...

    def stream_lag(self, seconds: float) -> None:
        """How far a stream is behind, every few seconds."""
        ...

    def first_partial(self, seconds: float) -> None:
        """The first text of a phrase, partial or final, came so long after its beginning."""
        ...

    def final_delay(self, seconds: float) -> None:
        """A final came so long after the end of its speech."""
        ...

    def sound_delay(self, seconds: float) -> None:
        """A sound was told so long after its start."""
        ...

    def audio(self, seconds: float) -> None:
        """So much more audio was looked at."""
        ...

    def heard(self, event: LiveEvent) -> None:
        """What the stream was told."""
        ...


class Outbox:
    """Messages of one stream on their way to its client: numbered when they are sent, and kept to be sent again.

    Args:
        settings: Limits.
    """

    def __init__(self, settings: LiveSettings) -> None:
        self._settings = settings
        self._unsent: deque[tuple[ServerMessage, str]] = deque()
        self._unsent_bytes = 0
        self._again: deque[str] = deque()
        self._log: deque[tuple[int, str]] = deque()
        self._log_bytes = 0
        self.last_seq = 0

    @property
    def is_half_full(self) -> bool:
        """The reader is slow."""
        return self._unsent_bytes > self._settings.max_unread_bytes // 2

    @property
    def is_full(self) -> bool:
        """The reader is too slow."""
        return self._unsent_bytes > self._settings.max_unread_bytes

    def push(self, message: ServerMessage) -> None:
        """Add a message; of partials, only the last one waits, and of levels none where the reader is slow."""
        if isinstance(message, PartialMessage | FinalMessage):
            self._remove_partials(message.utterance)
        if isinstance(message, LevelsMessage) and self.is_half_full:
            return
        text = message.model_dump_json(exclude={"seq"})
        self._unsent.append((message, text))
        self._unsent_bytes += len(text)

    def _remove_partials(self, utterance: int) -> None:
        kept = [
            (message, text)
            for message, text in self._unsent
            if not (isinstance(message, PartialMessage) and message.utterance == utterance)
        ]
        if len(kept) < len(self._unsent):
            self._unsent = deque(kept)
            self._unsent_bytes = sum(len(text) for _, text in kept)

    def next(self) -> str | None:
        """The next message to send, or None."""
        if self._again:
            return self._again.popleft()
        if not self._unsent:
            return None
        _, text = self._unsent.popleft()
        self._unsent_bytes -= len(text)
        self.last_seq += 1
        text = f'{{"seq":{self.last_seq},{text[1:]}'
        self._log.append((self.last_seq, text))
        self._log_bytes += len(text)
        while self._log_bytes > self._settings.max_log_bytes:
            self._log_bytes -= len(self._log.popleft()[1])
        return text

    def go_back(self, last_seq: int) -> None:
        """Send again what follows a message.

        Raises:
            InvalidRequest: No such message was sent.
            NotFound: What follows is not kept any more.
        """
        if last_seq > self.last_seq:
            raise InvalidRequest(f"last_seq {last_seq} was never sent; the last one is {self.last_seq}")
        first_kept = self._log[0][0] if self._log else self.last_seq + 1
        if last_seq + 1 < first_kept:
            raise NotFound(f"events before {first_kept} are not kept any more; start another stream")
        self._again = deque(text for seq, text in self._log if seq > last_seq)


class _Mark(Enum):
    FLUSH = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class _Piece:
    data: bytes
    came_s: float


class Listener(Protocol):
    """A connection that listens to a stream."""

    def send_away(self, error: ServiceError) -> None:
        """It is to close; the stream goes on."""
        ...


class LiveStream:
    """One stream.

    Args:
        session: What has been heard.
        decoder: Of its bytes.
        engine: Runs the models.
        args: Limits and deadlines.
        threads: Where decoding and voice activity run.
        meter: None counts nothing.
        on_end: Called with how it ended, "ok" or a code of the error table, and how long it lasted.
        gather_s: How long a small message waits for others, now.

    Attributes:
        id: For resuming; nobody can guess it.
        received_bytes: Of audio that was taken.
        error: Why it ended, if not by its end.
        close_code: Of the connection, where there is no error.
    """

    def __init__(
        self,
        *,
        session: LiveSession,
        decoder: StreamDecoder,
        engine: Engine,
        args: AppArgs,
        threads: ThreadPoolExecutor,
        meter: LiveMeter | None,
        on_end: Callable[[LiveStream], None],
        gather_s: Callable[[], float],
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.received_bytes = 0
        self.error: ServiceError | None = None
        self.close_code = 1000
        self.is_ended = False
        self._session = session
        self._decoder = decoder
        self._engine = engine
        self._settings = args.live
        self._final_s = args.deadlines.chunk_s
        self._threads = threads
        self._meter = meter
        self._on_end = on_end
        self._gather_s = gather_s
        self._gathering: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.started_s = self._loop.time()
        self._outbox = Outbox(self._settings)
        self._news = asyncio.Event()
        self._inbox: deque[_Piece | _Mark] = deque()
        self._inbox_bytes = 0
        self._room = asyncio.Event()
        self._wake = asyncio.Event()
        self._blocks: Iterator[AudioBlock] | None = None
        self._came_s = self.started_s
        self._arrivals: deque[tuple[float, float]] = deque()
        self._has_end = self._is_finishing = self._is_finished = False
        self._jobs: dict[int, tuple[Job, asyncio.Task[None]]] = {}
        self._answers: deque[tuple[Job, LiveAnswer]] = deque()
        self._failure: ServiceError | None = None
        self._fatal: ServiceError | None = None
        self._versions: dict[str, str] = {}
        self._warned: set[WarningCode] = set()
        self._has_text = False
        self._metered_s = self.started_s
        self._counted_s = 0.0
        self._listener: Listener | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._task = asyncio.create_task(self._follow())

    # The connection's side

    @property
    def has_end(self) -> bool:
        """No more audio is taken."""
        return self._has_end

    def ready(self, models: dict[str, str]) -> ReadyMessage:
        """How it stands."""
        return ReadyMessage(
            stream_id=self.id,
            received_s=self._session.duration_s,
            received_bytes=self.received_bytes,
            resume_within_s=self._settings.resume_s,
            models=models,
        )

    def attach(self, listener: Listener, last_seq: int | None = None) -> None:
        """Let a connection listen; one that still does is sent away.

        Args:
            listener: The connection.
            last_seq: What it has; None for all that was sent to nobody yet.

        Raises:
            ServiceError: See Outbox.go_back.
        """
        if last_seq is not None:
            self._outbox.go_back(last_seq)
        if self._listener is not None:
            self._listener.send_away(NotFound("the stream was resumed by another connection"))
        if self._expiry is not None:
            self._expiry.cancel()
        self._listener = listener
        self._news.set()

    def detach(self, listener: Listener) -> None:
        """The connection has gone; the stream waits for another one for a while."""
        if self._listener is listener:
            self._listener = None
            self._expiry = self._loop.call_later(self._settings.resume_s, self.abandon)

    async def feed(self, data: bytes) -> None:
        """Take audio, as soon as there is room for it.

        Raises:
            InvalidRequest: The stream has been ended.
        """
        while self._inbox_bytes >= MAX_INBOX_BYTES and not self._has_end:
            self._room.clear()
            await self._room.wait()
        if self._has_end:
            if self.error is not None or self._failure is not None:
                return  # the reason is on its way
            raise InvalidRequest("audio came after the end of the stream; start another one")
        self._inbox.append(_Piece(data, self._loop.time()))
        self._inbox_bytes += len(data)
        self.received_bytes += len(data)
        if self._inbox_bytes >= PIECE_BYTES:
            self._wake.set()
        elif self._gathering is None:
            self._gathering = self._loop.call_later(self._gather_s(), self._look)

    def _look(self) -> None:
        self._gathering = None
        self._wake.set()

    def flush(self) -> None:
        """End what is being said here."""
        if not self._has_end:
            self._inbox.append(_Mark.FLUSH)
            self._wake.set()

    def end(self, error: ServiceError | None = None) -> None:
        """The audio has ended; what is left is told, and then the error, if there is one."""
        self._failure = self._failure or error
        if not self._has_end:
            self._has_end = True
            self._inbox.append(_Mark.END)
            self._wake.set()
            self._room.set()

    def warn(self, code: WarningCode, message: str) -> None:
        """Tell a warning, once until it is over."""
        if code not in self._warned:
            self._warned.add(code)
            self._push(WarningMessage(code=code, message=message))

    def is_over(self, code: WarningCode) -> None:
        """What was warned of is over."""
        self._warned.discard(code)

    def tell(self, message: ServerMessage) -> None:
        """Tell something else."""
        self._push(message)

    async def messages(self, listener: Listener) -> AsyncIterator[str]:
        """What is to be sent, until all was told, or another connection listens, which gets the rest."""
        while self._listener is listener:
            while self._listener is listener and (text := self._outbox.next()) is not None:
                if not self._outbox.is_half_full:
                    self.is_over("slow_reader")
                yield text
            if self.is_ended:
                return
            self._wake.set()  # a reader that was slow has caught up
            self._news.clear()
            await self._news.wait()

    def abandon(self, error: ServiceError | None = None) -> None:
        """Let go of all."""
        self._fatal = error or NotFound("the stream was not resumed in time")
        self._task.cancel()

    # Its own side

    async def _follow(self) -> None:
        try:
            while not (self._is_finished and self._session.is_done):
                work = await self._next_work()
                events, jobs = await self._in_thread(self._step, work)
                self._start(jobs)
                self._tell(events)
            if self._failure is None:
                self._push(self._done())
            self.error = self._failure
        except ServiceError as e:
            if isinstance(e, InternalError):
                _log.exception("stream %s failed", self.id)
            self.error = e
        except asyncio.CancelledError:
            self.error = self._fatal or InternalError("cancelled")
        except Exception:  # noqa: BLE001  # one stream must not end others, and its client is told
            _log.exception("stream %s failed", self.id)
            self.error = InternalError("unexpected")
        finally:
            self.is_ended = self._has_end = True
            for _, task in self._jobs.values():
                task.cancel()
            self._inbox.clear()
            self._room.set()
            self._news.set()
            self._on_end(self)
            # A generator of the decoder may be running in its thread: it is closed behind it.
            await asyncio.shield(self._in_thread(self._decoder.close))

    async def _in_thread(self, work: Callable[..., ResultT], *args: object) -> ResultT:
        return await self._loop.run_in_executor(self._threads, partial(work, *args))

    async def _next_work(self) -> Callable[[], list[LiveEvent]]:
        """What the session does next."""
        while True:
            self._wake.clear()
            if self._fatal is not None:
                raise self._fatal
            if self._failure is not None and not self._is_finishing:
                self._is_finishing = True
                self._blocks = None
                self._inbox.clear()
            if (work := self._work()) is not None:
                return work
            await self._wake.wait()

    def _work(self) -> Callable[[], list[LiveEvent]] | None:
        """What there is to do: answers first, then audio as far as it may be taken."""
        if self._answers:
            return partial(self._take_answer, *self._answers.popleft())
        if self._is_finished and self._session.is_done:
            return list
        if self._is_ahead or self._outbox.is_full:
            if self._is_ahead and self._inbox_bytes >= MAX_INBOX_BYTES:
                self.warn("audio_ahead", "audio comes faster than it is analysed; it waits on your side")
            return None
        if self._blocks is not None:
            return self._take_blocks
        if self._inbox:
            return self._take_next()
        return self._finish if self._is_finishing and not self._is_finished else None

    @property
    def _is_ahead(self) -> bool:
        ends_s = [job.waveform.end_s for job, _ in self._jobs.values() if job.is_final]
        ahead_s = self._session.duration_s - min(ends_s, default=self._session.duration_s)
        return ahead_s > self._settings.max_ahead_s

    def _take_next(self) -> Callable[[], list[LiveEvent]]:
        first = self._inbox.popleft()
        if first is _Mark.FLUSH:
            return self._session.flush
        if first is _Mark.END:
            self._is_finishing = True
            if self._decoder.n_pending_bytes:
                self.warn(
                    "odd_length",
                    f"the last {self._decoder.n_pending_bytes} bytes are no whole sample over all channels and were "
                    "left out; check encoding and n_channels",
                )
            self._blocks = self._decoder.finish()
            return self._take_blocks
        assert isinstance(first, _Piece)
        pieces = [first]
        n_bytes = len(first.data)
        while self._inbox and n_bytes < PIECE_BYTES and isinstance(following := self._inbox[0], _Piece):
            pieces.append(following)
            n_bytes += len(following.data)
            self._inbox.popleft()
        self._inbox_bytes -= n_bytes
        self._room.set()
        self._came_s = pieces[-1].came_s
        self._blocks = self._decoder.push(b"".join(piece.data for piece in pieces) if len(pieces) > 1 else first.data)
        return self._take_blocks

    def _step(self, work: Callable[[], list[LiveEvent]]) -> tuple[list[LiveEvent], list[Job]]:
        """In a thread: one step of the session, and the jobs that follow from it."""
        events = work()
        return events, self._session.jobs()

    def _take_blocks(self) -> list[LiveEvent]:
        assert self._blocks is not None
        events: list[LiveEvent] = []
        until_s = self._session.duration_s + PIECE_S
        try:
            while self._session.duration_s < until_s:
                block = next(self._blocks, None)
                if block is None:
                    self._blocks = None
                    break
                events += self._session.push(block)
        except ServiceError as e:
            # What was said until then is still told.
            self._loop.call_soon_threadsafe(self.end, e)
            self._blocks = None
        if self._session.duration_s > self._settings.max_duration_s:
            limit_h = self._settings.max_duration_s / 3600
            self._loop.call_soon_threadsafe(
                self.end, TooLarge(f"a stream may last {limit_h:g} hours; start another one")
            )
        return events

    def _take_answer(self, job: Job, answer: LiveAnswer) -> list[LiveEvent]:
        if answer.is_dropped:
            self._session.drop(job)
            return []
        return self._session.answer(job, answer.answer, model_events=answer.events)

    def _finish(self) -> list[LiveEvent]:
        self._is_finished = True
        return self._session.finish()

    def _start(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._jobs[job.number] = job, asyncio.create_task(self._run(job))

    async def _run(self, job: Job) -> None:
        dropped = LiveAnswer(None, None)
        try:
            if job.is_final:
                answer = await self._final(job)
            else:
                async with asyncio.timeout(HYPOTHESIS_S):
                    answer = await self._engine.run(job)
        except (ServiceError, TimeoutError) as e:
            if job.is_final:
                self._fatal = e if isinstance(e, ServiceError) else DeadlineExceeded(str(e))
            answer = dropped
        except Exception as e:  # noqa: BLE001  # raised again where the stream is followed
            self._fatal = InternalError(f"{type(e).__name__}: {e}")
            answer = dropped
        del self._jobs[job.number]
        if answer.model is not None:
            self._versions[answer.model[0]] = answer.model[1]
        self._answers.append((job, answer))
        self._wake.set()

    async def _final(self, job: Job) -> LiveAnswer:
        """A busy stage is asked again until the deadline: nothing said is lost."""
        deadline_s = self._loop.time() + self._final_s
        while True:
            try:
                return await self._engine.run(job)
            except Overloaded:
                if self._loop.time() + RETRY_S > deadline_s:
                    raise
            await asyncio.sleep(RETRY_S)

    def _tell(self, events: list[LiveEvent]) -> None:
        now_s = self._loop.time()
        if not self._arrivals or self._session.duration_s > self._arrivals[-1][0]:
            self._arrivals.append((self._session.duration_s, self._came_s))
            while self._arrivals[0][0] < self._session.duration_s - 60.0:
                self._arrivals.popleft()
        for event in events:
            self._push(message_of(event))
            if self._meter is not None:
                self._measure(self._meter, event, now_s)
                self._meter.heard(event)
        if self._meter is not None:
            self._meter.audio(self._session.duration_s - self._counted_s)
            self._counted_s = self._session.duration_s
        lag_s = self._lag_s(now_s)
        if lag_s > self._settings.lag_warning_s:
            self.warn("lagging", f"results come {lag_s:.0f} s after the audio; the service is busy")
        elif lag_s < self._settings.lag_warning_s / 2:
            self.is_over("lagging")
        if self._meter is not None and now_s - self._metered_s > METER_S:
            self._metered_s = now_s
            self._meter.stream_lag(lag_s)

    def _lag_s(self, now_s: float) -> float:
        """How long ago the audio came that waits for an answer."""
        waiting_s = self._session.lag_s
        return now_s - self._came_at(self._session.duration_s - waiting_s) if waiting_s > 0 else 0.0

    def _measure(self, meter: LiveMeter, event: LiveEvent, now_s: float) -> None:
        match event:
            case Partial() if not self._has_text:
                self._has_text = True
                meter.first_partial(now_s - self._came_at(event.start_s))
            case Final():
                if not self._has_text:
                    meter.first_partial(now_s - self._came_at(event.segment.start_s))
                self._has_text = False  # of the next phrase
                words = event.segment.words
                meter.final_delay(now_s - self._came_at(words[-1].end_s if words else event.segment.end_s))
            case Sound(state="started"):
                meter.sound_delay(now_s - self._came_at(event.start_s))
            case _:
                pass

    def _came_at(self, stream_s: float) -> float:
        """When the audio at a time of the stream came."""
        return next((came_s for end_s, came_s in self._arrivals if end_s >= stream_s), self._came_s)

    def _push(self, message: ServerMessage) -> None:
        self._outbox.push(message)
        self._news.set()
        if self._outbox.is_half_full:
            self._warn_of_reader()
        if self._outbox.is_full and self._listener is not None:
            self._listener.send_away(
                Overloaded("events are not read; read them, or ask for fewer, and resume the stream")
            )

    def _warn_of_reader(self) -> None:
        if "slow_reader" not in self._warned:
            self._warned.add("slow_reader")
            message = "events are read too slowly; partials and levels are left out"
            self._outbox.push(WarningMessage(code="slow_reader", message=message))

    def _done(self) -> DoneMessage:
        session = self._session
        return DoneMessage(
            duration_s=session.duration_s,
            n_finals=session.n_finals,
            n_words=session.n_words,
            n_sounds=session.n_sounds,
            levels=levels_body(session.levels),
            models=dict(sorted(self._versions.items())),
        )


class Streams:
    """All streams of a replica.

    Args:
        engine: Runs the models.
        args: Limits and deadlines.
        config: What may change while the service runs.
        meter: None counts nothing.
        ended: Told of each stream how it ended, "ok" or a code of the error table, and after how many seconds.
    """

    def __init__(
        self,
        engine: Engine,
        args: AppArgs,
        config: Callable[[], IngressConfig],
        *,
        meter: LiveMeter | None = None,
        ended: Callable[[str, float], None] | None = None,
    ) -> None:
        self._engine = engine
        self._args = args
        self._config = config
        self._meter = meter
        self._ended = ended
        self._threads = ThreadPoolExecutor(args.live.n_threads, thread_name_prefix="live")
        self._streams: dict[str, LiveStream] = {}
        self._servers: dict[str, tuple[str, int] | None] = {}
        if meter is not None:
            meter.streams(0)

    @property
    def n_open(self) -> int:
        """Streams that have not ended."""
        return sum(not stream.is_ended for stream in self._streams.values())

    def open(self, start: StartMessage, server: tuple[str, int] | None = None) -> LiveStream:
        """A new stream.

        Args:
            start: What it is to be.
            server: Host and port at which this replica was reached.

        Raises:
            ServiceError: There are too many, or it asks for what there is not.
        """
        if self.n_open >= self._args.live.max_streams:
            raise Overloaded(f"this replica follows {self._args.live.max_streams} streams already; try again later")
        config, settings = self._config(), self._args.live
        options = StreamOptions(
            tasks=frozenset(start.tasks),
            language=start.language,
            hints=parse_hints("\n".join(start.hints)),
            profanity=start.profanity,
            partials=start.partials,
            captions=start.captions,
            min_score=config.min_score if start.min_score is None else start.min_score,
        )
        limits = self._args.reading.limits.model_copy(update={"max_duration_s": settings.max_duration_s})
        decoder = open_stream(start.encoding, sample_rate=start.sample_rate, n_channels=start.n_channels, limits=limits)
        session = LiveSession(
            options, settings.params, reading=self._args.reading, events=config.events, sdh=config.sdh
        )
        stream = LiveStream(
            session=session,
            decoder=decoder,
            engine=self._engine,
            args=self._args,
            threads=self._threads,
            meter=self._meter,
            on_end=self._on_end,
            gather_s=lambda: min(MAX_GATHER_S, GATHER_S * self.n_open),
        )
        self._streams[stream.id] = stream
        self._servers[stream.id] = server
        self._count()
        return stream

    def address_of(self, stream_id: str) -> str | None:
        """Host and port at which other replicas reach a stream of this one; None where it has none of this id."""
        server = self._servers.get(stream_id)
        if server is None:
            return None
        host, port = server
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def find(self, stream_id: str) -> LiveStream:
        """A stream that is kept.

        Raises:
            NotFound: There is none.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            raise NotFound("there is no such stream, or not any more; start another one")
        return stream

    def _on_end(self, stream: LiveStream) -> None:
        loop = asyncio.get_running_loop()
        code = stream.error.code if stream.error is not None else "ok"
        seconds = loop.time() - stream.started_s
        _log.info("stream %s: %s after %.1f s", stream.id, code, seconds)
        self._count()
        if self._ended is not None:
            self._ended(code, seconds)
        # Its last messages can be asked for again as long as those of others.
        loop.call_later(self._args.live.resume_s, self._forget, stream.id)

    def _forget(self, stream_id: str) -> None:
        self._streams.pop(stream_id, None)
        self._servers.pop(stream_id, None)

    def _count(self) -> None:
        if self._meter is not None:
            self._meter.streams(self.n_open)
