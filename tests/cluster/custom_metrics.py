"""What prometheus-adapter is to Kubernetes: figures of Pods, here those that a test says."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

VERSION = "custom.metrics.k8s.io/v1beta2"


class CustomMetrics(ThreadingHTTPServer):
    """Answers the API server's requests for a metric of Pods.

    Args:
        folder: For its certificate.
        metric: Its name.
        pods: Names of the Pods there are.

    Attributes:
        value: Of every Pod.
    """

    def __init__(self, folder: Path, metric: str, pods: Callable[[], list[str]]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.metric, self.pods, self.value = metric, pods, 0
        certificate, key = folder / "metrics.crt", folder / "metrics.key"
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate),
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def registration(self) -> list[dict[str, Any]]:
        """Documents that tell the API server where this listens."""
        group, version = VERSION.split("/")
        return [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "custom-metrics", "namespace": "kube-system"},
                "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": self.server_port}]},
            },
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": f"{version}.{group}"},
                "spec": {
                    "group": group,
                    "version": version,
                    "groupPriorityMinimum": 100,
                    "versionPriority": 100,
                    "insecureSkipTLSVerify": True,
                    "service": {"name": "custom-metrics", "namespace": "kube-system", "port": self.server_port},
                },
            },
        ]

    def close(self) -> None:
        """Stop answering."""
        self.shutdown()
        self.server_close()


class _Answers(BaseHTTPRequestHandler):
    server: CustomMetrics
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.rstrip("/") == f"/apis/{VERSION}":
            resource = {"name": f"pods/{self.server.metric}", "namespaced": True, "kind": "MetricValueList",
                        "singularName": "", "verbs": ["get"]}  # fmt: skip
            self._send(200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION,
                             "resources": [resource]})  # fmt: skip
        elif path.endswith(f"/pods/*/{self.server.metric}"):
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            items = [
                {
                    "describedObject": {"kind": "Pod", "namespace": "soundstage", "name": name, "apiVersion": "/v1"},
                    "metric": {"name": self.server.metric},
                    "timestamp": now,
                    "value": str(self.server.value),
                }
                for name in self.server.pods()
            ]
            self._send(200, {"kind": "MetricValueList", "apiVersion": VERSION, "metadata": {}, "items": items})
        else:
            self._send(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})

    def _send(self, code: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
