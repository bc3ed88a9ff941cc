"""Packages that a few tests need, and nobody else: installed once, with checked hashes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(sys.prefix + ".tools")  # where ./run keeps its other tools
INSTALL_S_MAX = 120.0


class NotInstalled(Exception):
    """The packages cannot be had: there is no network, or no pip; the text says more."""


def version_in(lock: Path, name: str) -> str:
    """Return the version of a package that a lock file names."""
    line = next(each for each in lock.read_text().splitlines() if each.startswith(f"{name}=="))
    return line.partition("==")[2].split()[0]


def installed(lock: Path, name: str) -> Path:
    """Return a folder with the packages of a lock file, called after one of them. Blocks.

    It is for `PYTHONPATH`. Raises NotInstalled.
    """
    folder = CACHE / f"{name}-{version_in(lock, name)}"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=CACHE))
    words = (
        *("-m", "pip", "--retries", "2", "install", "--target", str(made), "--no-deps"),
        *("--only-binary", ":all:", "--require-hashes", "--requirement", str(lock)),
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
            raise NotInstalled((done.stderr.strip().splitlines() or ["pip says nothing"])[-1])
        if not folder.exists():
            made.rename(folder)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(str(error)) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder
