"""The output of `./run bench`: RESULTS.md, its charts and results.ndjson."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest

from benchmarks import readme_numbers, results, side_by_side
from benchmarks.cases import ALL, BY_NAME, CASES, Wanted, judge
from benchmarks.charts import Bar, bars, shown
from benchmarks.contenders import Contender, Figures, Plan
from benchmarks.document import anchor, seconds_shown, title_of
from benchmarks.options import some_of
from benchmarks.parts import read_parts
from benchmarks.processes import Broken
from benchmarks.record import Line, read
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


def test_medians_of_odd_runs_decide(tmp_path: Path) -> None:
    """One very fast or very slow run changes neither the verdict nor the figure."""
    record(singles([(100, 90), (100, 10), (100, 95)]), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| 0.90 | at least 0.85 | met |" in row_of(text, "bare handler's posts/s")
    assert "| iot-ingest, memory, ack=buffered | 90.0 (10.0 to 95.0) | 90.0 |" in text


def test_service_that_answers_faster_than_it_commits_is_judged_by_what_it_commits(
    tmp_path: Path,
) -> None:
    """Readings that are only in memory at the end of the load do not count as stored."""
    line = singles([(100, 95)])
    line.runs["singles"][0]["rows_per_s"] = 80.0
    record(line, tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| 0.80 | at least 0.85 | MISSED |" in row_of(text, "committed rows/s")


def test_missed_bound_is_said(tmp_path: Path) -> None:
    """A bound that is not kept is marked MISSED."""
    record(singles([(100, 80)]), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| 0.80 | at least 0.85 | MISSED |" in row_of(text, "bare handler's posts/s")
    record(singles([(1_000, 849)]), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| 0.849 | at least 0.85 | MISSED |" in row_of(text, "bare handler's posts/s")


def test_left_out_contender_is_named_with_its_reason(tmp_path: Path) -> None:
    """A case that could not be measured is in the document, with the reason."""
    line = singles([], runs={}, left_out={"bare": "there is no wrk", "singles": "no wrk here"})
    record(line, tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| - | at least 0.85 | left out |" in row_of(text, "bare handler's posts/s")
    assert "bare aiohttp handler: there is no wrk." in text
    assert not (tmp_path / "charts" / "singles.svg").exists()


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


def test_document_of_the_same_figures_is_the_same(tmp_path: Path) -> None:
    """Writing again changes nothing."""
    record(singles([(100, 90), (110, 95)]), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    write(tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == text


def test_links_of_the_document_lead_somewhere(tmp_path: Path) -> None:
    """Each heading that the table names is there, and each picture is a file."""
    record(singles([(100, 90)]), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    headings = {anchor(line[3:]) for line in text.splitlines() if line.startswith("## ")}
    assert "(#" + anchor(CASES[0].title) + ")" in text
    assert anchor(CASES[0].title) in headings
    assert "(charts/singles.svg)" in text
    xml.fromstring((tmp_path / "charts" / "singles.svg").read_text())  # noqa: S314  ours


def test_parts_are_read_from_pytest_benchmark(tmp_path: Path) -> None:
    """A part is named by its file and test, its median in a unit that fits."""
    found = tmp_path / "parts.json"
    entry = {
        "fullname": "benchmarks/bench_buffer.py::test_post[1]",
        "name": "test_post[1]",
        "stats": {"median": 0.00125},
    }
    found.write_text(json.dumps({"benchmarks": [entry]}))
    record(singles([(100, 90)], parts=read_parts(found)), tmp_path)
    assert "| `bench_buffer.py::test_post[1]` | 1.25 ms |" in (tmp_path / "RESULTS.md").read_text()


def test_every_case_can_be_judged_and_drawn() -> None:
    """The names of figures in bounds and pictures are those that the contenders give."""
    assert list(BY_NAME) == [case.name for case in CASES]
    for case in CASES:
        assert set(case.contenders) <= set(ALL)
        for _, contender, _ in case.bars:
            assert contender in case.contenders
        assert case.wanted
        assert [each.met for each in judge(case, {})] == [False] * len(case.wanted)


@pytest.mark.parametrize(("value", "met"), [(4.9, True), (5.0, True), (5.1, False)])
def test_upper_bound_includes_itself(value: float, met: bool) -> None:
    """A value equal to the bound keeps it."""
    case = BY_NAME["start"]._replace(
        wanted=(Wanted("latency", lambda of: of("start", "x"), 5, at_least=False),)
    )
    assert judge(case, {"start": [{"x": value}]})[0].met is met


@pytest.mark.parametrize("error", [Broken("3 taken, 2 committed"), OSError("3 taken, 2 committed")])
def test_what_broke_is_recorded_as_such_and_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A contender that breaks is not tried again, the others go on, and the exit code is 1."""
    tried = []

    def broken(_plan: Plan) -> Figures:
        tried.append("singles")
        raise error

    def measured(_plan: Plan) -> Figures:
        return {"posts_per_s": 100.0}

    for name, measure in (("singles", broken), ("bare", measured)):
        contender = Contender(name, ALL[name].title, measure, by_wrk=False)
        monkeypatch.setitem(ALL, name, contender)
    assert side_by_side.main(["--only", "singles", "--runs", "3", "--results", str(tmp_path)]) == 1
    assert tried == ["singles"]
    (line,) = read(tmp_path)
    assert len(line.runs["bare"]) == 3
    text = (tmp_path / "RESULTS.md").read_text()
    assert "iot-ingest, memory, ack=buffered: it broke: in run 1/3: " in text
    assert "3 taken, 2 committed." in text
    assert "| - | at least 0.85 | left out |" in row_of(text, "bare handler's posts/s")


