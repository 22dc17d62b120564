"""Every error a client can meet: one table for HTTP and WebSocket.

Raise with one argument, the message for the client; it says what is wrong and what to do. One argument also
keeps the errors picklable, so they cross from replica to replica unharmed.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """An error with an answer.

    Attributes:
        status_code: HTTP.
        code: Stable name for programs.
        ws_code: WebSocket close code, RFC 6455 section 7.4 and the IANA registry.
        retry_after_s: Sent as Retry-After where set.
    """

    status_code: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    ws_code: ClassVar[int] = 1011
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequest(ServiceError):
    """Malformed request, odd PCM length, missing rate, unknown task or format."""

    status_code, code, ws_code = 400, "invalid_request", 1007


class NotAuthenticated(ServiceError):
    """No credentials."""

    status_code, code, ws_code = 401, "not_authenticated", 1008


class NotAuthorized(ServiceError):
    """Wrong credentials."""

    status_code, code, ws_code = 403, "not_authorized", 1008


class NotFound(ServiceError):
    """Unknown route or model."""

    status_code, code, ws_code = 404, "not_found", 1008


class MethodNotAllowed(ServiceError):
    """The route exists, the method does not."""

    status_code, code, ws_code = 405, "method_not_allowed", 1008


class TooLarge(ServiceError):
    """Too many bytes, seconds or channels."""

    status_code, code, ws_code = 413, "too_large", 1009


class UnsupportedMedia(ServiceError):
    """Container or codec not accepted."""

    status_code, code, ws_code = 415, "unsupported_media", 1003


class UnusableAudio(ServiceError):
    """An accepted type whose audio cannot be used: corrupt, truncated, empty, non-finite."""

    status_code, code, ws_code = 422, "unusable_audio", 1007


class Overloaded(ServiceError):
    """A queue is full or no replica is there."""

    status_code, code, ws_code, retry_after_s = 503, "overloaded", 1013, 2


class DeadlineExceeded(ServiceError):
    """A stage took longer than it may."""

    status_code, code, ws_code = 504, "deadline_exceeded", 1011


class InternalError(ServiceError):
    """Our bug. Logged with its trace; the client sees a bare body."""


class SampleRateMismatch(ValueError):
    """Samples and parameters disagree about the rate: a bug of the caller, never of the client."""


class ModelError(ValueError):
    """A model folder is missing, damaged or incompatible."""


ERRORS: tuple[type[ServiceError], ...] = (
    InvalidRequest,
    NotAuthenticated,
    NotAuthorized,
    NotFound,
    MethodNotAllowed,
    TooLarge,
    UnsupportedMedia,
    UnusableAudio,
    Overloaded,
    DeadlineExceeded,
    InternalError,
)
"""The error table, for documentation and tests."""
