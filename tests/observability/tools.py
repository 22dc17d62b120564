"""Programs that the tests need beside Python: `python -m tests.observability.tools` installs what is missing.

From Debian's packages, as root; elsewhere it says what to install, and the tests that need it say that they were
skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "java": "default-jdk-headless",
    "javac": "default-jdk-headless",
    "mvn": "maven",
    "npm": "npm",
}
"""Which package holds a program."""
SERVICES = ("prometheus", "prometheus-alertmanager")
"""What Debian starts at once, on all addresses."""


def missing(*programs: str) -> list[str]:
    """Those that are not there, of some or of all."""
    return [program for program in programs or PACKAGES if shutil.which(program) is None]


def how_to_get(programs: list[str]) -> str:
    """A sentence for people."""
    packages = " ".join(sorted({PACKAGES[program] for program in programs}))
    return f"{', '.join(programs)} missing: apt-get install {packages}"


def main() -> None:
    """Install what is missing, or say what is."""
    programs = missing()
    if not programs:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"NOT PROVEN HERE: {how_to_get(programs)}", file=sys.stderr)
        return
    packages = sorted({PACKAGES[program] for program in programs})
    print(f"installing {', '.join(packages)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=env, stdout=subprocess.DEVNULL)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    subprocess.run(install, check=True, env=env, stdout=subprocess.DEVNULL)
    started = [service for service in SERVICES if service in packages]
    if started and Path("/run/systemd/system").exists():
        subprocess.run(["systemctl", "disable", "--now", *started], check=True)


if __name__ == "__main__":
    main()
