"""`./run faults`: do harm to the service under load and account for every reading.

All faults of `serve`, `--only broker` (a stream between gateways and writers) and `--only years`
(partitions and the archive) each write their part of docs/reference/faults.md; with `--tables` a
summary, but for `years`. Exit codes: 0 all is as promised, the controls lost readings, the mutants
were found; 1 a fault, control or mutant is red (each is named); 2 wrong use.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

import uvloop

from ingest.system import logs
from tests.faults import report
from tests.faults.all_faults import FAULTS
from tests.faults.matrix import SERVE, YEARS, of_table, place
from tests.faults.runner import Done, run_all
from tests.faults.selections import names_of, told

SEED = 1
TABLES = Path(__file__).parent / "tables.toml"
# C2, C4: what the check of the tables needs is lost itself: the declared table, the journal's note.
# F8: a batch for two tables takes several round trips: on an idle machine none commits late.
WITHOUT_TABLES = {"C2", "C4", "F8"}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="./run faults",
        description="Do harm to service and database under load; account for every reading.\n"
        "Before a release: all of it, --seed 1 --seed 2. Before a merge: --only ci --seed 1.",
        epilog=told(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--seed",
        type=int,
        action="append",
        metavar="N",
        help=f"of all random choices; give it several times to run all faults on each [{SEED}]",
    )
    made.add_argument(
        "--only",
        default="",
        metavar="F2,F11",
        help="run only these, or a named selection (see below)",
    )
    made.add_argument(
        "--quick", action="store_true", help="run a few faults, once or twice each; writes nothing"
    )
    made.add_argument(
        "--jobs", type=int, default=3, metavar="N", help="faults at a time; they mostly wait [3]"
    )
    made.add_argument("--list", action="store_true", help="list the faults, run nothing")
    made.add_argument(
        "--tables",
        action="store_true",
        help="declare a table with columns for half of the readings; writes a summary",
    )
    return made


def say(done: Done) -> None:
    """Print a line with the result of a fault, and the reasons if it is red."""
    found = done.found
    result = "-" if done.missing else "ok" if done.green else "RED"
    print(
        f"{done.fault.name:<4} seed {done.seed:<4} {result:<4}"
        f"{found.acknowledged:>8,} acknowledged {found.lost:>6,} lost {found.doubled:>4,} doubled "
        f"{found.recovery_s:5.1f} s to quiet {done.took_s:6.1f} s  {done.fault.title}",
        flush=True,
    )
    for note in (*found.notes, *found.figures):
        print(f"     {note}", flush=True)
    if done.missing:
        print(f"     not tested: {done.missing}", flush=True)
    if not done.green and not done.missing:
        for said in done.broken:
            print(f"     {said}")
        print(f"     kept: {done.artefacts}", flush=True)


def write(done: list[Done], took_s: float, of: str, table: str, *, tables: bool) -> None:
    """Write the part of the page that this run has: its table, or a summary."""
    said = report.environment(done, took_s, of, report.LIBRARIES[table])
    text, part = (report.totals(done), f"{table}-tables") if tables else (report.table(done), table)
    report.PAGE.write_text(report.put(report.PAGE.read_text(), part, f"{said}\n{text}"))
    print(f"written: {report.PAGE}, {part}")


def main(words: list[str] | None = None) -> int:
    """Run the chosen faults; return the exit code."""
    chosen = parser().parse_args(words)
    names = sorted(FAULTS, key=place) if chosen.list else list(of_table())
    if chosen.only:
        names = names_of(chosen.only)
        if unknown := [name for name in names if name not in FAULTS]:
            print(f"./run faults: there is no {unknown[0]}; see --list", file=sys.stderr)
            return 2
    if chosen.tables and any(FAULTS[name].table == YEARS for name in names):
        print(
            "./run faults: --tables is not for the faults of years: with archive_dir and declared "
            "tables a service does not start",
            file=sys.stderr,
        )
        return 2
    if chosen.list:
        for name in names:
            print(f"{name:<4} {FAULTS[name].title}: {report.does(FAULTS[name])}")
        return 0
    if chosen.quick:
        names = [name for name in names if FAULTS[name].quick_times]
    faults = [FAULTS[name] for name in names]
    if chosen.tables:
        faults = [
            replace(each, settings={**each.settings, "tables_file": TABLES})
            for each in faults
            if each.name not in WITHOUT_TABLES
        ]
    logs.configure("error")  # of this process, which connects to brokers too
    began_s, of = time.monotonic(), report.commit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        done = runner.run(
            run_all(faults, chosen.seed or [SEED], quick=chosen.quick, jobs=chosen.jobs, say=say)
        )
    red = [each for each in done if not each.green]
    took_s = time.monotonic() - began_s
    table = chosen.only or SERVE
    if table in report.LIBRARIES and not chosen.quick:
        write(done, took_s, of, table, tables=chosen.tables)
    if red:
        named = ", ".join(f"{each.fault.name} (seed {each.seed})" for each in red)
        print(f"RED after {took_s:.0f} s: {named}")
        return 1
    print(f"all {len(done)} green after {took_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
