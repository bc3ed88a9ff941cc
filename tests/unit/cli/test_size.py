"""`ingest size`: measured figures times the rates of a fleet; its answers are those of the page."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from ingest.cli.main import main
from ingest.cli.size import columns, seconds_of
from ingest.cli.size_figures import ROLES, SERVE, Fleet, need_of
from ingest.config.settings import Settings
from ingest.model.errors import IngestError
from tests.system.service import REPOSITORY

PAGE = (REPOSITORY / "docs" / "sizing.md").read_text()
JOURNAL_BYTES_MAX = Settings().journal_bytes_max


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("1s", 1), ("10 s", 10), ("5m", 300), ("1.5h", 5400), ("1d", 86_400)],
)
def test_times_have_a_unit(text: str, seconds: float) -> None:
    """As people write them."""
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "0s", "-1s", "1e3s", "nans", "1w", "9" * 40 + "s"])
def test_wrong_times_are_refused(text: str) -> None:
    """With the text, and with what is possible."""
    with pytest.raises(IngestError, match="such as 500ms"):
        seconds_of(text)


def test_cost_goes_through_both_measured_points() -> None:
    """A reading alone, and one of a post of 100, cost what README and docs/scaling.md say."""
    assert SERVE["serve"].cores(1e6, 1e6) == pytest.approx(33.1)
    assert SERVE["serve"].cores(1e4, 1e6) == pytest.approx(1.55)
    assert ROLES["gateways"].cores(1e6, 1e6) == pytest.approx(33.1)
    assert ROLES["nats-server"].cores(1e4, 1e6) == pytest.approx(0.52)
    readme = (REPOSITORY / "README.md").read_text()
    scaling = (REPOSITORY / "docs" / "scaling.md").read_text()
    for rows in (
        r"as delivered\) \|(?: [^|]+ \|){3} 33\.1 \| 5\.06 \|",
        r"as delivered\) \|(?: [^|]+ \|){3} 1\.55 \| 1\.91 \|",
    ):
        assert re.search(rows, readme), "measured anew: change size_figures.py too"
    alone, in_hundreds = re.findall(r"^\| `up`, 1 gateway, .*µ?.*\(.*$", scaling, re.MULTILINE)[2:4]
    assert re.findall(r"([\d.]+) \(", alone)[:3] == ["33.1", "14.1", "9.66"]
    assert re.findall(r"([\d.]+) \(", in_hundreds)[:3] == ["1.79", "0.52", "0.39"]


def test_one_process_if_it_stays_below_half_a_core_else_several() -> None:
    """So bursts find a core that is not busy."""
    small = need_of(Fleet(15_000, 1.0, 1, 1), JOURNAL_BYTES_MAX)
    assert (small.command, small.warnings) == ("ingest serve", [])
    large = need_of(Fleet(50_000, 1.0, 1, 1), JOURNAL_BYTES_MAX)
    assert large.command == "ingest up --gateways 4"
    assert "In posts of 100" in large.warnings[0]
    huge = need_of(Fleet(10_000_000, 1.0, 1, 100), JOURNAL_BYTES_MAX)
    assert huge.command == "ingest up --gateways 36 --writers 8"
    assert "26 busy cores for one table" in huge.warnings[0]


def test_journal_lasts_as_long_as_it_takes_to_fill_it() -> None:
    """Half of the rate, twice the time; half of the journal, half of it."""
    full = need_of(Fleet(1000, 1.0, 1, 1), JOURNAL_BYTES_MAX).journal_minutes
    assert need_of(Fleet(1000, 2.0, 1, 1), JOURNAL_BYTES_MAX).journal_minutes == 2 * full
    assert need_of(Fleet(1000, 1.0, 1, 1), JOURNAL_BYTES_MAX // 2).journal_minutes == full / 2


def test_lines_of_the_page_are_answers_of_the_command() -> None:
    """Word for word: who changes a figure sees that the page is old."""
    head, *lines = re.findall(r"^\| (?:fleet|`--devices).*$", PAGE, re.MULTILINE)
    names = [cell.strip() for cell in head.strip("|").split("|")][1:]
    assert len(lines) >= 6
    wrong = []
    for line in lines:
        words, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        flags = shlex.split(words.strip("`"))
        given = dict(zip(flags[::2], flags[1::2], strict=True))
        metrics = int(given.get("--metrics", 1))
        fleet = Fleet(
            int(given["--devices"]),
            seconds_of(given["--every"]),
            metrics,
            int(given.get("--batch", metrics)),
        )
        told = columns(need_of(fleet, JOURNAL_BYTES_MAX))
        assert names == [*told]
        if cells != [*told.values()]:
            wrong.append(f"| {words} | {' | '.join(told.values())} |")
    assert wrong == []


def test_answer_for_a_person_and_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    """The flags of settings count: the journal's size, and the most connections."""
    words = ["size", "--devices", "50000", "--every", "1s"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert re.search(r"^readings +50,000/s +4,320,000,000 a day$", out, re.MULTILINE)
    assert re.search(r"^run +ingest up --gateways 4 +one process would be busy for", out, re.M)
    assert "connections_max is 20,000" in out
    assert main([*words, "--connections-max", "60000", "--journal-bytes-max", "1GiB"]) == 0
    less = capsys.readouterr().out
    assert "connections_max" not in less
    assert re.search(r"^journal +5.6 minutes ", less, re.MULTILINE)
    assert main([*words, "--batch", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == "ingest serve"
    assert found["fleet"] == {"devices": 50_000, "every_s": 1.0, "metrics": 1, "batch": 100}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "0"], "from 1 to 1,000,000,000"),
        (["--devices", "1e4"], "from 1 to"),
        (["--batch", "5001"], "from 1 to 5,000"),
        (["--metrics", "-1"], "from 1 to 10,000"),
    ],
)
def test_wrong_numbers_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, exit code 2; a post larger than `post_rows_max` would be refused."""
    assert main(["size", "--devices", "5", "--every", "1s", *words]) == 2
    assert said in capsys.readouterr().err
