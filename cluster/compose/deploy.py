"""Runs once the head is there: deploys the service, and ends well when every stage of it answers."""

import subprocess
import sys
import time
import urllib.request

TIMEOUT_S = 300

COMMAND = ["serve", "deploy", "--address", "http://head:8265", "/etc/soundstage/serve_config.yaml"]

subprocess.run(COMMAND, check=True)  # noqa: S603
deadline_s = time.monotonic() + TIMEOUT_S
while time.monotonic() < deadline_s:
    try:
        with urllib.request.urlopen("http://head:8000/readyz", timeout=5):
            sys.exit()
    except OSError:
        time.sleep(1)
sys.exit(f"the service did not become ready within {TIMEOUT_S} s; see `docker compose logs head worker`")
