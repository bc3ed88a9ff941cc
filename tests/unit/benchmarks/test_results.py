"""The output of `./run bench`: RESULTS.md, results.ndjson and the table of the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.cases import ALL, BY_NAME, CASES, judge
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
