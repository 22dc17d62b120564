"""Tokens, the trained network against the served one, recordings and their faults, conditions, figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import httpx
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from typer.testing import CliRunner

from soundstage.models.registry import ModelFolder
from soundstage.params import MoonshineParams
from soundstage.speech import model, weights
from soundstage.speech.decoding import GreedyDecoder
from soundstage.speech.tokenizer import TOKENIZER_NAME, Tokenizer
from soundstage.types import EncodedAudio
from tests.unit.tiny_clips import RATE, write_table, write_wav
from tests.unit.tiny_speech import PIECES, SENTENCES, TINY, random_weights, voice, write_model, write_recordings
from training.acoustics import faster, noise, speech_level, with_noise
from training.data import BadFolder, read_clip
from training.voice_recognition import evaluate, network
from training.voice_recognition.conditions import Condition, heard_in
from training.voice_recognition.config import AugmentationConfig, DataConfig, LearningConfig
from training.voice_recognition.learning import Writer, build_learner
from training.voice_recognition.recordings import (
    Batch,
    Corpus,
    Recording,
    Shuffler,
    batch_of,
    max_tokens,
    padded,
    read_corpus,
)
from training.voice_recognition.scoring import score

CLIENT = httpx.Client
TOKENIZER = Tokenizer(PIECES)


@pytest.fixture(scope="module")
def published() -> ModelFolder:
    """The speech model that is served."""
    return weights.fetch()


def asset(name: str) -> Path:
    return Path(str(distribution(weights.DISTRIBUTION).locate_file(f"moonshine_voice/assets/{name}")))


@pytest.mark.parametrize(
    "text", ["the wind", "The sea: win, then tea!", "Zoë says 日本 for €5", "a", " blanks \t do\nnot  count "]
)
def test_what_is_encoded_reads_as_it_was(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == " ".join(text.split())


def test_pieces_are_joined_in_the_order_of_their_numbers() -> None:
    pieces = ["▁the", "▁sea", "s", "▁wind", "▁w", "e"]
    assert [TOKENIZER.pieces[i].decode() for i in TOKENIZER.encode("the seas wind we")] == pieces
    assert TOKENIZER.encode("ë")[1:] == [3 + 0xC3, 3 + 0xAB]


def test_the_published_model_writes_the_tokens_that_its_text_is_encoded_as(published: ModelFolder) -> None:
    """And training's network writes the same ones as the network that serves."""
    tokenizer = Tokenizer.read(published.path / TOKENIZER_NAME)
    for text in (
        "It was the best of times, it was the worst of times.",
        "naïve café in München, № 5",
        "$3,000 / 日本語",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    params, clip = published.params(MoonshineParams), read_clip(asset("beckett.wav"))
    arrays = {name: array.astype(np.float32) for name, array in published.weights().items()}
    learner = build_learner(arrays, params, LearningConfig(), n_steps=1, seed=0)
    waveforms = [clip[: 4 * RATE], clip[4 * RATE : 7 * RATE]]
    found = Writer(learner.speech, params, batch_size=2).write(waveforms)
    rows, n_samples = padded(waveforms)
    served = GreedyDecoder(arrays, params).decode(
        [row[:n] for row, n in zip(rows, n_samples, strict=True)], [max_tokens(len(own)) for own in waveforms]
    )
    assert found == [own.token_ids for own in served]
    for token_ids in found:
        assert len(token_ids) > 5
        blank = token_ids[:1] if not tokenizer.decode(token_ids[:1]) else ()  # it may begin with one
        assert (*blank, *tokenizer.encode(tokenizer.decode(token_ids))) == token_ids


def test_the_trained_network_is_the_one_that_serves() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        name: array + rng.normal(0, 0.2, array.shape).astype(np.float32) for name, array in random_weights().items()
    }
    samples, n_samples = padded([voice(1, 0.5), voice(2, 1.5)])
    token_ids = rng.integers(3, TINY.vocabulary_size, (2, 7)).astype(np.int32)
    heard = network.encode(arrays, TINY, samples, n_samples)
    logits = network.decode(arrays, TINY, token_ids, heard)[0]
    prepared = {name: tf.constant(array) for name, array in model.prepare(arrays, TINY).items()}
    encoded = model.encode(prepared, TINY, tf.constant(samples), tf.constant(n_samples))
    cache = model.empty_cache(TINY, 2)
    served = model.decode(prepared, TINY, tf.constant(token_ids), cache, encoded, position=tf.constant(0))[0]
    assert np.std(served) > 0.5, "else anything is equal"
    np.testing.assert_allclose(ops.convert_to_numpy(logits), served.numpy(), atol=2e-3)


