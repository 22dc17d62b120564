"""A damaged model goes live, nobody sees an error, and somebody is told."""

from __future__ import annotations

import json

import pytest

from soundstage.models import registry
from soundstage.models.registry import STABLE
from soundstage.pipeline import SOUND_MODEL
from tests.observability.conftest import DAMAGED, Observed, poll

TOP1 = "soundstage_canary_top1_ratio"
EXPR = f"min by (model, version) ({TOP1}) < 0.6"
"""Of the alert CanaryAccuracyFell."""


def test_the_canary_is_content_with_the_model_that_ships(observed: Observed) -> None:
    poll(lambda: observed.value("sum(increase(soundstage_canary_requests_total[1m])) > 8"), 240, "the canary is silent")
    assert observed.value(TOP1) == 1
    assert (observed.value("soundstage_canary_word_error_ratio") or 0) <= 0.1
    assert observed.value(EXPR) is None
    assert not alerts(observed, "CanaryAccuracyFell")


def test_a_damaged_model_is_noticed_and_somebody_is_told(observed: Observed) -> None:
    home = observed.models.home
    good = registry.find(SOUND_MODEL, STABLE, observed.models).card.version
    registry.set_aliases(SOUND_MODEL, {STABLE: DAMAGED}, home)
    try:
        poll(
            lambda: observed.value(f'{TOP1}{{version="{DAMAGED}"}}') is not None, 240, "the new version does not serve"
        )
        poll(lambda: observed.value(EXPR) is not None, 120, "the expression of the alert does not hold")
        poll(lambda: alerts(observed, "CanaryAccuracyFell"), 120, "Alertmanager was not told")
        poll(lambda: posted(observed, "CanaryAccuracyFell"), 60, "nobody was told")
    finally:
        registry.set_aliases(SOUND_MODEL, {STABLE: good}, home)
    (alert,) = alerts(observed, "CanaryAccuracyFell")
    assert alert["labels"]["version"] == DAMAGED
    assert alert["labels"]["severity"] == "page"
    assert alert["annotations"]["runbook_url"] == "docs/operations.md#canaryaccuracyfell"
    # Nothing but the canary could have told: every request was answered.
    assert observed.value('sum(increase(ray_soundstage_requests_total{code="internal_error"}[5m])) or vector(0)') == 0
    poll(lambda: observed.value(f'{TOP1}{{version="{good}"}}') == 1, 240, "the good version did not come back")
    poll(lambda: observed.value(EXPR) is None, 120, "the alert stays")


def alerts(observed: Observed, name: str) -> list[dict[str, dict[str, str]]]:
    """Those that Alertmanager holds."""
    import httpx

    held = httpx.get(f"{observed.monitor.alertmanager_url}/api/v2/alerts", timeout=10).json()
    return [alert for alert in held if alert["labels"]["alertname"] == name]


def posted(observed: Observed, name: str) -> bool:
    """Whether Alertmanager told its receiver."""
    return any(
        alert["status"] == "firing" and alert["labels"]["alertname"] == name
        for _, body in observed.alerts.bodies
        for alert in json.loads(body)["alerts"]
    )


@pytest.mark.usefixtures("busy")
def test_which_version_serves_is_a_metric(observed: Observed) -> None:
    serving = 'sum by (stage) (ray_soundstage_model_served{stage="SoundClassifier"})'
    poll(lambda: observed.value(serving) == 1, 240, "not one version serves")
