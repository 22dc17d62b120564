"""Exported sound models: the graph alone scores as the listener does, and the folder is what a server expects."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from typer.testing import CliRunner, Result

from soundstage import cli
from soundstage.errors import ModelError
from soundstage.export.saved_model import EXTRA_DIR, WARM_UP_NAME, serving_version
from soundstage.export.sound import SoundGraph
from soundstage.models.registry import ModelCard, ModelFolder, write_folder
from soundstage.sound import inference
from soundstage.sound.listener import SoundListener, windows_of
from soundstage.sound.model import LevelRange, SoundParams, build_network, member_name, network_weights
from soundstage.types import Waveform

PARAMS = SoundParams(sounds=("dog", "rain", "siren"), level_ranges=(LevelRange(), LevelRange(lowest=0.3, highest=None)))
DURATIONS_S = (0.0, 0.01, 0.5, 2.0, 5.0, 5.1, 12.3)
TOLERANCE = 1e-4
"""The Fourier transforms of TensorFlow and SciPy differ in the last bits; 1e-6 was measured."""

SERVER = """
import json, sys
from pathlib import Path
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
model, given, found = map(Path, sys.argv[1:])
waveforms = np.load(given)
served = tf.saved_model.load(str(model)).signatures["serving_default"]
scores = {}
for name in waveforms.files:
    answer = served(waveform=tf.constant(waveforms[name]))
    scores |= {f"{name} tags": answer["tags"].numpy(), f"{name} frame_scores": answer["frame_scores"].numpy()}
# A server has no Python: it feeds and fetches a session by the names in the signature.
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    signature = tf.compat.v1.saved_model.load(session, ["serve"], str(model)).signature_def["serving_default"]
    fetched = {key: info.name for key, info in signature.outputs.items()}
    name = waveforms.files[-1]
    answer = session.run(fetched, {signature.inputs["waveform"].name: waveforms[name]})
    np.testing.assert_allclose(answer["tags"], scores[f"{name} tags"], atol=1e-6)
np.savez(found, **scores)
print(json.dumps([name for name in sys.modules if name.split(".")[0] == "soundstage"]))
"""


def sound_folder(
    registry: Path, params: SoundParams = PARAMS, *, version: str = "1.2.3", gain: float = 1
) -> ModelFolder:
    """Random weights, stored as float16 like those that ship."""
    rng = np.random.default_rng(0)
    weights = {}
    for member in range(params.n_members):
        for name, array in network_weights(build_network(params)).items():
            n_inputs = 9 if name.startswith("depthwise") else int(np.prod(array.shape[:-1]))
            values = rng.normal(0, np.sqrt(2 / n_inputs), array.shape) if name.endswith("kernel") else array
            spread = 20 if name in {"clip/kernel", "frames/kernel"} else 1  # scores from 0 to 1
            weights[member_name(member, name)] = np.asarray(values * spread * gain, np.float16)
    card = ModelCard(
        name="random",
        version=version,
        kind="sound",
        description="",
        licence="Apache-2.0",
        source="",
        labels=params.labels,
    )
    return write_folder(
        registry, card, params=params, weights=weights, readme="Random.\n", extra={"LICENSE": b"Apache License\n"}
    )


def waveform(duration_s: float, n_rows: int = 1) -> NDArray[np.float32]:
    """Noise that swells, under a tone: float32 (n_rows, n_samples)."""
    rng, n_samples = np.random.default_rng(round(duration_s * 100)), round(duration_s * 16_000)
    time = np.arange(n_samples)
    swell = 0.02 + 0.2 * np.abs(np.sin(time / 9_000 + np.arange(n_rows)[:, np.newaxis]))
    tone = 0.1 * np.sin(time * 2 * np.pi * 440 / 16_000) * (time > n_samples / 2)
    return (swell * rng.standard_normal((n_rows, n_samples)) + tone).astype(np.float32)


def export(model: Path | str, output: Path, *options: str) -> Result:
    return CliRunner().invoke(cli.app, ["models", "export", str(model), "--output", str(output), *options])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return sound_folder(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module", autouse=True)
def _in_float32() -> Iterator[None]:
    """As a graph for any server computes; here the listener rounds where the processor is faster so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "multiplies_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="module")
