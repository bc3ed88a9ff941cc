"""Figures of the benchmarks: their intervals, the verdict, and what is shown of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import pytest

from benchmarks.against import Compared, measured
from benchmarks.alternating import WAYS, Pair, Two, Way
from benchmarks.cases import ALL, BY_NAME, CASES, judge
from benchmarks.ratios import (
    CPU,
    MORE_IS_BETTER,
    PAIRS_MAX,
    PAIRS_MIN,
    rank,
    slower,
    summary,
)
from benchmarks.readme_numbers import NOT_YET, speed
from benchmarks.record import Line
from benchmarks.results import record, write

MACHINE = {"processor": "a <fast> one", "fsync": "123 us"}


def singles(rates: list[tuple[float, float]], **more: Any) -> Line:
    """Give a line of the case `singles`: (posts/s of the bare handler, of the service) by run."""
    line = Line(
        at="2026-11-25T15:00:00Z",
        commit="abc1234",
        environment=MACHINE,
        runs_wanted=len(rates),
        seconds=5,
        cases=["singles"],
        runs={
            "bare": [{"posts_per_s": bare} for bare, _ in rates],
            "singles": [{"posts_per_s": mine, "rows_per_s": mine} for _, mine in rates],
        },
        left_out={},
    )
    return line._replace(**more)


def test_missed_bound_is_said(tmp_path: Path) -> None:
    """A bound that is not kept is marked MISSED."""
    record(singles([(100, 80)]), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "bare handler's posts/s: 0.80 (at least 0.85) **MISSED**" in text
    assert "1 bounds, of which 1 were missed" in text
    record(singles([(1_000, 849)]), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "bare handler's posts/s: 0.849 (at least 0.85) **MISSED**" in text


def test_newest_line_of_each_case_is_shown(tmp_path: Path) -> None:
    """A later run of one case replaces that case, and no other one; all lines are kept."""
    record(singles([(100, 90)]), tmp_path)
    start = singles([], cases=["start"], runs={"start": [{"start_to_committed_s": 1.25}]})
    record(start._replace(commit="def5678"), tmp_path)
    record(singles([(100, 99)], commit="fedcba9", at="2026-11-26T00:00:00Z"), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "bare handler's posts/s: 0.99 (at least 0.85)\n" in text
    assert "start to commit: 1.25 s (at most 1.5 s)\n" in text
    assert "1. 2026-11-25, commit def5678, 0 runs of 5 s; a <fast> one, ? cores" in text
    assert "\n2. 2026-11-26, commit fedcba9, 1 runs of 5 s\n" in text
    assert text.index("Record 2.") < text.index("Record 1.")
    assert "abc1234" not in text
    lines = (tmp_path / "results.ndjson").read_text().splitlines()
    assert [json.loads(each)["commit"] for each in lines] == ["abc1234", "def5678", "fedcba9"]


def test_what_is_written_by_hand_stays(tmp_path: Path) -> None:
    """Only the text between the markers is the author's, and it is never touched."""
    record(singles([(100, 90)]), tmp_path)
    path = tmp_path / "RESULTS.md"
    mine = "\nFewer wake-ups: 3 % | more.\n\n<b>not</b> \\1 worth it\n"
    old = path.read_text()
    (before, after) = old.split("<!-- by hand -->\n")
    path.write_text(f"{before}stray\n<!-- by hand -->\n{mine}<!-- end -->\n")
    assert after
    write(tmp_path)
    text = path.read_text()
    assert text.endswith(f"<!-- by hand -->\n{mine}<!-- end -->\n")
    assert "stray" not in text


def test_every_case_can_be_judged_and_shown() -> None:
    """The names of contenders in bounds and tables are those that there are."""
    assert list(BY_NAME) == [case.name for case in CASES]
    for case in CASES:
        assert set(case.contenders) <= set(ALL)
        for _, contender, _ in case.shown:
            assert contender in case.contenders
        assert case.wanted
        assert [each.met for each in judge(case, {})] == [False] * len(case.wanted)


