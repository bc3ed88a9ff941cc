"""Gives files of tests to the processes: those that wait between those that compute.

A system test mostly waits: for a start, a time limit, a disk. If all processes are at such tests,
the processors are idle; later all of them compute. So files of both kinds come in turn.

And xdist is mended: after a process has died (a test beyond its time limit ends its process), xdist
gives away all files of the dead one again, also those that are done. A process that gets a file in
which nothing is left to do never asks for another one, and the run never ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

WAITING = ("tests/system/", "tests/integration/", "tests/faults/")
COMPUTING_FOR_EACH = 2  # the last files are short ones, which end at about the same time

Unit = dict[str, bool]  # test -> whether it is done


def in_turn(files: Mapping[str, Unit]) -> dict[str, Unit]:
    """Return the files in the order in which they are given away."""
    waiting = [name for name in files if name.startswith(WAITING)]
    computing = [name for name in files if not name.startswith(WAITING)]
    order = []
    while waiting or computing:
        order += [*waiting[:1], *computing[:COMPUTING_FOR_EACH]]
        del waiting[:1], computing[:COMPUTING_FOR_EACH]
    return {name: files[name] for name in order}


class FilesInTurn(LoadFileScheduling):  # type: ignore[misc]
    """Each file is run by one process."""

    def schedule(self) -> None:
        """Sort the tests by file at the first call; give files to processes that have none."""
        if self.collection is None and self.collection_is_completed:
            found: dict[str, Unit] = {}
            for test in next(iter(self.registered_collections.values())):
                found.setdefault(self._split_scope(test), {})[test] = False
            # What super() finds in the queue keeps its place there.
            self.workqueue.update(in_turn(found))
        super().schedule()

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
