"""The simulation of many streams: what goes in comes out, and more needs more."""

from __future__ import annotations

import pytest

from benchmarks.scaling import Assumptions, best_target, profile, simulate

ASSUMED = Assumptions(core_s_per_audio_s=0.05)


def test_enough_nodes_for_the_load_and_not_many_more() -> None:
    found = simulate(1_000, ASSUMED)
    assert found["cores"] == 50
    assert found["cores"] / ASSUMED.target_utilisation <= found["nodes"] * ASSUMED.cores_per_node
    assert (found["nodes"] - 1) * ASSUMED.cores_per_node < found["cores"] / ASSUMED.target_utilisation
    assert found["wait_once_settled_s"] == 0


def test_more_streams_cost_more_and_something_gives_out() -> None:
    few, many = simulate(100, ASSUMED), simulate(100_000, ASSUMED)
    assert many["nodes"] > few["nodes"]
    assert few["gives_out_first"] == "nothing"
    assert many["gives_out_first"] != "nothing"


@pytest.mark.parametrize("ramp_s", [60.0, 3600.0])
def test_a_ramp_that_is_faster_than_nodes_start_makes_work_wait(ramp_s: float) -> None:
    found = simulate(5_000, ASSUMED, ramp_s=ramp_s)
    assert (found["longest_wait_s"] > 1) is (ramp_s < 100)
    assert (found["refused_on_the_ramp"] > 0) is (ramp_s < 100)
    assert found["longest_wait_s"] <= ASSUMED.max_wait_s


def test_the_target_is_the_most_requests_that_nobody_waits_too_long_for() -> None:
    delays_s = {1: 0.3, 2: 0.4, 4: 0.9, 8: 1.9, 16: 3.3}
    assert best_target([{"clients": n, "p95_s": p95_s} for n, p95_s in delays_s.items()]) == 8


def test_a_spike_of_three_times_the_peak_is_in_the_profile() -> None:
    steps = profile(10.0, ramp_s=80, spike_s=20)
    assert max(rate for _, rate in steps) == 30
    assert (20, 30.0) in steps
