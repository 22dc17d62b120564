"""What is said in a stream: when finals are asked for and told, and what partials promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from soundstage.audio.voice_activity import FRAME_S
from soundstage.live.events import StreamOptions, TranscribeJob
from soundstage.params import LiveParams, SpanParams, VoiceActivityParams
from soundstage.pipeline import Task
from soundstage.speech.streaming import Draft
from soundstage.types import Segment, Word
from tests.unit.live_streams import NO_CONTEXT, Speech, finals, partials, written


def words(text: str, start_s: float = 0.0, word_s: float = 0.3) -> list[Word]:
    return [
        Word(text=one, start_s=start_s + i * word_s, end_s=start_s + (i + 1) * word_s, confidence=1)
        for i, one in enumerate(text.split())
    ]


def texts(found: list[Word]) -> str:
    return " ".join(word.text for word in found)


def test_words_are_committed_once_two_hypotheses_agree_on_them_but_for_the_last() -> None:
    draft = Draft(n_tentative=1)
    draft.hear(words("It was the best"))
    assert (texts(draft.committed), texts(draft.tentative)) == ("", "It was the best")
    draft.hear(words("it was, the bets of"))
    assert (texts(draft.committed), texts(draft.tentative)) == ("it was, the", "bets of")
    draft.hear(words("it was the best of"))
    assert (texts(draft.committed), texts(draft.tentative)) == ("it was, the", "best of")


def test_a_committed_word_is_never_taken_back_whatever_later_hypotheses_say() -> None:
    draft = Draft(n_tentative=1)
    rng = np.random.default_rng(0)
    before: list[Word] = []
    for n in range(2, 60):
        draft.hear(words(" ".join(str(rng.integers(3)) for _ in range(n))))
        assert draft.committed[: len(before)] == before
        before = list(draft.committed)
    assert before


def test_a_hypothesis_that_begins_within_what_is_committed_adds_only_what_is_new() -> None:
    draft = Draft(n_tentative=1)
    for _ in range(2):
        draft.hear(words("one two three four"))
    assert texts(draft.committed) == "one two three"
    # the same word a little later than it was: known by its text, not by its time
    draft.hear(words("three four five", start_s=0.8))
    draft.hear(words("three four five", start_s=0.8))
    assert (texts(draft.committed), texts(draft.tentative)) == ("one two three four", "five")


def test_a_final_is_asked_for_once_its_tail_was_heard_and_told_at_its_endpoint() -> None:
    speech = Speech(LiveParams(tail_s=0.224, voice_activity=VoiceActivityParams(min_silence_s=0.48)))
    speech.say(0.48, prob=0).say(1.6)
    assert not speech.final_jobs
    speech.say(0.224, prob=0)
    (job,) = speech.final_jobs
    assert (job.waveform.start_s, job.waveform.end_s) == pytest.approx((0.48 - 0.224, 2.08 + 0.224))
    speech.answer(job, written(job.waveform))
    assert not finals(speech.events)
    speech.say(0.256, prob=0)
    (final,) = finals(speech.events)
    assert final.segment == written(job.waveform)
    assert final.utterance == 0


def test_a_voice_that_goes_on_before_the_endpoint_makes_the_answer_a_hypothesis() -> None:
    speech = Speech(LiveParams(tail_s=0.224, voice_activity=VoiceActivityParams(min_silence_s=0.48)))
    speech.say(1.6).say(0.288, prob=0)
    (early,) = speech.final_jobs
    speech.jobs.clear()
    speech.say(0.96)
    speech.answer(early, written(early.waveform))
    assert not finals(speech.events)
    speech.jobs = [job for job in speech.jobs if job.is_final]
    speech.say(0.64, prob=0)
    speech.jobs = speech.final_jobs
    assert speech.jobs[0].waveform.duration_s > early.waveform.duration_s
    speech.answer_all()
    (final,) = finals(speech.events)
    assert final.segment.end_s == pytest.approx(1.6 + 0.288 + 0.96 + 0.224, abs=FRAME_S)


def test_finals_are_told_in_order_however_they_are_answered() -> None:
    speech = Speech()
    for _ in range(3):
        speech.say(0.96).say(0.8, prob=0)
    for job in reversed(speech.final_jobs):
        assert not finals(speech.events)
        speech.answer(job, written(job.waveform))
    assert [final.utterance for final in finals(speech.events)] == [0, 1, 2]


def test_what_is_asked_does_not_depend_on_partials() -> None:
    quiet = Speech(options=StreamOptions(tasks=frozenset({Task.SPEECH}), captions=False, partials=False))
    loud = Speech()
    for speech in (quiet, loud):
        speech.say(2.56).say(0.8, prob=0).say(17.0).say(0.8, prob=0)
    assert len(loud.jobs) > len(quiet.jobs)
    assert all(job.is_final for job in quiet.jobs)
    assert [job.waveform.start_s for job in quiet.jobs] == [job.waveform.start_s for job in loud.final_jobs]
    assert [job.waveform.end_s for job in quiet.jobs] == [job.waveform.end_s for job in loud.final_jobs]


def test_a_long_utterance_is_cut_without_losing_or_doubling_audio() -> None:
    speech = Speech()
    speech.say(40).say(1, prob=0)
    jobs = speech.final_jobs
    assert len(jobs) >= 3
    assert all(job.waveform.duration_s <= 15 + FRAME_S for job in jobs)
    for before, after in itertools.pairwise(jobs):
        assert before.waveform.end_s == pytest.approx(after.waveform.start_s)
    speech.jobs = jobs
    speech.answer_all()
    said = [word.text for final in finals(speech.events) for word in final.segment.words]
    assert len(said) == len(set(said))
    # a word whose middle lies on a cut may be neither's
    assert len(said) >= int(40 / 0.3) - len(jobs)


def test_what_was_said_before_is_heard_again_as_context_and_not_told_again() -> None:
    params = LiveParams(context=SpanParams(max_pause_s=1.0, max_duration_s=15.0))
    speech = Speech(params)
    speech.say(1.92).say(0.8, prob=0).say(1.92).say(2, prob=0).say(1.92).say(0.8, prob=0)
    first, second, third = speech.final_jobs
    assert second.waveform.start_s == first.waveform.start_s
    assert third.waveform.duration_s < 3
    speech.jobs = [first, second, third]
    speech.answer_all()
    told = finals(speech.events)
    said = [word.text for final in told for word in final.segment.words]
    assert len(said) == len(set(said))
    assert set(said) == {f"w{i}" for job in (second, third) for i in _numbers(written(job.waveform))}
    assert all(before.segment.end_s <= after.segment.start_s for before, after in itertools.pairwise(told))


def _numbers(segment: Segment | None) -> list[int]:
    assert segment is not None
    return [int(word.text[1:]) for word in segment.words]


def test_an_utterance_in_which_nothing_is_believed_clears_what_was_shown_of_it() -> None:
    speech = Speech()
    speech.say(1.6)
    speech.answer_all()
    assert partials(speech.events)
    speech.say(0.8, prob=0)
    (job,) = speech.final_jobs
    speech.answer(job, None)
    cleared = partials(speech.events)[-1]
    assert (cleared.utterance, cleared.committed, cleared.tentative) == (0, "", "")
    assert not finals(speech.events)


def test_silence_and_what_is_too_short_or_unsure_to_be_a_voice_ask_nothing() -> None:
    speech = Speech()
    speech.say(3, prob=0).say(0.16).say(1, prob=0).say(2, prob=0.9).say(2, prob=0)
    assert not speech.jobs
    assert not speech.events
    assert not speech.stream.is_speaking


def test_flush_ends_the_utterance_where_it_is() -> None:
    speech = Speech(LiveParams(context=NO_CONTEXT))
    speech.say(1.28)
    speech.events += speech.stream.flush()
    speech.jobs = [job for job in speech.stream.jobs() if job.is_final]
    speech.say(1.28).say(1, prob=0)
    speech.jobs = speech.final_jobs
    assert [job.waveform.end_s for job in speech.jobs] == pytest.approx([1.28, 2.56 + LiveParams().tail_s])
    assert speech.jobs[1].waveform.start_s == pytest.approx(1.28)
    speech.answer_all()
    assert [final.utterance for final in finals(speech.events)] == [0, 1]


def test_one_hypothesis_of_an_utterance_is_asked_at_a_time_and_the_next_after_it_was_dropped() -> None:
    speech = Speech()
    speech.say(4)
    (first,) = speech.jobs
    assert not first.is_final
    speech.stream.drop(first)
    speech.say(0.032)
    assert len(speech.jobs) == 2
    assert speech.jobs[1].waveform.end_s == pytest.approx(4 + 0.032, abs=FRAME_S)


def test_a_hypothesis_hears_a_bounded_stretch_however_long_somebody_speaks() -> None:
    speech = Speech()
    shown = ""
    for _ in range(400):
        speech.say(FRAME_S)
        for job in list(speech.jobs):
            if not job.is_final:
                assert job.waveform.duration_s <= LiveParams().max_hypothesis_s + FRAME_S
                speech.answer(job, written(job.waveform))
                speech.jobs.remove(job)
        for partial in partials(speech.events):
            if partial.utterance == 0:
                assert partial.committed.startswith(shown)
                shown = partial.committed
        speech.events.clear()
    assert shown.split() == [f"w{i}" for i in range(len(shown.split()))]
    assert len(shown.split()) >= 35


def test_each_job_brings_what_is_known_of_its_text() -> None:
    """Of hypotheses the one before, of finals that and what was said before; nothing of what is not heard again."""
    speech = Speech().say(1.0, 0)
    first = next_job(speech)
    assert first.draft == ""
    speech.answer(first, written(first.waveform))
    second = next_job(speech)
    told = written(first.waveform)
    assert told is not None
    assert second.draft == told.text
    speech.answer(second, written(second.waveform))
    speech.say(0.6, 0)
    (final,) = speech.final_jobs
    text = written(second.waveform)
    assert text is not None
    assert final.draft == text.text
    speech.answer_all()
    # The next utterance is heard in the context of this one.
    speech.say(1.2)
    (hypothesis,) = speech.jobs
    assert hypothesis.draft == ""
    speech.answer_all()
    speech.say(0.6, 0)
    last = speech.final_jobs[-1]
    whole = written(last.waveform)
    assert whole is not None
    assert last.waveform.start_s == final.waveform.start_s
    assert whole.text.startswith(last.draft)
    assert len(last.draft.split()) > len(text.text.split())


def next_job(speech: Speech) -> TranscribeJob:
    """The next one of a voice that goes on."""
    while not speech.jobs:
        speech.say(FRAME_S)
    return speech.jobs.pop()


def test_where_the_model_is_busy_hypotheses_are_asked_for_less_often() -> None:
    """After twice the time that the one before took."""
    params = LiveParams()
    speech = Speech(params).say(1.0, 0)
    for _ in range(3):
        job = next_job(speech)
        speech.answer(job, written(job.waveform))
    for took_s, interval_s in ((0.1, params.hypothesis_interval_s), (0.6, params.patience * 0.6)):
        job = next_job(speech)
        speech.say(took_s)
        speech.answer(job, written(job.waveform))
        following = next_job(speech)
        assert following.waveform.end_s - job.waveform.end_s == pytest.approx(interval_s, abs=3 * FRAME_S)
        speech.answer(following, written(following.waveform))


def test_a_long_utterance_brings_the_words_that_its_hypotheses_do_not_hear_any_more() -> None:
    speech = Speech().say(1.0, 0)
    for _ in range(70):
        speech.say(0.1)
        speech.answer_all()
    speech.say(0.3, 0)
    (final,) = speech.final_jobs
    whole = written(final.waveform)
    assert whole is not None
    assert len(final.draft.split()) > 18
    assert whole.text.startswith(final.draft)
