"""Any sequence of posts, faults, replays, kills and stops over the whole path, by Hypothesis.

The model is the promises (`whole_path.Promises`): sets of readings and letters. Journal, dead
letters and writers are real, on a real folder; the table and the system calls are scripted.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ingest.model.causes import Verdict
from ingest.model.errors import StartError
from tests.support.fake_sink_scripted import AFTER, BEFORE, MIDDLE, Script
from tests.support.replay_rig import hurry
from tests.support.whole_path import BUFFERED, COMMITTED, DURABLE, Promises, Whole

T = TypeVar("T")
CALLS = ("write", "fdatasync", "fsync", "ftruncate")
PAUSES_S = (
    0.0,
    0.005,
)  # retries and threads need time, not only rounds of the event loop
# The failure of the table, and whether the rows may be there all the same.
TABLE_FAULTS = (
    (Verdict.WAIT, BEFORE, False),
    (Verdict.WAIT, AFTER, True),
    (Verdict.WAIT, MIDDLE, True),
    (Verdict.RETRY, BEFORE, False),
    (Verdict.RETRY, AFTER, True),
    (Verdict.HOLD, BEFORE, False),
)
posts = st.tuples(
    st.sampled_from((DURABLE, DURABLE, BUFFERED, COMMITTED)),
    st.one_of(st.integers(1, 4), st.integers(1, 40)),  # readings
    st.sampled_from((0, 0, 1, 2)),  # of these, refused by the table
    st.sampled_from((0, 0, 1, 2)),  # beside them, invalid items
    st.sampled_from((False, False, False, True)),  # the client does not wait for the answer
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses of replays, so that no step waits for them."""
    hurry(monkeypatch)


