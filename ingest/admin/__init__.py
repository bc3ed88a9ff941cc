"""The admin port: probes, /metrics, the actions, and the dashboard.

The only folder that knows prometheus_client. Imports what is below it; app and cli import it.
"""
