"""The simulation of many streams: what goes in comes out, and more needs more."""

from __future__ import annotations

import pytest

from benchmarks.scaling import Assumptions, knee, profile, simulate

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
    waits = simulate(5_000, ASSUMED, ramp_s=ramp_s)["longest_wait_on_the_ramp_s"]
    assert (waits > 1) is (ramp_s < 100)


def test_the_knee_is_where_throughput_ends_to_grow() -> None:
    rates = {1: 4.0, 2: 7.0, 4: 11.0, 8: 14.0, 16: 14.9, 32: 15.0}
    assert knee([{"clients": n, "requests_per_s": rate} for n, rate in rates.items()]) == 8


def test_a_spike_of_three_times_the_peak_is_in_the_profile() -> None:
    steps = profile(10.0, ramp_s=80, spike_s=20)
    assert max(rate for _, rate in steps) == 30
    assert (20, 30.0) in steps
