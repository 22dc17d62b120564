"""The flow that carries rushes to captions: ingest, admit, analyse, deliver, quarantine.

How nothing is lost and nothing done twice:

- A file is known by its path below its folder (`source`) and its content (`sha256`); what is written for it has names
  made of these. Writing it again writes the same.
- Within NiFi, a file is in exactly one queue until the next step is committed. What reaches outside (a request, a
  written file) may happen again after a crash, to the same effect.
- Whether a file was delivered, whether its content is known under another path, and who owns an output name, is in a
  map cache on disk. Each entry carries who made it, so that a step that is repeated after a crash knows its own.
- The service is asked once for each file, for all documents together. Its answer comes line by line, so that no read
  timeout meets a long file, and ends with the documents or with an error. A broken answer is a failed request.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nifi.parts import OLDEST_FIRST, PRIORITY, UNBOUNDED, Group, Parameter, Part, Retry, Room, definition

VERSION = "1.0.0"
NAME = "Soundstage"
CONTEXT = "soundstage"
DEFINITION = Path(__file__).with_name("flow.json")
INGEST, ASK, CLOSE_DAY = "1 Ingest", "Ask the service", "Close the day"
"""Parts that commands look for."""
EVENTS = "events of the day"
"""Queues of what was, for the report: no work waits in them."""

PARAMETERS = (
    Parameter(name="watch_folder", description="Rushes arrive here, in any depth. Nothing in it is changed."),
    Parameter(
        name="delivery_folder",
        description="Captions, cues and reports of each file, in the tree of the watch folder. The watch folder itself"
        " puts them beside their sources.",
    ),
    Parameter(
        name="quarantine_folder",
        description="What cannot be captioned, in the tree of the watch folder, each file with its reason beside it."
        " Move a file into its folder `replay` to try it again.",
    ),
    Parameter(name="work_folder", description="The flow's own: inbox of pushed files, reports, memory of what is done"),
    Parameter(
        name="authorization",
        description="Header that opens the service: Bearer and a key.",
        sensitive=True,
    ),
    Parameter(name="service_url", description="Of the service.", value="http://127.0.0.1:8000"),
    Parameter(
        name="documents",
        description="What is delivered of each file: formats of the service, separated by commas.",
        value="json,srt,sdh_srt,csv",
    ),
    Parameter(
        name="request_options",
        description="For every request, as in a URL; tags in a path count more.",
        value="language=en",
    ),
    Parameter(
        name="watch_pattern",
        description="Names of files that are taken, a Java regular expression.",
        value=r"(?i)[^.].*\.(aac|aif|aifc|aiff|bwf|caf|flac|m4a|m4v|mka|mkv|mov|mp3|mp4|mxf|oga|ogg|opus|rf64|w64|wav"
        r"|wave|webm)",
    ),
    Parameter(
        name="settle_time", description="A file that did not change for so long has stopped growing.", value="30 sec"
    ),
    Parameter(name="scan_interval", description="How often the folders are looked through.", value="10 sec"),
    Parameter(name="max_bytes", description="Larger files are not read. The service's limit.", value="536870912"),
    Parameter(
        name="read_timeout",
        description="Silence after which a request has failed. The service answers line by line, at least once a chunk"
        " of 30 s of audio.",
        value="5 mins",
    ),
    Parameter(
        name="retry_hours",
        description="How long a file is tried while the service cannot be reached, is busy or refuses the key.",
        value="168",
    ),
    Parameter(name="push_address", description="Where pushed files are taken.", value="127.0.0.1"),
    Parameter(name="push_port", description="Where pushed files are taken.", value="8481"),
    Parameter(
        name="cache_host", description="Node whose memory of what is done counts, for all nodes.", value="127.0.0.1"
    ),
    Parameter(
        name="cache_port", description="Of that memory. It has no password: keep it off the network.", value="8482"
    ),
    Parameter(name="webhook_url", description="Is told of each delivery and failure; none tells nobody.", value="none"),
    Parameter(name="loudness_min_lufs", description="Below is out of specification.", value="-24"),
    Parameter(name="loudness_max_lufs", description="Above is out of specification.", value="-22"),
    Parameter(name="max_true_peak_dbtp", description="Above is out of specification.", value="-1"),
)
"""Paths and secrets have no default: they are of one place."""

MEDIA = "(audio|video)/.*|application/(octet-stream|mxf|ogg|mp4|x-matroska|vnd\\\\.rn-realmedia|vnd\\\\.ms-asf)"
"""Types that the service is asked about; it knows more containers than NiFi does, so the unknown goes there too."""

COL, ROW = 480.0, 230.0
"""Pixels from part to part on the canvas."""

GREEN, BLUE, AMBER, RED, GREY = "#d6f2de", "#d9e8fb", "#fdf0cf", "#fbdcd9", "#eceff3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Numbers that NiFi takes no parameter for.

    Attributes:
        concurrency: Requests at once. More than the service has room for (`max_concurrent_requests`) earn only 503.
            Measured on two cores, clips of 5 s: 7.4 a second with 8, 8.9 with 16, at a p95 of 1.3 and 2.3 s.
        window: Files whose content waits in NiFi for the service; all others wait as names on a list. Bounds NiFi's
            disk and memory in a flood.
    """

    concurrency: int = 8
    window: int = 32


IN_ORDER = (PRIORITY, OLDEST_FIRST)
STEP = Room(8, "4 GB")
"""Between steps that are faster than the service. Little, and in order: an urgent file passes all others at each."""


def at(col: float, row: float) -> tuple[float, float]:
    """A place on the canvas, by column and row."""
    return (col * COL, row * ROW)


def build(tuning: Tuning | None = None) -> dict[str, Any]:
    """The definition of the whole flow."""
    return definition(outermost(tuning or Tuning()), PARAMETERS, CONTEXT)


