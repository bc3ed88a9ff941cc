"""Each test is run once, also after a process has died; some wait while others compute."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.scheduling import FilesInTurn, next_file
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


def test_files_of_both_kinds_come_to_their_end_together() -> None:
    """Files that wait take as long as four others each: here half of the processes get them."""
    files = [*(f"tests/system/test_{at}.py" for at in range(25)), *UNIT * 11, UNIT[8]]
    waits, computes = SYSTEM[0], UNIT[8]
    assert next_file(files, [waits, computes, computes]) == waits
    assert next_file(files, [waits, waits, computes]) == computes
    assert next_file(files[20:], [waits, computes, computes]) == computes, "few are left"
    assert next_file(files[:50], [waits, waits, computes]) == waits, "many are left"


def test_file_of_the_kind_that_is_left_is_given() -> None:
    """To any number of processes; those that compute backwards."""
    for others in ([], [SYSTEM[0]], [SYSTEM[0], UNIT[0]], [UNIT[0], UNIT[1]]):
        assert next_file(SYSTEM, others) == SYSTEM[0]
        assert next_file(UNIT, others) == UNIT[8]


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


def test_two_processes_may_die_at_the_same_time() -> None:
    """The first of the new ones gets tests before the second one has collected them."""
    scheduler, processes = started(2)
    died_in = [scheduler.remove_node(cast(Any, each)) for each in processes]
    first, second = [Process(scheduler, collects=False) for _ in range(2)]
    first.collect()
    scheduler.schedule()
    second.collect()
    scheduler.schedule()
    ran = run_all([first, second])
    assert sorted([*ran, *map(str, died_in)]) == sorted(TESTS)
    assert scheduler.tests_finished


def test_last_test_of_a_dead_process_is_run() -> None:
    """One test is left of its file: the process that gets it does not wait for more."""
    scheduler, (first,) = started(1)
    begins, middle, ends = TESTS[9:12]  # of the file of its kind that is given last
    while first.step() != begins:
        pass
    assert scheduler.remove_node(cast(Any, first)) == middle
    new = Process(scheduler)
    scheduler.schedule()
    assert run_all([new]) == [ends]


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
