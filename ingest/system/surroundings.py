"""How this process was started, for texts that name a command: as the runbook's table says it.

Does not: decide anything but words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_UNIT = re.compile(r"/(iot-ingest[^/\n]*)\.service$", re.MULTILINE)  # in our control group
_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))  # Docker, Podman


def command_words(
    environ: Mapping[str, str] = os.environ,
    *,
    in_container: bool | None = None,
    groups: Path = Path("/proc/self/cgroup"),
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
        found = _UNIT.search(groups.read_text()) if groups.exists() else None
        unit = found[1] if found else "iot-ingest"  # a command has another group, or none
        return {
            "run": "ingest",
            "restart": f"systemctl restart {unit}",
            "log": f"journalctl -u {unit}",
        }
    return {"run": "./run", "restart": "./run", "log": "./run doctor"}
