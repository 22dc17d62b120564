"""A client of the service: sends a file from disk and reads the analysis as it comes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self

import httpx
from pydantic import TypeAdapter, ValidationError

from soundstage.errors import ERRORS, Overloaded, ServiceError
from soundstage.params import ClientParams
from soundstage.pipeline import ALL_TASKS, AnalysisCollector, Task
from soundstage.speech.hints import Hints
from soundstage.speech.profanity import Profanity
from soundstage.types import Analysis, ChunkAnalysis, ClipSummary, JsonObject, Levels

MEDIA_TYPES = {
    ".aac": "audio/aac",
    ".aif": "audio/aiff",
    ".aifc": "audio/aiff",
    ".aiff": "audio/aiff",
    ".bwf": "audio/wav",
    ".caf": "audio/x-caf",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".m4v": "video/mp4",
    ".mka": "audio/x-matroska",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".mxf": "application/mxf",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".rf64": "audio/wav",
    ".w64": "audio/x-w64",
    ".wav": "audio/wav",
    ".wave": "audio/wav",
    ".webm": "video/webm",
}
"""By suffix in lower case. What a folder is searched for; any other file is sent as application/octet-stream."""

_ERRORS_BY_CODE = {error.code: error for error in ERRORS}
_BUSY = frozenset({502, 503})
"""A proxy answers 502 where the replica behind it died: the request may be sent again like one that met 503."""

OnProgress = Callable[[float], None]
"""Is told up to where the audio is analysed, in seconds."""


class ServiceUnreachable(Exception):
    """Nothing answers at the URL."""


class _Interrupted(Exception):
    """The connection ended before the answer did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisRequest:
    """What is asked of the service about one file.

    Attributes:
        tasks: At least one.
        language: ISO 639-1; None leaves it to the service.
        min_score: Tags and events below it are left out; None leaves it to the service.
        hints: Names and words that may be said.
        profanity: "mask" leaves the first letter of swear words alone.
    """

    tasks: frozenset[Task] = ALL_TASKS
    language: str | None = None
    min_score: float | None = None
    hints: Hints = ()
    profanity: Profanity = "keep"

    @property
    def query(self) -> dict[str, str]:
        """The parameters of POST /v1/analyze."""
        query = {"response_format": "ndjson", "tasks": ",".join(sorted(self.tasks))}
        if self.language is not None:
            query["language"] = self.language
        if self.min_score is not None:
            query["min_score"] = str(self.min_score)
        if self.hints:
            query["hints"] = ",".join(self.hints)
        if self.profanity != "keep":
            query["profanity"] = self.profanity
        return query


@dataclass(frozen=True, slots=True, kw_only=True)
class _SummaryLine:
    """The last line of an answer; see SummaryBody in deployments.api.schemas."""

    request_id: str
    duration_s: float
    language: str
    levels: Levels | None
    models: dict[str, str] = field(default_factory=dict)


_CHUNK = TypeAdapter(ChunkAnalysis)
_SUMMARY = TypeAdapter(_SummaryLine)


