"""How this process was started, for texts that name a command: as the runbook's table says it.

Does not: decide anything but words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))  # Docker, Podman


def command_words(
    environ: Mapping[str, str] = os.environ, *, in_container: bool | None = None
) -> dict[str, str]:
    """Return how to type a command of the service (`run`), restart it, and read its log."""
    pod = os.uname().nodename
    if environ.get("KUBERNETES_SERVICE_HOST"):
        kubectl = "kubectl -n iot-ingest"
        return {
            "run": f"{kubectl} exec {pod} -- python -P -m ingest",
            "restart": f"{kubectl} delete pod {pod}",
            "log": f"{kubectl} logs {pod}",
        }
    if any(mark.exists() for mark in _MARKS) if in_container is None else in_container:
        return {
            "run": "docker compose exec ingest python -P -m ingest",
            "restart": "docker compose restart ingest",
            "log": "docker compose logs ingest",
        }
    if environ.get("STATE_DIRECTORY"):  # systemd sets it for a unit with StateDirectory
        return {
            "run": "ingest",
            "restart": "systemctl restart iot-ingest",
            "log": "journalctl -u iot-ingest",
        }
    return {"run": "./run", "restart": "./run", "log": "./run doctor"}