def test_the_table_of_the_readme_is_of_one_run() -> None:
    """The newest run with most rows is shown; a row that it has not measured is left out."""
    figures = {"rows_per_s": 2_000, "p99_ms": 3.5, "server_cores": 0.5, "postgres_cores": 0.25}
    both = {"singles_journal_durable": [figures], "hundreds_journal_durable": [figures]}
    other = {"fleet_lines_1000": [{"table_bytes_per_reading": 150.0}]}
    text = speed(
        [
            singles([], runs={**both, "singles_influx": [{"rows_per_s": 1_000}]}, commit="aaaaaaa"),
            singles([], runs=both, commit="bbbbbbb"),
            singles([], runs=other, commit="ccccccc"),
        ]
    )
    assert "| posts of 100 | 2,000 |  | 3.50 | 250.0 | 125.0 |  |  |" in text
    assert "bbbbbbb" in text
    assert "1,000 |" not in text
    assert "1,000 hosts" not in text
    assert speed([]) == NOT_YET


STEADY = [0.995, 1.005] * 20


def ratios(pairs: int = PAIRS_MIN, **other: list[float]) -> dict[str, list[float]]:
    """Give steady figures around 1.0, except for the named ones."""
    return {name: other.get(name, STEADY)[:pairs] for name in MORE_IS_BETTER}


def held(pairs: int, r: int) -> Fraction:
    """Give the probability that x(r) to x(n+1-r) contains the median, by counting."""
    return 1 - Fraction(2 * sum(comb(pairs, below) for below in range(r)), 2**pairs)


@pytest.mark.parametrize("pairs", range(5, PAIRS_MAX + 1))
def test_interval_is_the_narrowest_that_holds_the_median_in_nine_of_ten(pairs: int) -> None:
    """By the binomial distribution: an interval one rank narrower contains it less often."""
    nine_tenths = Fraction(9, 10)
    assert held(pairs, rank(pairs)) >= nine_tenths > held(pairs, rank(pairs) + 1)


def test_verdict_is_told_on_one_line() -> None:
    """It names the slower figures, and says if 40 pairs did not make CPU narrow enough."""
    assert summary(ratios()).startswith("not slower: CPU 1.000 (0.995 to 1.005), rate 1.000 (")
    assert summary(ratios()).endswith("; 12 pairs")
    both = ratios(CPU=[1.05, 1.06] * 20, p99=[1.2, 1.3] * 20)
    assert slower(both) == [CPU, "p99"]
    assert summary(both).startswith("SLOWER in CPU and p99: CPU 1.055 (1.050 to 1.060)")
    wide = summary(ratios(PAIRS_MAX, CPU=[0.9, 1.1] * 20))
    assert wide.startswith("not slower: ")
    assert wide.endswith("; 40 pairs, which did not bring CPU below a width of 0.04")


class Drawn(Two):
    """Two services whose figures are drawn: one is slower than the other in `times`."""

    def __init__(self, seed: int, noise: float = 0.02, **times: float) -> None:
        self._drawn = random.Random(seed)
        self._noise, self._times = noise, times

    def pairs(self, way: Way, say: Callable[[str], None]) -> Generator[Pair, None, None]:
        """Yield pairs for ever."""
        while True:
            this, other = (
                {name: self._drawn.lognormvariate(0, self._noise) for name in MORE_IS_BETTER}
                for _ in range(2)
            )
            yield Pair({name: this[name] * self._times.get(name, 1.0) for name in this}, other)


def passes(times: int, **of: float) -> int:
    """Compare `times` times; return how often nothing was slower."""
    drawn = [measured(Drawn(seed, **of), WAYS[0], quick=False) for seed in range(times)]
    return sum(not slower(Compared(WAYS[0], pairs).ratios) for pairs in drawn)


def test_a_commit_passes_against_itself_and_a_slower_one_does_not() -> None:
    """Four cases of nine in ten times need 0.975 each; 6 % more of a figure is found."""
    assert passes(200) >= 195
    assert passes(50, CPU=1.06) == 0
    assert passes(50, rate=0.94) <= 1
    assert passes(50, p99=1.06) <= 1
    assert passes(50, PostgreSQL=1.1) <= 1
