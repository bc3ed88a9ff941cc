"""`.ci/run`: what it prints about its steps, and that each step names what exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SKIPPED
from tests.faults.__main__ import parser
from tests.faults.all_faults import FAULTS
from tests.faults.selections import names_of
from tests.system.service import REPOSITORY, environment

RUN = (REPOSITORY / ".ci" / "run").read_text()
CI = shlex.quote(str(REPOSITORY / ".ci"))


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


def test_table_has_for_each_step_its_seconds_and_exit_code() -> None:
    """The table shows where the time goes."""
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
    """At the end of its time the script gets a TERM: the table names the step that ran then."""
    code, table = steps("trap 'exit 143' TERM; timed bash -c 'kill -TERM $PPID'; timed echo never")
    assert code == 143
    assert re.search(r"^ci: +\d+ +cut  bash -c kill", table, re.MULTILINE)


def test_few_failed_tests_get_a_second_try_alone_and_it_is_told(tmp_path: Path) -> None:
    """One that passes then does not stop the run; one that fails again does, and so do four."""
    (tmp_path / "test_some.py").write_text(
        """
import pathlib, pytest

@pytest.mark.parametrize("at", range(4))
def test_it(at, request):
    been = pathlib.Path(f"been-{at}")
    first = not been.exists()
    been.touch()
    assert at not in {fails_always} and not (first and at in {fails_once})
"""
    )
    source = (tmp_path / "test_some.py").read_text()

    def said(fails_once: set[int], fails_always: set[int]) -> tuple[int, str]:
        for been in tmp_path.glob("been-*"):
            been.unlink()
        (tmp_path / "test_some.py").write_text(
            source.replace("{fails_once}", str(fails_once or [])).replace(
                "{fails_always}", str(fails_always or [])
            )
        )
        done = subprocess.run(
            [
                "bash",
                "-c",
                f"set -euo pipefail; source {CI}/timed.sh; source {CI}/again.sh; "
                f"tests {shlex.quote(sys.executable)} -m pytest -p xdist -q test_some.py; "
                "second_tries",
            ],
            cwd=tmp_path,
            env=environment({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, measured=False),
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )
        return done.returncode, done.stdout

    code, text = said({1}, set())
    assert code == 0
    assert "FAILED ONCE, passed at the second try: test_some.py::test_it[1]\n" in text
    assert said(set(), {2})[0] == 1
    code, text = said({0, 1, 2, 3}, set())
    assert code == 1
    assert "second try" not in text


def test_no_second_try_where_something_else_is_wrong() -> None:
    """After another exit code than 1, as that of skipped tests, the step fails at once."""
    code, table = steps(f"source .ci/again.sh; tests bash -c 'exit {SKIPPED}'; timed echo never")
    assert code == SKIPPED != pytest.ExitCode.TESTS_FAILED
    assert len(table.splitlines()) == 3


def test_few_red_faults_get_a_second_try(tmp_path: Path) -> None:
    """A fault that is green then does not stop the run. Three red ones do, and a lost reading."""
    run = tmp_path / "run"

    def said(red: str, lost: int = 0) -> tuple[int, str]:
        run.write_text(
            f"""#!/bin/sh
case $* in
*ci*) echo "F25  seed 1    RED  9 acknowledged {lost:6} lost    0 doubled  3 s"
    echo "RED after 9 s: {red}"; exit 1 ;;
