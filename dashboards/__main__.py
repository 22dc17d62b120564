"""Writes what Grafana provisions: `python -m dashboards`."""

from __future__ import annotations

from pathlib import Path

import yaml

from dashboards.boards import BOARDS
from dashboards.panels import SCRAPE_INTERVAL, as_json

OUTPUT = Path(__file__).parent / "grafana"
RAY_DASHBOARDS = "/tmp/ray/session_latest/metrics/grafana/dashboards"  # noqa: S108  # where Ray's head node writes them

_DATASOURCE = {
    "apiVersion": 1,
    "datasources": [
        {
            "name": "Prometheus",
            "uid": "prometheus",
            "type": "prometheus",
            "access": "proxy",
            "url": "$PROMETHEUS_URL",
            "isDefault": True,
            "editable": False,
            "jsonData": {
                "timeInterval": SCRAPE_INTERVAL,
                "httpMethod": "POST",
                # Where traces are kept, such as Jaeger's http://…:16686/trace. A double dollar is one of Grafana's own.
                "exemplarTraceIdDestinations": [
                    {"name": "trace_id", "url": "$TRACES_URL/$${__value.raw}", "urlDisplayLabel": "Open the trace"}
                ],
            },
        }
    ],
}


def _provider(name: str, folder: str, path: str) -> dict[str, object]:
    return {
        "name": name,
        "folder": folder,
        "type": "file",
        "disableDeletion": True,
        "allowUiUpdates": False,
        "options": {"path": path},
    }


_PROVIDERS = {
    "apiVersion": 1,
    "providers": [
        _provider("soundstage", "Soundstage", "/etc/grafana/soundstage/dashboards"),
        _provider("ray", "Ray", RAY_DASHBOARDS),
    ],
}


def _kustomization() -> str:
    """The dashboards as ConfigMaps, one each, for Grafana's sidecar in Kubernetes."""
    document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "generatorOptions": {"labels": {"grafana_dashboard": "1"}, "disableNameSuffixHash": True},
        "configMapGenerator": [
            {"name": board.uid.replace("soundstage-", "soundstage-dashboard-"), "files": [f"{board.uid}.json"]}
            for board in BOARDS
        ],
    }
    return yaml.safe_dump(document, sort_keys=False)


def files() -> dict[str, str]:
    """Path below OUTPUT to text of every file."""
    note = "# Written by `python -m dashboards`.\n"
    return {
        **{f"dashboards/{board.uid}.json": as_json(board) for board in BOARDS},
        "dashboards/kustomization.yaml": note + _kustomization(),
        "provisioning/datasources/prometheus.yml": note + yaml.safe_dump(_DATASOURCE, sort_keys=False),
        "provisioning/dashboards/soundstage.yml": note + yaml.safe_dump(_PROVIDERS, sort_keys=False),
    }


def main() -> None:
    """Write every file."""
    for name, text in files().items():
        path = OUTPUT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
