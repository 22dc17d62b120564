"""Empties the Ray node that this runs on: `python -m deployments.drain`, before a Pod or machine is ended.

Ray gives the node no new work, Serve starts other replicas for those that are here and lets these finish. The command
ends when none is left, or at the deadline.
"""

from __future__ import annotations

import logging
import time
from typing import Annotated, Any

import ray
import typer
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]
from ray.util.state import list_actors

POLL_S = 0.5
REPLICA_CLASS_PREFIX = "ServeReplica:"


def n_replicas(node_id: str) -> int:
    """How many Serve replicas live on a node."""
    actors = list_actors(filters=[("state", "=", "ALIVE"), ("node_id", "=", node_id)], limit=10_000)
    return sum(actor.class_name.startswith(REPLICA_CLASS_PREFIX) for actor in actors)


def drain(node_id: str, address: str, *, deadline_s: int) -> None:
    """Ask Ray to empty a node.

    Args:
        node_id: Hexadecimal.
        address: Of Ray's GCS.
        deadline_s: When the node will be gone.

    Raises:
        RuntimeError: Ray refuses.
    """
    client: Any = ray._raylet.GcsClient(address=address)  # type: ignore[attr-defined]  # as `ray drain-node` does
    is_accepted, reason = client.drain_node(
        node_id,
        DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the node is about to be ended",
        time.time_ns() // 1_000_000 + 1000 * deadline_s,
    )
    if not is_accepted:
        raise RuntimeError(f"Ray does not drain {node_id}: {reason}")


def main(
    deadline_s: Annotated[int, typer.Option(help="When the node will be gone.", min=1)] = 180,
    min_s: Annotated[int, typer.Option(help="Until no load balancer sends requests here any more.", min=0)] = 10,
) -> None:
    """Empty the Ray node that this runs on, and wait until no replica is left."""
    started_s = time.monotonic()
    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    drain(node_id, context.gcs_address, deadline_s=deadline_s)
    while (n_left := n_replicas(node_id)) and time.monotonic() - started_s < deadline_s:
        time.sleep(POLL_S)
    time.sleep(max(0.0, min_s - (time.monotonic() - started_s)))
    print(f"{n_left} replicas left after {time.monotonic() - started_s:.0f} s")


if __name__ == "__main__":
    typer.run(main)
