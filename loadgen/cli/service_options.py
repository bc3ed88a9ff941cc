"""Which service a command talks to: the same options for all commands, and one way to find it.

Without options it is the service that runs on the usual state folder of this machine. If none runs
there, it is whatever listens at the default addresses.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from loadgen.cli import values
from loadgen.cli.options import Option
from loadgen.proof.local_service import LocalService, find, state_folder
from loadgen.traffic.post import Target, target_of

DATA_PORT, ADMIN_PORT = 8080, 8081
DEFAULT_URL = f"http://127.0.0.1:{DATA_PORT}"
LOOPBACK = ("127.0.0.1", "::1")

URL = Option("--url", "of the service; default: the one on this machine", values.url, shows="URL")
ADMIN_URL = Option("--admin-url", "of its admin port (/metrics)", values.admin_url, shows="URL")
# The name that `run` had before.
METRICS_URL = Option(
    "--metrics-url", argparse.SUPPRESS, values.admin_url, shows="URL", into="admin_url"
)
STATE_DIR = Option(
    "--state-dir",
    "state folder of a service on this machine: says its addresses; default: the usual place",
    Path,
    shows="DIR",
)


def local_of(chosen: argparse.Namespace) -> LocalService | None:
    """Return the running service of this machine, if it is the one that is meant. Raises NoHome."""
    local = find(state_folder(chosen.state_dir))
    return local if local is not None and _is_meant(chosen.url, local) else None


def _is_meant(target: Target | None, local: LocalService) -> bool:
    if target is None:
        return True
    own = target_of(local.url)
    near = {own.host, "localhost"} if own.host in LOOPBACK else {own.host}
    return target.port == own.port and target.host in near


def target_for(chosen: argparse.Namespace, local: LocalService | None) -> Target:
    """Return where posts go: the given URL, the service of this machine, the default address."""
    given: Target | None = chosen.url
    return given or target_of(local.url if local else DEFAULT_URL)


def admin_url_for(
    chosen: argparse.Namespace, local: LocalService | None, target: Target
) -> str | None:
    """Return the URL of the admin port; None if it is not known.

    Beside the default data port it is the default admin port. Beside another one there may be the
    admin port of another service.
    """
    if chosen.admin_url or local:
        return str(chosen.admin_url or (local.admin_url if local else ""))
    if target.port != DATA_PORT:
        return None
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"http://{host}:{ADMIN_PORT}"
