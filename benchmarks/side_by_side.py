"""The whole service beside its floors and its peers, alternating in one run: `./run bench`.

Every run measures each contender of the chosen cases once, in turn, on fresh data, every timestamp
new; the embedded PostgreSQL has its durable defaults, the service its buffer in memory and
`ack=buffered` unless a case says `committed`. What a machine lacks (wrk, a package) is left out and
named. Prints medians and spreads. A full run also adds a line to benchmarks/results.ndjson and
writes benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine, results
from benchmarks.cases import ALL, NAMES, Case, chosen_cases
from benchmarks.contenders import Figures, Plan
from benchmarks.processes import Broken, Missing
from benchmarks.record import Line

EPILOG = """exit codes: 0 measured, 1 something broke meanwhile, 2 wrong use, 130 interrupted

cases: """ + ", ".join(NAMES)


class Measured(NamedTuple):
    """All runs by contender; what was left out, and what broke, and why."""

    runs: dict[str, list[Figures]]
    left_out: dict[str, str]
    broken: dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, record; return the exit code."""
    chosen = check(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended
    measured = Measured({}, {}, {})
    began_s = time.monotonic()
    try:
        measure(chosen.only, Plan(chosen.seconds, quick=chosen.quick), chosen.runs, measured)
    except KeyboardInterrupt:
        print("interrupted; what was measured until now:", file=sys.stderr)
        show(chosen.only, measured)
        return 130
    show(chosen.only, measured)
    print(f"took {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    if chosen.record and not chosen.quick:
        write(chosen, measured)
    return 1 if measured.broken else 0


def check(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; ends the process with code 2 and a sentence if one is wrong."""
    chosen = _parser().parse_args(arguments)
    chosen.runs = chosen.runs or (1 if chosen.quick else 5)
    chosen.seconds = chosen.seconds or (1.0 if chosen.quick else 5.0)
    return chosen


def show(cases: Sequence[Case], measured: Measured) -> None:
    """Print the medians, and to stderr what is not among them."""
    for case in cases:
        print(results.plain(case, measured.runs))
    for name, why in measured.left_out.items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    for name, why in measured.broken.items():
        print(f"broke: {name}: {why}", file=sys.stderr)


def write(chosen: argparse.Namespace, measured: Measured) -> None:
    """Record the figures."""
    broke = {name: f"it broke: {why}" for name, why in measured.broken.items()}
    line = Line(
        at=machine.now(),
        commit=machine.commit(),
        environment=machine.environment(),
        runs_wanted=chosen.runs,
        seconds=chosen.seconds,
        cases=[case.name for case in chosen.only],
        runs=measured.runs,
        left_out={**measured.left_out, **broke},
        parts={} if chosen.parts is None else results.read_parts(chosen.parts),
    )
    results.record(line, chosen.results)
    print(f"written: {chosen.results / results.DOCUMENT}", file=sys.stderr)


def measure(cases: Sequence[Case], plan: Plan, runs: int, measured: Measured) -> None:
    """Run all contenders of the cases `runs` times, in turn. Fills `measured` as it goes.

    A contender that lacks something, or breaks, is not tried again.
    """
    names = dict.fromkeys(name for case in cases for name in case.contenders)
    for group in (
        [name for name in names if not ALL[name].stays],
        [name for name in names if ALL[name].stays],
    ):
        for run in range(1, runs + 1):
            for name in group:
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
    except Exception as why:  # half an hour of other figures must not be lost with it
        measured.broken[name] = f"in run {run}: {type(why).__name__}: {why}"
        traceback.print_exc()
    else:
        measured.runs.setdefault(name, []).append(figures)
        took_s = time.monotonic() - began_s
        told = f"run {run} {name} ({took_s:.1f} s): {results.brief(figures)}"
        print(told, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run bench",
        description="Measure the parts (pytest-benchmark), then the whole service beside its\n"
        "floors and peers. The figures go to benchmarks/RESULTS.md and benchmarks/results.ndjson.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # __main__ looks for whole words
    )
    parser.add_argument("--runs", type=count, help="of each contender (5; quick: 1)")
    parser.add_argument("--seconds", type=_seconds, help="that one run drives (5; quick: 1)")
    parser.add_argument(
        "--only", type=_cases, default=chosen_cases(NAMES), metavar="CASE,..", help="these cases"
    )
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
    parser.add_argument("--parts", type=Path, help=argparse.SUPPRESS)  # by __main__: its JSON
    parser.add_argument("--parts-only", action="store_true", help="only pytest-benchmark")
    parser.add_argument("--no-parts", action="store_true", help="without pytest-benchmark")
    return parser


def count(text: str) -> int:
    """Read how often something is done. Raises ArgumentTypeError."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds <= 3_600:
        raise argparse.ArgumentTypeError("must be 1 to 3,600")
    return seconds


def _cases(text: str) -> list[Case]:
    try:
        return chosen_cases(text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