class PathMachine(RuleBasedStateMachine):
    """Runs on one folder after the other; each step ends when the files have nothing to do."""

    ways: ClassVar[Counter[str]] = Counter()  # how many posts went each way

    def __init__(self) -> None:
        super().__init__()
        self.loop = uvloop.new_event_loop()
        self.base = Path(tempfile.mkdtemp(prefix="ingest-model-"))
        self.promises = Promises()
        self.runs = 0
        self.new = 0  # rows that earlier runs put into the table, by their counters
        self.waiting: list[asyncio.Task[str]] = []
        self.whole = self._fresh()

    def _fresh(self) -> Whole:
        return self._run(self._made())

    async def _made(self) -> Whole:
        return Whole(
            self.base / str(self.runs),
            self.promises,
            Script(),
            rows_max=120,
            bytes_max=20_000,
            segment_bytes=3_000,
            journal_bytes_max=200_000,
        )

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(aside=st.sampled_from((0, 0, 1, 60)), refused=st.integers(0, 2))
    def begins(self, aside: int, refused: int) -> None:
        """Begin the first run, perhaps with the dead letters of a service without a journal."""
        self.promises.leave_aside(self.whole.folder, aside, bad=min(aside, refused))
        self._run(self.whole.open())

    @rule(
        several=st.lists(posts, min_size=1, max_size=8),
        pause_s=st.sampled_from(PAUSES_S),
        takes_in=st.sampled_from((True, True, False)),
    )
    def post(
        self, several: list[tuple[str, int, int, int, bool]], pause_s: float, takes_in: bool
    ) -> None:
        """Send some posts at once; all get an outcome, except those that wait for memory."""
        self.whole.takes_in = takes_in
        leaving: list[asyncio.Task[str]] = []
        for ack, rows, bad, letters, leaves in several:
            work = self.whole.post(rows, ack=ack, bad=min(bad, rows), letters=letters)
            self.waiting.append(self.loop.create_task(work))
            if leaves and not letters:  # what is being dead-lettered is never cancelled
                leaving.append(self.waiting[-1])
        self._run(asyncio.sleep(0))
        for each in leaving:
            each.cancel()
        self._settle(rounds=100, pause_s=pause_s)

    @rule(fault=st.sampled_from(TABLE_FAULTS), at=st.integers(1, 3), forever=st.booleans())
    def table_fails(self, fault: tuple[Verdict, str, bool], at: int, forever: bool) -> None:
        """Make one of the next calls fail, or all from that one on."""
        script = self.whole.script
        script.verdict, script.where, script.doubtful = fault
        script.at, script.forever = script.calls + at, forever

    @rule(
        letters=st.booleans(),
        names=st.sets(st.sampled_from(CALLS), min_size=1),
        code=st.sampled_from((errno.EIO, errno.ENOSPC)),
        left=st.sampled_from((1, 2, 1 << 30)),
    )
    def files_fail(self, letters: bool, names: set[str], code: int, left: int) -> None:
        """Make the next calls of these names fail, of the journal or of the dead letters."""
        calls = self.whole.letter_calls if letters else self.whole.journal_calls
        calls.failing = dict.fromkeys(sorted(names), code)
        calls.left = left

    @rule()
    def work(self) -> None:
        """Let time pass: the writers write as much as they can."""
        self._settle(rounds=300, pause_s=PAUSES_S[-1])

    @rule()
    def replay(self) -> None:
        """Start the service's own replay of dead letters, until the run ends."""
        self._run(self.whole.replay())
        self._settle(pause_s=PAUSES_S[-1])

    @rule()
    def replay_by_hand(self) -> None:
        """Replay all dead letters by hand, beside the service."""
        self._run(self.whole.replay_by_hand())
        self._settle()

    @rule()
    def heal(self) -> None:
        """Fix all faults."""
        self.whole.heal()
        self._settle()

    @rule(seldom=st.integers(0, 3))
    def kill(self, seldom: int) -> None:
        """End the run by kill -9 and begin the next one (seldom, so that faults meet posts)."""
        if seldom:
            return
        self.runs += 1
        self._run(self.whole.kill(self.base / str(self.runs)))
        self._next()

    @rule(seldom=st.integers(0, 3), failing=st.sampled_from((None, "journal", "letters")))
    def stop(self, seldom: int, failing: str | None) -> None:
        """End the run as by SIGTERM without time to write: the held readings are kept on the disk.

        One of journal and dead letters may still fail; the other one must then be enough.
        """
        if seldom:
            return
        whole = self.whole
        calls = {"journal": whole.journal_calls, "letters": whole.letter_calls}
        still = dict(calls[failing].failing) if failing else {}
        whole.heal()
        if failing:
            calls[failing].failing = still
        if failing == "letters":  # the journal needs a moment to notice that writes succeed again
            self._run(whole.until(lambda: not whole.buffer.broken))
        self._run(whole.halt())
        (self.base / str(self.runs)).rename(self.base / str(self.runs + 1))
        self.runs += 1
        self._next()

    def _next(self) -> None:
        self._settle_waiting(ended=True)
        self.new += self.whole.new
        self._count_ways()
        shutil.rmtree(self.base / str(self.runs - 1), ignore_errors=True)
        self.whole = self._fresh()
        self._run(self.whole.open())

    def _count_ways(self) -> None:
        ways = type(self).ways
        ways["at once"] += self.whole.at_once
        ways["reserved"] += self.whole.reserved

    def _settle(self, rounds: int = 20, pause_s: float = 0.0) -> None:
        async def spin() -> None:
            await asyncio.sleep(pause_s)
            for _ in range(rounds):
                await asyncio.sleep(0)
            await self.whole.journal_run.quiet()

        self._run(spin())
        self._settle_waiting(ended=False)

    def _settle_waiting(self, *, ended: bool) -> None:
        """Check the outcomes of posts; at the end of a run no post waits."""
        if ended and self.waiting:
            self._run(self._all_told())
        for task in [each for each in self.waiting if each.done()]:
            self.waiting.remove(task)
            if not task.cancelled():
                assert task.result() in {"kept", "full", "journal", "letters", "stopping"}

    async def _all_told(self) -> None:
        async with asyncio.timeout(10):
            await asyncio.wait(self.waiting)

    @invariant()
    def balance_is_kept(self) -> None:
        """The balance is 0 at each moment, and nothing was dropped."""
        ledger = self.whole.ledger
        assert ledger.imbalance == 0
        assert ledger.dropped == 0
        assert self.whole.script.complaints == []
        assert all(not each.done() for each in self.whole.writers)
        assert self.whole.replaying is None or not self.whole.replaying.done()

    @invariant()
    def nothing_is_counted_as_new_twice(self) -> None:
        """A reading is counted as new to the table once, however often it was sent."""
        assert self.new + self.whole.new <= len(self.promises.table)

    def teardown(self) -> None:
        """Fix all faults, wait until nothing is held, and compare the end with the promises.

        Each acknowledged reading is then in the table once, or a dead letter and not in the table.
        """
        try:
            if self.whole.writers and not self.whole.halted.is_set():
                self._run(self.whole.finish(replays=True))
                self._settle_waiting(ended=True)
                self._run(self.whole.check(replayed=True))
                assert self.whole.rows == 0
                assert self.new + self.whole.new == len(self.promises.table)
        finally:
            self._count_ways()
            self.loop.close()
            shutil.rmtree(self.base, ignore_errors=True)


def run(machine: type[PathMachine], *, examples: int, same: bool = False) -> None:
    """Run a machine; with `same` the examples are the same each time."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            derandomize=same,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_whole_path_keeps_its_promises_after_any_steps() -> None:
    """No reading is lost or doubled, after any sequence of posts, faults, kills and replays.

    Few of these examples stop while much is held, or replay letters that fail once more. The long
    test does, and so do test_whole_path_faults.py and test_whole_path_replay.py.
    """
    PathMachine.ways.clear()
    run(PathMachine, examples=24, same=True)
    assert min(PathMachine.ways[each] for each in ("at once", "reserved")) > 20, PathMachine.ways


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whole_path_keeps_its_promises_after_many_more_steps() -> None:
    """The same, with many more examples."""
    run(PathMachine, examples=1_000)


def test_journal_in_use_is_a_start_error(tmp_path: Path) -> None:
    """A second run on the folder is a StartError, so the machine cannot hide it."""

    async def twice() -> None:
        first, second = (Whole(tmp_path, Promises()) for _ in range(2))
        await first.open()
        try:
            with pytest.raises(StartError):
                await second.open()
        finally:
            await second.dead_letters.close()
            await first.halt()

    asyncio.run(twice())
