"""What happens to every request before its route: a request id, credentials, admission; and to every error after."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.responses import error_response
from deployments.auth import ApiKeys
from soundstage.errors import ERRORS, InternalError, Overloaded, ServiceError, TooLarge

REQUEST_ID_HEADER = "X-Request-ID"
"""Serve gives every request one, and the response the same."""
PROTECTED_PREFIX = "/v1/"
COSTLY_PATHS = frozenset({"/v1/analyze", "/v1/audio/transcriptions"})

MAX_LOGGED_PATH = 128

OK = "ok"
CANCELLED = "cancelled"
"""How a request ends that meets no error, and one whose client left; the other codes are those of the error table."""

_CODES = {error.status_code: error.code for error in ERRORS}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(__name__)


class RequestMeter(Protocol):
    """Counts requests."""

    def done(self, path: str, code: str, seconds: float) -> None:
        """A request has ended, from its first byte to its last in so many seconds."""
        ...


class Gate:
    """Lets a request in, or answers it before a byte of its body is read; counts and logs how it ended.

    Args:
        app: What stands behind.
        keys: Who may call.
        max_concurrent_requests: Of the routes that cost something; more are answered 503.
        max_body_bytes: A longer body is refused by its announced length, else while it is read. FastAPI's own
            max_body_size answers the first with a plain text that no handler can change.
        too_large: The answer to that.
        meter: None counts nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: ApiKeys,
        max_concurrent_requests: int,
        max_body_bytes: int,
        too_large: TooLarge,
        meter: RequestMeter | None = None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._max_concurrent_requests = max_concurrent_requests
        self._max_body_bytes = max_body_bytes
        self._too_large = too_large
        self._meter = meter
        self._n_active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get(REQUEST_ID_HEADER, "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        start_s = time.perf_counter()
        status_code = 0

        async def send_noticed(message: Message) -> None:
            nonlocal status_code
            status_code = message.get("status", status_code)
            await send(message)

        try:
            self._check(scope["path"], headers)
            with self._place_for(scope["path"]):
                await self._app(scope, self._counted(receive), send_noticed)
        except ServiceError as e:
            await error_response(e, request_id)(scope, receive, send_noticed)
        except Exception:
            _log.exception("request %s failed", request_id)
            if status_code:
                state["code"] = InternalError.code
                raise
            await error_response(InternalError("unexpected"), request_id)(scope, receive, send_noticed)
        finally:
            self._ended(scope, status_code, time.perf_counter() - start_s)

    def _ended(self, scope: Scope, status_code: int, seconds: float) -> None:
        """Count and log; what fails after the status was sent is in the state."""
        path: str = scope["path"]
        if not path.startswith(PROTECTED_PREFIX):
            return
        outcome = OK if 200 <= status_code < 400 else _CODES.get(status_code, CANCELLED)
        code: str = scope["state"].get("code", outcome)
        if self._meter is not None:
            self._meter.done(path, code, seconds)
        fields: dict[str, Any] = {
            "event.action": "request",
            "event.outcome": "success" if code == OK else "failure",
            "event.duration": round(seconds * 1e9),
            "http.request.method": scope["method"],
            "http.response.status_code": status_code,
            "url.path": path[:MAX_LOGGED_PATH],
            "error.code": None if code == OK else code,
        }
        message = "%s %s %d %s in %.3f s"
        _log.info(message, scope["method"], path[:MAX_LOGGED_PATH], status_code, code, seconds, extra=fields)

    def _check(self, path: str, headers: Headers) -> None:
        if path.startswith(PROTECTED_PREFIX):
            self._keys.check(headers.get("authorization"))
        if int(headers.get("content-length", "0")) > self._max_body_bytes:
            raise self._too_large

    def _counted(self, receive: Receive) -> Receive:
        n_bytes = 0

        async def receive_counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._max_body_bytes:
                raise self._too_large
            return message

        return receive_counted

    @contextmanager
    def _place_for(self, path: str) -> Iterator[None]:
        is_costly = path in COSTLY_PATHS
        if is_costly and self._n_active >= self._max_concurrent_requests:
            raise Overloaded("the service is busy; try again after the time in Retry-After")
        self._n_active += is_costly
        try:
            yield
        finally:
            self._n_active -= is_costly
