"""Exchanging models and trying candidates out, with models that are known; no Ray runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from deployments.answers import CandidateState, Refusal, ServedModel
from deployments.api.schemas import ModelBody
from deployments.local import LocalCluster, LocalError
from deployments.model_slot import ModelSlot
from deployments.model_stage import ModelStage
from deployments.settings import IngressConfig, ModelConfig, ShadowConfig, changed
from deployments.shadow import MAX_WAITING, Shadow, is_same_text, is_same_top_tag
from soundstage.models import registry
from soundstage.models.registry import ModelCard, ModelFolder, ModelSources, write_folder
from soundstage.params import LevelParams
from soundstage.types import FrameScores, Segment

CARD = ModelCard(name="ears", version="1", kind="sound", description="d", licence="l", source="s")


class Ears:
    """A model that answers with its version."""

    def __init__(self, folder: ModelFolder) -> None:
        self.card = folder.card
        folder.params(LevelParams)

    def warm_up(self) -> None:
        if self.card.description == "breaks":
            raise RuntimeError("not finite")

    def probe(self) -> None:
        self.warm_up()


@pytest.fixture
def sources(tmp_path: Path) -> ModelSources:
    return ModelSources(cache_dir=tmp_path)


def add(sources: ModelSources, version: str, description: str = "d") -> ModelFolder:
    card = CARD.model_copy(update={"version": version, "description": description})
    weights: dict[str, Any] = {"kernel": np.zeros(3, np.float32)}
    return write_folder(sources.cache, card, params=LevelParams(), weights=weights, readme="")


def flip_a_byte(folder: ModelFolder) -> None:
    file = folder.path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


# Exchange


async def test_a_model_is_exchanged(sources: ModelSources) -> None:
    slot = ModelSlot[Ears](sources)
    for version in ("1", "2", "1"):
        add(sources, version)
        assert await slot.put("ears", version, Ears)
        assert slot.version == ("ears", version)
    assert slot.refused is None


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (flip_a_byte, "damaged"),
        (lambda folder: (folder.path / "params.json").unlink(), "is missing"),
        (lambda folder: (folder.path / "model.json").write_text("{}"), "is not a model card"),
        (lambda folder: (folder.path / "model.json").unlink(), "no model ears 2"),
    ],
)
async def test_a_damaged_model_leaves_the_one_that_serves(
    sources: ModelSources, spoil: Callable[[ModelFolder], object], reason: str
) -> None:
    slot = ModelSlot[Ears](sources)
    add(sources, "1")
    await slot.put("ears", "1", Ears)
    spoil(add(sources, "2"))
    assert not await slot.put("ears", "2", Ears)
    assert slot.version == ("ears", "1")
    assert slot.refused is not None
    assert slot.refused.version == "2"
    assert reason in slot.refused.reason
    add(sources, "2")
    assert await slot.put("ears", "2", Ears)
    assert slot.version == ("ears", "2")


async def test_a_model_that_does_not_run_leaves_the_one_that_serves(sources: ModelSources) -> None:
    slot = ModelSlot[Ears](sources)
    add(sources, "1")
    add(sources, "2", "breaks")
    await slot.put("ears", "1", Ears)
    assert not await slot.put("ears", "2", Ears)
    assert slot.refused == Refusal("2", "not finite")
    assert slot.version == ("ears", "1")


async def test_what_is_here_is_not_loaded_again(sources: ModelSources) -> None:
    slot = ModelSlot[Ears](sources)
    add(sources, "1")
    await slot.put("ears", "1", Ears, settings={"threshold": 1})
    first = slot.model
    await slot.put("ears", None, Ears, settings={"threshold": 1})
    assert slot.model is first
    await slot.put("ears", "1", Ears, settings={"threshold": 2})
    assert slot.model is not first


# A stage


class Batch:
    def set_max_batch_size(self, size: int) -> None:
        self.size = size

    def set_batch_wait_timeout_s(self, wait_s: float) -> None:
        pass


class EarsStage(ModelStage[Ears, ModelConfig, str, str]):
    """As the real ones, without Ray's batching."""

    config_type = ModelConfig

    def __init__(self, sources: ModelSources) -> None:
        super().__init__(sources)
        self._batch = Batch()

    def _load(self, folder: ModelFolder, config: ModelConfig) -> Ears:
        return Ears(folder)


