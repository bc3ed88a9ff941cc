"""`./run faults`: run the fault matrix and write FAULTS.md. Exit 0 only if all is green.

Exit 1: something is not as promised, or a control did not lose, or a mutant was not caught (all
named). Exit 2: wrong use.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import uvloop

from tests.faults import (
    controls,
    database_faults,
    disk_faults,
    door_faults,
    line_faults,
    service_faults,
)
from tests.faults.matrix import FAULTS, place
from tests.faults.runner import Done, run_all

__all__ = [
    "controls",
    "database_faults",
    "disk_faults",
    "door_faults",
    "line_faults",
    "service_faults",
]


def say(done: Done) -> None:
    """Print one line on what came of a fault."""
    found = done.found
    print(
        f"{done.fault.name:<4} seed {done.seed:<6} {'ok' if done.green else 'RED':<4}"
        f"{found.acknowledged:>8} acknowledged {found.lost:>6} lost {found.doubled:>4} doubled "
        f"{found.recovery_s:6.1f} s to quiet {done.took_s:6.1f} s  {done.fault.title}",
        flush=True,
    )
    if not done.green:
        for said in found.broken or ["not caught"]:
            print(f"     {said}")
        print(f"     kept: {done.artefacts}", flush=True)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./run faults", description=__doc__)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--only", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args(words)
    names = sorted(FAULTS, key=place)
    if chosen.only:
        names = chosen.only.split(",")
    faults = [FAULTS[name] for name in names]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        done = runner.run(
            run_all(faults, chosen.seed or [1], quick=chosen.quick, jobs=chosen.jobs, say=say)
        )
    return 0 if all(each.green for each in done) else 1


if __name__ == "__main__":
    sys.exit(main())
