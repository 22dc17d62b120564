"""What every kind of test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from soundstage import sample

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of audio with licences that lies beside the checkout; skips where it is absent."""
    path = Path(os.environ.get("SOUNDSTAGE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"SKIPPED, NOT PROVEN: no audio at {path}; set SOUNDSTAGE_SHARED_DATA")
    return path


@pytest.fixture(scope="session")
def sample_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip that `soundstage sample` writes: 48 kHz, two channels."""
    path = tmp_path_factory.mktemp("sample") / "sample.wav"
    sample.write(path)
    return path