@pytest.fixture
async def stage(sources: ModelSources) -> AsyncIterator[EarsStage]:
    add(sources, "1")
    stage = EarsStage(sources)
    await stage.reconfigure({"model": "ears", "version": "1"})
    yield stage
    stage.stop_following()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.005)


async def test_a_stage_tells_what_was_refused(sources: ModelSources, stage: EarsStage) -> None:
    flip_a_byte(add(sources, "2"))
    await stage.reconfigure({"model": "ears", "version": "2"})
    served = await stage.served_model()
    assert served.card.version == "1"
    assert served.refused is not None
    assert served.refused.version == "2"
    (body,) = ModelBody.of_each([served])
    assert (body.version, body.n_replicas) == ("1", 1)
    assert body.refused is not None
    assert "damaged" in body.refused.reason


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"version": "../1"}, "neither a version, such as 0.2.0, nor an alias"),
        ({"version": 0.2}, "version: Input should be a valid string"),
        ({"model": "../../ears"}, "model: "),
        ({"shadow": {"version": "2", "share": 1.5}}, "shadow.share: Input should be less than or equal to 1"),
        ({"shadow": {"version": "2", "share": 0}}, "shadow.share: Input should be greater than 0"),
        ({"shadow": {"version": "2"}}, "shadow.share: Field required"),
        ({"shade": {}}, "shade: Extra inputs are not permitted"),
    ],
)
async def test_a_wrong_configuration_leaves_the_last_one(
    sources: ModelSources, stage: EarsStage, wrong: dict[str, Any], reason: str
) -> None:
    config = {"model": "ears", "version": "1", **wrong}
    await stage.reconfigure(config)
    served = await stage.served_model()
    assert served.card.version == "1"
    assert served.refused is not None
    assert served.refused.version is None
    assert reason in served.refused.reason
    with pytest.raises(ValidationError):
        await EarsStage(sources).reconfigure(config)
    await stage.reconfigure({"model": "ears", "version": "1"})
    assert (await stage.served_model()).refused is None


async def test_an_unknown_model_is_refused(sources: ModelSources, stage: EarsStage) -> None:
    await stage.reconfigure({"model": "nose"})
    served = await stage.served_model()
    assert served.card.name == "ears"
    assert served.refused is not None
    assert "no model nose" in served.refused.reason
    with pytest.raises(ValueError, match="no model nose"):
        await EarsStage(sources).reconfigure({"model": "nose"})


async def test_an_alias_is_followed_there_and_back(sources: ModelSources, stage: EarsStage) -> None:
    add(sources, "2")
    registry.set_aliases("ears", {"stable": "1"}, sources.home)
    await stage.reconfigure({"model": "ears", "follow_s": 0.01})
    for version in ("2", "1"):
        registry.set_aliases("ears", {"stable": version}, sources.home)
        await until(lambda version=version: stage._slot.version[1] == version)  # type: ignore[misc]


async def test_what_was_refused_is_taken_once_it_is_mended(sources: ModelSources, stage: EarsStage) -> None:
    flip_a_byte(add(sources, "2"))
    await stage.reconfigure({"model": "ears", "version": "2", "follow_s": 0.01})
    assert (await stage.served_model()).card.version == "1"
    add(sources, "2")
    await until(lambda: stage._slot.version[1] == "2")
    assert (await stage.served_model()).refused is None


async def test_a_candidate_that_is_refused_leaves_everything_else(sources: ModelSources, stage: EarsStage) -> None:
    await stage.reconfigure({"model": "ears", "version": "1", "shadow": {"version": "2", "share": 0.5}})
    served = await stage.served_model()
    assert served.refused is None
    assert served.candidate is not None
    assert served.candidate.version is None
    assert served.candidate.refused is not None
    assert "no model ears 2" in served.candidate.refused.reason
    await stage.reconfigure({"model": "ears", "version": "1"})
    assert (await stage.served_model()).candidate is None


def test_a_wrong_threshold_leaves_the_last_one() -> None:
    first = changed(None, IngressConfig, {"min_score": 0.5})
    assert changed(first, IngressConfig, {"min_score": 5}) == first
    assert changed(first, IngressConfig, {"min_score": 0.6}).min_score == 0.6
    with pytest.raises(ValidationError):
        changed(None, IngressConfig, {"min_score": 5})


