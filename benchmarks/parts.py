"""The parts of the service, each alone: pytest-benchmark over the files bench_*.py."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.processes import REPOSITORY

QUICK = (
    "--benchmark-min-rounds=1",
    "--benchmark-max-time=0.02",
    "--benchmark-min-time=0.000005",
    "--benchmark-warmup=off",
)
USUAL = ("--benchmark-min-rounds=5", "--benchmark-max-time=0.5", "--benchmark-warmup=on")


def run_parts(*, quick: bool) -> tuple[int, dict[str, float]]:
    """Run all parts; return pytest's exit code, and the medians."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "parts.json"
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=300"),
            *("--benchmark-only", "--benchmark-disable-gc", f"--benchmark-json={found}"),
            *("--benchmark-columns=median,iqr,rounds", "--benchmark-sort=fullname"),
            *(QUICK if quick else USUAL),
            *map(str, sorted(Path(__file__).parent.glob("bench_*.py"))),
        ]
        code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
        return code, {} if code else read_parts(found)


def read_parts(path: Path) -> dict[str, float]:
    """Return the medians, in seconds by test, of a file of pytest-benchmark."""
    found: list[dict[str, Any]] = json.loads(path.read_text())["benchmarks"]
    return {
        f"{each['fullname'].partition('::')[0].rpartition('/')[2]}::{each['name']}": float(
            each["stats"]["median"]
        )
        for each in found
    }