class ServiceClient:
    """Talks to one service. Threads may share it; use it as a context manager.

    Args:
        url: Of the service, such as "http://127.0.0.1:8000".
        api_key: Sent as a bearer token; None where the service is open.
        params: How patiently it asks.
        sleep: Waits this many seconds between attempts.

    Raises:
        ValueError: The URL is not one of HTTP.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        params: ClientParams | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.url = checked_url(url)
        self._params = params or ClientParams()
        self._sleep = sleep
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            timeout=httpx.Timeout(self._params.read_timeout_s, connect=self._params.connect_timeout_s),
            limits=httpx.Limits(max_connections=None),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def check_ready(self) -> None:
        """Ask once whether every stage of the service is able to answer.

        Raises:
            ServiceUnreachable: Nothing answers.
            ServiceError: The service answers that it is not ready.
        """
        try:
            response = self._http.get(f"{self.url}/readyz", timeout=self._params.connect_timeout_s)
        except httpx.TransportError as e:
            raise ServiceUnreachable(f"no service answers at {self.url} ({_reason(e)})") from e
        if response.status_code != 200:
            raise self._error(response)

    def analyze(
        self, path: Path, request: AnalysisRequest | None = None, on_progress: OnProgress = lambda _: None
    ) -> Analysis:
        """The analysis of a file, which is sent from disk piece by piece.

        A service that is busy, cannot be reached or hangs up is asked again, a bounded number of times.

        Args:
            path: The file.
            request: What is asked.
            on_progress: Called with each chunk; begins anew where the file is sent again.

        Raises:
            OSError: The file cannot be read.
            ServiceUnreachable: Nothing answers.
            ServiceError: What the service answered, as the class of its code.
        """
        request = request or AnalysisRequest()
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._attempt(path, request, on_progress)
            except (Overloaded, httpx.TransportError, _Interrupted) as e:
                if attempt >= self._params.n_attempts:
                    raise self._final(e, attempt) from e
                self._sleep(self._wait_s(attempt, e))

    def _attempt(self, path: Path, request: AnalysisRequest, on_progress: OnProgress) -> Analysis:
        media_type = MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")
        with ExitStack() as stack:
            file = stack.enter_context(path.open("rb"))  # read by httpx in pieces of 64 KiB
            sent: dict[str, Any] = {
                "params": request.query,
                "content": file,
                "headers": {"Content-Type": media_type},
            }
            if request.hints:  # a form has room for more than a URL
                sent = {"data": request.query, "files": {"file": (path.name, file, media_type)}}
            response = stack.enter_context(self._http.stream("POST", f"{self.url}/v1/analyze", **sent))
            if response.status_code != 200:
                response.read()
                raise self._error(response)
            return self._read(response, on_progress)

    def _read(self, response: httpx.Response, on_progress: OnProgress) -> Analysis:
        collector = AnalysisCollector()
        for line in _lines(response.iter_bytes()):
            try:
                part = json.loads(line)
                match part["type"]:
                    case "chunk":
                        chunk = _CHUNK.validate_python(part)
                        collector.push(chunk)
                        on_progress(chunk.end_s)
                    case "summary":
                        return _finished(collector, _SUMMARY.validate_python(part))
                    case "error":
                        raise service_error(part["error"])
            except (ValueError, KeyError, TypeError, ValidationError) as e:
                raise ServiceError(f"{self.url} answered what this version of soundstage does not understand") from e
        raise _Interrupted("the connection ended before the answer did")

    def _error(self, response: httpx.Response) -> ServiceError:
        try:
            error = service_error(response.json()["error"])
        except (ValueError, KeyError, TypeError):
            text = f"{self.url} answered {response.status_code} {response.reason_phrase}"
            error = (Overloaded if response.status_code in _BUSY else ServiceError)(text)
        if isinstance(error, Overloaded):
            error = _Busy(error.detail)
            error.wait_s = retry_after_s(response.headers.get("Retry-After"))
        return error

    def _wait_s(self, attempt: int, error: Exception) -> float:
        backoff_s = self._params.first_wait_s * 2.0 ** (attempt - 1)
        # Spread, so that files sent side by side do not all come back at once.
        wait_s = max(getattr(error, "wait_s", 0.0), backoff_s * random.uniform(0.75, 1.25))  # noqa: S311
        return min(wait_s, self._params.max_wait_s)

    def _final(self, error: Exception, n_attempts: int) -> Exception:
        if isinstance(error, Overloaded):
            return Overloaded(f"{error.detail} (asked {n_attempts} times)")
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return ServiceUnreachable(
                f"no service answers at {self.url} ({_reason(error)}, tried {n_attempts} times); start one,"
                " or name another with --url, or analyse in this process with --local"
            )
        return ServiceError(f"{self.url} hung up {n_attempts} times ({_reason(error)})")


def checked_url(url: str) -> str:
    """The URL of a service, without a slash at its end.

    Raises:
        ValueError: It is not one of HTTP.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as e:
        raise ValueError(f"{url!r} is not a URL: {e}") from e
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError(f"{url!r} is not a URL of a service; give one like http://127.0.0.1:8000")
    return url.rstrip("/")


class _Busy(Overloaded):
    """An Overloaded that knows how long the service asked to wait."""

    wait_s: float = 0.0


def _finished(collector: AnalysisCollector, line: _SummaryLine) -> Analysis:
    summary = ClipSummary(duration_s=line.duration_s, levels=line.levels, model_versions=tuple(line.models.items()))
    return collector.finish(summary, request_id=line.request_id, language=line.language)


def service_error(error: JsonObject) -> ServiceError:
    """The error of an answer's "error" object, as the class of its code."""
    return _ERRORS_BY_CODE.get(error["code"], ServiceError)(str(error["message"]))


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    r"""Bytes to lines. Only "\n" parts them: `str.splitlines` also parts at characters that JSON leaves in text."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line for line in whole if line.strip())
    if rest.strip():
        yield rest


def retry_after_s(header: str | None) -> float:
    """Seconds that Retry-After names. Source: RFC 9110, 10.2.3: a number of seconds or a date."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
