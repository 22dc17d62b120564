"""NiFi's figures are fetched with a login that ends, and the oldest file of each queue is told; NiFi is played here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from nifi import flow
from nifi.canvas import Login
from nifi.metrics import OLDEST, Figures, server

LOGIN = Login(username="operator", password="twelve letters")


class PlayedNiFi:
    """Two queues with files, one that is empty, and the events of the day, which are no files on their way."""

    def __init__(self) -> None:
        self.tokens = ["first", "second"]
        self.n_logins = 0
        self.open_listings: set[str] = set()
        self.n_looks = 0
        self.is_away = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.is_away:
            raise httpx.ConnectError("nobody there")
        path = request.url.path.removeprefix("/nifi-api")
        if path == "/access/token":
            assert request.content == b"username=operator&password=twelve+letters"
            self.n_logins += 1
            return httpx.Response(201, text=self.tokens[0])
        if request.headers.get("Authorization") != f"Bearer {self.tokens[0]}":
            return httpx.Response(401)
        if path == "/flow/metrics/prometheus":
            return httpx.Response(200, text='nifi_amount_items_queued{component_type="Connection"} 3.0\n')
        if path == "/flow/process-groups/root/status":
            queues = [
                queue("fetch", 3, "Fetch", 'Ask "now"'),
                queue("deliver", 9, "Ask", "Put"),
                queue("empty", 0, "Put", "Done"),
            ]
            day = queue("day", 500, "Note", "Close the day") | {"name": flow.EVENTS}
            inner = {"connectionStatusSnapshots": [entity(each) for each in queues], "processGroupStatusSnapshots": []}
            outer = {
                "connectionStatusSnapshots": [entity(day)],
                "processGroupStatusSnapshots": [{"processGroupStatusSnapshot": inner}],
            }
            return httpx.Response(200, json={"processGroupStatus": {"aggregateSnapshot": outer}})
        _, _, name, _, *listing = path.split("/")
        return self._list(request.method, name, listing)

    def _list(self, method: str, name: str, listing: list[str]) -> httpx.Response:
        if method == "POST":
            self.open_listings.add(name)
            return httpx.Response(202, json={"listingRequest": {"id": "l-1", "finished": False}})
        assert listing == ["l-1"]
        if method == "DELETE":
            self.open_listings.remove(name)
            return httpx.Response(200, json={})
        self.n_looks += 1
        ages = [{"lineageDuration": age} for age in ((1500, 93_000) if name == "fetch" else (250,))]
        done = {"id": "l-1", "finished": self.n_looks % 2 == 0, "flowFileSummaries": ages}
        return httpx.Response(200, json={"listingRequest": done})


def queue(name: str, n_files: int, source: str, destination: str) -> dict[str, object]:
    return {
        "id": name,
        "name": name,
        "flowFilesQueued": n_files,
        "sourceName": source,
        "destinationName": destination,
    }


def entity(snapshot: dict[str, object]) -> dict[str, object]:
    return {"connectionStatusSnapshot": snapshot}


@pytest.fixture
def nifi() -> PlayedNiFi:
    return PlayedNiFi()


@pytest.fixture
def figures(nifi: PlayedNiFi) -> Iterator[Figures]:
    with httpx.Client(base_url="https://nifi:8443/nifi-api", transport=httpx.MockTransport(nifi)) as client:
        yield Figures(client, LOGIN)


def test_what_nifi_tells_and_the_oldest_file_of_each_queue(nifi: PlayedNiFi, figures: Figures) -> None:
    lines = figures.read().splitlines()
    assert lines[0] == 'nifi_amount_items_queued{component_type="Connection"} 3.0'
    assert [line for line in lines if line.startswith(OLDEST)] == [
        f'{OLDEST}{{source_name="Ask",destination_name="Put"}} 0.25',
        f'{OLDEST}{{source_name="Fetch",destination_name="Ask \\"now\\""}} 93.0',
    ]
    assert nifi.open_listings == set(), "NiFi keeps a listing until it is taken away"


def test_a_login_that_has_ended_is_made_anew(nifi: PlayedNiFi, figures: Figures) -> None:
    figures.read()
    figures.read()
    assert nifi.n_logins == 1
    nifi.tokens.pop(0)
    assert OLDEST in figures.read()
    assert nifi.n_logins == 2


@contextmanager
def listening(figures: Figures) -> Iterator[str]:
    with server(figures, "127.0.0.1", 0) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
            thread.join()


def test_prometheus_sees_that_nifi_is_away(nifi: PlayedNiFi, figures: Figures) -> None:
    with listening(figures) as url:
        answer = httpx.get(f"{url}/metrics")
        assert (answer.status_code, answer.headers["Content-Type"].partition(";")[0]) == (200, "text/plain")
        nifi.is_away = True
        assert httpx.get(f"{url}/metrics").status_code == 503
        assert httpx.get(f"{url}/other").status_code == 404
        # No password in what anybody can read.
        assert "twelve" not in json.dumps([answer.text, httpx.get(f"{url}/metrics").text])
