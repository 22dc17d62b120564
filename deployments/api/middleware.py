"""What happens to every request before its route: a request id, credentials, admission; and to every error after."""

from __future__ import annotations

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.responses import error_response
from deployments.auth import ApiKeys
from soundstage.errors import InternalError, Overloaded, ServiceError

REQUEST_ID_HEADER = "X-Request-ID"
PROTECTED_PREFIX = "/v1/"
COSTLY_PATHS = frozenset({"/v1/analyze", "/v1/audio/transcriptions"})

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(__name__)


class Gate:
    """Lets a request in, or answers it before a byte of its body is read.

    Args:
        app: What stands behind.
        keys: Who may call.
        max_concurrent_requests: Of the routes that cost something; more are answered 503.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, max_concurrent_requests: int) -> None:
        self._app = app
        self._keys = keys
        self._max_concurrent_requests = max_concurrent_requests
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
        scope.setdefault("state", {})["request_id"] = request_id
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            if scope["path"].startswith(PROTECTED_PREFIX):
                self._keys.check(headers.get("authorization"))
            if scope["path"] in COSTLY_PATHS:
                await self._admitted(scope, receive, send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        except ServiceError as e:
            await error_response(e, request_id)(scope, receive, send_with_id)
        except Exception:
            _log.exception("request %s failed", request_id)
            if has_started:
                raise
            await error_response(InternalError("unexpected"), request_id)(scope, receive, send_with_id)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._n_active >= self._max_concurrent_requests:
            raise Overloaded("the service is busy; try again after the time in Retry-After")
        self._n_active += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._n_active -= 1
