"""Reads the audio of a request: the body itself, or the part `file` of a form.

Both are spooled to disk beyond a megabyte, and counted while they are read (see `Gate`).
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO

import numpy as np
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request

from soundstage.errors import InvalidRequest, UnusableAudio
from soundstage.types import EncodedAudio, PcmEncoding

SPOOL_BYTES = 1024**2
"""Larger uploads wait on disk. Source: the form parser of Starlette spools at the same size."""

MAX_FORM_FIELDS = 32


@dataclass(frozen=True, slots=True)
class Upload:
    """What a request brought.

    Attributes:
        data: The bytes, in memory or mapped from a file that is already unlinked.
        media_type: Lower case, without parameters.
        filename: As the form says; empty for a plain body.
        fields: The other fields of a form; all values of those whose name ends in [], in order.
    """

    data: bytes | memoryview
    media_type: str
    filename: str
    fields: Mapping[str, str | tuple[str, ...]]

    def as_audio(
        self, *, sample_rate: int | None = None, n_channels: int | None = None, encoding: PcmEncoding | None = None
    ) -> EncodedAudio:
        """The audio, with what only raw PCM needs to be told."""
        data = self.data if isinstance(self.data, bytes) else np.frombuffer(self.data, dtype=np.uint8)
        return EncodedAudio(
            data=data,
            media_type=self.media_type,
            sample_rate=sample_rate,
            n_channels=n_channels,
            encoding=encoding,
        )


async def read_upload(request: Request) -> Upload:
    """Read all of the request's audio.

    Raises:
        InvalidRequest: The form is malformed or has no part `file`.
        UnusableAudio: There is not one byte of audio.
        TooLarge: More bytes than may be uploaded.
    """
    media_type = _media_type(request.headers.get("content-type"))
    if media_type == "multipart/form-data":
        return await _read_form(request)
    with SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        try:
            async for piece in request.stream():
                spool.write(piece)
        except ClientDisconnect as e:
            raise InvalidRequest("the upload ended before its announced length; send it again") from e
        return Upload(_contents(spool), media_type or "application/octet-stream", "", {})


async def _read_form(request: Request) -> Upload:
    form: FormData = await request.form(max_files=1, max_fields=MAX_FORM_FIELDS)
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidRequest("the form has no file; send the audio as the part named 'file', with a filename")
        fields = {name: _values(form, name) for name, value in form.items() if isinstance(value, str)}
        media_type = _media_type(file.content_type) or "application/octet-stream"
        return Upload(_contents(file.file), media_type, file.filename or "", fields)
    finally:
        await form.close()


def _values(form: FormData, name: str) -> str | tuple[str, ...]:
    values = tuple(value for value in form.getlist(name) if isinstance(value, str))
    return values if name.endswith("[]") else values[-1]


def _contents(spool: IO[bytes]) -> bytes | memoryview:
    """Small uploads as bytes; large ones stay on disk, mapped, until nobody looks at them any more."""
    n_bytes = spool.seek(0, 2)
    if n_bytes == 0:
        raise UnusableAudio("the body is empty; send the bytes of an audio file")
    spool.seek(0)
    if n_bytes <= SPOOL_BYTES:
        return spool.read()
    return memoryview(mmap.mmap(spool.fileno(), n_bytes, access=mmap.ACCESS_READ))


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()
