"""API keys: only their SHA-256 is kept, and comparison takes the same time whichever key is wrong.

Keys are random and long (`soundstage keys` makes them), so a plain hash is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from soundstage.errors import NotAuthenticated, NotAuthorized

_log = logging.getLogger(__name__)
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+):(?P<digest>[0-9a-f]{64})")


@dataclass(slots=True)
class ApiKeys:
    """The keys that open the service, by name; with none it is open.

    Attributes:
        digests: Name to SHA-256 in hexadecimal.
        path: The file that holds them. It is followed: a key is added or taken away without a restart.
    """

    digests: dict[str, str]
    path: Path | None = None
    _seen: tuple[int, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Read a file of `name:sha256` lines; empty lines and lines that start with # are skipped.

        Raises:
            ValueError: A line has another form, or there is no key.
        """
        # Before the file is read: what is written meanwhile is seen at the next request.
        seen = _state(path)
        return cls(_digests(path), path, seen)

    def check(self, authorization: str | None) -> None:
        """Let a request pass.

        Args:
            authorization: The header, "Bearer KEY".

        Raises:
            NotAuthenticated: No key.
            NotAuthorized: A wrong one.
        """
        self._follow()
        if not self.digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise NotAuthenticated("send your API key in the header: Authorization: Bearer KEY")
        digest = hash_key(key.strip())
        # Every entry is compared, so that the time tells nothing.
        if not any([hmac.compare_digest(digest, known) for known in self.digests.values()]):  # noqa: C419
            raise NotAuthorized("this API key is not known; ask the operator of the service for one")

    def _follow(self) -> None:
        """Read the file again where it is another one than before; one with a mistake leaves the last keys."""
        if self.path is None:
            return
        seen = _state(self.path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self.digests = _digests(self.path)
        except (OSError, ValueError) as e:
            _log.warning("API keys stay as they were: %s", e)
        else:
            _log.info("API keys were read again: %d", len(self.digests))


def _state(path: Path) -> tuple[int, ...]:
    """What changes with a file: of a secret of Kubernetes, the path leads to another one. Empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def _digests(path: Path) -> dict[str, str]:
    digests: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        match = _LINE.fullmatch(entry)
        if match is None:
            # The line itself may hold a key in the clear: it is not shown.
            raise ValueError(f"{path}, line {number}: expected name:sha256 in hexadecimal")
        digests[match["name"]] = match["digest"]
    if not digests:
        raise ValueError(f"{path} holds no key")
    return digests


def hash_key(key: str) -> str:
    """What is kept of a key: its SHA-256 in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_loopback(host: str | None) -> bool:
    """Whether a server that listens on this host is reached from this machine alone."""
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
