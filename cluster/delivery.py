"""The steps from labelled audio to the model that is live; `make train-sounds`, `make gate` …, for people and Jenkins.

Each step reads what it needs from the environment, does one thing through the commands that people have, and ends with
exit code 1 and the reason where the next one must not begin. What later steps need to know is in $OUTPUT/delivery.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

POLL_S = 5.0
TAKE_OVER_TIMEOUT_S = 600.0
"""Replicas look an alias up every 30 s, and load the model then."""
MAX_WORSE = 0.005
"""By so much the challenger's share of right clips may lie below the champion's: chance, with a few hundred clips."""


class StopDelivery(Exception):
    """The model must not go on; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What is delivered, and where to.

    Attributes:
        model: Its name.
        data: Labelled clips to train on.
        test_data: Labelled clips that nothing was trained on.
        recipe: How it is trained.
        output: Where training writes the model.
        registry: That the service reads.
        service_url: The running service.
        prometheus_url: That watches it.
        canary_s: How long the candidate is tried out.
        min_agreement: Of candidate and champion on live requests.
    """

    model: str
    data: str
    test_data: str
    recipe: str
    output: Path
    registry: str
    service_url: str
    prometheus_url: str
    canary_s: float
    min_agreement: float

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Delivery:
        """As Jenkins' parameters and `make NAME=value` give it."""
        return cls(
            model=environment.get("MODEL", "soundstage-sounds"),
            data=environment.get("DATA", ""),
            test_data=environment.get("TEST_DATA", ""),
            recipe=environment.get("RECIPE", "training/sound_classification/config.yaml"),
            output=Path(environment.get("OUTPUT", "runs/models")),
            registry=environment.get("SOUNDSTAGE_REGISTRY", ""),
            service_url=environment.get("SERVICE_URL", "http://127.0.0.1:8000"),
            prometheus_url=environment.get("PROMETHEUS_URL", "http://127.0.0.1:9090"),
            canary_s=60 * float(environment.get("CANARY_MINUTES", "30")),
            min_agreement=float(environment.get("MIN_AGREEMENT", "0.8")),
        )

    # Steps, in their order

    def train(self) -> None:
        """Train; broken off, the same command goes on."""
        _run("-m", "training.sound_classification.train", "--data", _needed("DATA", self.data), "--config", self.recipe,
             "--output", str(self.output), "--cross-validate")  # fmt: skip

    def gate(self) -> None:
        """Hold the new model against the one that is live, on the same clips.

        Raises:
            StopDelivery: It is worse.
        """
        champion = self._score({"SOUNDSTAGE_REGISTRY": self.registry})
        challenger = self._score({"SOUNDSTAGE_MODELS_DIR": str(self.output.absolute()), "SOUNDSTAGE_REGISTRY": ""})
        live = self._live_version()
        self._remember({"champion": live, "champion_top1": champion, "challenger_top1": challenger})
        print(f"champion {live}: {champion:.4f}; challenger {self._new_version()}: {challenger:.4f}")
        if challenger < champion - MAX_WORSE:
            raise StopDelivery(f"the new model is worse: {challenger:.4f} of the clips right, not {champion:.4f}")

    def export_model(self) -> None:
        """Write it for TensorFlow Serving as well."""
        shutil.rmtree(self.output / "serving", ignore_errors=True)
        _soundstage("models", "export", str(self._new_folder()), "--output", str(self.output / "serving"))

    def canary(self) -> None:
        """Let the service try it out on a share of its requests, of which no client notices anything.

        Raises:
            StopDelivery: Replicas refuse it, nothing was compared, or it says too often something else.
        """
        _soundstage("models", "promote", str(self._new_folder()), "--to", self.registry, "--alias", "candidate")
        wanted = self._new_version()
        _until(f"a replica tries {wanted} out", lambda: self._is_tried_out(wanted))
        time.sleep(self.canary_s)
        window = f"{max(60, round(self.canary_s))}s"
        labels = f'{{stage="SoundClassifier",candidate="{wanted}"}}[{window}]'
        compared = self._ask(f"sum(increase(ray_soundstage_shadow_compared_total{labels}))")
        agreed = self._ask(f"sum(increase(ray_soundstage_shadow_agreed_total{labels}))")
        failed = self._ask(f"sum(increase(ray_soundstage_shadow_failed_total{labels}))")
        if failed:
            raise StopDelivery(f"{wanted} failed on {failed:.0f} live requests")
        if not compared:
            raise StopDelivery(f"{wanted} was compared on no request; is `shadow` set, and does anybody call?")
        print(f"{wanted} agrees on {agreed / compared:.1%} of {compared:.0f} live requests")
        if agreed / compared < self.min_agreement:
            raise StopDelivery(f"{wanted} says too often something else: look before you promote it by hand")

    def promote(self) -> None:
        """Put it live."""
        _soundstage("models", "promote", self.model, "--version", self._new_version(), "--to", self.registry)

    def verify_live(self) -> None:
        """Wait until every replica serves it, and hold what is live against the gate's figure.

        Raises:
            StopDelivery: Replicas refuse it, or the service is worse than the model was.
        """
        wanted = self._new_version()
        _until(f"every replica serves {wanted}", lambda: self._is_served(wanted))
        measured = self._score({}, "--url", self.service_url)
        expected = self._remembered()["challenger_top1"]
        print(f"live: {measured:.4f}")
        if measured < expected - MAX_WORSE:
            raise StopDelivery(f"the service has {measured:.4f} of the clips right, the model alone had {expected:.4f}")

    def rollback(self) -> None:
        """Put the champion back."""
        champion = self._remembered()["champion"]
        _soundstage("models", "promote", self.model, "--version", champion, "--to", self.registry, "--force")
        _until(f"every replica serves {champion}", lambda: self._is_served(champion))

    # What they ask

    def _score(self, environment: Mapping[str, str], *options: str) -> float:
        options = options or ("--model", self.model)
        data = _needed("TEST_DATA", self.test_data)
        printed = _run(
            "-m", "training.sound_classification.evaluate", "--data", data, *options, environment=environment
        )
        return float(json.loads(printed.splitlines()[-1])["top1"])

    def _new_folder(self) -> Path:
        folders = [card.parent for card in self.output.glob(f"{self.model}/*/model.json")]
        if not folders:
            raise StopDelivery(f"no {self.model} in {self.output}; run make train-sounds")
        return max(folders, key=lambda folder: folder.stat().st_mtime)

    def _new_version(self) -> str:
        return self._new_folder().name

    def _live_version(self) -> str:
        return str(self._served()[0]["version"])

    def _served(self) -> list[dict[str, Any]]:
        key = os.environ.get("SOUNDSTAGE_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = httpx.get(f"{self.service_url}/v1/models", headers=headers, timeout=30)
        served = [body for body in answer.raise_for_status().json()["data"] if body["id"] == self.model]
        if not served:
            raise StopDelivery(f"the service does not serve {self.model}")
        return served

    def _is_served(self, version: str) -> bool:
        served = self._served()
        if reason := next((body["refused"] for body in served if body["refused"]), None):
            raise StopDelivery(f"a replica refuses {version}: {reason['reason']}")
        return [body["version"] for body in served] == [version]

    def _is_tried_out(self, version: str) -> bool:
        candidates = [body["candidate"] for body in self._served() if body["candidate"]]
        if not candidates:
            raise StopDelivery("the service tries nothing out: set user_config.shadow of SoundClassifier")
        if reason := next((candidate["refused"] for candidate in candidates if candidate["refused"]), None):
            raise StopDelivery(f"a replica refuses {version}: {reason['reason']}")
        return any(candidate["version"] == version for candidate in candidates)

    def _ask(self, query: str) -> float:
        answer = httpx.get(f"{self.prometheus_url}/api/v1/query", params={"query": query}, timeout=30)
        result = answer.raise_for_status().json()["data"]["result"]
        return float(result[0]["value"][1]) if result else 0.0

    def _remember(self, facts: Mapping[str, Any]) -> None:
        (self.output / "delivery.json").write_text(json.dumps(facts), encoding="utf-8")

    def _remembered(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.output / "delivery.json").read_text(encoding="utf-8"))
        return facts