def to_json(flow: dict[str, Any]) -> str:
    """A definition as text, the same for the same flow."""
    return json.dumps(flow, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def outermost(tuning: Tuning) -> Group:
    """The group that holds all others."""
    top = Group(NAME, comments=f"Carries rushes to captions. Version {VERSION}. Made by code: python -m nifi deploy.")
    server = top.service(
        "Memory on disk",
        "MapCacheServer",
        comments="What is delivered, and under which names. Each node has one; cache_host says whose counts.",
        properties={
            "Port": "#{cache_port}",
            "Maximum Cache Entries": "10000000",
            "Persistence Directory": "#{work_folder}/memory",
            "maximum-read-size": "256 MB",
        },
    )
    del server  # is reached by its port
    memory = top.service(
        "Memory",
        "MapCacheClientService",
        comments="Of what is delivered, and under which names.",
        properties={"Server Hostname": "#{cache_host}", "Server Port": "#{cache_port}"},
    )
    ingest = _ingest(top, memory)
    admit = _admit(top, memory)
    analyse = _analyse(top, tuning)
    deliver = _deliver(top, memory)
    quarantine = _quarantine(top)
    top.connect(ingest["files"], admit["files"], room=Room(100_000), spread="ROUND_ROBIN")
    top.connect(admit["admitted"], analyse["admitted"], room=STEP, prioritizers=IN_ORDER)
    top.connect(admit["refused"], quarantine["refused"])
    top.connect(analyse["analysed"], deliver["analysed"], room=Room(tuning.window))
    top.connect(analyse["refused"], quarantine["refused"])
    top.connect(deliver["undeliverable"], quarantine["refused"])
    top.connect(quarantine["events"], deliver["events"])
    top.connect(quarantine["replays"], ingest["landing"], room=Room(100, "4 GB"))
    rushes = top.input_port(
        "rushes",
        at=(COL * 0.15, ROW * 1.5),
        comments="For sources beside this group, such as SFTP, S3 or Kafka: files with content and the attributes via,"
        " folder and filename. Deploying leaves such sources alone.",
    )
    top.connect(rushes, ingest["landing"], room=Room(100, "4 GB"))
    top.label(
        f"Soundstage {VERSION}: rushes to captions\n"
        "Files wait in the queue before 'Read the file' in Admit, short and urgent ones first.\n"
        "A file that cannot be captioned is in the quarantine folder, with its reason beside it.\n"
        "Change the flow in nifi/flow.py, then: python -m nifi deploy",
        at=(0, -150),
        size=(1000, 110),
        colour=GREY,
    )
    return top


def _ingest(top: Group, memory: Part) -> dict[str, Part]:
    group = top.group(INGEST, at=(0, 0), comments="Finds files: in the watch folder, pushed by HTTP, and replays.")
    group.label(
        "Every file arrives as a file in a folder: in the watch folder, or landed in the inbox by a push, a replay or\n"
        "a source beside the group (SFTP, S3, Kafka; its port 'rushes'). The lists remember what they have seen.",
        at=(0, -130),
        size=(1100, 70),
        colour=GREEN,
    )
    listing: dict[str, str | Part] = {
        "Input Directory Location": "Remote",
        "listing-strategy": "entities",
        "et-state-cache": memory,
        "et-time-window": "36500 days",
        "et-node-identifier": "soundstage",
        "Recurse Subdirectories": "true",
        "Ignore Hidden Files": "true",
    }
    watch = group.processor(
        "List the watch folder",
        "ListFile",
        at=at(0, 0),
        comments="Remembers each file by path, size and time, also across restarts. Not by the newest time alone: cards"
        " are copied with their old times.",
        properties={
            **listing,
            "Input Directory": "#{watch_folder}",
            "File Filter": "#{watch_pattern}",
            "Minimum File Age": "#{settle_time}",
        },
        every="#{scan_interval}",
        primary_only=True,
    )
    inbox = group.processor(
        "List the inbox",
        "ListFile",
        at=at(1, 0),
        comments="Files that landed; they are complete, since they get their name last.",
        properties={**listing, "Input Directory": "#{work_folder}/inbox", "File Filter": r"[^.].*"},
        every="#{scan_interval}",
        primary_only=True,
    )
    name_watched = group.processor(
        "Name the watched",
        "UpdateAttribute",
        at=at(0, 1),
        comments="source, the path below the folder, is what a file is known by.",
        properties={
            "via": "watch",
            "file_path": "${absolute.path}${filename}",
            "folder": "${path:equals('./'):ifElse('',${path})}",
            "source": "${path:equals('./'):ifElse('',${path})}${filename}",
        },
    )
    name_landed = group.processor(
        "Name the landed",
        "UpdateAttribute",
        at=at(1, 1),
        comments="The inbox holds <how it came>/<path>/<number>~<name>.",
        properties={
            "via": "${path:substringBefore('/')}",
            "file_path": "${absolute.path}${filename}",
            "folder": "${path:substringAfter('/')}",
            "filename": "${filename:substringAfter('~')}",
            "source": "${path:substringAfter('/')}${filename:substringAfter('~')}",
        },
    )
    files = group.output_port("files", at=at(0.5, 2.2), comments="Names of files; their content is still on disk.")
    group.connect(watch, name_watched, "success")
    group.connect(inbox, name_landed, "success")
    group.connect(name_watched, files, "success")
    group.connect(name_landed, files, "success")

    contexts = group.service(
        "Open pushes",
        "StandardHttpContextMap",
        comments="Requests that wait for their answer.",
        properties={"Maximum Outstanding Requests": "100", "Request Expiration": "5 mins"},
    )
    push = group.processor(
        "Take a push",
        "HandleHttpRequest",
        at=at(2.8, 0),
        comments="POST /rushes?path=Production/Reel/name.wav with the file as body.",
        properties={
            "Hostname": "#{push_address}",
            "Listening Port": "#{push_port}",
            "HTTP Context Map": contexts,
            "Allowed Paths": "/rushes",
            "Allow GET": "false",
            "Allow PUT": "false",
            "Allow DELETE": "false",
        },
    )
    is_safe = group.processor(
        "Is the path good?",
        "RouteOnAttribute",
        at=at(2.8, 1),
        comments="Relative, without dots for folders, and not hidden.",
        properties={
            "good": r"${http.query.param.path:matches('(?!.*[\\\\\\x00-\\x1f])(?:[^./][^/]*/)*[^./][^/]*')}",
        },
    )
    name_push = group.processor(
        "Name the push",
        "UpdateAttribute",
        at=at(2.8, 2),
        comments="Where it lands.",
        properties={
            "via": "push",
            "folder": "${http.query.param.path:contains('/')"
            ":ifElse(${http.query.param.path:substringBeforeLast('/'):append('/')},'')}",
            "filename": "${UUID():substring(0,8)}~${http.query.param.path:substringAfterLast('/')}",
            "source": "${http.query.param.path}",
        },
    )
    land_push = _landing(group, "Land a push", at(2.8, 3), ends=())
    group.connect(push, is_safe, "success", room=Room(8, "4 GB"))
    group.connect(is_safe, name_push, "good", room=Room(8, "4 GB"))
    group.connect(name_push, land_push, "success", room=Room(8, "4 GB"))
    answers = (
        ("Say 202", "202", '{"accepted": "${source:escapeJson()}"}', 4, ((land_push, "success"),)),
        ("Say 503", "503", '{"error": "the file could not be stored; send it again"}', 5, ((land_push, "failure"),)),
        ("Say 400", "400", '{"error": "path must be relative, such as Production/Reel/a.wav"}', 4,
         ((is_safe, "unmatched"),)),
    )  # fmt: skip
    for column, (name, status, body, row, causes) in zip((2.3, 3.3, 4.3), answers, strict=True):
        told = group.processor(
            f"{name}: text",
            "ReplaceText",
            at=at(column, row),
            comments="The answer's body, in place of the file.",
            properties={
                "Replacement Strategy": "Always Replace",
                "Evaluation Mode": "Entire text",
                "Replacement Value": body,
            },
            ends=("failure",),
        )
        answer = group.processor(
            name,
            "HandleHttpResponse",
            at=at(column, row + 1),
            comments="The client hears it once the file is on disk, or is not.",
            properties={"HTTP Status Code": status, "HTTP Context Map": contexts},
            ends=("success", "failure"),
            bulletins="ERROR",
        )
        for cause, relationship in causes:
            group.connect(cause, told, relationship, room=Room(100, "8 GB"))
        group.connect(told, answer, "success")

    landing = group.input_port("landing", at=at(5.6, 0.2), comments="Files with content, via, folder and filename.")
    name_landing = group.processor(
        "Name the landing",
        "UpdateAttribute",
        at=at(5.5, 1),
        comments="A number of its own keeps two files of one name apart; no dots lead out of the inbox.",
        properties={
            "filename": "${UUID():substring(0,8)}~${filename:replaceAll('.*/','')}",
            "folder": "${folder:replaceAll('(^|/)[.]+(?=/)','$1'):replaceAll('^/+','')}",
        },
    )
    land = _landing(group, "Land a file", at(5.5, 2), ends=("success",))
    group.connect(landing, name_landing, room=Room(100, "4 GB"))
    group.connect(name_landing, land, "success", room=Room(100, "4 GB"))
    group.connect(land, land, "failure")
    return {"files": files, "landing": landing}


def _landing(group: Group, name: str, place: tuple[float, float], ends: tuple[str, ...]) -> Part:
    return group.processor(
        name,
        "PutFile",
        at=place,
        comments="Gets its name once it is complete.",
        properties={
            "Directory": "#{work_folder}/inbox/${via}/${folder}",
            "Conflict Resolution Strategy": "replace",
            "Create Missing Directories": "true",
        },
        ends=ends,
        penalty="5 sec",
    )


def _admit(top: Group, memory: Part) -> dict[str, Part]:
    group = top.group(
        "2 Admit",
        at=(COL * 1.2, 0),
        comments="Decides who may go on and in which order, and what is asked about each.",
    )
    group.label(
        "Files wait here as names on a list, before 'Read the file'. Tags in a path become options of the request:\n"
        "[25fps]  [tc10-00-00-00]  [en]  [urgent]   as in   News/Reel 3 [25fps] [tc10-00-00-00]/take 1.wav",
        at=(0, -130),
        size=(1000, 70),
        colour=BLUE,
    )
    files = group.input_port("files", at=at(0.1, 0.2))
    refused = group.output_port("refused", at=at(2.1, 4.2), comments="With reason and message.")
    admitted = group.output_port("admitted", at=at(0.1, 11.2), comments="With content, sha256 and query.")
    path = group.processor(
        "Read the path",
        "UpdateAttribute",
        at=at(0, 1),
        comments="production is the first folder, reel the last. Short and urgent files go first.",
        properties={
            "production": "${folder:substringBefore('/')}",
            "reel": "${folder:substringBeforeLast('/'):substringAfterLast('/')}",
            "stem": "${filename:substringBeforeLast('.')}",
            "options": _tag(r"([a-z]{2})", "&language=", "'$1'")
            + _tag(r"([0-9]+(?:[.][0-9]+)?)fps", "&frame_rate=", "'$1'")
            + _tag(
                r"tc([0-9]{2})[-.]([0-9]{2})[-.]([0-9]{2})([-.;])([0-9]{2})",
                "&start_timecode=",
                "'$1:$2:$3$4$5'",
                ":replace('-',':'):replace('.',':'):urlEncode()",
            ),
            "priority": r"${source:matches('(?i).*\\[urgent\\].*'):ifElse('0','1000000000')"
            ":toNumber():plus(${file.size:toNumber():divide(100000)})}",
        },
    )
    look = group.processor(
        "Look before reading",
        "RouteOnAttribute",
        at=at(0, 2),
        comments="What is empty or too large is not read.",
        properties={
            "empty": "${file.size:equals('0')}",
            "too large": "${file.size:toNumber():gt(${#{max_bytes}:toNumber()})}",
        },
    )
    read = group.processor(
        "Read the file",
        "FetchFile",
        at=at(0, 3),
        comments="The queue before it is the list of all work. It reads no more than the next steps have room for.",
        properties={
            "File to Fetch": "${file_path}",
            "Log level when file not found": "WARN",
        },
        penalty="2 sec",
        retry=Retry(("failure", "permission.denied"), count=5, max_wait="30 sec"),
    )
    settled = group.processor(
        "Has it stopped growing?",
        "RouteOnAttribute",
        at=at(0, 4),
        comments="One that has changed since it was listed is listed again; this copy is let go.",
        properties={"yes": "${fileSize:equals(${file.size})}"},
        ends=("unmatched",),
    )
    digest = group.processor(
        "Take its fingerprint",
        "CryptographicHashContent",
        at=at(0, 5),
        comments="SHA-256 of the content.",
        properties={"hash_algorithm": "SHA-256"},
    )
    kind = group.processor(
        "Tell what it is",
        "IdentifyMimeType",
        at=at(0, 6),
        comments="By content, not by name.",
        properties={"use-filename-in-detection": "false"},
    )
    request = group.processor(
        "Make the request",
        "UpdateAttribute",
        at=at(0, 7),
        comments="What the service is asked, and since when.",
        properties={
            "sha256": "${'content_SHA-256'}",
            "query": "response_format=ndjson&documents=#{documents}&#{request_options}${options}",
            "first_try": "${now():toNumber()}",
        },
    )
    is_media = group.processor(
        "Is it media?",
        "RouteOnAttribute",
        at=at(0, 8),
        comments="Texts, pictures and archives are not sent. Replays are not asked whether they are known.",
        properties={
            "known?": f"${{mime.type:matches('{MEDIA}'):and(${{via:equals('replay'):not()}})}}",
            "replay": f"${{mime.type:matches('{MEDIA}'):and(${{via:equals('replay')}})}}",
        },
    )
    delivered = group.processor(
        "Delivered already?",
        "DetectDuplicate",
        at=at(1, 8),
        comments="The same file, unchanged: let go. To have it done again, touch it.",
        properties={
            "Cache Entry Identifier": "delivered:${source}:${file.lastModifiedTime}:${sha256}",
            "Cache The Entry Identifier": "false",
            "Distributed Cache Service": memory,
        },
        ends=("duplicate",),
        penalty="5 sec",
    )
    known = group.processor(
        "Known content?",
        "DetectDuplicate",
        at=at(1, 9),
        comments="The same content and request under another path is not analysed again.",
        properties={
            "Cache Entry Identifier": "content:${sha256}:${query}",
            "FlowFile Description": "${source}",
            "Distributed Cache Service": memory,
        },
        penalty="5 sec",
    )
    own_content = group.processor(
        "Known as itself?",
        "RouteOnAttribute",
        at=at(2, 10),
        comments="The same path made the entry: this step is repeated after a restart, or the file was touched.",
        properties={"itself": "${original.flowfile.description:equals(${source})}"},
    )
    name = group.processor(
        "Is the name taken?",
        "DetectDuplicate",
        at=at(0, 9),
        comments="take1.wav and take1.mp3 in one folder would both be take1.srt.",
        properties={
            "Cache Entry Identifier": "name:${folder}${stem}",
            "FlowFile Description": "${source}",
            "Distributed Cache Service": memory,
        },
        penalty="5 sec",
    )
    own_name = group.processor(
        "Taken by itself?",
        "RouteOnAttribute",
        at=at(1, 10),
        comments="The first keeps the short name.",
        properties={"itself": "${original.flowfile.description:equals(${source})}"},
    )
    full_name = group.processor(
        "Take the full name",
        "UpdateAttribute",
        at=at(1, 11),
        comments="take1.mp3.srt",
        properties={"stem": "${source:substringAfterLast('/')}"},
    )

    def step(source: Part, destination: Part, relationship: str) -> None:
        group.connect(source, destination, relationship, room=STEP, prioritizers=IN_ORDER)

    group.connect(files, path, room=Room(100_000))
    group.connect(path, look, "success", room=Room(100_000))
    group.connect(look, read, "unmatched", room=Room(1_000_000), prioritizers=IN_ORDER, name="all work, in order")
    step(read, settled, "success")
    step(settled, digest, "yes")
    step(digest, kind, "success")
    step(kind, request, "success")
    step(request, is_media, "success")
    step(is_media, delivered, "known?")
    step(is_media, name, "replay")
    step(delivered, known, "non-duplicate")
    group.connect(delivered, delivered, "failure")
    step(known, name, "non-duplicate")
    step(known, own_content, "duplicate")
    group.connect(known, known, "failure")
    step(own_content, name, "itself")
    step(name, admitted, "non-duplicate")
    step(name, own_name, "duplicate")
    group.connect(name, name, "failure")
    step(own_name, admitted, "itself")
    step(own_name, full_name, "unmatched")
    step(full_name, admitted, "success")
    refusals = (
        ("empty", "the file has no content", "no", look, ("empty",), at(1, 2)),
        ("too_large", "the file has ${file.size} bytes, more than #{max_bytes}", "no", look, ("too large",), at(1, 1)),
        ("vanished", "the file was removed or renamed before it could be read", "no", read, ("not.found",), at(1, 3)),
        ("unreadable", "the file cannot be read", "no", read, ("failure", "permission.denied"), at(1, 4)),
        ("unreadable", "the file cannot be read any more", "no", digest, ("failure",), at(1, 5)),
        ("not_media", "the content is ${mime.type}, not audio or video", "yes", is_media, ("unmatched",), at(1, 7)),
        ("duplicate", "the same content as ${original.flowfile.description}", "no", own_content, ("unmatched",),
         at(2, 9)),
    )  # fmt: skip
    for reason, message, copy, cause, relationships, place in refusals:
        why = _why(group, f"Say why: {cause.name} {relationships[0]}", place, reason, message, copy=copy)
        group.connect(cause, why, *relationships)
        group.connect(why, refused, "success")
    return {"files": files, "refused": refused, "admitted": admitted}


def _tag(pattern: str, option: str, replacement: str, then: str = ":urlEncode()") -> str:
    r"""What an expression makes of a tag in the path; the last one counts. EL halves backslashes: `\\[` is `\[`."""
    whole = rf"'(?i).*\\[{pattern}\\].*'"
    value = f"${{source:replaceFirst({whole},{replacement}){then}:prepend('{option}')}}"
    return f"${{source:matches({whole}):ifElse({value},'')}}"


def _why(group: Group, name: str, place: tuple[float, float], reason: str, message: str, *, copy: str = "yes") -> Part:
    return group.processor(
        name,
        "UpdateAttribute",
        at=place,
        comments="The reason goes with the file into quarantine.",
        properties={"reason": reason, "message": message, "copy": copy},
    )


def _analyse(top: Group, tuning: Tuning) -> dict[str, Part]:
    group = top.group(
        "3 Analyse",
        at=(COL * 2.4, 0),
        comments="Asks the service, for as long as it takes.",
    )
    group.label(
        "The service answers a line for each chunk of audio, and last a line with all documents, or an error.\n"
        "Busy or away: tried again, with a wait that doubles, for retry_hours. Refused: to quarantine at once.",
        at=(0, -130),
        size=(1000, 70),
        colour=AMBER,
    )
    admitted = group.input_port("admitted", at=at(0.1, 0.2))
    analysed = group.output_port("analysed", at=at(0.1, 5.2), comments="The last line of the answer.")
    refused = group.output_port("refused", at=at(3.1, 4.2), comments="With reason and message.")
    ask = group.processor(
        ASK,
        "InvokeHTTP",
        at=at(0, 1),
        comments="Sends from disk. As many at once as the service answers without turning some away.",
        properties={
            "HTTP Method": "POST",
            "HTTP URL": "#{service_url}/v1/analyze?${query}",
            "Request Content-Type": "${mime.type:matches('(audio|video)/.*')"
            ":ifElse(${mime.type},'application/octet-stream')}",
            "Connection Timeout": "10 secs",
            "Socket Read Timeout": "#{read_timeout}",
            "Socket Write Timeout": "#{read_timeout}",
            "Socket Idle Connections": str(tuning.concurrency),
            "Socket Idle Timeout": "30 secs",
            "Response Body Attribute Size": "4096",
            "Request Failure Penalization Enabled": "true",
            "Response Redirects Enabled": "False",
            "Request User-Agent": f"soundstage-nifi/{VERSION}",
            "Authorization": "#{authorization}",
            "X-Request-ID": "${sha256:substring(0,12)}-${now():toNumber()}",
        },
        sensitive=("Authorization",),
        tasks=tuning.concurrency,
        ends=("Original",),
        penalty="1 sec",
        retry=Retry(("Retry", "Failure"), count=6, max_wait="30 sec"),
        bulletins="ERROR",
    )
    last = group.processor(
        "Keep the last line",
        "ReplaceText",
        at=at(0, 2),
        comments="Progress has done its work: it kept the connection alive.",
        properties={
            "Replacement Strategy": "Regex Replace",
            "Evaluation Mode": "Line-by-Line",
            "Regular Expression": r'(?s)^\{"type":"chunk".*$',
            "Replacement Value": "",
            "Maximum Buffer Size": "256 MB",
        },
    )
    read = group.processor(
        "Read the outcome",
        "EvaluateJsonPath",
        at=at(0, 3),
        comments="Where it came from, for provenance and reports.",
        properties={
            "Destination": "flowfile-attribute",
            "Return Type": "json",
            "Max String Length": "256 MB",
            "outcome": "$.type",
            "error_code": "$.error.code",
            "error_message": "$.error.message",
            "request_id": "$.request_id",
            "duration_s": "$.duration_s",
            "models": "$.models",
            "integrated_lufs": "$.levels.integrated_lufs",
            "true_peak_dbtp": "$.levels.true_peak_dbtp",
        },
    )
    outcome = group.processor(
        "What came of it?",
        "RouteOnAttribute",
        at=at(0, 4),
        comments="An error may come after the first line, and then has no status of its own.",
        properties={
            "done": "${outcome:equals('summary')}",
            "refused": "${outcome:equals('error')"
            ":and(${error_code:in('overloaded','deadline_exceeded','internal_error'):not()})}",
        },
    )
    too_long = "now():toNumber():minus(${first_try}):ge(${#{retry_hours}:toNumber():multiply(3600000)})"
    ours = (
        "invokehttp.status.code:in('500','504'):and(${invokehttp.response.body:contains('request_id')})"
        ":or(${error_code:in('deadline_exceeded','internal_error')})"
    )
    again = group.processor(
        "Once more?",
        "RouteOnAttribute",
        at=at(3, 1),
        comments="For retry_hours. A file on which the service itself fails, three rounds.",
        properties={
            "too long": f"${{{too_long}}}",
            "its fault": f"${{{too_long}:not():and(${{{ours}}}):and(${{rounds:replaceNull('0'):toNumber():ge(2)}})}}",
        },
    )
    count = group.processor(
        "Count the rounds",
        "UpdateAttribute",
        at=at(3, 0),
        comments="A round is seven tries over a minute.",
        properties={
            "rounds": f"${{rounds:replaceNull('0'):toNumber():plus(${{{ours}:ifElse('1','0'):toNumber()}})}}",
            "Delete Attributes Expression": r"invokehttp\..*|error_.*|outcome|RouteOnAttribute.*",
        },
    )
    status = group.processor(
        "Is it the file?",
        "RouteOnAttribute",
        at=at(1, 2),
        comments="A refused key, too many requests and a proxy without the service behind it are no fault of the file:"
        " it waits.",
        properties={
            "not the file": "${invokehttp.status.code:in('401','403','408','425','429')"
            ":or(${invokehttp.status.code:equals('404')"
            ":and(${invokehttp.response.body:contains('request_id'):not()})})}"
        },
    )
    wait = group.processor(
        "Wait a while",
        "RetryFlowFile",
        at=at(2, 3),
        comments="Then it is tried again.",
        properties={"maximum-retries": "1000000000", "penalize-retries": "true", "reuse-mode": "reset"},
        penalty="15 sec",
        ends=("retries_exceeded",),
    )
    reread = group.processor(
        "Read it again",
        "FetchFile",
        at=at(2, 0),
        comments="The answer broke off: its place in the queue was taken by the answer's text.",
        properties={"File to Fetch": "${file_path}", "Log level when file not found": "WARN"},
        penalty="2 sec",
        retry=Retry(("failure", "permission.denied"), count=5, max_wait="30 sec"),
    )
    body = "${invokehttp.response.body:find('\"code\"')"
    code, message = r"'(?s).*\"code\": ?\"([a-z_]+)\".*'", r"'(?s).*\"message\": ?\"((?:[^\"\\\\]|\\\\.)*)\".*'"
    why_4xx = _why(
        group,
        "Say why: the service refused",
        at(2, 2),
        f"{body}:ifElse(${{invokehttp.response.body:replaceFirst({code},'$1')}},"
        "${invokehttp.status.code:prepend('http_')})}",
        f"{body}:ifElse(${{invokehttp.response.body:replaceFirst({message},'$1')}},"
        "${invokehttp.response.body:replaceEmpty(${invokehttp.status.message})})}",
    )
    why_late = _why(group, "Say why: while it listened", at(1, 4), "${error_code}", "${error_message}")
    why_long = _why(
        group,
        "Say why: too long",
        at(3, 2),
        "unavailable",
        "the service could not be had for #{retry_hours} h:"
        " ${invokehttp.status.code} ${invokehttp.java.exception.message}",
    )
    why_fault = _why(
        group,
        "Say why: the service failed",
        at(3, 3),
        "service_failed",
        "the service failed on this file again and again: ${invokehttp.response.body}",
    )
    why_gone = _why(
        group, "Say why: gone", at(1, 0), "vanished", "the file was removed while the service heard it", copy="no"
    )
    few = Room(tuning.window, "4 GB")
    group.connect(admitted, ask, prioritizers=IN_ORDER, room=few)
    group.connect(ask, last, "Response", room=few)
    group.connect(ask, again, "Retry", "Failure", room=UNBOUNDED)
    group.connect(ask, status, "No Retry", room=UNBOUNDED)
    group.connect(last, read, "success", room=few)
    group.connect(last, wait, "failure", room=UNBOUNDED)
    group.connect(read, outcome, "matched", room=few)
    group.connect(read, wait, "failure", "unmatched", room=UNBOUNDED)
    group.connect(outcome, analysed, "done", room=few)
    group.connect(outcome, why_late, "refused")
    group.connect(outcome, wait, "unmatched", room=UNBOUNDED)
    group.connect(status, wait, "not the file", room=UNBOUNDED)
    group.connect(status, why_4xx, "unmatched")
    group.connect(wait, again, "retry", "failure", room=UNBOUNDED)
    group.connect(again, why_long, "too long")
    group.connect(again, why_fault, "its fault")
    group.connect(again, count, "unmatched", room=UNBOUNDED)
    group.connect(count, reread, "success", room=UNBOUNDED)
    group.connect(reread, ask, "success", room=UNBOUNDED, prioritizers=IN_ORDER)
    group.connect(reread, why_gone, "not.found", "failure", "permission.denied")
    for why in (why_4xx, why_late, why_long, why_fault, why_gone):
        group.connect(why, refused, "success")
    return {"admitted": admitted, "analysed": analysed, "refused": refused}


def _deliver(top: Group, memory: Part) -> dict[str, Part]:
    group = top.group(
        "4 Deliver", at=(COL * 3.6, 0), comments="Writes every document of one analysis, tells of it, and reports."
    )
    group.label(
        "Each document gets its name once it is complete; the file counts as delivered once all of them are there.\n"
        "If the delivery folder refuses, documents wait here and nothing more is analysed.",
        at=(0, -130),
        size=(1000, 70),
        colour=GREEN,
    )
    analysed = group.input_port("analysed", at=at(0.1, 0.2))
    events = group.input_port("events", at=at(2.1, 4.2), comments="Of quarantine.")
    undeliverable = group.output_port("undeliverable", at=at(1.6, 1.2))
    split = group.processor(
        "Part the documents",
        "SplitJson",
        at=at(0, 1),
        comments="All at once: they share the attributes of their source.",
        properties={"JsonPath Expression": "$.documents", "Max String Length": "256 MB"},
        ends=("original",),
    )
    form = group.processor(
        "Read the format",
        "EvaluateJsonPath",
        at=at(0, 2),
        comments="Its suffix is of the service.",
        properties={
            "Destination": "flowfile-attribute",
            "Return Type": "json",
            "Max String Length": "256 MB",
            "format": "$.format",
            "suffix": "$.suffix",
        },
    )
    name = group.processor(
        "Name the document",
        "UpdateAttribute",
        at=at(0, 3),
        comments="Beside the source, or in a tree like its.",
        properties={"filename": "${stem}${suffix}"},
    )
    text = group.processor(
        "Take the text",
        "EvaluateJsonPath",
        at=at(0, 4),
        comments="The document itself.",
        properties={
            "Destination": "flowfile-content",
            "Return Type": "json",
            "Max String Length": "256 MB",
            "text": "$.text",
        },
    )
    write = group.processor(
        "Write the document",
        "PutFile",
        at=at(0, 5),
        comments="Hidden until it is complete; writing it again writes the same. Waits where the disk refuses.",
        properties={
            "Directory": "#{delivery_folder}/${folder}",
            "Conflict Resolution Strategy": "replace",
            "Create Missing Directories": "true",
        },
        tasks=2,
        penalty="5 sec",
    )
    join = group.processor(
        "Wait for all of them",
        "MergeContent",
        at=at(0, 6),
        comments="One source, one delivery.",
        properties={
            "Merge Strategy": "Defragment",
            "Maximum number of Bins": "10000",
            "Attribute Strategy": "Keep Only Common Attributes",
        },
        ends=("original",),
    )
    remember = group.processor(
        "Remember the delivery",
        "DetectDuplicate",
        at=at(0, 7),
        comments="So that the same file, listed again, is let go.",
        properties={
            "Cache Entry Identifier": "delivered:${source}:${file.lastModifiedTime}:${sha256}",
            "FlowFile Description": "${request_id}",
            "Distributed Cache Service": memory,
        },
        penalty="5 sec",
    )
    tidy = group.processor(
        "Did it land?",
        "RouteOnAttribute",
        at=at(0, 8),
        comments="What landed in the inbox is the flow's own.",
        properties={"landed": "${via:equals('watch'):not()}"},
    )
    delete = _delete(group, at(1, 8))
    within = (
        "${integrated_lufs:isEmpty():ifElse('unmeasured',"
        "${integrated_lufs:toDecimal():ge(${#{loudness_min_lufs}:toDecimal()})"
        ":and(${integrated_lufs:toDecimal():le(${#{loudness_max_lufs}:toDecimal()})})"
        ":and(${true_peak_dbtp:toDecimal():le(${#{max_true_peak_dbtp}:toDecimal()})}):ifElse('in','out')})}"
    )
    tell = group.processor(
        "Tell of the delivery",
        "UpdateAttribute",
        at=at(0, 9),
        comments="What reports and the webhook say.",
        properties={"event": "delivered", "loudness": within, "reason": "", "message": ""},
    )
    event = group.processor(
        "Date the event",
        "UpdateAttribute",
        at=at(1, 10),
        comments="Reports are by day, in the time of NiFi's machine.",
        properties={
            "event_day": "${now():format('yyyy-MM-dd')}",
            "event_time": "${now():format(\"yyyy-MM-dd'T'HH:mm:ssXXX\")}",
            "bytes": "${file.size}",
            "duration_s": "${duration_s:replaceEmpty('0')}",
            "webhook": "#{webhook_url}",
        },
    )
    as_json = group.processor(
        "Write the event",
        "AttributesToJSON",
        at=at(1, 11),
        comments="One line.",
        properties={
            "Attributes List": ",".join(EVENT_FIELDS),
            "Destination": "flowfile-content",
            "Include Core Attributes": "false",
        },
        ends=("failure",),
    )
    group.connect(analysed, split, room=Room(100))
    group.connect(split, form, "split")
    group.connect(form, name, "matched")
    group.connect(name, text, "success")
    group.connect(text, write, "matched", room=Room(200))
    group.connect(write, write, "failure", room=UNBOUNDED)
    group.connect(write, join, "success")
    group.connect(join, join, "failure", room=UNBOUNDED)
    group.connect(join, remember, "merged")
    group.connect(remember, remember, "failure", room=UNBOUNDED)
    group.connect(remember, tidy, "non-duplicate", "duplicate")
    group.connect(tidy, delete, "landed")
    group.connect(tidy, tell, "unmatched")
    group.connect(delete, tell, "success", "not found", "failure")
    group.connect(tell, event, "success")
    group.connect(events, event)
    group.connect(event, as_json, "success")
    _tell(group, as_json)
    broken = _why(group, "Say why: broken answer", at(1, 2), "undeliverable", "the service's answer cannot be read")
    group.connect(split, broken, "failure")
    group.connect(form, broken, "failure", "unmatched")
    group.connect(text, broken, "failure", "unmatched")
    group.connect(broken, undeliverable, "success")
    return {"analysed": analysed, "events": events, "undeliverable": undeliverable}


def _tell(group: Group, as_json: Part) -> None:
    """The webhook and the daily report."""
    hook = group.processor(
        "Is there a webhook?",
        "RouteOnAttribute",
        at=at(2, 12),
        comments="#{webhook_url}",
        properties={"tell": "${webhook:startsWith('http')}"},
        ends=("unmatched",),
    )
    post = group.processor(
        "Call the webhook",
        "InvokeHTTP",
        at=at(2, 13),
        comments="A notice, not the delivery: after some tries it is let go.",
        properties={
            "HTTP Method": "POST",
            "HTTP URL": "${webhook}",
            "Request Content-Type": "application/json",
            "Response Body Ignored": "true",
        },
        ends=("Original", "Response", "No Retry", "Retry", "Failure"),
        penalty="1 sec",
        retry=Retry(("Retry", "Failure"), count=8, max_wait="5 mins"),
    )
    reader = group.service(
        "Read events",
        "JsonTreeReader",
        comments="Of the report.",
        properties={"schema-access-strategy": "infer-schema"},
    )
    writer = group.service(
        "Write reports",
        "JsonRecordSetWriter",
        comments="Of the report.",
        properties={"Pretty Print JSON": "true", "Allow Scientific Notation": "false"},
    )
    close = group.processor(
        CLOSE_DAY,
        "GenerateFlowFile",
        at=at(0, 12),
        comments="Five minutes past midnight; python -m nifi report does it at once.",
        properties={
            "generate-ff-custom-text": json.dumps(dict.fromkeys(EVENT_FIELDS, "") | {"event": "close"}),
            "event": "close",
        },
        every="0 5 0 * * ?",
        cron=True,
        primary_only=True,
    )
    day = group.processor(
        "Gather the day",
        "MergeContent",
        at=at(1, 13),
        comments="Events wait here until the day is closed.",
        properties={
            "Merge Strategy": "Bin-Packing Algorithm",
            "Minimum Number of Entries": "1000000",
            "Maximum Number of Entries": "1000000",
            "Maximum number of Bins": "2",
            "Bin Termination Check": "${event:equals('close')}",
            "FlowFile Insertion Strategy": "Last in Bin",
            "Delimiter Strategy": "Text",
            "Demarcator File": "\n",
        },
        ends=("original",),
        every="1 sec",
    )
    query = group.processor(
        "Add it up",
        "QueryRecord",
        at=at(1, 14),
        comments="Files, hours, failures, loudness out of specification; and each event.",
        properties={"record-reader": reader, "record-writer": writer, "summary": REPORT_SQL, "events": EVENTS_SQL},
        ends=("original",),
    )
    report_name = group.processor(
        "Name the report",
        "UpdateAttribute",
        at=at(1, 15),
        comments="reports/<when>.summary.json and <when>.events.json",
        properties={"filename": "${now():format(\"yyyy-MM-dd'T'HHmmss\")}.${QueryRecord.Route}.json"},
    )
    report = group.processor(
        "Write the report",
        "PutFile",
        at=at(1, 16),
        comments="Waits where the disk refuses.",
        properties={
            "Directory": "#{work_folder}/reports",
            "Conflict Resolution Strategy": "replace",
            "Create Missing Directories": "true",
        },
        ends=("success",),
        penalty="5 sec",
    )
    group.connect(as_json, hook, "success", room=Room(100_000))
    events = Room(1_000_000)
    group.connect(as_json, day, "success", room=events, prioritizers=(OLDEST_FIRST,), name=EVENTS, spread="SINGLE_NODE")
    group.connect(close, day, "success", room=events, name=EVENTS, spread="SINGLE_NODE")
    group.connect(hook, post, "tell", room=Room(100_000))
    group.connect(day, query, "merged")
    group.connect(day, day, "failure", room=UNBOUNDED)
    group.connect(query, report_name, "summary", "events")
    group.connect(query, query, "failure", room=UNBOUNDED)
    group.connect(report_name, report, "success")
    group.connect(report, report, "failure", room=UNBOUNDED)


EVENT_FIELDS = (
    "event_day", "event_time", "event", "source", "production", "reel", "via", "bytes", "sha256", "duration_s",
    "request_id", "models", "integrated_lufs", "true_peak_dbtp", "loudness", "reason", "message",
)  # fmt: skip
"""What is told of each delivery and failure."""

REPORT_SQL = """SELECT event_day, COUNT(*) AS files,
SUM(CASE WHEN event = 'delivered' THEN 1 ELSE 0 END) AS delivered,
SUM(CASE WHEN event = 'quarantined' THEN 1 ELSE 0 END) AS failures,
SUM(CAST(duration_s AS DOUBLE)) / 3600 AS hours,
SUM(CASE WHEN loudness = 'out' THEN 1 ELSE 0 END) AS out_of_specification
FROM FLOWFILE WHERE event <> 'close' GROUP BY event_day ORDER BY event_day"""
EVENTS_SQL = "SELECT * FROM FLOWFILE WHERE event <> 'close'"


def _delete(group: Group, place: tuple[float, float]) -> Part:
    return group.processor(
        "Tidy the inbox",
        "DeleteFile",
        at=place,
        comments="It has a number of its own: no newer file has its name.",
        properties={
            "Directory Path": "${file_path:substringBeforeLast('/')}",
            "Filename": "${file_path:substringAfterLast('/')}",
        },
    )


def _quarantine(top: Group) -> dict[str, Part]:
    group = top.group(
        "5 Quarantine",
        at=(COL * 2.4, ROW * 1.2),
        comments="Keeps what cannot be captioned, with its reason, and takes it back.",
    )
    group.label(
        "Each file lies in the quarantine folder under its path, with <name>.reason.json beside it.\n"
        "To try one again: python -m nifi replay, or move it into the folder 'replay' there.",
        at=(0, -130),
        size=(1000, 70),
        colour=RED,
    )
    refused = group.input_port("refused", at=at(0.1, 0.2), comments="With reason and message.")
    events = group.output_port("events", at=at(0.1, 8.2))
    replays = group.output_port("replays", at=at(2.1, 2.2), comments="Back to ingest.")
    is_copied = group.processor(
        "Is it kept?",
        "RouteOnAttribute",
        at=at(0, 1),
        comments="Of what is empty, too large, gone or a copy, the reason alone.",
        properties={"kept": "${copy:equals('yes')}"},
    )
    fetch = group.processor(
        "Read the file",
        "FetchFile",
        at=at(1, 1),
        comments="From where it was found; that one stays.",
        properties={"File to Fetch": "${file_path}", "Log level when file not found": "WARN"},
    )
    keep = group.processor(
        "Keep the file",
        "PutFile",
        at=at(1, 2),
        comments="Waits where the disk refuses.",
        properties={
            "Directory": "#{quarantine_folder}/${folder}",
            "Conflict Resolution Strategy": "replace",
            "Create Missing Directories": "true",
        },
        penalty="5 sec",
    )
    tell = group.processor(
        "Tell of the failure",
        "UpdateAttribute",
        at=at(0, 3),
        comments="What the reason file, reports and the webhook say.",
        properties={
            "event": "quarantined",
            "time": "${now():format(\"yyyy-MM-dd'T'HH:mm:ssXXX\")}",
            "bytes": "${file.size}",
            "media_type": "${mime.type}",
            "status": "${invokehttp.status.code}",
            "filename": "${source:substringAfterLast('/')}.reason.json",
            "loudness": "",
            "duration_s": "0",
        },
    )
    as_json = group.processor(
        "Write the reason",
        "AttributesToJSON",
        at=at(0, 4),
        comments="For people and programs.",
        properties={
            "Attributes List": ",".join(REASON_FIELDS),
            "Destination": "flowfile-content",
            "Include Core Attributes": "false",
            "Pretty Print": "true",
        },
        ends=("failure",),
    )
    put = group.processor(
        "Keep the reason",
        "PutFile",
        at=at(0, 5),
        comments="Beside the file.",
        properties={
            "Directory": "#{quarantine_folder}/${folder}",
            "Conflict Resolution Strategy": "replace",
            "Create Missing Directories": "true",
        },
        penalty="5 sec",
    )
    landed = group.processor(
        "Did it land?",
        "RouteOnAttribute",
        at=at(0, 6),
        comments="What landed in the inbox is the flow's own.",
        properties={"landed": "${via:equals('watch'):not():and(${copy:equals('yes')})}"},
    )
    delete = _delete(group, at(1, 6.5))
    take = group.processor(
        "Take replays",
        "GetFile",
        at=at(2, 0),
        comments="Files moved into the folder 'replay', under their path.",
        properties={
            "Input Directory": "#{quarantine_folder}/replay",
            "Keep Source File": "false",
            "Minimum File Age": "0 sec",
            "Polling Interval": "2 sec",
            "File Filter": r"[^.].*(?<!\.reason\.json)",
        },
        every="2 sec",
        primary_only=True,
    )
    name = group.processor(
        "Name the replay",
        "UpdateAttribute",
        at=at(2, 1),
        comments="As if it were found where it was before.",
        properties={"via": "replay", "folder": "${path:equals('/'):or(${path:equals('./')}):ifElse('',${path})}"},
    )
    group.connect(refused, is_copied)
    group.connect(is_copied, fetch, "kept")
    group.connect(is_copied, tell, "unmatched")
    group.connect(fetch, keep, "success", room=Room(32, "4 GB"))
    group.connect(fetch, tell, "not.found", "failure", "permission.denied")
    group.connect(keep, tell, "success")
    group.connect(keep, keep, "failure", room=UNBOUNDED)
    group.connect(tell, as_json, "success")
    group.connect(as_json, put, "success")
    group.connect(put, put, "failure", room=UNBOUNDED)
    group.connect(put, landed, "success")
    group.connect(landed, delete, "landed")
    group.connect(landed, events, "unmatched")
    group.connect(delete, events, "success", "not found", "failure")
    group.connect(take, name, "success", room=Room(100, "4 GB"))
    group.connect(name, replays, "success", room=Room(100, "4 GB"))
    return {"refused": refused, "events": events, "replays": replays}


REASON_FIELDS = (
    "time", "reason", "message", "source", "bytes", "sha256", "media_type", "status", "request_id", "via",
)  # fmt: skip
"""What lies beside a file in quarantine."""
