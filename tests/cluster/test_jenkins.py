"""The Jenkinsfiles under JenkinsPipelineUnit: every stage reached, a failure stops the rest, no secret in a command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cluster.binaries import CACHE_DIR

PROJECT = Path(__file__).parent / "jenkins"


@pytest.mark.timeout(600)
def test_the_pipelines_do_what_they_say() -> None:
    maven = shutil.which("mvn")
    if maven is None:
        pytest.skip("THE PIPELINES ARE NOT PROVEN: Maven is not installed")
    build = CACHE_DIR / "jenkins"
    shutil.rmtree(build, ignore_errors=True)
    command = [maven, "-q", "-B", "-f", str(PROJECT), f"-Dsoundstage.build={build}", "test"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    reports = [ElementTree.parse(path).getroot() for path in (build / "surefire-reports").glob("TEST-*.xml")]
    assert sum(int(report.get("tests", 0)) for report in reports) >= 12
