"""The admin port: probes, /metrics, the actions, and the dashboard."""
