"""The flow as it is built: whole, as exported, drawn, and in the service's own words."""

from __future__ import annotations

import io
import json
import re
import wave
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
from nipyapi import nifi as api

from deployments.api.routes import create_app
from deployments.api.schemas import DOCUMENT_FORMATS, AnalyzeQuery
from deployments.auth import ApiKeys
from deployments.settings import AppArgs, IngressConfig
from nifi import flow, picture
from nifi.differences import differences
from nifi.flow import PARAMETERS, Tuning
from nifi.parts import OLDEST_FIRST, PRIORITY
from soundstage.audio.decode import decode
from soundstage.client import MEDIA_TYPES
from soundstage.errors import ERRORS
from soundstage.params import Limits
from soundstage.types import EncodedAudio
from tests.unit.served_app import KnownEngine

Model = dict[str, Any]
DEFINITION: Model = json.loads(flow.to_json(flow.build()))


def groups(group: Model | None = None) -> Iterator[Model]:
    """Every group, the outermost first."""
    group = DEFINITION["flowContents"] if group is None else group
    yield group
    for child in group["processGroups"]:
        yield from groups(child)


def parts(kind: str) -> list[Model]:
    return [part for group in groups() for part in group[kind]]


PROCESSORS = {part["identifier"]: part for part in parts("processors")}
CONNECTIONS = parts("connections")


@pytest.fixture(scope="module")
def routes() -> Mapping[str, Any]:
    paths: Mapping[str, Any] = create_app(KnownEngine(), AppArgs(), ApiKeys({}), IngressConfig).openapi()["paths"]
    return paths


def processor(name: str) -> Model:
    (found,) = [part for part in PROCESSORS.values() if part["name"] == name]
    return found


# As exported


def test_the_exported_definition_is_what_the_code_builds() -> None:
    assert flow.DEFINITION.read_text(encoding="utf-8") == flow.to_json(flow.build())


def test_the_picture_is_drawn_from_the_definition() -> None:
    assert picture.PICTURE.read_text(encoding="utf-8") == picture.draw(DEFINITION)


def test_the_export_holds_no_path_and_no_secret_of_a_machine() -> None:
    text = flow.to_json(flow.build())
    assert not re.search(r'"/(?!rushes")[a-z]|/home/|/root/|/tmp/|/work/', text)
    (context,) = DEFINITION["parameterContexts"].values()
    for parameter in context["parameters"]:
        assert parameter.get("value") is None or not parameter["sensitive"]
    assert [parameter["name"] for parameter in context["parameters"] if parameter["sensitive"]] == ["authorization"]


def test_nifis_own_model_reads_the_export() -> None:
    class Answer:
        data = flow.DEFINITION.read_text(encoding="utf-8")

    snapshot = api.ApiClient().deserialize(Answer(), "RegisteredFlowSnapshot")
    assert api.ApiClient().sanitize_for_serialization(snapshot) == DEFINITION


def test_two_builds_have_the_same_identifiers_and_no_two_parts_share_one() -> None:
    assert flow.build() == flow.build()
    kinds = ("processors", "connections", "inputPorts", "outputPorts", "controllerServices", "labels")
    counts = Counter(part["identifier"] for kind in kinds for part in parts(kind))
    counts.update(group["identifier"] for group in groups())
    assert max(counts.values()) == 1


# Whole


def test_every_file_finds_its_way() -> None:
    ends = {part["identifier"] for kind in ("processors", "inputPorts", "outputPorts") for part in parts(kind)}
    left = {connection["source"]["id"] for connection in CONNECTIONS}
    reached = {connection["destination"]["id"] for connection in CONNECTIONS}
    for connection in CONNECTIONS:
        assert {connection["source"]["id"], connection["destination"]["id"]} <= ends
    starts = {"ListFile", "HandleHttpRequest", "GetFile", "GenerateFlowFile"}
    for identifier, part in PROCESSORS.items():
        type_name = part["type"].rpartition(".")[2]
        assert identifier in reached or type_name in starts, part["name"]
        assert identifier in left or part["autoTerminatedRelationships"], part["name"]
    (entry,) = DEFINITION["flowContents"]["inputPorts"]
    for port in [*parts("inputPorts"), *parts("outputPorts")]:
        assert port["identifier"] in left, port["name"]
        assert port["identifier"] in reached or port == entry, port["name"]