def test_replicas_with_different_versions_are_told_apart() -> None:
    card_2 = CARD.model_copy(update={"version": "2"})
    refusal = Refusal("2", "no room")
    candidate = CandidateState("3", 0.1, None)
    bodies = ModelBody.of_each(
        [ServedModel(CARD, refused=refusal), ServedModel(card_2, candidate=candidate), ServedModel(card_2)]
    )
    assert [(body.id, body.version, body.n_replicas) for body in bodies] == [("ears", "2", 2), ("ears", "1", 1)]
    assert bodies[0].candidate is not None
    assert bodies[0].candidate.version == "3"
    assert bodies[1].refused is not None
    assert bodies[1].refused.reason == "no room"


@pytest.mark.parametrize(
    ("place", "values", "reason"),
    [
        ("VoiceRecognizer", {"shadow": {"version": "1.1", "share": 2}}, "VoiceRecognizer.user_config: shadow.share: "),
        ("Ingress", {"min_scor": 0.5}, "Ingress.user_config: min_scor: Extra inputs"),
        ("args", {"models": {"registry": "s3://key:hunter2@bucket"}}, "args: models.registry: "),
    ],
)
def test_a_wrong_setting_is_not_deployed(tmp_path: Path, place: str, values: dict[str, Any], reason: str) -> None:
    application: dict[str, Any] = {"name": "soundstage"}
    if place == "args":
        application["args"] = values
    else:
        application["deployments"] = [{"name": place, "user_config": values}]
    with pytest.raises(LocalError, match=reason) as refusal:
        LocalCluster(state_dir=tmp_path).deploy_document({"http_options": {}, "applications": [application]})
    assert "hunter2" not in str(refusal.value)


# Trying out


@dataclass
class Tally:
    compared_: list[tuple[str, str, bool]] = field(default_factory=list)
    n_dropped: int = 0
    n_failed: int = 0

    def compared(self, version: str, candidate: str, *, agreed: bool, served_s: float, candidate_s: float) -> None:
        assert served_s >= 0
        assert candidate_s >= 0
        self.compared_.append((version, candidate, agreed))

    def dropped(self, version: str, candidate: str) -> None:
        self.n_dropped += 1

    def failed(self, version: str, candidate: str) -> None:
        self.n_failed += 1


class Trial:
    """Ears 1 serve, ears 2 are tried out; they differ on "differ", and 2 break on "break"."""

    def __init__(self, sources: ModelSources) -> None:
        self.tally = Tally()
        self.n_runs = 0
        self.is_free = threading.Event()
        self.is_free.set()
        self.served = ModelSlot[Ears](sources)
        self.shadow: Shadow[Ears, str, str] = Shadow(
            self.served, sources, run=self._run, agree=lambda one, other: one == other, meter=self.tally
        )

    def _run(self, model: Ears, request: str) -> str:
        assert self.is_free.wait(10)
        self.n_runs += 1
        if model.card.version == "2" and request == "break":
            raise ValueError("broken")
        return model.card.version if request == "differ" else request

    async def settle(self) -> None:
        await until(lambda: self.shadow._worker is None or self.shadow._worker.done())


@pytest.fixture
async def trial(sources: ModelSources) -> Trial:
    for version in ("1", "2"):
        add(sources, version)
    trial = Trial(sources)
    await trial.served.put("ears", "1", Ears)
    await trial.shadow.slot.put("ears", "2", Ears)
    trial.shadow.configure(ShadowConfig(version="2", share=1.0))
    return trial


async def test_agreement_is_counted(trial: Trial) -> None:
    for request in ("a", "differ", "b"):
        trial.shadow.offer(request)
    await trial.settle()
    assert trial.tally.compared_ == [("1", "2", True), ("1", "2", False), ("1", "2", True)]


async def test_a_share_is_a_share(trial: Trial) -> None:
    trial.shadow.configure(ShadowConfig(version="2", share=0.25))
    for _ in range(16):
        trial.shadow.offer("a")
        await trial.settle()
    assert len(trial.tally.compared_) == 4


