"""What Grafana does with a query before Prometheus sees it: variables and macros. A stand-in: no Grafana runs here."""

from __future__ import annotations

import re
from typing import Any

import httpx

RATE_INTERVAL_S = 45
"""Grafana takes at least four scrapes, 60 s at the shipped 15 s. Ray exports every 10 s: less would see nothing."""


def substituted(expr: str, *, instances: list[str], range_s: int) -> str:
    """The query for Prometheus.

    Raises:
        ValueError: It holds a variable that no dashboard has.
    """
    joined = "|".join(re.escape(instance).replace("\\", "\\\\") for instance in instances)
    values = {"__rate_interval": f"{RATE_INTERVAL_S}s", "__range": f"{range_s}s", "instance": f"({joined})"}
    for name, value in values.items():
        expr = value.join(re.split(rf"\${name}\b", expr))
    # $1 is a part of a match, of label_replace; Grafana leaves it alone.
    if re.search(r"\$(?!\d)", expr):
        raise ValueError(f"unknown variable in {expr}")
    return expr


def metrics_of(expr: str) -> set[str]:
    """The names of the metrics that a query asks for."""
    without_strings = re.sub(r'"[^"]*"', "", expr)
    return set(re.findall(r"\b(?:ray|soundstage|nifi|haproxy)[a-z0-9]*[_:][\w:]+", without_strings))


def panels_of(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels without the headings of rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def ask(prometheus_url: str, path: str, **params: Any) -> Any:
    """An answer of Prometheus's API.

    Raises:
        ValueError: It says why not.
    """
    answer = httpx.get(f"{prometheus_url}/api/v1/{path}", params=params, timeout=30).json()
    if answer["status"] != "success":
        raise ValueError(answer["error"])
    return answer["data"]
