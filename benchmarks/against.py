"""`./run bench --against [COMMIT]`: is this working tree slower than that commit?

It starts both, puts the same short loads on them alternately (alternating.py), and judges the
ratios of the pairs (ratios.py defines "not slower"). It prints one line a case. `--times 10` does
all of it ten times and says how often it passed: with `--against HEAD` on a clean tree this shows
how reliable the command is. Does not: record in RESULTS.md.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.alternating import MORE_WAYS, WAYS, Pair, Two, Way, two_services
from benchmarks.options import count, seconds_within, some_of
from benchmarks.processes import Broken, raise_open_files_limit, scratch
from benchmarks.ratios import MORE_IS_BETTER, PAIRS_FOR_INTERVAL, Ratios, enough, slower, summary

BASELINE = "102f91b0"  # "not slower" is judged against it until the round of changes has ended
SECONDS, QUICK_SECONDS = 0.6, 0.1
PASSES_OF_TEN = 9
BY_NAME = {way.name: way for way in (*WAYS, *MORE_WAYS)}
EPILOG = f"""exit codes: 0 not slower (with --times: in at least {PASSES_OF_TEN} of 10),
1 something is slower, or broke, 2 wrong use, 130 interrupted

cases: {", ".join(BY_NAME)}"""


class Unknown(Exception):
    """The commit cannot be checked out; the text says why."""


class Compared(NamedTuple):
    """One case and its pairs."""

    way: Way
    pairs: list[Pair]

    @property
    def ratios(self) -> Ratios:
        """The ratios of all pairs, by figure."""
        each = [pair.ratios() for pair in self.pairs]
        return {name: [ratios[name] for ratios in each] for name in MORE_IS_BETTER}


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Return a list a figure, to four digits."""
    return {name: [float(f"{row[name]:.4g}") for row in rows] for name in rows[0]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write; return the exit code."""
    chosen = parser().parse_args(arguments)
    chosen.seconds = chosen.seconds or (QUICK_SECONDS if chosen.quick else SECONDS)
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
    print(f"took {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    return code


def _compare_times(chosen: argparse.Namespace) -> int:
    passes = 0
    with scratch() as folder:
        commit = checked_out(chosen.against, folder)
        for _ in range(chosen.times):
            compared = compare(chosen, folder)
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


def compare(chosen: argparse.Namespace, tree: Path) -> list[Compared]:
    """Compare all cases with the code in `tree`; print a line for each."""
    compared = []
    for way in chosen.only:
        with two_services(tree, chosen.seconds, chosen.flags) as two:
            compared.append(Compared(way, measured(two, way, quick=chosen.quick)))
        print(f"{way.name}: {summary(compared[-1].ratios)}", flush=True)
    return compared


def measured(two: Two, way: Way, *, quick: bool) -> list[Pair]:
    """Return as many pairs as the rule asks for."""
    pairs: list[Pair] = []
    with closing(two.pairs(way, _say)) as more:
        for pair in more:
            pairs.append(pair)
            figures = ", ".join(
                f"{name} {pair.this[name]:,.2f} and {pair.other[name]:,.2f}" for name in pair.this
            )
            _say(f"{way.name} {len(pairs)}: {figures}")
            if quick:
                is_over = len(pairs) >= PAIRS_FOR_INTERVAL
            else:  # an even count: as many A B B A as B A A B
                is_over = len(pairs) % 2 == 0 and enough(Compared(way, pairs).ratios)
            if is_over:
                break
    return pairs


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def checked_out(commit: str, folder: Path) -> str:
    """Put the files of a commit into a folder; return its short name. Raises Unknown."""
    if commit.startswith("-"):  # git would take it for an option
        raise Unknown(f"{commit} is no commit")
    named = machine.git("rev-parse", "--short", "--verify", "--quiet", f"{commit}^{{commit}}")
    files = named and machine.git("archive", "--format=tar", f"{commit}^{{commit}}")
    if not files:
        raise Unknown(f"there is no commit {commit} here, or no repository")
    with tarfile.open(fileobj=io.BytesIO(files)) as tar:
        # The argument `filter` is new in Python 3.11.4. The files are git's own.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(folder)  # noqa: S202  the filter is set
    return named.decode().strip()


def _write(chosen: argparse.Namespace, commit: str, compared: Sequence[Compared]) -> None:
    record = {
        "at": machine.now(),
        "commit": machine.commit(),
        "against": commit,
        "environment": machine.environment(),
        "seconds": chosen.seconds,
        "quick": chosen.quick,
        "flags": chosen.flags,
        "passed": not any(slower(each.ratios) for each in compared),
        "cases": [
            {
                "case": each.way.name,
                "slower": slower(each.ratios),
                "told": summary(each.ratios),
                "this": _columns([pair.this for pair in each.pairs]),
                "other": _columns([pair.other for pair in each.pairs]),
            }
            for each in compared
        ],
    }
    with chosen.write.open("a") as file:
        file.write(json.dumps(record) + "\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = argparse.ArgumentParser(
        prog="./run bench",
        description="Compare this working tree with a commit: the same short loads on both,\n"
        "alternately. CPU a reading (the service's, PostgreSQL's), rate and latency are compared,\n"
        "by the ratios of the pairs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # __main__ compares whole words
    )
    made.add_argument(
        "--against",
        required=True,
        nargs="?",
        const=BASELINE,
        metavar="COMMIT",
        help=f"the other one [{BASELINE}]",
    )
    made.add_argument(
        "--only",
        type=some_of(BY_NAME),
        default=WAYS,
        metavar="CASE,..",
        help="these cases, not the first four",
    )
    made.add_argument(
        "--flags",
        type=shlex.split,
        default=[],
        metavar="WORDS",
        help="more settings of this tree's service, as one word: what does a setting cost?",
    )
    made.add_argument("--times", type=count, default=1, help="the whole so often [1]")
    made.add_argument(
        "--seconds", type=seconds_within(0.1, 60), help=f"that one load drives [{SECONDS:g}]"
    )
    made.add_argument(
        "--write", type=Path, metavar="FILE", help="add a line of JSON for each time to this file"
    )
    made.add_argument(
        "--quick", action="store_true", help="few and tiny loads: see that it works, judge nothing"
    )
    return made