*) echo "again: $*" ;;
esac
"""
        )
        run.chmod(0o755)
        done = subprocess.run(
            [
                "bash",
                "-c",
                f"set -euo pipefail; source {CI}/timed.sh; source {CI}/again.sh; "
                "faults ./run faults --only ci --seed 1; second_tries",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        return done.returncode, done.stdout

    code, text = said("F25 (seed 1), B2 (seed 1)")
    assert code == 0
    assert "again: faults --only F25,B2 --seed 1\n" in text
    assert "FAILED ONCE, passed at the second try: F25\n" in text
    assert said("F1 (seed 1), F2 (seed 1), F3 (seed 1)")[0] == 1
    assert said("F25 (seed 1)", lost=1)[0] == 1


def test_it_has_80_minutes_and_runs_a_selection_of_faults_that_exists() -> None:
    """`./run faults` takes the command line of the step, which has a time limit of its own."""
    assert "--kill-after=30 80m bash .ci/run" in RUN
    (words,) = re.findall(r"^faults timeout .* 12m \./run faults (.*)$", RUN, re.MULTILINE)
    chosen = parser().parse_args(words.split())
    assert chosen.only == "ci"
    assert chosen.seed == [1]
    assert set(names_of(chosen.only)) < set(FAULTS)


def test_it_runs_all_clients_in_bounded_time() -> None:
    """The step takes no flag, so it runs each client with the usual number of points."""
    assert re.search(r"^timed timeout .* 10m \./run clients$", RUN, re.MULTILINE)


def test_it_runs_each_long_test_once_and_some_of_them_alone() -> None:
    """Two steps divide all of them; what is alone is long too.

    The first one also tries all examples of the tests with Hypothesis.
    """
    beside, alone = re.findall(r'\./run test-long (?:\\\n +)?-m "(.*?)"', RUN)
    assert beside == "(slow or hypothesis) and not network and not alone"
    assert alone == "slow and alone"
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        marks = re.findall(
            r"(?:^@pytest\.mark\.\w+.*\n)+|^pytestmark = .*\n", path.read_text(), re.MULTILINE
        )
        assert all("mark.slow" in each for each in marks if "mark.alone" in each), path


def test_it_measures_coverage_once_and_does_not_forget_it() -> None:
    """The other Python runs without it; the bound of `./run test` is looked at once more."""
    bound = re.findall(r"--cov-fail-under=(\d+)", (REPOSITORY / "run").read_text())
    assert re.findall(r"coverage report .*--fail-under=(\d+)$", RUN, re.MULTILINE) == bound
    assert re.findall(r"\./run test( --no-cov)?(?: && .*)?$", RUN, re.MULTILINE) == [
        "",
        " --no-cov",
    ]


def test_it_tests_receiver_and_http_without_known_heads() -> None:
    """The step follows `./run test`; its folders exist, and hold tests that it must leave out."""
    (line,) = re.findall(
        r"^tests .* \./run test\n(?:#.*\n)*tests env (.* \\\n.*)$", RUN, re.MULTILINE
    )
    switch, *command, http, receiver = shlex.split(line.replace("\\\n", ""))
    assert switch == "INGEST_TEST_KNOWN_HEADS=off"
    assert command[:2] == ["./run", "test"]
    assert command[-2:] == ["-m", "not slow and not known_heads"]
    assert "mark.known_heads" in "".join(
        path.read_text() for path in (REPOSITORY / http).glob("test_*.py")
    )
    assert list((REPOSITORY / receiver).glob("test_*.py"))


def test_switch_of_that_step_gives_every_head_to_the_parser() -> None:
    """tests/conftest.py reads the variable: with it a connection looks for no known head."""
    code = """
import asyncio
import tests.conftest
from tests.support.receiver import head
from tests.support.wire import Sightings, Wire, connections_of, echo

async def taken():
    connections = connections_of(echo)
    seen = Sightings(connections)
    await Wire(connections()).answered(*[head("GET", "/livez")] * 4)
    return seen.taken

print(asyncio.run(taken()))
"""
    both = {
        value: subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env=environment({"INGEST_TEST_KNOWN_HEADS": value}, measured=False),
            stdout=subprocess.PIPE,
            text=True,
        )
        for value in ("on", "off")
    }
    said = {value: each.communicate(timeout=60)[0].split()[-1] for value, each in both.items()}
    assert said == {"on": "2", "off": "0"}
