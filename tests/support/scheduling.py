"""Gives files of tests to the processes: some wait, while the others compute, up to the end.

A system test mostly waits: for a start, a time limit, a disk. If all processes are at such tests,
the processors are idle; later all of them compute, and each takes longer. So as many processes get
such files as are needed for both kinds to come to their end at the same time.

And xdist is mended: after a process has died (a test beyond its time limit ends its process), xdist
gives away all files of the dead one again, also those that are done. A process that gets a file in
which nothing is left to do never asks for another one, and the run never ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

WAITING = ("tests/system/", "tests/integration/", "tests/faults/")
TAKES = 4  # times as long as another file

Unit = dict[str, bool]  # test -> whether it is done


def next_file(files: Sequence[str], others: Sequence[str]) -> str:
    """Return which of the files a process gets while the other processes are at `others`.

    Those that compute are given away backwards: the longest ones, sweeps of faults, are near the
    end of the alphabet, and the last ones must be short.
    """
    waiting = [each for each in files if each.startswith(WAITING)]
    to_wait = TAKES * len(waiting)
    share = to_wait / (to_wait + len(files) - len(waiting))
    wait_now = sum(each.startswith(WAITING) for each in others)
    if wait_now + 0.5 < share * (len(others) + 1):
        return waiting[0]
    return next(each for each in reversed(files) if not each.startswith(WAITING))


class FilesInTurn(LoadFileScheduling):  # type: ignore[misc]
    """Each file is run by one process."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        units = (each for at, each in self.assigned_work.items() if at is not node)
        others = [next(reversed(each), "") for each in units]
        self.workqueue.move_to_end(next_file(list(self.workqueue), others), last=False)
        super()._assign_work_unit(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Take back what a process has not done; return the test in which it died.

        That test has failed, and is not run again.
        """
        left: dict[str, Unit] = {
            name: unit
            for name, unit in self.assigned_work.pop(node).items()
            if not all(unit.values())
        }
        if not left:
            return None
        first = next(iter(left.values()))
        died_in = next(test for test, done in first.items() if not done)
        first[died_in] = True
        self.workqueue.update({name: unit for name, unit in left.items() if not all(unit.values())})
        for each in self.assigned_work:
            self._reschedule(each)
        return died_in

    def _reschedule(self, node: WorkerController) -> None:
        if node not in self.registered_collections:
            return  # it has replaced a dead one, and has not collected its tests yet
        super()._reschedule(node)
        # Else the process waits for another file before it runs the last test of this one.
        if not self.workqueue and not node.shutting_down:
            node.shutdown()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesInTurn | None:
    """Take the place of `--dist loadfile`."""
    return FilesInTurn(config, log) if config.getoption("dist") == "loadfile" else None