def test_chosen_cases_keep_our_order_and_name_a_wrong_one() -> None:
    """Cases are measured in one order; a misspelt name is an error."""
    read = some_of(BY_NAME)
    assert [each.name for each in read("start,singles")] == ["singles", "start"]
    with pytest.raises(ArgumentTypeError, match="'single' is no case; there are singles, "):
        read("single")


def test_chart_draws_each_median_to_scale() -> None:
    """The longest bar is the largest median; texts are escaped."""
    text = bars("A & B", "rows/s", [Bar("<x>", [50, 40, 60], False), Bar("y", [120], True)])
    root = xml.fromstring(text)  # noqa: S314  ours
    (small, large) = (
        float(each.attrib["width"]) for each in root.iter("{http://www.w3.org/2000/svg}rect")
    )
    assert large / small == pytest.approx(120 / 50, rel=0.01)
    assert "&lt;x&gt;" in text
    assert "A &amp; B" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.894, "0.89"), (12.34, "12.3"), (999.94, "999.9"), (474_512.3, "474,512")],
)
def test_numbers_show_what_they_say(value: float, text: str) -> None:
    """Numbers have three or four digits, and commas between thousands."""
    assert shown(value) == text


def test_durations_and_figures_have_their_unit() -> None:
    """A reader sees the unit of each figure."""
    assert [seconds_shown(each) for each in (1.5, 0.0021, 3.4e-6, 5e-8)] == [
        "1.50 s",
        "2.10 ms",
        "3.40 us",
        "50 ns",
    ]
    assert title_of("buffered_p99_ms") == "buffered p99 ms"
    assert title_of("takes_rows_per_s") == "takes rows/s"


def test_figures_of_the_readme_are_medians_of_what_was_measured() -> None:
    """README.md shows the service's rate and its costs, and no row that was not measured."""
    line = singles([(100, 90), (100, 10), (100, 95)])
    line.runs["singles"] = [{**each, "server_cores": 0.9} for each in line.runs["singles"]]
    told = readme_numbers.sizing({"singles": line})
    assert "| iot-ingest, memory, `ack=buffered` | 90.0 |  |  | 10,000 |  |  |" in told
    assert "a <fast> one" in told
    assert "bare" not in told
    assert "Posts of 100" not in told
    assert "idle" not in told
    assert "`ack=durable`, the default, is not among the recorded figures yet" in told


def test_rows_of_one_table_are_of_one_run() -> None:
    """The ratio of two figures in one table was measured in one run."""
    peers = ("singles_influx", "singles", "singles_journal_durable")
    whole = singles(
        [], cases=["singles_peers"], runs={each: [{"rows_per_s": 70}] for each in peers}
    )
    later = singles([(100, 90)], at="2100-01-01T00:00:00Z")
    told = readme_numbers.sizing({"singles": later, "singles_peers": whole})
    assert "| iot-ingest, memory, `ack=buffered` | 70.0 |" in told
    rows = [each for each in told.splitlines() if "| 70.0 |" in each]
    assert rows[0].startswith("| **iot-ingest, journal, `ack=durable`** (as delivered) |")
    assert len(rows) == len(peers)
    assert "90.0" not in told


def test_figures_of_the_readme_stand_between_their_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded run writes them, keeps the text around them, and changes no other README."""
    readme, folder = tmp_path / "README.md", tmp_path / "benchmarks"
    readme.write_text("a\n<!-- measured: sizing -->\nold\n<!-- end measured -->\nb\n")
    monkeypatch.setattr(results, "README", readme)
    record(singles([(100, 90)]), folder)
    assert "old" in readme.read_text()
    monkeypatch.setattr(results, "FOLDER", folder)
    write(folder)
    text = readme.read_text()
    assert text.startswith("a\n<!-- measured: sizing -->\n\nMeasured on ")
    assert text.endswith("\n<!-- end measured -->\nb\n")
    assert "old" not in text