def listener(folder: ModelFolder) -> SoundListener:
    return SoundListener(folder)


@pytest.fixture(scope="session")
def exported(folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes. The weights are stored as float16 in the registry already: nothing is lost."""
    output = tmp_path_factory.mktemp("serving") / "models"
    result = export(folder.path, output, "--precision", "float16", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    path = output / "random" / "1002003"
    assert record.pop("duration_s") > 0
    assert record.pop("size_bytes") == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert record == {
        "name": "random",
        "version": "1.2.3",
        "serving_version": 1_002_003,
        "path": str(path),
        "precision": "float16",
        "signatures": ["metadata", "serving_default"],
    }
    assert [*output.iterdir(), *(output / "random").iterdir()] == [output / "random", path]
    return path


@pytest.mark.slow
def test_the_graph_alone_hears_what_the_listener_hears(exported: Path, listener: SoundListener, tmp_path: Path) -> None:
    """In a process that loads TensorFlow and nothing of ours."""
    given = {str(duration_s): waveform(duration_s, n_rows=2) for duration_s in DURATIONS_S}
    np.savez(tmp_path / "given.npz", allow_pickle=False, **given)
    command = [sys.executable, "-c", SERVER, str(exported), str(tmp_path / "given.npz"), str(tmp_path / "found.npz")]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert json.loads(loaded.stdout.splitlines()[-1]) == []
    found = np.load(tmp_path / "found.npz")
    spread = []
    for name, rows in given.items():
        for i, expected in enumerate(listener.listen([Waveform(samples=row) for row in rows])):
            tags, frame_scores = found[f"{name} tags"][i], found[f"{name} frame_scores"][i]
            assert frame_scores.shape == expected.scores.shape
            np.testing.assert_allclose(tags, expected.tags, atol=TOLERANCE, rtol=0)
            np.testing.assert_allclose(frame_scores, expected.scores, atol=TOLERANCE, rtol=0)
            spread += frame_scores.ravel().tolist()
    assert np.std(spread) > 0.1, "scores that are all alike would prove nothing"


def test_quiet_and_silent_rows_of_sounds_that_go_together(tmp_path: Path) -> None:
    folder = sound_folder(tmp_path, PARAMS.model_copy(update={"level_ranges": (LevelRange(),), "is_exclusive": False}))
    rows = np.concatenate([waveform(6.0), waveform(6.0) * np.float32(0.001), np.zeros((1, 96_000), np.float32)])
    answer = SoundGraph(folder, "float32").signatures["serving_default"](waveform=tf.constant(rows))
    for i, expected in enumerate(SoundListener(folder).listen([Waveform(samples=row) for row in rows])):
        np.testing.assert_allclose(answer["tags"][i], expected.tags, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(answer["frame_scores"][i], expected.scores, atol=TOLERANCE, rtol=0)
        assert [label.decode() for label in answer["labels"][i].numpy()] == list(expected.labels)


def test_windows_lie_where_the_listener_puts_them(folder: ModelFolder) -> None:
    graph = SoundGraph(folder, "float32")
    step, full = PARAMS.n_step_samples, PARAMS.n_window_samples
    bases = (0, step, full, full + step, full + 14 * step, 3 * full)
    near_edges = [base + beside for base in bases for beside in range(-2, 3)]
    for n_samples in [*(n for n in near_edges if n >= 0), *range(0, 12 * full, 9_973)]:
        starts, edges = graph._plan(tf.constant(n_samples))
        windows = windows_of(n_samples, PARAMS)
        assert starts.numpy().tolist() == [window.first_step for window in windows]
        kept = list(zip(edges.numpy().tolist(), edges.numpy().tolist()[1:], strict=False))[: len(windows)]
        assert kept == [(window.first_kept, window.end_kept) for window in windows]


def test_warm_up_requests_fit_the_signatures_and_run(exported: Path) -> None:
    signatures = tf.saved_model.load(str(exported)).signatures
    called = []
    for record in tf.data.TFRecordDataset(str(exported / EXTRA_DIR / WARM_UP_NAME)).as_numpy_iterator():
        request = PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.name == "random"
        signature = signatures[request.model_spec.signature_name]
        inputs = {key: tf.constant(tf.make_ndarray(proto)) for key, proto in request.inputs.items()}
        expected = signature.structured_input_signature[1]
        assert inputs.keys() == expected.keys()
        for key, value in inputs.items():
            assert value.dtype == expected[key].dtype
            assert expected[key].shape.is_compatible_with(value.shape)
        signature(**inputs)
        called.append(request.model_spec.signature_name)
    assert set(called) == set(signatures)
    assert len(called) <= 1_000  # more than a server takes


def test_the_server_tells_what_it_serves(exported: Path, folder: ModelFolder) -> None:
    metadata = tf.saved_model.load(str(exported)).signatures["metadata"]
    texts = [
        text.decode()
        for text in metadata(key=tf.constant(["labels", "card", "params", "frames", "?"]))["value"].numpy()
    ]
    assert json.loads(texts[0]) == list(PARAMS.labels)
    assert ModelCard.model_validate_json(texts[1]) == folder.card.model_copy(update={"files": {}})
    assert SoundParams.model_validate_json(texts[2]) == PARAMS
    assert json.loads(texts[3]) == {"start_s": 0.16, "hop_s": 0.32}
    assert texts[4] == ""


def test_card_and_licence_go_along(exported: Path, folder: ModelFolder) -> None:
    extra = exported / EXTRA_DIR
    names = {"LICENSE", "README.md", "model.json", "params.json"}
    assert {file.name for file in extra.iterdir()} == names | {WARM_UP_NAME}
    assert all((extra / name).read_bytes() == (folder.path / name).read_bytes() for name in names)


def test_half_precision_takes_two_bytes_a_weight(exported: Path, folder: ModelFolder) -> None:
    n_bytes = sum(file.stat().st_size for file in (exported / "variables").iterdir())
    assert n_bytes == pytest.approx(2 * sum(array.size for array in folder.weights().values()), rel=0.02)


def test_a_version_that_is_there_stays_as_it_is(exported: Path, folder: ModelFolder) -> None:
    before = {file: file.stat().st_mtime_ns for file in exported.rglob("*")}
    result = export(folder.path, exported.parent.parent)
    assert result.exit_code == 1
    assert f"{exported} is there already" in result.stderr
    assert {file: file.stat().st_mtime_ns for file in exported.rglob("*")} == before


def test_a_model_that_gives_no_numbers_is_not_written(tmp_path: Path) -> None:
    folder = sound_folder(
        tmp_path / "registry", PARAMS.model_copy(update={"level_ranges": (LevelRange(),)}), gain=float("nan")
    )
    result = export(folder.path, tmp_path / "serving")
    assert result.exit_code == 1
    assert "not finite: serving_default" in result.stderr
    assert not list((tmp_path / "serving" / "random").iterdir())


def test_an_output_that_cannot_be_written(folder: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = export(folder.path, tmp_path / "file")
    assert result.exit_code == 1
    assert result.stderr.startswith("failed: ")
    assert "Traceback" not in result.stderr


def test_wrong_usage(folder: ModelFolder, tmp_path: Path) -> None:
    assert export("no-such-model", tmp_path).exit_code == 1
    assert export(folder.path, tmp_path, "--precision", "int1").exit_code == 2
    assert not list(tmp_path.iterdir())


def test_newer_versions_have_higher_integers() -> None:
    versions = ["0.0.1", "0.1.0", "0.1.10", "0.2.0", "0.10.0", "1.0.0", "1.0.999", "1.1.0", "2026.11.24"]
    integers = [serving_version(version) for version in versions]
    assert integers == sorted(set(integers))
    assert (serving_version("0.2.0"), serving_version("1.12.3")) == (2_000, 1_012_003)
    for version in ("1", "1.2", "1.2.3.4", "1.2.3-rc1", "1.2.1000", "1.2.3\n"):
        with pytest.raises(ModelError, match=r"MAJOR\.MINOR\.PATCH"):
            serving_version(version)
