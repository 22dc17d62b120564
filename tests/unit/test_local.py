"""The service on this machine: ports of its own."""

from __future__ import annotations

import socket
from dataclasses import astuple

from deployments.local import FREE_PORTS, Ports, free_port

RAY_WORKERS = range(10_002, 20_000)


def test_no_port_is_given_out_twice_nor_where_ray_or_the_system_may_take_it() -> None:
    given = [*astuple(Ports.free()), *(free_port() for _ in range(20)), *astuple(Ports.free())]
    assert len(set(given)) == len(given)
    assert not set(given) & set(RAY_WORKERS)
    assert max(given) < 30_000


def test_a_port_that_somebody_listens_on_is_left_out() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", free_port()))
        listening.listen()
        given = {free_port() for _ in FREE_PORTS}  # once around
        assert listening.getsockname()[1] not in given
