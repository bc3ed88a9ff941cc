"""`.ci/run` and `python -m tests.mistakes`: each step, patch and test that they name exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

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


def test_it_has_80_minutes_and_runs_a_selection_of_faults_that_exists() -> None:
    """`./run faults` takes the command line of the step, which has a time limit of its own."""
    assert "--kill-after=30 80m bash .ci/run" in RUN
    (words,) = re.findall(r"^faults timeout .* 12m \./run faults (.*)$", RUN, re.MULTILINE)
    chosen = parser().parse_args(words.split())
    assert chosen.only == "ci"
    assert chosen.seed == [1]
    assert set(names_of(chosen.only)) < set(FAULTS)


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


def test_each_mistake_can_be_made_and_names_tests_that_exist() -> None:
    """`python -m tests.mistakes` takes hours: who moves a line sees here that a patch is old."""
    patches = sorted((REPOSITORY / "tests" / "mistakes").glob("*.patch"))
    for patch in patches:
        done = subprocess.run(["git", "-C", REPOSITORY, "apply", "--check", patch], check=False)
        assert done.returncode == 0, patch
        first, what, _ = patch.read_text().split("\n", 2)
        tests = first.removeprefix("tests: ").split()
        assert all((REPOSITORY / each).exists() for each in tests or ["no test"]), patch
        assert what.startswith("mistake: "), patch
    assert len(patches) == 40


def test_each_test_that_a_bare_machine_must_skip_exists() -> None:
    """Else the long step on such a machine fails at its end."""
    for listed in (REPOSITORY / ".ci" / "bare-debian.skipped").read_text().split():
        path, _, name = listed.partition("::")
        assert f"def {name}(" in (REPOSITORY / path).read_text(), listed