def _needed(name: str, value: str) -> str:
    if not value:
        raise StopDelivery(f"{name} is not given")
    return value


def _run(*args: str, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(  # noqa: S603
        [sys.executable, *args],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode != 0:
        raise StopDelivery(f"{' '.join(args[:4])} … ended with exit code {done.returncode}")
    return done.stdout


def _soundstage(*args: str) -> None:
    command = Path(sys.executable).with_name("soundstage")
    done = subprocess.run([command, *args], check=False)  # noqa: S603
    if done.returncode != 0:
        raise StopDelivery(f"soundstage {' '.join(args[:2])} refuses")


def _until(what: str, ask: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TAKE_OVER_TIMEOUT_S
    while not ask():
        if time.monotonic() > deadline:
            raise StopDelivery(f"not within {TAKE_OVER_TIMEOUT_S:.0f} s: {what}")
        time.sleep(POLL_S)


STEPS: dict[str, Callable[[Delivery], None]] = {
    "train-sounds": Delivery.train,
    "gate": Delivery.gate,
    "export-model": Delivery.export_model,
    "canary": Delivery.canary,
    "promote": Delivery.promote,
    "verify-live": Delivery.verify_live,
    "rollback": Delivery.rollback,
}


def main() -> None:
    """Run the step that is named."""
    if len(sys.argv) != 2 or sys.argv[1] not in STEPS:
        sys.exit(f"usage: python -m cluster.delivery {' | '.join(STEPS)}")
    try:
        STEPS[sys.argv[1]](Delivery.from_environment(os.environ))
    except (StopDelivery, httpx.HTTPError) as e:
        sys.exit(f"{sys.argv[1]}: {e}")


if __name__ == "__main__":
    main()
