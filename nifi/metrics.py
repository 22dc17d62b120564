"""NiFi's figures for Prometheus, and how long the oldest file of each queue has been under way.

NiFi tells its figures only to whoever has logged in, for some hours at most, which Prometheus cannot do by itself; and
it does not tell which file has waited longest. This stands between them: it logs in, passes on what
`/nifi-api/flow/metrics/prometheus` says, and looks into the queues.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from nifi import flow
from nifi.canvas import Login

PORT = 9106
OLDEST = "soundstage_nifi_oldest_file_seconds"
MAX_QUEUES = 16
"""Looked into at each scrape, the fullest first. NiFi lists the first hundred files of each."""
LISTING_TIMEOUT_S = 5.0
UNAUTHORIZED = 401


class Figures:
    """What one NiFi tells.

    Args:
        client: Whose base URL is that of NiFi's API.
        login: Where it asks for one.
    """

    def __init__(self, client: httpx.Client, login: Login) -> None:
        self._client = client
        self._login = login

    def read(self) -> str:
        """All figures, in Prometheus's text format.

        Raises:
            httpx.HTTPError: NiFi does not answer, or refuses.
        """
        lines = [
            self._ask("GET", "/flow/metrics/prometheus").text.rstrip("\n"),
            f"# HELP {OLDEST} How long the oldest file in a queue has been under way, of the first hundred.",
            f"# TYPE {OLDEST} gauge",
        ]
        for queue in self._queues():
            names = ((label, queue[key]) for label, key in _LABELS)
            labels = ",".join(f'{label}="{_escaped(text)}"' for label, text in names)
            lines.append(f"{OLDEST}{{{labels}}} {self._oldest_s(queue)}")
        return "\n".join(lines) + "\n"

    def _queues(self) -> list[dict[str, Any]]:
        """Those in which files wait, the fullest first, but for that of events, which wait for the day's report."""
        status = self._ask("GET", "/flow/process-groups/root/status?recursive=true").json()["processGroupStatus"]
        found = [queue for queue in _connections(status["aggregateSnapshot"]) if queue["flowFilesQueued"]]
        found = [queue for queue in found if queue["name"] != flow.EVENTS]
        return sorted(found, key=lambda queue: -int(queue["flowFilesQueued"]))[:MAX_QUEUES]

    def _oldest_s(self, queue: dict[str, Any]) -> float:
        requests = f"/flowfile-queues/{queue['id']}/listing-requests"
        listing = self._ask("POST", requests).json()["listingRequest"]
        try:
            deadline_s = time.monotonic() + LISTING_TIMEOUT_S
            while not listing["finished"] and time.monotonic() < deadline_s:
                time.sleep(0.02)
                listing = self._ask("GET", f"{requests}/{listing['id']}").json()["listingRequest"]
        finally:
            self._ask("DELETE", f"{requests}/{listing['id']}")
        ages_ms = [float(file["lineageDuration"]) for file in listing.get("flowFileSummaries") or ()]
        return max(ages_ms, default=0.0) / 1e3

    def _ask(self, method: str, path: str) -> httpx.Response:
        answer = self._client.request(method, path)
        if answer.status_code == UNAUTHORIZED and self._login.username is not None:
            form = {"username": self._login.username, "password": self._login.password or ""}
            token = self._client.post("/access/token", data=form).raise_for_status().text
            self._client.headers["Authorization"] = f"Bearer {token}"
            answer = self._client.request(method, path)
        return answer.raise_for_status()


_LABELS = (("source_name", "sourceName"), ("destination_name", "destinationName"))


def _connections(snapshot: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for entity in snapshot["connectionStatusSnapshots"]:
        yield entity["connectionStatusSnapshot"]
    for child in snapshot["processGroupStatusSnapshots"]:
        yield from _connections(child["processGroupStatusSnapshot"])


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def server(figures: Figures, host: str, port: int) -> ThreadingHTTPServer:
    """What Prometheus asks: `GET /metrics`. While NiFi does not answer, neither does this, so that `up` is 0."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                status, text = (200, figures.read()) if self.path == "/metrics" else (404, "see /metrics\n")
            except (httpx.HTTPError, KeyError, ValueError) as e:
                status, text = 503, f"NiFi: {type(e).__name__}: {e}\n"
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Not of every scrape."""

    return ThreadingHTTPServer((host, port), Handler)
