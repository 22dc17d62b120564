"""Log lines of a real run go into a real search engine under the shipped mapping, and the saved searches find them.

The engine is OpenSearch from Maven Central, run inside Java: neither Elasticsearch's server nor Filebeat nor Logstash
can be had from a package index. What Filebeat adds to a line is added here; Elasticsearch's lifecycle is not tested.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.local import free_port
from soundstage.models import registry
from soundstage.models.registry import STABLE
from soundstage.pipeline import SOUND_MODEL
from soundstage.sample import TRUTH
from tests.conftest import ROOT
from tests.contract.conftest import wav_bytes
from tests.observability.conftest import Observed, poll
from tests.observability.tools import how_to_get, missing
from training.data import read_clip

LOGGING = ROOT / "cluster" / "logging"
SEARCH = Path(__file__).parent / "search"
JARS = Path(os.environ.get("SOUNDSTAGE_CACHE", Path.home() / ".cache" / "soundstage")) / "search-engine"
STREAM = "logs-soundstage-default"
NOT_OF_A_REQUEST = ("Warnings and errors of the service", "http.request.id")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    if absent := missing("mvn", "java", "javac"):
        pytest.skip(f"SKIPPED, NOT PROVEN: {how_to_get(absent)}")
    if not any(JARS.glob("opensearch-2*.jar")):
        JARS.mkdir(parents=True, exist_ok=True)
        command = ["mvn", "-q", "-f", SEARCH / "pom.xml", "dependency:copy-dependencies", f"-DoutputDirectory={JARS}"]
        fetched = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if fetched.returncode:
            pytest.skip(f"SKIPPED, NOT PROVEN: Maven Central cannot be reached: {fetched.stdout[-300:]}")
    home = tmp_path_factory.mktemp("engine")
    (home / "config").mkdir()
    subprocess.run(
        ["javac", "-cp", f"{JARS}/*", "-d", str(home), str(SEARCH / "SearchServer.java")],
        check=True,
        capture_output=True,
    )
    http, transport = free_port(), free_port()
    command = ["java", "-Xmx512m", "-cp", f"{home}:{JARS}/*", "SearchServer", home, http, transport]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
    client = httpx.Client(base_url=f"http://127.0.0.1:{http}", timeout=30)
    try:
        poll(lambda: process.poll() is None and is_up(client), 180, lambda: (home / "log").read_text()[-2000:])
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait()


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/").is_success
    except httpx.HTTPError:
        return False


def put(engine: httpx.Client, path: str, name: str, **changes: Any) -> None:
    document = json.loads((LOGGING / "elasticsearch" / name).read_text(encoding="utf-8")) | changes
    answer = engine.put(path, json=document)
    assert answer.is_success, answer.text


@pytest.fixture(scope="module")
def indexed(engine: httpx.Client, observed: Observed, busy: None, sample_clip: Path) -> list[dict[str, Any]]:
    """Every line that the run has written so far, as it was indexed."""
    put(engine, "/_component_template/soundstage-mappings", "mappings.json")
    # OpenSearch has no lifecycle of this name; everything else is as it is shipped.
    put(engine, "/_index_template/soundstage", "index_template.json", composed_of=["soundstage-mappings"])
    poll(lambda: lines_of("replica_*Preprocessor*", observed), 180, "nothing was analysed")
    poll(
        lambda: any(event["outcome"] == "failure" for event in told_requests(observed)),
        180,
        "no request has failed",
    )
    analyse_for_a_while(observed, sample_clip)
    poll(lambda: any(event["duration"] > 1e9 for event in told_requests(observed)), 180, "no request took a second")
    refuse_a_model(observed)
    canary = [json.loads(line) for line in canary_log(observed)]
    replicas = [
        json.loads(line) | {"log": json.loads(line)["log"] | added["log"], "host": added["host"]}
        for line, added in lines_of("replica_*", observed)
    ]
    ray = [
        {"@timestamp": now(), "message": line, "event": {"dataset": "ray"}, "service": {"name": "ray"}, **added}
        for pattern in ("controller_*", "proxy_*")
        for line, added in lines_of(pattern, observed)
    ]
    documents = [*replicas, *canary, *ray]
    body = "".join(f'{{"create": {{}}}}\n{json.dumps(document)}\n' for document in documents)
    answer = engine.post(
        f"/{STREAM}/_bulk", params={"refresh": "true"}, content=body, headers={"Content-Type": "application/x-ndjson"}
    ).json()
    refused = [item["create"]["error"] for item in answer["items"] if "error" in item["create"]]
    assert not refused, refused[:3]
    assert len(answer["items"]) == len(documents)
    return documents


def analyse_for_a_while(observed: Observed, clip: Path) -> None:
    """A recording that takes more than a second to listen to."""
    body = wav_bytes(np.tile(read_clip(clip), 10))
    answer = observed.client.post("/v1/analyze", content=body, headers={"Content-Type": "audio/wav"})
    assert answer.is_success, answer.text


def refuse_a_model(observed: Observed) -> None:
    """Something to complain of: a version that is not there; the one before serves on."""
    home = observed.models.home
    good = registry.find(SOUND_MODEL, STABLE, observed.models).card.version
    registry.set_aliases(SOUND_MODEL, {STABLE: "404.0.0"}, home)
    try:
        poll(
            lambda: any("cannot be served" in line for line, _ in lines_of("replica_*SoundClassifier*", observed)),
            180,
            "the missing version was not refused",
        )
    finally:
        registry.set_aliases(SOUND_MODEL, {STABLE: good}, home)


def lines_of(pattern: str, observed: Observed) -> list[tuple[str, dict[str, Any]]]:
    """Whole lines of Ray's log files, and what Filebeat adds to each."""
    return [
        (line, {"log": {"file": {"path": str(path)}, "offset": 0}, "host": {"name": "node"}})
        for path in sorted(observed.logs_dir.glob(f"{pattern}.log"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def told_requests(observed: Observed) -> list[dict[str, Any]]:
    """What is told of each request that was answered."""
    events = [json.loads(line).get("event", {}) for line, _ in lines_of("replica_*Ingress*", observed)]
    return [event for event in events if event.get("action") == "request"]


def canary_log(observed: Observed) -> list[str]:
    """What the canary wrote."""
    return [
        line
        for line in (observed.monitor.state_dir / "canary.log").read_text(encoding="utf-8").splitlines()
        if line.startswith("{")
    ]


def now() -> str:
    return datetime.now(UTC).isoformat()


def searches() -> list[Any]:
    objects = [json.loads(line) for line in (LOGGING / "kibana" / "objects.ndjson").read_text().splitlines()]
    return [pytest.param(found["attributes"], id=found["id"]) for found in objects if found["type"] == "search"]


def found(engine: httpx.Client, query: str) -> list[dict[str, Any]]:
    body = {"query": {"query_string": {"query": query}}, "size": 1000}
    hits: list[dict[str, Any]] = engine.post("/logs-soundstage-*/_search", json=body).json()["hits"]["hits"]
    return [hit["_source"] for hit in hits]


@pytest.mark.parametrize("search", searches())
def test_every_saved_search_finds_lines_with_its_columns(
    engine: httpx.Client, indexed: list[dict[str, Any]], search: dict[str, Any]
) -> None:
    query = json.loads(search["kibanaSavedObjectMeta"]["searchSourceJSON"])["query"]
    assert query["language"] == "lucene"
    hits = found(engine, query["query"])
    assert 0 < len(hits) < len(indexed)
    for column in search["columns"]:
        # What went wrong in this run may have gone wrong without a request.
        lines = indexed if (search["title"], column) == NOT_OF_A_REQUEST else hits
        assert any(has(line, column) for line in lines), f"no line has {column}"


def has(node: Any, name: str) -> bool:
    """Whether a field is there, written as objects or with dots as in ECS's `log.level`; to an index both are one."""
    if not isinstance(node, dict):
        return False
    first, _, rest = name.partition(".")
    return name in node or (first in node and has(node[first], rest))


def test_a_field_that_is_not_mapped_is_refused(engine: httpx.Client, indexed: list[dict[str, Any]]) -> None:
    answer = engine.post(f"/{STREAM}/_create/x", json={"@timestamp": now(), "message": "m", "surprise": 1})
    assert answer.status_code == 400
    assert "strict" in answer.text


def test_a_request_is_followed_by_its_id(engine: httpx.Client, indexed: list[dict[str, Any]]) -> None:
    clips = found(engine, "event.action:clip AND soundstage.audio_seconds:>30")
    requests = {line["http"]["request"]["id"]: line for line in found(engine, "event.action:request")}
    # The last clip may have been written when its request was not.
    clip = next(line for line in clips if line["http"]["request"]["id"] in requests)
    request = requests[clip["http"]["request"]["id"]]
    assert request["http"]["response"]["status_code"] == 200
    assert request["event"]["duration"] >= clip["event"]["duration"]
    assert all("@" in model for model in clip["soundstage"]["models"])


def test_a_request_of_the_canary_is_followed_by_its_trace(engine: httpx.Client, indexed: list[dict[str, Any]]) -> None:
    asked = found(engine, "service.name:soundstage\\-canary AND event.outcome:success")

    def stages(trace_id: str) -> set[str]:
        lines = found(engine, f'trace.id:"{trace_id}" AND service.name:soundstage')
        return {line["soundstage"]["stage"] for line in lines}

    assert {"Ingress", "Preprocessor"} in [stages(line["trace"]["id"]) for line in asked[:20]]


def test_no_line_holds_what_was_said(indexed: list[dict[str, Any]]) -> None:
    written = json.dumps(indexed).lower()
    for phrase in TRUTH.text.lower().split(", "):
        assert phrase.strip(".,") not in written