def test_files_are_let_go_where_that_loses_nothing() -> None:
    """A relationship that ends is one that holds no rush of its own."""
    assert {
        (part["name"], ending)
        for part in PROCESSORS.values()
        for ending in part["autoTerminatedRelationships"]
        if ending in {"failure", "unmatched", "Failure", "Retry", "No Retry", "not.found", "retries_exceeded"}
    } == {
        # Answers to a client that has gone; it was told by the broken connection, and sends again.
        *((f"Say {status}", "failure") for status in (202, 400, 503)),
        *((f"Say {status}: text", "failure") for status in (202, 400, 503)),
        # Is listed again, being another size.
        ("Has it stopped growing?", "unmatched"),
        # A thousand million times fifteen seconds.
        ("Wait a while", "retries_exceeded"),
        # Attributes become JSON always.
        ("Write the event", "failure"),
        ("Write the reason", "failure"),
        # Notices.
        ("Is there a webhook?", "unmatched"),
        *(("Call the webhook", ending) for ending in ("Failure", "No Retry", "Retry")),
    }


def test_nothing_in_a_queue_expires_and_all_of_them_are_bounded_but_ways_back() -> None:
    for connection in CONNECTIONS:
        assert connection["flowFileExpiration"] == "0 sec"
        if not connection["backPressureObjectThreshold"]:
            is_way_back = connection["source"]["groupId"] == connection["destination"]["groupId"]
            assert is_way_back, connection["identifier"]


def test_short_and_urgent_files_go_first_in_every_queue_before_the_service() -> None:
    """Else they would wait behind all that is in the queues below the list."""
    ask = processor(flow.ASK)["identifier"]
    after, before = {ask}, set[str]()
    way_back = {"Wait a while", "Once more?", "Count the rounds", "Is it the file?"}
    queues = []
    while after:
        found = [
            connection
            for connection in CONNECTIONS
            if connection["destination"]["id"] in after and connection["source"]["name"] not in way_back
        ]
        queues += found
        before |= after
        after = {
            connection["source"]["id"]
            for connection in found
            if connection["source"]["id"] not in before and connection["source"]["name"] != "Look before reading"
        }
    assert len(queues) > 10
    for queue in queues:
        if queue["source"]["id"] != queue["destination"]["id"]:
            assert queue["prioritizers"] == [PRIORITY, OLDEST_FIRST], queue["source"]["name"]


def test_every_part_says_why_it_is_there() -> None:
    for part in [*PROCESSORS.values(), *parts("controllerServices"), *list(groups())]:
        assert part["comments"], part["name"]
    for group in groups():
        assert group["labels"], group["name"]


def test_every_parameter_is_used_and_every_used_one_is_declared() -> None:
    text = json.dumps([part["properties"] for part in [*PROCESSORS.values(), *parts("controllerServices")]])
    text += json.dumps([part["schedulingPeriod"] for part in PROCESSORS.values()])
    assert set(re.findall(r"#\{(\w+)\}", text)) == {parameter.name for parameter in PARAMETERS}


def test_a_secret_is_in_sensitive_properties_alone() -> None:
    for part in PROCESSORS.values():
        for name, value in part["properties"].items():
            if "#{authorization}" in (value or ""):
                assert (value, part["propertyDescriptors"][name]["sensitive"]) == ("#{authorization}", True)


def test_tuning_reaches_the_flow() -> None:
    changed = differences(DEFINITION, flow.build(Tuning(concurrency=3, window=5)), {})
    assert {each.action for each in changed} == {"change"}
    assert {"concurrentlySchedulableTaskCount", "backPressureObjectThreshold", "Socket Idle Connections"} <= {
        field for each in changed for field in each.fields
    }


# In the service's words


