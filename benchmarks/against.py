"""`./run bench --against COMMIT`: is this working tree slower than that commit?

Starts both, puts the same short loads on them in turn (alternating.py), and judges the ratios of
the pairs (ratios.py says what "not slower" means). Prints one line a case. `--times 10` does it all
ten times and says how often it passed: with `--against HEAD` on a clean tree this is how sure the
command is of itself. Does not: record in RESULTS.md.
"""

from __future__ import annotations

import argparse
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.alternating import WAYS, Pair, Two, Way, two_services
from benchmarks.processes import REPOSITORY, Broken, raise_open_files_limit, scratch
from benchmarks.ratios import MORE_IS_BETTER, PAIRS_FOR_INTERVAL, Ratios, enough, slower, told
from benchmarks.side_by_side import count

SECONDS, QUICK_SECONDS = 0.6, 0.1
PASSES_OF_TEN = 9
NAMES = tuple(way.name for way in WAYS)
EPILOG = f"""exit codes: 0 not slower (with --times: in at least {PASSES_OF_TEN} of 10),
1 something is slower, or broke, 2 wrong use, 130 interrupted

cases: {", ".join(NAMES)}"""


class Unknown(Exception):
    """Not a commit that could be checked out; says why."""


class Compared(NamedTuple):
    """One case: its pairs, and what they say."""

    way: Way
    pairs: list[Pair]

    @property
    def ratios(self) -> Ratios:
        """The ratios of all pairs, by figure."""
        each = [pair.ratios() for pair in self.pairs]
        return {name: [ratios[name] for ratios in each] for name in MORE_IS_BETTER}

    def as_record(self) -> dict[str, Any]:
        """Return what is written down."""
        return {
            "case": self.way.name,
            "slower": slower(self.ratios),
            "told": told(self.ratios),
            "this": _columns([pair.this for pair in self.pairs]),
            "other": _columns([pair.other for pair in self.pairs]),
        }


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Return a list a figure, to four digits."""
    return {name: [float(f"{row[name]:.4g}") for row in rows] for name in rows[0]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write; return the exit code."""
    chosen = _parser().parse_args(arguments)
    chosen.seconds = chosen.seconds or (QUICK_SECONDS if chosen.quick else SECONDS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended
    raise_open_files_limit()
    began_s = time.monotonic()
    try:
        code = _compare_times(chosen)
    except Unknown as why:
        print(f"./run bench: {why}", file=sys.stderr)
        return 2
    except Broken as why:
        print(f"broke: {why}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"took {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    return code


def _compare_times(chosen: argparse.Namespace) -> int:
    passes = 0
    with scratch() as folder:
        commit = checked_out(chosen.against, folder)
        for _ in range(chosen.times):
            compared = compare(chosen.only, folder, chosen.seconds, quick=chosen.quick)
            passes += not any(slower(each.ratios) for each in compared)
            if chosen.write:
                _write(chosen, commit, compared)
    if chosen.quick:
        print("quick: this says that the command works, and nothing about speed")
        return 0
    if chosen.times > 1:
        print(f"{chosen.times} times: {passes} passed")
    return 0 if often_enough(passes, chosen.times) else 1


def often_enough(passes: int, times: int) -> bool:
    """Whether nine of ten passed, or the only one."""
    return passes * 10 >= times * PASSES_OF_TEN


def compare(ways: Sequence[Way], tree: Path, seconds: float, *, quick: bool) -> list[Compared]:
    """Compare all cases with the code in `tree`; print a line for each."""
    compared = []
    for flags, group in groupby(ways, key=lambda way: way.flags):
        with two_services(tree, flags, seconds) as two:
            for way in group:
                compared.append(Compared(way, measured(two, way, quick=quick)))
                print(f"{way.name}: {told(compared[-1].ratios)}", flush=True)
    return compared


def measured(two: Two, way: Way, *, quick: bool) -> list[Pair]:
    """Return as many pairs as it takes."""
    pairs: list[Pair] = []
    for pair in two.pairs(way, _say):
        pairs.append(pair)
        figures = ", ".join(
            f"{name} {pair.this[name]:,.2f} and {pair.other[name]:,.2f}" for name in pair.this
        )
        _say(f"{way.name} {len(pairs)}: {figures}")
        are_balanced = len(pairs) % 2 == 0  # as many A B B A as B A A B
        if len(pairs) >= PAIRS_FOR_INTERVAL and quick:
            break
        if are_balanced and enough(Compared(way, pairs).ratios):
            break
    return pairs


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def checked_out(commit: str, folder: Path) -> str:
    """Put the files of a commit into a folder; return its short name. Raises Unknown."""
    if commit.startswith("-"):  # git would take it for an option
        raise Unknown(f"{commit} is no commit")
    named = _git("rev-parse", "--short", "--verify", "--quiet", f"{commit}^{{commit}}")
    if named.returncode != 0:
        raise Unknown(f"there is no commit {commit} here, or no repository")
    files = _git("archive", "--format=tar", f"{commit}^{{commit}}")
    if files.returncode != 0:
        raise Unknown(f"git archive failed: {files.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(files.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return named.stdout.decode().strip()


def _git(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, check=False)


def _write(chosen: argparse.Namespace, commit: str, compared: Sequence[Compared]) -> None:
    record = {
        "at": machine.now(),
        "commit": machine.commit(),
        "against": commit,
        "environment": machine.environment(),
        "seconds": chosen.seconds,
        "quick": chosen.quick,
        "passed": not any(slower(each.ratios) for each in compared),
        "cases": [each.as_record() for each in compared],
    }
    with chosen.write.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run bench",
        description="Compare this working tree with a commit: the same short loads on both, in\n"
        "turn. Compared are CPU a reading, rate and latency, by the ratios of the pairs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # __main__ looks for whole words
    )
    parser.add_argument("--against", required=True, metavar="COMMIT", help="the other one")
    parser.add_argument("--only", type=_ways, default=WAYS, metavar="CASE,..", help="these cases")
    parser.add_argument("--times", type=count, default=1, help="the whole so often [1]")
    parser.add_argument("--seconds", type=_seconds, help=f"that one load drives [{SECONDS:g}]")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="add a line of JSON for each time to this file"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few and tiny loads: see that it works, judge nothing"
    )
    return parser


def _ways(text: str) -> list[Way]:
    asked = text.split(",")
    for name in asked:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is no case; there are {', '.join(NAMES)}")
    return [way for way in WAYS if way.name in asked]


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 60:
        raise argparse.ArgumentTypeError("must be 0.1 to 60")
    return seconds
