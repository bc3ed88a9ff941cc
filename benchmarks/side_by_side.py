"""The whole service beside its floors and its peers, alternating in one run: `./run bench`.

Every run measures each contender of the chosen cases once, on fresh data, every timestamp
new. The embedded PostgreSQL has its durable defaults, the service has its buffer in memory and
`ack=buffered`, unless a contender names others. A contender for which the machine lacks something
(wrk, a package) is left out and named. Medians and spreads are printed. A full run also adds a line
to benchmarks/results.ndjson and writes benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine, results
from benchmarks.cases import ALL, BY_NAME, CASES, Case
from benchmarks.contenders import Figures, Plan
from benchmarks.options import count, seconds_within, some_of
from benchmarks.parts import run_parts
from benchmarks.processes import Broken, Missing
from benchmarks.record import Line

EPILOG = """exit codes: 0 measured, 1 something broke meanwhile, 2 wrong use, 130 interrupted

cases: """ + ", ".join(BY_NAME)


class Measured(NamedTuple):
    """All runs by contender; why others were left out, and why others broke."""

    runs: dict[str, list[Figures]]
    left_out: dict[str, str]
    broken: dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, record; return the exit code."""
    chosen = _parser().parse_args(arguments)
    chosen.runs = chosen.runs or (1 if chosen.quick else 5)
    chosen.seconds = chosen.seconds or (1.0 if chosen.quick else 5.0)
    cases: Sequence[Case] = chosen.only or CASES
    if chosen.parts_only or not (chosen.no_parts or chosen.only):
        code = run_parts(quick=chosen.quick)
        if code or chosen.parts_only:
            return code
    measured = Measured({}, {}, {})
    began_s = time.monotonic()
    try:
        measure(cases, Plan(chosen.seconds, quick=chosen.quick), chosen.runs, measured)
    except KeyboardInterrupt:
        print("interrupted; the figures until now:", file=sys.stderr)
        show(cases, measured)
        return 130
    show(cases, measured)
    print(f"took {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    if chosen.record and not chosen.quick:
        write(chosen, cases, measured)
    return 1 if measured.broken else 0


def show(cases: Sequence[Case], measured: Measured) -> None:
    """Print the medians, and to stderr the contenders without figures."""
    for case in cases:
        print(results.plain(case, measured.runs))
    for title, reasons in (("left out", measured.left_out), ("broke", measured.broken)):
        for name, why in reasons.items():
            print(f"{title}: {name}: {why}", file=sys.stderr)


def write(chosen: argparse.Namespace, cases: Sequence[Case], measured: Measured) -> None:
    """Record the figures."""
    broke = {name: f"it broke: {why}" for name, why in measured.broken.items()}
    line = Line(
        at=machine.now(),
        commit=machine.commit(),
        environment=machine.environment(),
        runs_wanted=chosen.runs,
        seconds=chosen.seconds,
        cases=[case.name for case in cases],
        runs=measured.runs,
        left_out={**measured.left_out, **broke},
    )
    results.record(line, chosen.results)
    print(f"written: {chosen.results / results.DOCUMENT}", file=sys.stderr)


def measure(cases: Sequence[Case], plan: Plan, runs: int, measured: Measured) -> None:
    """Run all contenders of the cases `runs` times, alternately. Fills `measured` run by run.

    A contender that lacks something, or breaks, is not tried again.
    """
    names = dict.fromkeys(name for case in cases for name in case.contenders)
    for run in range(1, runs + 1):
        for name in names:
            if name not in measured.left_out and name not in measured.broken:
                _measure_once(name, plan, f"{run}/{runs}", measured)


def _measure_once(name: str, plan: Plan, run: str, measured: Measured) -> None:
    began_s = time.monotonic()
    try:
        figures = ALL[name].run(plan)
    except Missing as why:
        measured.left_out[name] = str(why)
    except Broken as why:
        measured.broken[name] = f"in run {run}: {why}"
    except Exception as why:  # the figures of half an hour before it must not be lost
        measured.broken[name] = f"in run {run}: {type(why).__name__}: {why}"
        traceback.print_exc()
    else:
        measured.runs.setdefault(name, []).append(figures)
        took_s = time.monotonic() - began_s
        text = f"run {run} {name} ({took_s:.1f} s): {results.brief(figures)}"
        print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run bench",
        description="Measure the parts (pytest-benchmark), then the whole service beside its\n"
        "floors and peers. The figures go to benchmarks/RESULTS.md and benchmarks/results.ndjson.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # __main__ compares whole words
    )
    parser.add_argument("--runs", type=count, help="of each contender (5; quick: 1)")
    parser.add_argument(
        "--seconds", type=seconds_within(1, 3_600), help="that one run drives (5; quick: 1)"
    )
    parser.add_argument("--only", type=some_of(BY_NAME), metavar="CASE,..", help="these cases")
    parser.add_argument(
        "--quick", action="store_true", help="see that all works, in minutes; records nothing"
    )
    parser.add_argument(
        "--no-record", dest="record", action="store_false", help="print only, write no file"
    )
    parser.add_argument(
        "--results", type=Path, default=results.FOLDER, metavar="FOLDER", help="where to record"
    )
    parser.add_argument(
        "--against", metavar="COMMIT", help="compare with a commit: see --against HEAD --help"
    )
    parser.add_argument("--parts-only", action="store_true", help="only pytest-benchmark")
    parser.add_argument("--no-parts", action="store_true", help="without pytest-benchmark")
    return parser
