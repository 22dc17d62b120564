"""Files of a registry by its URL: a folder, or a bucket of any object store that fsspec speaks to."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from soundstage.errors import ModelError


def check_url(url: str) -> str:
    """The URL, if it holds no secret: it is shown in messages and logs.

    Raises:
        ModelError: It holds one; the message does not.
    """
    parts = urlsplit(url)
    if parts.scheme and (parts.password or parts.query or (parts.username and parts.scheme.startswith("http"))):
        raise ModelError(
            "the URL of a registry must not hold a key or password; the store reads them from its own environment "
            "variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return url


class Store:
    """Reads and writes files below a URL.

    Args:
        url: Such as "/srv/models", "s3://bucket/models" or "gs://bucket/models".

    Raises:
        ModelError: No such kind of store, or its package is not installed, or the URL holds a secret.
    """

    def __init__(self, url: str) -> None:
        self.url = check_url(url).rstrip("/")
        self._fs: Any
        try:
            self._fs, root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as e:
            raise ModelError(f"the registry {url} cannot be used: {e}") from e
        self._root = PurePosixPath(root)
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def entries(self, *path: str) -> list[str]:
        """Names of what lies in a folder, sorted; none where there is no folder.

        Raises:
            ModelError: The store does not answer.
        """
        with self._named():
            self._fs.invalidate_cache()  # stores remember listings, and others write too
            try:
                found = self._fs.ls(self._path(path), detail=False)
            except FileNotFoundError:
                return []
        return sorted(PurePosixPath(entry).name for entry in found)

    def read(self, *path: str) -> bytes | None:
        """A small file; None where there is none.

        Raises:
            ModelError: The store does not answer.
        """
        with self._named():
            try:
                data: bytes = self._fs.cat_file(self._path(path))
            except FileNotFoundError:
                return None
        return data

    def write(self, data: bytes, *path: str) -> None:
        """Write a small file whole or not at all, as object stores do by themselves.

        Raises:
            ModelError: The store does not take it.
        """
        target = self._path(path)
        with self._named():
            if not self._is_local:
                self._fs.pipe_file(target, data)
                return
            scratch = Path(target).parent / f".{Path(target).name}-{secrets.token_hex(8)}"
            scratch.parent.mkdir(parents=True, exist_ok=True)
            try:
                scratch.write_bytes(data)
                scratch.replace(target)
            finally:
                scratch.unlink(missing_ok=True)

    def download(self, target: Path, *path: str) -> None:
        """Copy a file from the store.

        Raises:
            ModelError: There is none, or the store does not answer.
        """
        with self._named():
            self._fs.get_file(self._path(path), str(target))

    def upload(self, source: Path, *path: str) -> None:
        """Copy a file into the store.

        Raises:
            ModelError: The store does not take it.
        """
        target = self._path(path)
        with self._named():
            if self._is_local:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
            self._fs.put_file(str(source), target)

    def sha256(self, *path: str) -> str | None:
        """SHA-256 of a file in hexadecimal; None where there is none.

        Raises:
            ModelError: The store does not answer.
        """
        with self._named():
            try:
                with self._fs.open(self._path(path), "rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                return None

    def _path(self, path: tuple[str, ...]) -> str:
        return str(self._root.joinpath(*path))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Every store has errors of its own; a registry has one."""
        try:
            yield
        except Exception as e:
            raise ModelError(f"the registry {self.url} does not work: {type(e).__name__}: {e}") from e