def recordings(sentences: tuple[str, ...] = SENTENCES[:2]) -> list[Recording]:
    return [
        Recording(
            name=f"{i}.wav",
            transcript=text,
            split="train",
            samples=np.asarray(voice(10 * i, 1.0) * 32_767, np.int16),
            token_ids=tuple(TOKENIZER.encode(text)),
        )
        for i, text in enumerate(sentences)
    ]


def batch(given: list[Recording]) -> Batch:
    return batch_of([r.waveform() for r in given], [r.token_ids for r in given], start=1, end=2)


@pytest.mark.parametrize("how", [{}, {"label_smoothing": 0.05}, {"lora_rank": 8, "lora_alpha": 32.0}])
@pytest.mark.slow
def test_it_learns_to_write_what_it_is_taught(how: dict[str, float]) -> None:
    """Frozen weights stay meanwhile, and a low rank leaves all but kernels alone."""
    given = recordings()
    learning = LearningConfig.model_validate({"rate": 2e-2, "warm_up": 0.05, "frozen": ["encoder.conv1.*"], **how})
    if learning.lora_rank:
        learning = learning.model_copy(update={"frozen": ("encoder.conv*",)})
    start = random_weights()
    learner = build_learner(start, TINY, learning, n_steps=250, seed=0)
    taught = batch(given)
    losses = [float(learner.train_on_batch(taught.inputs, taught.targets)) for _ in range(250)]
    assert losses[-1] < 0.6 * losses[0]
    now = learner.speech.arrays()
    moved = {name for name in start if not np.array_equal(start[name], now[name])}
    assert "encoder.conv1.kernel" not in moved
    if learning.lora_rank:
        assert moved
        assert all(name.endswith("kernel") and start[name].ndim == 2 for name in moved)
        return
    assert "decoder.embedding" in moved
    written = Writer(learner.speech, TINY, batch_size=4).write([r.waveform() for r in given])
    assert [TOKENIZER.decode(row) for row in written] == [r.transcript for r in given]


def test_targets_are_the_tokens_after_the_given_ones() -> None:
    made = batch(recordings())
    first = [*TOKENIZER.encode(SENTENCES[0])]
    assert made.token_ids[0, : len(first) + 1].tolist() == [1, *first]
    assert made.targets[0, : len(first) + 1].tolist() == [*first, 2]
    assert (made.targets[0, len(first) + 1 :] == -1).all()
    assert made.samples.shape[1] % 64 == 0
    assert made.n_samples.tolist() == [RATE + 2 * 3200] * 2
    assert not made.samples[:, :3200].any()


def test_each_step_has_its_own_batch_and_an_epoch_has_every_recording_once() -> None:
    given = recordings(SENTENCES)
    config = AugmentationConfig(mask=0.5, babble=0.5, noise=1.0, untouched=0.1, telephone=0.5, reverberation=0.5)

    def shuffler() -> Shuffler:
        return Shuffler(given, config, batch_size=5, seed=3, start=1, end=2)

    assert shuffler().n_epoch_steps == 2
    steps = [shuffler().batch(step) for step in range(4)]
    again = shuffler().batch(2)
    np.testing.assert_array_equal(steps[2].samples, again.samples)
    for first in (0, 2):
        heard = [tuple(row[row >= 0]) for step in steps[first : first + 2] for row in step.targets]
        assert sorted(heard) == sorted((*r.token_ids, 2) for r in given)
    assert all(np.isfinite(step.samples).all() and np.abs(step.samples).max() <= 1 for step in steps)
    assert not np.array_equal(steps[0].samples[:, :5000], steps[2].samples[:, :5000])


