"""A live stream whose models run in this process: for the command line without a service, tests and measurements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from soundstage.live.events import LiveEvent, TranscribeJob
from soundstage.live.session import LiveSession
from soundstage.types import AudioBlock

if TYPE_CHECKING:
    from soundstage.sound.listener import SoundListener
    from soundstage.speech.transcriber import Transcriber


def run(
    session: LiveSession, blocks: Iterable[AudioBlock], transcriber: Transcriber | None, listener: SoundListener | None
) -> Iterator[LiveEvent]:
    """What a stream tells, block by block; each job is answered before the next block is read.

    Args:
        session: Nothing was pushed to it.
        blocks: Of any length; sounds are looked for and partials made once a block at most.
        transcriber: None only where the session was not asked for speech.
        listener: None only where it was not asked for sounds.
    """
    for block in blocks:
        yield from session.push(block)
        yield from _answered(session, transcriber, listener)
    yield from session.finish()
    while not session.is_done:
        yield from _answered(session, transcriber, listener)


def _answered(
    session: LiveSession, transcriber: Transcriber | None, listener: SoundListener | None
) -> Iterator[LiveEvent]:
    for job in session.jobs():
        if isinstance(job, TranscribeJob):
            assert transcriber is not None, "speech was asked for"
            yield from session.answer(job, transcriber.transcribe([job.waveform], [job.hints], [job.draft])[0])
        else:
            assert listener is not None, "sounds were asked for"
            (scores,) = listener.listen([job.waveform])
            yield from session.answer(job, scores, model_events=listener.params.events)
