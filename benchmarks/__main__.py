"""`./run bench`: the parts by pytest-benchmark, then the whole side by side.

All options are those of the side by side (`--help`), and `--parts-only`, `--no-parts`. With
`--only` the parts are left out. Parts go into RESULTS.md with the rest. `--against COMMIT` is a
command of its own: it only compares this working tree with a commit (against.py).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import against, side_by_side
from benchmarks.processes import REPOSITORY

QUICK = (
    "--benchmark-min-rounds=1",
    "--benchmark-max-time=0.02",
    "--benchmark-min-time=0.000005",
    "--benchmark-warmup=off",
)
USUAL = ("--benchmark-min-rounds=5", "--benchmark-max-time=0.5", "--benchmark-warmup=on")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both; return the exit code of the first that fails."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if any(each.partition("=")[0] == "--against" for each in words):
        return against.main(words)
    alone = "--parts-only" in words
    with_parts = alone or not {"--no-parts", "-h", "--help"} & set(words)
    with_parts = with_parts and (alone or not any(each.startswith("--only") for each in words))
    words = [each for each in words if each not in ("--parts-only", "--no-parts")]
    if not with_parts:
        return side_by_side.main(words)
    side_by_side.check(words)  # a wrong option is told before minutes have passed
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "parts.json"
        try:
            code = run_parts(found, quick="--quick" in words)
        except KeyboardInterrupt:
            return 130
        if code or alone:
            return code
        return side_by_side.main([*words, "--parts", str(found)])


def run_parts(found: Path, *, quick: bool) -> int:
    """Run pytest-benchmark over bench_*.py; write its JSON to `found`; return its exit code."""
    files = sorted(Path(__file__).parent.glob("bench_*.py"))
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=300"),
        *("--benchmark-only", "--benchmark-disable-gc", f"--benchmark-json={found}"),
        *("--benchmark-columns=median,iqr,rounds", "--benchmark-sort=fullname"),
        *(QUICK if quick else USUAL),
        *map(str, files),
    ]
    return subprocess.run(command, cwd=REPOSITORY, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
