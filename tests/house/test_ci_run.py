"""`.ci/run`: what it tells about its steps, and that it asks for what there is."""

from __future__ import annotations

import re
import subprocess

from tests.faults.__main__ import parser
from tests.faults.all_faults import FAULTS
from tests.faults.selections import names_of
from tests.system.service import REPOSITORY

RUN = (REPOSITORY / ".ci" / "run").read_text()


def steps(script: str) -> tuple[int, str]:
    """Run some steps as .ci/run does; return the exit code and the table."""
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source .ci/timed.sh; trap table EXIT\n{script}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return done.returncode, done.stdout.partition("\n\n")[2]


def test_table_tells_each_step_its_seconds_and_exit_code() -> None:
    """Who wants it faster sees where the time goes."""
    code, table = steps("timed true; timed sleep 1; timed env true")
    assert code == 0
    rows = [re.split(" {2,}", line.removeprefix("ci:").strip()) for line in table.splitlines()]
    assert rows[0] == ["seconds", "exit", "step"]
    assert [row[1:] for row in rows[1:4]] == [["0", "true"], ["0", "sleep 1"], ["0", "env true"]]
    assert 1 <= int(rows[2][0]) <= 3
    assert rows[-1][1:] == ["all together"]


def test_table_is_printed_after_a_step_that_failed_and_no_step_follows() -> None:
    """The failure is the script's, with its exit code; the table names it."""
    code, table = steps("timed true; timed bash -c 'exit 3'; timed echo never")
    assert code == 3
    assert re.search(r"^ci: +\d+ +3  bash -c exit 3$", table, re.MULTILINE)
    assert "never" not in table


def test_table_names_the_step_that_was_cut_short() -> None:
    """At the end of its time the script is told to stop: then it says what it was doing."""
    code, table = steps("trap 'exit 143' TERM; timed bash -c 'kill -TERM $PPID'; timed echo never")
    assert code == 143
    assert re.search(r"^ci: +\d+ +cut  bash -c kill", table, re.MULTILINE)


def test_it_has_80_minutes_and_runs_a_selection_of_faults_that_exists() -> None:
    """The command line is one that `./run faults` takes, and bounded itself."""
    assert "--kill-after=30 80m bash .ci/run" in RUN
    (words,) = re.findall(r"^timed timeout .* 12m \./run faults (.*)$", RUN, re.MULTILINE)
    chosen = parser().parse_args(words.split())
    assert chosen.only == "ci"
    assert chosen.seed == [1]
    assert set(names_of(chosen.only)) < set(FAULTS)
