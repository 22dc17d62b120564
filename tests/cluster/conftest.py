"""A cluster for all tests of this folder that want one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.binaries import CannotBuild
from tests.cluster.control_plane import ControlPlane


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    try:
        control_plane = ControlPlane(tmp_path_factory.mktemp("kubernetes"))
    except CannotBuild as e:
        pytest.skip(f"THE MANIFESTS ARE NOT PROVEN: {e}")
    try:
        control_plane.start()
        yield control_plane
    finally:
        control_plane.stop()