def test_the_service_has_what_the_flow_asks_for(routes: Mapping[str, Any]) -> None:
    ask = processor(flow.ASK)["properties"]
    url = httpx.URL(ask["HTTP URL"].replace("#{service_url}", "http://x").replace("${query}", ""))
    method = routes[url.path][ask["HTTP Method"].lower()]
    known = {parameter["name"] for parameter in method["parameters"] if parameter["in"] == "query"}
    request = processor("Make the request")["properties"]["query"]
    path = processor("Read the path")["properties"]["options"]
    asked = set(re.findall(r"(?:^|[&'])(\w+)=", request + path))
    assert {"response_format", "documents", "language", "frame_rate", "start_timecode"} <= asked <= known


def test_what_is_asked_for_by_default_is_accepted() -> None:
    defaults = {parameter.name: parameter.value or "" for parameter in PARAMETERS}
    text = processor("Make the request")["properties"]["query"].replace("${options}", "")
    for name, value in defaults.items():
        text = text.replace(f"#{{{name}}}", value)
    asked = dict(httpx.QueryParams(text).items())
    query = AnalyzeQuery.model_validate(asked)
    assert query.response_format == "ndjson"
    assert set(query.documents.split(",")) <= set(DOCUMENT_FORMATS)
    assert int(defaults["max_bytes"]) == Limits().max_upload_bytes


@pytest.mark.parametrize("found", ["audio/vnd.wave", "video/quicktime", "application/x-matroska", "application/mxf"])
def test_types_that_nifi_tells_are_sent_as_the_service_takes_them(found: str) -> None:
    match = re.fullmatch(
        r"\$\{mime\.type:matches\('(.*)'\):ifElse\(\$\{mime\.type\},'(.*)'\)\}",
        processor(flow.ASK)["properties"]["Request Content-Type"],
    )
    assert match is not None
    sent = found if re.fullmatch(match[1], found) else match[2]
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(bytes(32_000))
    audio = EncodedAudio(data=file.getvalue(), media_type=sent)
    assert sum(len(block.samples) for block in decode(audio, Limits())) == 16_000


def test_errors_are_told_apart_by_the_services_own_codes() -> None:
    codes = {error.code for error in ERRORS} | {"internal_error"}
    for name in ("What came of it?", "Once more?"):
        text = json.dumps(processor(name)["properties"])
        used = {
            code for given in re.findall(r"error_code:in\(([^)]*)\)", text) for code in re.findall(r"'(\w+)'", given)
        }
        assert used
        assert used <= codes
    waits = processor("Is it the file?")["properties"]["not the file"]
    blamed = {
        error.status_code for error in ERRORS if error.code in {"unusable_audio", "unsupported_media", "too_large"}
    }
    assert not blamed & {int(code) for code in re.findall(r"'(\d+)'", waits)}


def test_every_file_that_the_command_line_takes_is_watched_for() -> None:
    pattern = next(parameter.value for parameter in PARAMETERS if parameter.name == "watch_pattern")
    assert pattern is not None
    for suffix in MEDIA_TYPES:
        assert re.fullmatch(pattern, f"take 1{suffix}")
        assert re.fullmatch(pattern, f"TAKE{suffix.upper()}")
        assert not re.fullmatch(pattern, f".take{suffix}")
    for name in ("take.srt", "take.json", "take.csv", "take.wav.part"):
        assert not re.fullmatch(pattern, name)


# The picture


def test_the_picture_names_every_group_and_every_processor() -> None:
    root = ET.fromstring(picture.PICTURE.read_text(encoding="utf-8"))
    written = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    for group in groups():
        assert group["name"] in written
    missing = {part["name"] for part in PROCESSORS.values() if not part["name"].startswith("Say why")} - written
    assert not missing


def test_no_box_of_the_picture_covers_another() -> None:
    for group in groups():
        if group["processors"]:
            boxes = [box for _, box in picture._boxes(group)]
            for number, box in enumerate(boxes):
                for other in boxes[number + 1 :]:
                    apart_x = abs(box.x - other.x) >= (box.width + other.width) / 2
                    apart_y = abs(box.y - other.y) >= (box.height + other.height) / 2
                    assert apart_x or apart_y, (box.title, other.title)
