"""How tests are collected, and given to processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.collecting import names_of
from tests.support.scheduling import FilesInTurn
from tests.system.service import REPOSITORY, environment

SYSTEM = [f"tests/system/test_{number}.py" for number in range(3)]
UNIT = [f"tests/unit/test_{number}.py" for number in range(9)]
TESTS = [f"{name}::test_{at}" for name in (*SYSTEM, *UNIT) for at in range(3)]


class Process:
    """What a scheduler knows of a process; it runs what it is given, one test behind."""

    def __init__(self, scheduler: FilesInTurn, *, collects: bool = True) -> None:
        self.gateway = SimpleNamespace(id="gw")
        self.shutting_down = False
        self.given: list[int] = []
        self._scheduler = scheduler
        scheduler.add_node(cast(Any, self))
        if collects:
            self.collect()

    def collect(self) -> None:
        """Tell the scheduler which tests there are."""
        self._scheduler.add_node_collection(cast(Any, self), TESTS)

    def send_runtest_some(self, indices: list[int]) -> None:
        """Take tests."""
        self.given += indices

    def shutdown(self) -> None:
        """Hear that there is nothing more."""
        self.shutting_down = True

    def step(self) -> str:
        """Run a test, if it may: it must know the next one, or that there is none."""
        if len(self.given) < 2 - self.shutting_down:
            return ""
        at = self.given.pop(0)
        self._scheduler.mark_test_complete(cast(Any, self), at)
        return TESTS[at]


def started(count: int) -> tuple[FilesInTurn, list[Process]]:
    """Return a scheduler with so many processes that have been given their first files."""
    config: Any = SimpleNamespace(
        getvalue=lambda _: [f"{count}*popen"],
        option=SimpleNamespace(loadscopereorder=False),
    )
    scheduler = FilesInTurn(config)
    processes = [Process(scheduler) for _ in range(count)]
    scheduler.schedule()
    return scheduler, processes


def run_all(processes: list[Process]) -> list[str]:
    """Let the processes run until none of them can; return the tests."""
    ran: list[str] = []
    while True:
        now = [test for each in processes if (test := each.step())]
        if not now:
            return ran
        ran += now


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_test_is_run_once(count: int) -> None:
    """With any number of processes; a file is run by one of them."""
    scheduler, processes = started(count)
    assert sorted(run_all(processes)) == sorted(TESTS)
    assert scheduler.tests_finished


@pytest.mark.parametrize("after", range(0, len(TESTS) - 2, 3))
def test_run_ends_although_a_process_died(after: int) -> None:
    """At any moment: the test in which it died is named and not run again, all others are run."""
    scheduler, processes = started(2)
    ran: list[str] = []
    while len(ran) < after:
        ran += [test for each in processes if (test := each.step())]
    dead, other = processes
    died_in = scheduler.remove_node(cast(Any, dead))
    new = Process(scheduler)
    scheduler.schedule()
    ran += run_all([other, new])
    assert sorted([*ran, *([died_in] if died_in else [])]) == sorted(TESTS)
    assert died_in
    assert scheduler.tests_finished


@pytest.mark.slow
def test_run_with_a_process_that_dies_ends_and_tells_it(tmp_path: Path) -> None:
    """With the real xdist: the fault is told once, and no test is left out."""
    for number in range(6):
        dies = "os._exit(3)" if number == 1 else ""
        (tmp_path / f"test_{number}.py").write_text(
            f"import os\ndef test_a(): pass\ndef test_b(): {dies or 'pass'}\ndef test_c(): pass\n"
        )
    words = ("-p", "xdist", "-p", "tests.support.scheduling", "-p", "no:cacheprovider", "-n", "2")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "--dist", "loadfile"],
        cwd=tmp_path,
        env=environment(
            {"PYTHONPATH": str(REPOSITORY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, measured=False
        ),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert re.search(r"^FAILED test_1.py::test_b ", done.stdout, re.MULTILINE), done.stdout
    assert "1 failed, 17 passed" in done.stdout, done.stdout


def test_shares_are_of_all_files_that_are_collected(tmp_path: Path) -> None:
    """Of folders, files and single tests, each once; what is elsewhere is left to pytest."""
    (tmp_path / "test_elsewhere.py").write_text("")
    here = Path(__file__).relative_to(REPOSITORY)
    where = ["tests/unit/support", str(here), f"{here}::test_one", str(tmp_path)]
    names = names_of(REPOSITORY, where)
    assert names == sorted(set(names))
    assert __name__ in names
    assert len(names) == len(list((REPOSITORY / here).parent.glob("test_*.py")))
    assert names_of(REPOSITORY, ["no/such/folder"]) == []
