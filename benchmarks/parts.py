"""The parts of the service, each alone: pytest-benchmark over the files bench_*.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.processes import REPOSITORY

QUICK = (
    "--benchmark-min-rounds=1",
    "--benchmark-max-time=0.02",
    "--benchmark-min-time=0.000005",
    "--benchmark-warmup=off",
)
USUAL = ("--benchmark-min-rounds=5", "--benchmark-max-time=0.5", "--benchmark-warmup=on")


def run_parts(*, quick: bool) -> int:
    """Run all parts, which print their medians; return pytest's exit code."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=300"),
        *("--benchmark-only", "--benchmark-disable-gc"),
        *("--benchmark-columns=median,iqr,rounds", "--benchmark-sort=fullname"),
        *(QUICK if quick else USUAL),
        *map(str, sorted(Path(__file__).parent.glob("bench_*.py"))),
    ]
    return subprocess.run(command, cwd=REPOSITORY, check=False).returncode
