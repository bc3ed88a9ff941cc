"""The output of `./run bench`: RESULTS.md, its charts and results.ndjson."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.cases import ALL, BY_NAME, CASES, judge
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
        parts={},
    )
    return line._replace(**more)


def row_of(text: str, words: str) -> str:
    """Give the one line of the table at the top that has these words."""
    short = text.partition("## Conditions")[0]
    (row,) = (line for line in short.splitlines() if words in line)
    return row


def test_missed_bound_is_said(tmp_path: Path) -> None:
    """A bound that is not kept is marked MISSED."""
    record(singles([(100, 80)]), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| 0.80 | at least 0.85 | MISSED |" in row_of(text, "bare handler's posts/s")
    record(singles([(1_000, 849)]), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| 0.849 | at least 0.85 | MISSED |" in row_of(text, "bare handler's posts/s")


def test_newest_line_of_each_case_is_shown(tmp_path: Path) -> None:
    """A later run of one case replaces that case, and no other one; all lines are kept."""
    record(singles([(100, 90)]), tmp_path)
    start = singles([], cases=["start"], runs={"start": [{"start_to_committed_s": 1.25}]})
    record(start._replace(commit="def5678"), tmp_path)
    record(singles([(100, 99)], commit="fedcba9"), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| 0.99 |" in row_of(text, "bare handler's posts/s")
    assert "| 1.25 s | at most 1.5 s | met |" in row_of(text, "start to commit")
    assert "commit def5678" in text
    assert "commit fedcba9" in text
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


def test_every_case_can_be_judged_and_drawn() -> None:
    """The names of figures in bounds and pictures are those that the contenders give."""
    assert list(BY_NAME) == [case.name for case in CASES]
    for case in CASES:
        assert set(case.contenders) <= set(ALL)
        for _, contender, _ in case.bars:
            assert contender in case.contenders
        assert case.wanted
        assert [each.met for each in judge(case, {})] == [False] * len(case.wanted)