async def test_a_candidate_that_breaks_is_counted_and_nothing_else(trial: Trial) -> None:
    for request in ("break", "a"):
        trial.shadow.offer(request)
    await trial.settle()
    assert trial.tally.n_failed == 1
    assert trial.tally.compared_ == [("1", "2", True)]


async def test_nothing_is_compared_while_a_request_is_here(trial: Trial) -> None:
    async with trial.served.request():
        trial.shadow.offer("a")
        for _ in range(20):
            await asyncio.sleep(0)
        assert trial.tally.compared_ == []
    await trial.settle()
    assert len(trial.tally.compared_) == 1


async def test_a_request_that_comes_meanwhile_pauses_the_comparison(trial: Trial) -> None:
    trial.is_free.clear()
    trial.shadow.offer("a")
    for _ in range(20):
        await asyncio.sleep(0)
    async with trial.served.request():
        trial.is_free.set()
        await until(lambda: trial.n_runs == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert trial.n_runs == 1
    await trial.settle()
    assert trial.n_runs == 2


async def test_requests_that_wait_for_a_batch_go_on_together(sources: ModelSources) -> None:
    slot = ModelSlot[Ears](sources)
    add(sources, "1")
    await slot.put("ears", "1", Ears)
    is_over = threading.Event()

    async def run_batch() -> None:
        async with slot.batch():
            await slot.run(lambda _: is_over.wait(10))

    batch = asyncio.create_task(run_batch())
    await asyncio.sleep(0)
    entered: list[int] = []

    async def ask(i: int) -> None:
        async with slot.request():
            entered.append(i)

    asked = [asyncio.create_task(ask(i)) for i in range(3)]
    await asyncio.sleep(0)
    assert entered == []
    is_over.set()
    await asyncio.gather(batch, *asked)
    assert entered == [0, 1, 2]


async def test_a_busy_replica_drops_and_no_client_waits(trial: Trial) -> None:
    trial.is_free.clear()
    n_offered = MAX_WAITING + 20
    for _ in range(n_offered):
        trial.shadow.offer("a")
        await asyncio.sleep(0)
    # the model that serves is free all the while
    assert await asyncio.wait_for(trial.served.run(lambda model: model.card.version), 5) == "1"
    trial.is_free.set()
    await trial.settle()
    assert trial.tally.n_dropped + len(trial.tally.compared_) == n_offered
    assert len(trial.tally.compared_) <= MAX_WAITING + 1


async def test_a_candidate_that_went_live_is_not_compared_with_itself(trial: Trial) -> None:
    await trial.served.put("ears", "2", Ears)
    trial.shadow.offer("a")
    await trial.settle()
    assert trial.tally.compared_ == []


async def test_an_end_of_trial_lets_go_of_the_candidate(trial: Trial) -> None:
    trial.shadow.offer("a")
    trial.shadow.configure(None)
    await trial.settle()
    trial.shadow.offer("a")
    assert trial.shadow.slot.loaded is None
    assert trial.shadow.state is None
    assert trial.tally.compared_ == []


def said(*texts: str | None) -> list[Segment | None]:
    return [Segment(start_s=0, end_s=1, text=text) if text is not None else None for text in texts]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (said("Is anybody home?"), said("is anybody  home"), True),
        (said("Hello.", "World"), said("hello, world", None), True),
        (said(None), [], True),
        (said("Is anybody home?"), said("Is nobody home?"), False),
        (said("Hello"), said(None), False),
    ],
)
def test_texts_agree_but_for_case_and_punctuation(
    one: list[Segment | None], other: list[Segment | None], is_same: bool
) -> None:
    assert is_same_text(one, other) is is_same


def heard(*labels: str, top: str) -> FrameScores:
    tags = np.array([0.9 if label == top else 0.1 for label in labels], np.float32)
    frames = np.zeros((0, len(labels)), np.float32)
    return FrameScores(scores=frames, labels=labels, start_s=0, hop_s=1, window_s=1, tags=tags)


def test_sounds_agree_by_their_name_whatever_its_place() -> None:
    assert is_same_top_tag(heard("cat", "dog", top="dog"), heard("dog", "cat", "cow", top="dog"))
    assert not is_same_top_tag(heard("cat", "dog", top="dog"), heard("cat", "dog", top="cat"))
