"""Pictures of the dashboards, drawn without a Grafana: `python -m dashboards.pictures`."""
