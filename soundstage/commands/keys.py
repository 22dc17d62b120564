"""`soundstage keys`: API keys and the lines that the service keeps of them."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9._-]+")
"""As deployments.auth reads it."""


def new_key(name: str) -> tuple[str, str]:
    """A new random key and its line for the file of keys.

    Args:
        name: Whom the key is for.

    Returns:
        The key (256 random bits), and `name:sha256` in hexadecimal.

    Raises:
        ValueError: The name does not fit into the file.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a key; use letters, digits, '.', '_' and '-'")
    key = secrets.token_urlsafe(32)
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def append_line(path: Path, line: str) -> None:
    """Add a line to a file of keys, which only its owner may read from then on.

    Raises:
        ValueError: The file holds a key of this name, which the new one would silently replace.
        OSError: The file cannot be written.
    """
    name = line.partition(":")[0]
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+", encoding="utf-8") as file:
        text = file.read()
        if any(known.strip().partition(":")[0] == name for known in text.splitlines()):
            raise ValueError(f"{path} holds a key of the name {name}; choose another name, or remove its line first")
        os.fchmod(file.fileno(), 0o600)
        file.write(("\n" if text and not text.endswith("\n") else "") + line + "\n")