def test_noise_lies_so_far_below_the_speech_and_speed_changes_the_pitch() -> None:
    rng = np.random.default_rng(0)
    speech = np.concatenate([voice(3, 1.0), np.zeros(RATE // 2, np.float32)])
    added = noise(rng, len(speech), 1.0)
    mixed = with_noise(speech, added, 6.0)
    assert 20 * np.log10(speech_level(speech) / np.sqrt(np.mean(np.square(mixed - speech)))) == pytest.approx(
        6, abs=0.1
    )
    fast = faster(voice(0, 1.0), 1.25)
    assert len(fast) == pytest.approx(RATE / 1.25, abs=2)
    assert np.fft.rfft(fast * np.hanning(len(fast))).__abs__().argmax() / (len(fast) / RATE) == pytest.approx(
        250, abs=2
    )


@pytest.mark.parametrize("condition", Condition)
def test_a_condition_sounds_the_same_each_time_and_as_long(condition: Condition) -> None:
    rng = np.random.default_rng(0)
    clip = np.asarray(rng.normal(0, 0.1, RATE), np.float32)
    heard = heard_in(condition, clip, "a.wav")
    assert heard.shape == clip.shape
    np.testing.assert_array_equal(heard, heard_in(condition, clip, "a.wav"))
    is_chance = condition not in {Condition.CLEAN, Condition.TELEPHONE}
    assert np.array_equal(heard, heard_in(condition, clip, "b.wav")) != is_chance
    power = np.square(np.abs(np.fft.rfft(heard)))
    above = power[4000:].mean() / power[500:3000].mean()
    assert (above < 0.01) == condition.endswith("telephone")


def read(folder: Path, **config: object) -> Corpus:
    return read_corpus(folder, DataConfig.model_validate(config), TOKENIZER)


def test_recordings_are_shared_out_the_same_each_time_and_equal_sentences_together(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path, [*SENTENCES, "The sea!", "the SEA"])
    corpus = read(folder, validation_share=0.2, test_share=0.2)
    assert [len(corpus.of(split)) > 0 for split in ("train", "validation", "test")] == [True] * 3
    assert len({r.split for r in corpus.recordings if r.transcript.lower().startswith("the sea")}) == 1
    again = read(folder, validation_share=0.2, test_share=0.2)
    assert [r.split for r in corpus.recordings] == [r.split for r in again.recordings]
    assert corpus.key() == again.key()
    assert read(folder, validation_share=0.3).key() != corpus.key()


def test_a_table_may_say_the_splits(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path, SENTENCES[:3], ["train", "validation", "test"])
    corpus = read(folder)
    assert [corpus.of(split)[0].name for split in ("train", "validation", "test")] == ["0.wav", "1.wav", "2.wav"]


def rows(folder: Path, *lines: tuple[str, ...], columns: tuple[str, ...] = ("filename", "transcript")) -> None:
    write_table(folder, columns, lines)


def long_clip(folder: Path) -> None:
    write_wav(folder / "0.wav", np.tile(voice(0, 1.0), 31))


def silent_clip(folder: Path) -> None:
    write_wav(folder / "0.wav", np.zeros(RATE, np.float32))


def no_clip(folder: Path) -> None:
    (folder / "0.wav").unlink()


def not_audio(folder: Path) -> None:
    (folder / "0.wav").write_bytes(b"nothing of the kind")


def empty_transcript(folder: Path) -> None:
    rows(folder, ("0.wav", " … "), ("1.wav", "tea"))


def named_twice(folder: Path) -> None:
    rows(folder, ("0.wav", "the sea"), ("0.wav", "tea"))


def other_column(folder: Path) -> None:
    rows(folder, ("0.wav", "tea", "Ann"), columns=("filename", "transcript", "speaker"))


def too_much_text(folder: Path) -> None:
    texts = ("the sea and the wind, the wind and the sea", *SENTENCES[1:])
    rows(folder, *((f"{i}.wav", text) for i, text in enumerate(texts)))


def unknown_split(folder: Path) -> None:
    rows(folder, ("0.wav", "tea", "dev"), columns=("filename", "transcript", "split"))


def leaking_split(folder: Path) -> None:
    lines = (("0.wav", "tea", "train"), ("1.wav", "Tea.", "test"))
    rows(folder, *lines, columns=("filename", "transcript", "split"))


def all_to_learn(folder: Path) -> None:
    rows(folder, ("0.wav", "tea", "train"), columns=("filename", "transcript", "split"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (long_clip, r"0.wav is 31.0 s long; the model hears at most 30 s"),
        (silent_clip, r"0.wav holds silence, and its transcript says 'the sea'"),
        (no_clip, r"1 of the 10 files .* are missing, first .*0.wav"),
        (not_audio, r"0.wav cannot be decoded"),
        (empty_transcript, r"line 2: the transcript of 0.wav is empty"),
        (named_twice, r"line 2: 0.wav is named 2 times"),
        (other_column, r"columns that mean nothing here: speaker"),
        (too_much_text, r"0.wav is 1.5 s long and its transcript has \d+ tokens"),
        (unknown_split, r"line 2: split 'dev' is none of train, validation, test"),
        (leaking_split, r"line 3: 1.wav \(test\) says the same as 0.wav \(train\)"),
        (all_to_learn, r"leaves no recording for validation"),
    ],
)
def test_faults_of_a_folder_are_named(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    write_recordings(tmp_path)
    spoil(tmp_path)
    with pytest.raises(BadFolder, match=message):
        read(tmp_path)


def test_what_is_left_out_or_hard_to_learn_is_told(tmp_path: Path) -> None:
    write_recordings(tmp_path, [*SENTENCES, "tea 5 €"])
    write_wav(tmp_path / "more.wav", voice(0))
    first, second = read(tmp_path).warnings
    assert "1 recordings in" in first
    assert "first more.wav" in first
    assert "1 transcripts hold characters" in second
    assert "5€ (first in 10.wav)" in second


def test_errors_are_counted_by_kind_with_bounds() -> None:
    found = score(
        ["the cat sat on the mat", "good morning", "hmm"], ["the cat sit on mat", "good good morning", "what"]
    )
    assert found.words.counts.tolist() == [[1, 1, 0, 6], [0, 0, 1, 2], [0, 0, 1, 0]]
    assert found.words.rate == pytest.approx(4 / 8)
    assert found.words.worst == [0, 1, 2]
    assert found.characters.counts[0].tolist()[0] == 1
    low, high = found.words.interval
    assert low <= 0.5 <= high
    same = score(["a b c"] * 50, ["a b d"] * 50).words
    assert same.interval == pytest.approx((1 / 3, 1 / 3))
    assert score(["The year 1999."], ["the year nineteen ninety nine"]).words.rate == 0


def evaluated(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Through a service that hears "tea" in whatever is sent."""
    sent: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.read())
        return httpx.Response(200, json={"text": "tea"})

    monkeypatch.setattr(httpx, "Client", partial(CLIENT, transport=httpx.MockTransport(answer)))
    result = CliRunner().invoke(evaluate.app, ["--data", str(folder), "--url", "http://service", *arguments])
    assert all(b"RIFF" in body for body in sent)
    return result.exit_code, result.stdout, result.stderr


def test_evaluation_tells_errors_by_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recordings(tmp_path, ["tea", "the tea", "the sea"])
    code, stdout, stderr = evaluated(monkeypatch, tmp_path, "--conditions", "clean,telephone", "--worst", "1")
    assert code == 0, stderr
    figures = json.loads(stdout.splitlines()[-1])
    assert (figures["wer"], figures["n_words"], figures["n_clips"]) == (pytest.approx(3 / 5), 5, 3)
    assert (figures["substitutions"], figures["deletions"], figures["insertions"]) == (1, 2, 0)
    assert figures["wer_low"] <= figures["wer"] <= figures["wer_high"]
    assert figures["conditions"].keys() == {"clean", "telephone"}
    assert "2.wav: 2 of 2 words" in stderr
    tuned = write_model(tmp_path / "models", {"recordings.txt": b"test\t0.wav\ntrain\t1.wav\nvalidation\t2.wav\n"})
    monkeypatch.setenv("SOUNDSTAGE_MODELS_DIR", str(tmp_path / "models"))
    code, stdout, stderr = evaluated(monkeypatch, tmp_path, "--unseen-by", tuned.card.name, "--json")
    assert (code, stderr) == (0, "")
    assert (json.loads(stdout)["wer"], json.loads(stdout)["n_clips"]) == (0, 1)
    write_model(tmp_path / "models")
    code, _, stderr = evaluated(monkeypatch, tmp_path, "--unseen-by", tuned.card.name)
    assert code == 2
    assert "does not say what it was fine-tuned on" in " ".join(stderr.split())
    code, _, stderr = evaluated(monkeypatch, tmp_path, "--conditions", "loud")
    assert code == 2
    assert "no condition is called loud; there are clean, noise_10_db" in stderr


def test_a_clean_clip_is_sent_as_it_is(tmp_path: Path) -> None:
    from training.data import read_meta

    row = read_meta(write_recordings(tmp_path), ["transcript"])[0]
    clean = evaluate.clip_in(Condition.CLEAN, row)
    assert clean == EncodedAudio(data=row.path.read_bytes(), media_type=clean.media_type)
    noisy = evaluate.clip_in(Condition.NOISE_0_DB, row)
    assert noisy.media_type == "audio/wav"
    assert len(bytes(noisy.data)) == 44 + 2 * len(read_clip(row.path))
