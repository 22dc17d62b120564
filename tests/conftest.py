"""What every kind of test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of audio with licences that lies beside the checkout; skips where it is absent."""
    path = Path(os.environ.get("SOUNDSTAGE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"SKIPPED, NOT PROVEN: no audio at {path}; set SOUNDSTAGE_SHARED_DATA")
    return path
