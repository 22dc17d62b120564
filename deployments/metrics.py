"""What the model stages tell Prometheus; Ray puts `ray_` before every name."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from deployments.answers import ServedModel

LATENCY_BOUNDS_S = [
    0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0,
    30.0,
]  # fmt: skip
"""From a second of sound on one core to half a minute of speech on a busy one. Fine, since Ray adds an observation to
a histogram's sum as the middle of its bucket."""


class StageMetrics:
    """Of one replica of a model stage.

    Args:
        stage: Name of the deployment.
    """

    def __init__(self, stage: str) -> None:
        tags = {"stage": stage}
        pair = ("stage", "version", "candidate")
        self._served = Gauge(
            "soundstage_model_served",
            "1 for the model version that the replica serves, 0 for those that it served before.",
            ("stage", "model", "version"),
        ).set_default_tags(tags)
        self._refused = Gauge(
            "soundstage_model_refused",
            "1 while the replica was asked for this version, or as a candidate, and cannot take it.",
            ("stage", "version"),
        ).set_default_tags(tags)
        self._compared = Counter(
            "soundstage_shadow_compared_total", "Requests that a candidate ran on too.", pair
        ).set_default_tags(tags)
        self._agreed = Counter(
            "soundstage_shadow_agreed_total", "Those on which it agreed with the model that serves.", pair
        ).set_default_tags(tags)
        self._dropped = Counter(
            "soundstage_shadow_dropped_total", "Requests that were left out since the replica is busy.", pair
        ).set_default_tags(tags)
        self._failed = Counter(
            "soundstage_shadow_failed_total", "Requests on which the candidate broke.", pair
        ).set_default_tags(tags)
        self._served_s = Histogram(
            "soundstage_shadow_served_seconds",
            "Time of the model that serves, on a compared request alone.",
            LATENCY_BOUNDS_S,
            pair,
        ).set_default_tags(tags)
        self._candidate_s = Histogram(
            "soundstage_shadow_candidate_seconds",
            "Time of the candidate, on the same request alone.",
            LATENCY_BOUNDS_S,
            pair,
        ).set_default_tags(tags)
        self._shown: dict[str, set[tuple[str, ...]]] = {"served": set(), "refused": set()}

    def show(self, state: ServedModel) -> None:
        """What the replica serves, and what it was refused."""
        refusals = [state.refused, state.candidate.refused if state.candidate is not None else None]
        served: set[tuple[str, ...]] = {(state.card.name, state.card.version)}
        refused: set[tuple[str, ...]] = {(refusal.version or "",) for refusal in refusals if refusal is not None}
        self._mark("served", self._served, ("model", "version"), served)
        self._mark("refused", self._refused, ("version",), refused)

    def compared(self, version: str, candidate: str, *, agreed: bool, served_s: float, candidate_s: float) -> None:
        """Both models have answered."""
        tags = {"version": version, "candidate": candidate}
        self._compared.inc(tags=tags)
        if agreed:
            self._agreed.inc(tags=tags)
        self._served_s.observe(served_s, tags=tags)
        self._candidate_s.observe(candidate_s, tags=tags)

    def dropped(self, version: str, candidate: str) -> None:
        """A request was left out."""
        self._dropped.inc(tags={"version": version, "candidate": candidate})

    def failed(self, version: str, candidate: str) -> None:
        """The candidate broke."""
        self._failed.inc(tags={"version": version, "candidate": candidate})

    def _mark(self, name: str, gauge: Gauge, keys: tuple[str, ...], current: set[tuple[str, ...]]) -> None:
        for values in self._shown[name] | current:
            gauge.set(int(values in current), tags=dict(zip(keys, values, strict=True)))
        self._shown[name] |= current
