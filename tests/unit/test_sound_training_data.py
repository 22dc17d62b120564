"""Labelled clips: what is wrong with a table is said before training, and windows hold what their targets say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from soundstage.audio.features import mel_spectrogram
from soundstage.sound.model import SoundParams
from tests.unit.tiny_clips import LABELS, RATE, sound, tiny_clips, write_folder, write_table, write_wav
from training.acoustics import coded, room
from training.config import BadConfig
from training.data import BadFolder
from training.sound_classification.config import Config, DataConfig, VariantConfig, read_config
from training.sound_classification.data.examples import Mixer
from training.sound_classification.data.material import Backgrounds, Spectrogram, load_clips, spectrogram
from training.sound_classification.data.music import compose
from training.sound_classification.data.table import Clip, Heard, Table, check_cross_validation, read_table
from training.sound_classification.data.variants import varied

FEATURES = SoundParams(sounds=("any",)).features
DATA = DataConfig(min_clips_per_label=1)


def table_of(folder: Path, columns: str, *lines: str, config: DataConfig = DATA) -> Table:
    rows = [line.split(",") for line in lines]
    write_table(folder, columns.split(","), rows)
    for row in rows:
        (folder / row[0]).touch()
    return read_table(folder, config)


def test_a_label_a_clip_excludes_the_others_and_several_do_not(tmp_path: Path) -> None:
    one = table_of(tmp_path / "one", "filename,category", "a.wav,knock", "b.wav,drill")
    assert one.is_exclusive
    assert one.labels == ("drill", "knock")
    several = table_of(tmp_path / "several", "filename,label", "a.wav,knock; drill", "b.wav,drill")
    assert not several.is_exclusive
    assert several.clips[0].labels == ("knock", "drill")


def test_times_of_one_file_are_one_clip(tmp_path: Path) -> None:
    table = table_of(
        tmp_path, "filename,label,start_s,end_s", "a.wav,knock,0.5,1", "a.wav,knock,2,2.5", "b.wav,drill,,"
    )
    assert table.is_exclusive
    assert table.clips[0].heard == (
        Heard(label="knock", start_s=0.5, end_s=1),
        Heard(label="knock", start_s=2, end_s=2.5),
    )
    assert table.clips[1].heard == (Heard(label="drill"),)


def test_folds_are_made_alike_each_time_and_keep_a_source_together(tmp_path: Path) -> None:
    lines = [f"{i}.wav,{'ab'[i % 2]},{i // 3}" for i in range(30)]
    table = table_of(tmp_path, "filename,label,source", *lines)
    assert table.folds == ("1", "2", "3", "4", "5")
    folds = [clip.fold for clip in table.clips]
    assert all(len(set(folds[i : i + 3])) == 1 for i in range(0, 30, 3))
    assert all(folds.count(fold) == 6 for fold in table.folds)
    assert read_table(tmp_path, DATA) == table


@pytest.mark.parametrize(
    ("columns", "lines", "message"),
    [
        ("filename,catgory", ["a.wav,x"], "mean nothing here: catgory"),
        ("filename,fold", ["a.wav,1"], "one of the columns category and label"),
        ("filename,label,category", ["a.wav,x,x"], "it has 2 of them"),
        ("filename,label,start_s", ["a.wav,x,1"], "only one of the columns start_s and end_s"),
        ("filename,label", ["a.wav,Dog Bark", "b.wav,dog_bark"], "'Dog Bark' and 'dog_bark' are the same"),
        ("filename,label", ["a.wav,"], "line 2: a.wav has an empty label"),
        ("filename,label,start_s,end_s", ["a.wav,x,0,1", "b.wav,x,2,1.5"], "line 3: b.wav must have 0 <= start_s"),
        ("filename,label,start_s,end_s", ["a.wav,x,one,2"], "start_s 'one' and end_s '2' of a.wav are not two numbers"),
        ("filename,label,start_s,end_s", ["a.wav,x,1,"], "are not two numbers"),
        ("filename,label,fold,source", ["a.wav,x,1,tape", "b.wav,x,2,tape"], "source tape is in folds 1, 2"),
        ("filename,label,fold", ["a.wav,x,1", "b.wav,x,"], "1 files have no fold while others have, first b.wav"),
        ("filename,label,fold", ["a.wav,x,1", "a.wav,x,2"], "gives a.wav more than one fold: 1, 2"),
        ("filename,label", ["a.wav"], "line 2: expected 2 values"),
        ("filename,label", [], "names no file"),
    ],
)
def test_a_bad_table_is_told_what_is_wrong_with_it(
    tmp_path: Path, columns: str, lines: list[str], message: str
) -> None:
    with pytest.raises(BadFolder, match=message.replace(".", r"\.")):
        table_of(tmp_path, columns, *lines)


def test_a_label_needs_clips_to_learn_and_to_test(tmp_path: Path) -> None:
    with pytest.raises(BadFolder, match=r"fewer than 2 clips .* drill \(1\)"):
        table_of(tmp_path, "filename,label", "a.wav,knock", "b.wav,knock", "c.wav,drill", config=DataConfig())
    table = table_of(tmp_path, "filename,label,fold", "a.wav,x,1", "b.wav,x,2", "c.wav,y,2", "d.wav,y,2")
    with pytest.raises(BadFolder, match="label y in fold 2 alone"):
        check_cross_validation(table, table.clips)
    one_fold = table_of(tmp_path, "filename,label,fold", "a.wav,x,1", "b.wav,x,1")
    with pytest.raises(BadFolder, match="one fold alone"):
        check_cross_validation(one_fold, one_fold.clips)


def test_missing_files_and_another_encoding_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadFolder, match=r"holds no meta\.csv"):
        read_table(tmp_path, DATA)
    write_table(tmp_path, ("filename", "label"), [("a.wav", "x"), ("b.wav", "x")])
    with pytest.raises(BadFolder, match=r"2 of the 2 files .* missing, first .*a\.wav"):
        read_table(tmp_path, DATA)
    (tmp_path / "meta.csv").write_bytes("filename,label\na.wav,Käfer\n".encode("latin-1"))
    with pytest.raises(BadFolder, match="not CSV in UTF-8"):
        read_table(tmp_path, DATA)


def test_every_unusable_file_is_named_before_training(tmp_path: Path) -> None:
    folder = tiny_clips(tmp_path / "clips", 2)
    (folder / "beep-0.wav").write_bytes(b"not audio")
    write_wav(folder / "beep-1.wav", np.zeros(RATE, np.float32))
    write_wav(folder / "hiss-0.wav", np.ones(100, np.float32))
    table = read_table(folder, DATA)
    with pytest.raises(BadFolder) as caught:
        load_clips(table.clips, tmp_path / "cache", params=FEATURES, variants=VariantConfig())
    message = str(caught.value)
    assert "beep-0.wav cannot be decoded" in message
    assert "beep-1.wav holds digital silence and nothing of beep" in message
    assert "hiss-0.wav is too short: 0.006 s" in message
    assert not list((tmp_path / "cache").glob("clips-*/")), "half a cache was left"


def test_a_label_that_starts_after_the_end_of_its_file_is_named(tmp_path: Path) -> None:
    rows = [("a.wav", "beep", "0.2", "0.6"), ("b.wav", "beep", "1.5", "2")]
    folder = write_folder(tmp_path / "clips", ("filename", "label", "start_s", "end_s"), rows)
    with pytest.raises(BadFolder, match=r"b\.wav ends at 1\.00 s, before beep starts at 1\.5 s"):
        load_clips(read_table(folder, DATA).clips, tmp_path, params=FEATURES, variants=VariantConfig())


def test_the_same_recording_in_two_folds_is_found_by_its_samples(tmp_path: Path) -> None:
    rows = [("a.wav", "beep", "1"), ("b.wav", "beep", "2")]
    folder = write_folder(tmp_path / "clips", ("filename", "label", "fold"), rows)
    (folder / "b.wav").write_bytes((folder / "a.wav").read_bytes())
    with pytest.raises(BadFolder, match=r"b\.wav \(fold 2\) and a\.wav \(fold 1\) are the same recording"):
        load_clips(read_table(folder, DATA).clips, tmp_path, params=FEATURES, variants=VariantConfig())


def test_clips_are_known_by_what_is_heard_wherever_they_are(tmp_path: Path) -> None:
    """So that runs go on when their data have been moved, or fetched anew."""

    def key(folder: Path) -> str:
        clips = read_table(folder, DATA).clips
        return load_clips(clips, tmp_path / "cache", params=FEATURES, variants=VariantConfig()).key

    first = tiny_clips(tmp_path / "clips", 2)
    moved = shutil.copytree(first, tmp_path / "moved", copy_function=shutil.copyfile)
    assert key(moved) == key(first)
    write_wav(moved / "beep-0.wav", sound("beep", 1.0, 99))
    assert key(moved) != key(first)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning: {n_epoch: 3}", r"learning\.n_epoch: there is no such key"),
        ("learning: {n_epochs: 0}", r"learning\.n_epochs: Input should be greater"),
        ("augmentation: {gain_db: [6, -6]}", r"augmentation\.gain_db: .* must be the smaller"),
        ("members: [{}, {lerning: {}}]", r"members\[1\]: lerning: there is no such key"),
        ("members: [{loss: {frames: 0}}]", r"loss\.frames is 0 in all members"),
        ("data: [", "is not YAML"),
        ("- 1", "no mapping"),
    ],
)
def test_a_bad_recipe_is_told_which_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadConfig, match=message) as caught:
        read_config(path)
    assert "recipe.yaml" in str(caught.value)


def test_recipes_that_come_with_it_can_be_read_and_none_can_be_changed() -> None:
    folder = Path(read_config.__code__.co_filename).parent
    shipped = read_config(folder / "config.yaml")
    assert shipped.name == "soundstage-sounds"
    assert read_config(folder / "tiny.yaml").learning.start == "random"
    with pytest.raises(ValidationError):
        shipped.name = "other"  # type: ignore[misc]
    with pytest.raises(BadConfig, match="cannot be read"):
        read_config(folder / "nowhere.yaml")


def test_a_member_is_the_recipe_with_its_changes() -> None:
    config = Config.model_validate({"seeds": [3], "members": [{}, {"learning": {"n_epochs": 7}}]})
    assert config.member(0).learning.n_epochs == Config().learning.n_epochs
    assert config.member(1).learning.n_epochs == 7
    assert config.member(1).learning.batch_size == config.learning.batch_size
    assert config.member(1).seeds == (3,)


PARAMS = SoundParams(sounds=LABELS, window_s=2.0)
QUIET: dict[str, Any] = {"background": 0.0, "noise": 0.0, "short_windows": 0.0, "without_sounds": 0.0}


def clip(name: str, *heard: Heard) -> Clip:
    return Clip(path=Path(name), name=name, heard=heard, fold="1", licence="")


def mixer_of(
    tmp_path: Path,
    clips: list[Clip],
    samples: list[np.ndarray[Any, Any]],
    *,
    params: SoundParams = PARAMS,
    seed: int = 0,
    **augmentation: Any,
) -> Mixer:
    placed = []
    for own, values in zip(clips, samples, strict=True):
        write_wav(tmp_path / own.name, values)
        placed.append(Clip(path=tmp_path / own.name, name=own.name, heard=own.heard, fold=own.fold, licence=""))
    config = Config.model_validate({"augmentation": {**QUIET, **augmentation}, "learning": {"batch_size": 8}})
    loaded = load_clips(tuple(placed), tmp_path / "cache", params=FEATURES, variants=config.augmentation.variants)
    words = spectrogram(sound("words", 8.0, 99), FEATURES)
    nothing = np.zeros(0, np.float32)
    backgrounds = Backgrounds(words, Spectrogram(words.mel[:0], words.level[:0]), nothing, nothing)
    return Mixer(tuple(placed), np.arange(len(placed)), loaded, backgrounds, params=params, config=config, seed=seed)


def test_a_step_sees_the_same_windows_however_often_it_is_asked_for(tmp_path: Path) -> None:
    clips = [clip(f"{label}.wav", Heard(label=label)) for label in LABELS]
    samples = [sound(label, 1.0, 1) for label in LABELS]
    everything: dict[str, Any] = {
        "mixup": 0.5,
        "background": 0.5,
        "noise": 0.5,
        "mask": 0.5,
        "equaliser_db": 3,
        "short_windows": 0.5,
    }
    first, second = (mixer_of(tmp_path, clips, samples, **everything) for _ in range(2))
    for step in (5, 0, 5):
        for name in ("log_mel", "sounds", "extras", "frames", "frame_weights"):
            np.testing.assert_array_equal(getattr(first.batch(step), name), getattr(second.batch(step), name))
    assert not np.array_equal(first.batch(0).sounds, first.batch(1).sounds)


def test_targets_of_a_short_sound_are_where_it_sounds(tmp_path: Path) -> None:
    samples = np.concatenate([np.zeros(RATE, np.float32), sound("beep", 0.3, 0), np.zeros(RATE, np.float32)])
    batch = mixer_of(tmp_path, [clip("a.wav", Heard(label="beep"))], [samples], time_shift=1.0).batch(0)
    assert batch.log_mel.shape == (8, PARAMS.n_window_frames, 64)
    assert batch.frames.shape == (8, PARAMS.n_window_steps, 6)
    for log_mel, sounds, frames in zip(batch.log_mel, batch.sounds, batch.frames, strict=True):
        assert sounds.tolist() == [1, 0, 0, 0]
        assert 1 <= frames[:, 0].sum() <= 4
        assert not frames[:, 1:].any()
        loudest = log_mel.mean(axis=1).argmax() // 32
        assert frames[loudest, 0] == 1
    assert len(np.unique(batch.frames[:, :, 0], axis=0)) > 2, "the sound is not shifted"


def test_times_of_the_table_are_the_targets_and_a_window_without_any_holds_none(tmp_path: Path) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(10 * RATE).astype(np.float32)
    times = clip("a.wav", Heard(label="beep", start_s=4.0, end_s=5.0), Heard(label="beep", start_s=9.0, end_s=9.5))
    mixer = mixer_of(tmp_path, [times], [samples])
    seen = set()
    for step in range(6):
        batch = mixer.batch(step)
        for sounds, frames in zip(batch.sounds, batch.frames, strict=True):
            is_heard = bool(frames[:, 0].max() >= 0.5)
            seen.add(is_heard)
            assert sounds.tolist() == ([1, 0, 0, 0] if is_heard else [0, 0, 0, 1])
            assert frames[:, 0].sum() <= 4
    assert seen == {True, False}


def test_two_mixed_clips_share_the_target(tmp_path: Path) -> None:
    clips = [clip("a.wav", Heard(label="beep")), clip("b.wav", Heard(label="hiss"))]
    samples = [sound("beep", 2.0, 0), sound("hiss", 2.0, 1)]
    batch = mixer_of(tmp_path, clips, samples, mixup=1.0, mixup_alpha=50.0).batch(0)
    np.testing.assert_allclose(batch.sounds.sum(axis=1), 1, rtol=1e-5)
    both = (batch.sounds[:, 0] > 0) & (batch.sounds[:, 1] > 0)
    assert both.any()
    assert (batch.frames[both][:, :, :2].max(axis=1) == 1).all()

    several = PARAMS.model_copy(update={"is_exclusive": False})
    batch = mixer_of(tmp_path, clips, samples, mixup=1.0, mixup_alpha=50.0, params=several).batch(0)
    assert batch.sounds.shape == (8, 3)
    assert set(np.unique(batch.sounds)) == {0, 1}


def test_which_of_two_labels_a_loud_step_holds_is_not_known(tmp_path: Path) -> None:
    both = clip("a.wav", Heard(label="beep"), Heard(label="hiss"))
    samples = np.concatenate([sound("beep", 1.0, 0), np.zeros(RATE, np.float32)])
    several = PARAMS.model_copy(update={"is_exclusive": False})
    batch = mixer_of(tmp_path, [both], [samples], params=several, time_shift=0.0).batch(0)
    assert batch.sounds[0].tolist() == [1, 1, 0]
    assert batch.frame_weights[0, 0, :2].tolist() == [0, 0]
    assert batch.frame_weights[0, -1, :2].tolist() == [1, 1]
    assert not batch.frames[0].any()


def test_backgrounds_and_windows_without_sounds_say_so(tmp_path: Path) -> None:
    clips = [clip(f"{i}.wav", Heard(label="beep")) for i in range(8)]
    mixer = mixer_of(tmp_path, clips, [sound("beep", 2.0, i) for i in range(8)], background=1.0, without_sounds=1.0)
    assert mixer.n_epoch_steps == 2
    batches = [mixer.batch(step) for step in range(6)]
    sounds, extras = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("sounds", "extras"))
    is_clip = sounds[:, 0] == 1
    assert is_clip.sum() == (sounds[:, -1] == 1).sum() == 24
    assert (extras[is_clip] == [1, 0, 0]).all(), "speech is under every clip"
    without = extras[~is_clip]
    assert set(map(tuple, without.tolist())) <= {(1, 0, 0), (0, 0, 1), (0, 0, 0)}, "speech, silence or mere noise"
    assert (without.sum(axis=0)[[0, 2]] > 0).all()


def test_mere_noise_is_none_of_the_sounds(tmp_path: Path) -> None:
    clips = [clip(f"{i}.wav", Heard(label="beep")) for i in range(8)]
    mixer = mixer_of(
        tmp_path, clips, [sound("beep", 2.0, i) for i in range(8)], without_sounds=8.0, hissing=1.0, silent=0
    )
    batch = mixer.batch(0)
    is_noise = batch.sounds[:, -1] == 1
    assert is_noise.any()
    assert not batch.extras[is_noise].any()
    assert not batch.frames[is_noise].any()
    assert (batch.frame_weights[is_noise] == 1).all()
    assert batch.log_mel[is_noise].max(axis=(1, 2)).min() > -3, "it can be heard"
    real = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32)
    real_spread = np.log(mel_spectrogram(real, FEATURES)).std(axis=0)
    loud = batch.log_mel[is_noise][batch.log_mel[is_noise].mean(axis=1).min(axis=1) > -2]
    assert len(loud)
    for spread in loud.std(axis=1):
        assert np.abs(spread - real_spread).mean() < 0.05, "as rough in each band as real noise, not as rain"


def test_scenes_say_which_steps_hold_a_sound_and_ask_for_none_that_hold_little(tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"window_s": 5.0})
    beep = np.concatenate([np.zeros(2 * RATE, np.float32), sound("beep", 1.0, 0), np.zeros(2 * RATE, np.float32)])
    clips = [clip("beep.wav", Heard(label="beep")), clip("hiss.wav", Heard(label="hiss"))]
    options: dict[str, Any] = {"soundscapes": 40.0, "scene_events": (1, 1), "scene_event_db": (25.0, 25.0)}
    mixer = mixer_of(tmp_path, clips, [beep, sound("hiss", 5.0, 1)], params=params, **options)
    assert mixer.n_epoch_steps == 10
    n_scenes = n_edges = 0
    for batch in (mixer.batch(step) for step in range(10)):
        for i in np.flatnonzero(batch.sound_weights == 0):
            frames, known = batch.frames[i], batch.frame_weights[i]
            n_scenes += 1
            n_edges += bool((known[:, 0] == 0).any())
            assert set(np.unique(frames)) <= {0.0, 1.0}
            assert not frames[:, params.labels.index("silence")].any()
            assert frames[:, 0].sum() <= 5, "a second of beeping, and what the level is smoothed over"
            assert (known[:, 0] == 0).sum() <= 2, "one at either end"
            assert known[frames == 1].all()
            if frames[:, 0].max() == 1:
                loudest = int(batch.log_mel[i].mean(axis=1).argmax()) // 32
                assert frames[loudest, 0] > 0
        assert (batch.sounds[batch.sound_weights == 1].sum(axis=1) == 1).all()
    assert n_scenes >= 70
    assert n_edges > n_scenes / 4, "edges lie anywhere in a step"


def test_what_lies_under_a_scene_is_not_asked_for(tmp_path: Path) -> None:
    clips = [clip("hiss.wav", Heard(label="hiss"))]
    mixer = mixer_of(tmp_path, clips, [sound("hiss", 2.0, 1)], soundscapes=60.0)
    hiss = PARAMS.labels.index("hiss")
    weights = np.concatenate([mixer.batch(step).frame_weights for step in range(7)])
    scenes = np.concatenate([mixer.batch(step).sound_weights for step in range(7)]) == 0
    unknown = (weights[scenes][:, :, hiss] == 0).any(axis=1)
    assert 0.1 < unknown.mean() < 0.9, "half of the scenes lie over the clip, half over noise"


def test_short_windows_hold_the_loudest_part(tmp_path: Path) -> None:
    samples = np.concatenate([np.zeros(RATE, np.float32), sound("beep", 0.2, 0), np.zeros(RATE, np.float32)])
    made = mixer_of(tmp_path, [clip("a.wav", Heard(label="beep"))], [samples], short_windows=1.0, short_s=1.0)
    for step in range(4):
        batch = made.batch(step)
        assert batch.log_mel.shape[1] == 98
        assert (batch.frames[:, :, 0].max(axis=1) == 1).all()


def test_rooms_and_codecs_change_a_clip_and_keep_its_length() -> None:
    rng = np.random.default_rng(0)
    click = np.zeros(RATE, np.float32)
    click[100] = 0.5
    response = room(rng, 0.5, 0.0)
    decay_db = 10 * np.log10(np.square(response[800:2400]).sum() / np.square(response[4800:6400]).sum())
    assert decay_db == pytest.approx(60 * 0.25 / 0.5, abs=3), "60 dB in half a second"
    assert np.square(response).sum() == pytest.approx(1.0, rel=1e-5)
    beep = sound("beep", 1.0, 0)
    for codec in ("opus", "mp3", "aac"):
        heard = coded(beep, codec, 16.0)
        assert heard.shape == beep.shape
        assert heard.dtype == np.float32
        assert not np.array_equal(heard, beep)
        spectra = [np.abs(np.fft.rfft(x[4000:12_000])) for x in (beep, heard)]
        assert spectra[0].argmax() == pytest.approx(spectra[1].argmax(), abs=1), codec
    assert np.abs(varied(click, VariantConfig(reverberation=1, codec=0), rng)[1000:]).max() > 0


def test_copies_are_made_once_and_taken_in_place_of_the_clip(tmp_path: Path) -> None:
    table = read_table(tiny_clips(tmp_path / "clips", 1), DATA)
    calls = []
    for _ in range(2):
        loaded = load_clips(
            table.clips,
            tmp_path / "cache",
            params=FEATURES,
            variants=VariantConfig(n_each=2, reverberation=1, codec=0),
            on_clip=lambda done, _of: calls.append(done),
        )
    assert calls == [1, 2, 3], "decoded again in spite of the cache"
    versions = [loaded[1, variant].mel for variant in range(3)]
    assert len({version.shape for version in versions}) == 1
    assert not np.array_equal(versions[0], versions[1])
    assert not np.array_equal(versions[1], versions[2])


def test_the_same_seed_gives_the_same_music() -> None:
    first, second = (compose(np.random.default_rng(7), tempo_bpm=120, n_bars=4) for _ in range(2))
    assert first == second
    assert first != compose(np.random.default_rng(8), tempo_bpm=120, n_bars=4)
    assert first[:4] == b"MThd"
