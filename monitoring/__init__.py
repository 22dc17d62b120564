"""What watches the service from outside: Prometheus, Alertmanager, the canary."""
