"""The admin port: probes, /metrics, the actions, and the dashboard.

The only folder that imports prometheus_client. It imports lower folders; app and cli import it.
"""
