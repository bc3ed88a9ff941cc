"""The whole path behind the receiver: journal buffer, loader, two writers, dead letters, all real.

Only the table is scripted, and the system calls of files may fail. A `Whole` is one run on a
folder. `Promises` go over all runs; `check` compares table and dead letters with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ingest.app.writing import WritingHalf
from ingest.config.settings import Settings
from ingest.dead_letters.auto_replay import REPLAYED
from ingest.dead_letters.folder.segments import live_letters
from ingest.model.block import Ack, Block
from ingest.model.errors import BufferFull, DeadLettersBroken, JournalBroken, NotKept, Stopping
from ingest.model.moments import decode_readings
from ingest.model.reading import DRAINED, EXHAUSTED, INVALID, REFUSED, Letter, Reading
from ingest.system.clock import monotonic_s, unix_us
from ingest.writer.refused_rows import set_aside_rest
from tests.support.constants import constants
from tests.support.fake_sink_scripted import Script, ScriptedSink
from tests.support.journals import FailingCalls, JournalRun, block_of, make_reading, on_disk
from tests.support.letters import LetterFiles, folder_queue, invalid, keep, read
from tests.support.replay_rig import replay_by_hand
from tests.support.writing import BAD, QUICK, refuse_bad

DURABLE, BUFFERED, COMMITTED = "durable", "buffered", "committed"
BLOCKS: dict[str, Any] = {"batch_rows_max": 30, "post_rows_max": 40, "command_s_max": 1.5}
NO_BREAKER: dict[str, Any] = {"breaker_rows_max": 1_000}
REPLAYS: dict[str, Any] = {"dlq_replay_rows_per_s": 1_000_000}
REPLAY_PAUSE_S = 0.002


@dataclass
class Promises:
    """The posts and their answers, over all runs on one folder."""

    table: dict[Reading, None] = field(default_factory=dict)
    posted: set[Reading] = field(default_factory=set)
    kept: set[Reading] = field(default_factory=set)  # answered as kept in all cases
    buffered: set[Reading] = field(default_factory=set)  # kept except after a kill; later in `kept`
    letters: list[Letter] = field(default_factory=list)  # of the receiver, answered as kept
    acks: list[tuple[Ack, list[Reading]]] = field(default_factory=list)

    def leave_aside(self, folder: Path, rows: int, *, bad: int) -> None:
        """Leave dead letters that are replayed; the table will refuse the first `bad` of them."""
        readings = [make_reading(value=BAD if row < bad else 1.0) for row in range(rows)]
        reasons = itertools.cycle((DRAINED, EXHAUSTED))
        store = LetterFiles(folder / "dead-letters", segment_bytes=2_000)
        keep(store, [Letter(next(reasons), "", "", unix_us(), each) for each in readings])
        store.close()
        self.posted.update(readings)
        self.kept.update(readings)


class Whole:
    """One run on `folder`: `open`, `post`, let calls fail; then `finish`, `halt` or `kill`."""

    def __init__(
        self, folder: Path, promises: Promises, script: Script | None = None, **bounds: Any
    ) -> None:
        self.folder = folder
        self.promises = promises
        self.script = script or Script()
        self.journal_calls = FailingCalls()
        self.letter_calls = FailingCalls()
        bounds = {"shared_rows_max": BLOCKS["batch_rows_max"], **bounds}  # as app/buffer.py
        self.journal_run = JournalRun(folder / "journal", calls=self.journal_calls, **bounds)
        self.ledger = self.journal_run.ledger
        self.buffer = self.journal_run.buffer
        self.dead_letters = folder_queue(
            folder / "dead-letters",
            bytes_max=1 << 30,
            segment_bytes=2_000,
            keep_days=0,
            calls=self.letter_calls.calls,
        )
        with constants(**NO_BREAKER):
            self.half = WritingHalf(
                replace(Settings(), **{**QUICK, **BLOCKS, **REPLAYS}),
                outlet=self.buffer,
                ledger=self.ledger,
            )
        self.halted = self.half.halted
        self.database_state = self.half.database_state
        self.at_receiver = 0  # posts under way
        self.takes_in = True  # posts that can be are kept at once; False: each one reserves room
        self.at_once = self.reserved = 0  # how many posts went each way
        self.sinks: list[ScriptedSink] = []
        self.writers: list[asyncio.Task[None]] = []
        self.replaying: asyncio.Task[None] | None = None
        self.tidying: asyncio.Task[None] | None = None
        self.new_by_hand = 0  # rows that were new in a replay by hand

    async def open(self) -> None:
        """Open both folders, start loader and writers. Raises StartError."""
        self.buffer.open()
        await self.dead_letters.open()
        await self.journal_run.scan()
        self.journal_run.load()
        for _ in range(2):
            sink = ScriptedSink(self.script, self.promises.table, refuse=refuse_bad)
            sink.inner.pause_s = 0
            self.sinks.append(sink)
        self.half.sinks.extend(self.sinks)
        for writer in self.half.make_writers(self.dead_letters):
            self.writers.append(asyncio.create_task(writer.run()))

    async def post(self, rows: int, *, ack: str = DURABLE, bad: int = 0, letters: int = 0) -> str:
        """Post as the receiver does: take in; or reserve, dead-letter invalid items, put.

        Return the outcome: `kept`, or the reason for no promise: `full`, `letters`, `journal`,
        `stopping`. The table will refuse the first `bad` of `rows`; `letters` further items are
        invalid.
        """
        self.at_receiver += 1
        try:
            return await self._post(rows, ack, bad, letters)
        finally:
            self.at_receiver -= 1

    async def _post(self, rows: int, ack: str, bad: int, letters: int) -> str:
        readings = [make_reading(value=BAD if row < bad else 1.0) for row in range(rows)]
        waits = Ack() if ack == COMMITTED else None
        block = block_of(readings, ack=waits)
        if self.takes_in and not letters and waits is None:
            coming = self._take_in(block, readings, ack)
            if coming is not None:
                return await coming
        self.reserved += 1
        return await self._put(block, readings, ack, letters)

    async def _put(self, block: Block, readings: list[Reading], ack: str, letters: int) -> str:
        rows, waits = block.rows, block.ack
        try:
            reservation = await self.buffer.reserve(
                rows, len(block.tuples), awaited=waits is not None
            )
        except BufferFull:
            return "full"
        except JournalBroken:
            return "journal"
        except Stopping:
            return "stopping"
        if letters and not await self._receiver_letters(letters):
            reservation.release()
            return "letters"
        self.promises.posted.update(readings)
        if waits is not None:
            self.promises.acks.append((waits, readings))
        self.ledger.received += rows
        self.ledger.at_receiver += rows
        try:
            handed = reservation.put(block, durable=ack == DURABLE)
            await handed
        except JournalBroken:
            self.ledger.rejected["disk_low"] += rows
            return "journal"
        finally:
            self.ledger.at_receiver -= rows
        if ack == DURABLE:
            self.promises.kept.update(readings)
        elif ack == BUFFERED:
            self.promises.buffered.update(readings)
        return "kept"

    def _take_in(
        self, block: Block, readings: list[Reading], ack: str
    ) -> asyncio.Future[str] | None:
        """Have a block kept at once; return what will be its outcome, None if it cannot be."""
        rows, ledger = block.rows, self.ledger
        outcome = asyncio.get_running_loop().create_future()
        if ack == DURABLE:
            if not self.buffer.take_in(block, (readings, outcome), self._tell):
                return None
            ledger.at_receiver += rows
        elif self.buffer.take_in(block):
            self.promises.buffered.update(readings)
            outcome.set_result("kept")
        else:
            return None
        self.at_once += 1
        ledger.received += rows
        self.promises.posted.update(readings)
        return outcome

    def _tell(
        self,
        waiters: Sequence[tuple[list[Reading], asyncio.Future[str]]],
        error: NotKept | None,
    ) -> None:
        """Answer the posts of a group, whether their clients are there or not."""
        for readings, outcome in waiters:
            self.ledger.at_receiver -= len(readings)
            if error is None:
                self.promises.kept.update(readings)
            else:
                self.ledger.rejected["disk_low"] += len(readings)
            if not outcome.done():
                outcome.set_result("kept" if error is None else "journal")
        assert self.ledger.imbalance == 0

    async def _receiver_letters(self, count: int) -> bool:
        letters = [
            invalid(f"no reading {make_reading().ts_us} {number}".encode())
            for number in range(count)
        ]
        try:
            await self.dead_letters.append(letters, sender="10.0.0.1")
        except DeadLettersBroken:
            return False
        self.promises.letters += letters
        self.ledger.received += count
        self.ledger.dead_lettered[INVALID] += count
        return True

    async def replay(self) -> None:
        """Start the service's own replay of dead letters, unless it runs; a halt ends it."""
        if self.replaying is not None:
            return
        with constants(dlq_replay_pause_s=REPLAY_PAUSE_S):
            source = self.dead_letters.backend.replay_source
            replayer = self.half.make_replayer(source, self.buffer)
        self.replaying = asyncio.create_task(replayer.run(self.journal_run.stopping))
        self.tidying = asyncio.create_task(self.dead_letters.tidy(self.journal_run.stopping))

    async def replay_by_hand(self) -> None:
        """Replay all dead letters by hand, with a connection of its own to the same table."""
        sink = ScriptedSink(self.script, self.promises.table, refuse=refuse_bad)
        sink.inner.pause_s = 0
        self.new_by_hand += (await replay_by_hand(self.folder / "dead-letters", sink)).new

    async def until(self, condition: Callable[[], bool], *, every_s: float = 0.0005) -> None:
        """Wait until a condition is true; fail if a writer ends or the time is up."""
        deadline_s = monotonic_s() + 20
        while not condition():
            for task in [*self.writers, *([self.replaying] if self.replaying else [])]:
                assert not task.done() or task.exception() is None, task.exception()
            assert monotonic_s() < deadline_s, f"never came true; {self.database_state.message}"
            await asyncio.sleep(every_s)

    @property
    def new(self) -> int:
        """Rows that this run has put into the table, by its counters."""
        return self.ledger.committed + self.script.unsaid + self.new_by_hand

    @property
    def rows(self) -> int:
        """Rows that are held."""
        return self.buffer.stats().rows

    def heal(self) -> None:
        """Make every call succeed from now on."""
        self.script.heal()
        self.journal_calls.failing = {}
        self.letter_calls.failing = {}

    async def finish(self, *, replays: bool = False) -> None:
        """Heal, wait until all is stored or set aside, and end in order.

        With `replays` it first waits until the dead letters that are replayed are gone.
        """
        self.heal()
        if replays:
            await self.replay()
        await self.until(lambda: self.rows == 0 and not self.at_receiver)
        await self.until(lambda: not replays or self.has_come_back, every_s=0.005)
        await self.quiet()
        await self.halt()
        assert self.promises.kept <= self.promises.table.keys() | self._lettered()

    @property
    def has_come_back(self) -> bool:
        """Whether nothing is held, and no dead letter is left that is replayed."""
        letters = live_letters(self.folder / "dead-letters", where=REPLAYED)
        return self.rows == 0 and not any(letters)

    async def halt(self, *, keeps_rest: bool = True) -> None:
        """Stop as at the end of `drain_s_max`; the rest is kept on the disk.

        Then readings that were acknowledged from memory are on the disk or in the table, too.
        """
        self.halted.set()
        self.journal_run.stopping.set()
        self.buffer.shut_inlet()
        for sink in self.sinks:
            sink.abort()
        if self.writers:
            async with asyncio.timeout(10):
                await asyncio.gather(*self.writers)
        await self.until(lambda: not self.at_receiver)  # as the service waits for its handlers
        if keeps_rest:
            await self.buffer.keep_rest()
            await set_aside_rest(self.buffer, self.dead_letters, self.ledger)
            assert self.ledger.imbalance == 0
            assert self.ledger.dropped == 0
            assert self.ledger.held == self.buffer.stats().rows_kept, "lost, says the exit code"
        await self.dead_letters.close()
        if self.replaying is not None:
            async with asyncio.timeout(5):
                await self.replaying
        await self.journal_run.end()
        assert self.script.complaints == []
        if keeps_rest:
            self._keep_buffered()

    def _keep_buffered(self) -> None:
        promises = self.promises
        promises.kept |= promises.buffered
        promises.buffered.clear()
        in_journal = {
            reading
            for each in on_disk(self.folder / "journal")
            for reading in decode_readings(each)
        }
        lost = promises.kept - promises.table.keys() - self._lettered() - in_journal
        assert not lost, f"the stop has lost {len(lost)} readings"

    async def kill(self, to: Path) -> None:
        """End as a kill -9 does, for the files: they are copied to `to` now.

        The event loop does not run meanwhile, so nothing is answered or settled. The threads of the
        files may append data that no answer was given for, and remove a settled segment.
        """
        promises = self.promises
        promises.acks = [each for each in promises.acks if each[0].resolved]
        promises.buffered.clear()
        self.promises = Promises(promises.table, promises.posted)  # later answers reach no client
        for name in ("journal", "dead-letters"):
            (to / name).mkdir(parents=True)
            for path in sorted((self.folder / name).glob("*")):
                if path.name != "lock":
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copyfile(path, to / name / path.name)
        self.heal()
        await self.halt(keeps_rest=False)

    async def quiet(self) -> None:
        """Wait until the journal has nothing to do, and check the balance."""
        await self.journal_run.quiet()
        assert self.ledger.imbalance == 0
        assert self.ledger.dropped == 0

    def _lettered(self) -> set[Reading]:
        letters = read(self.folder / "dead-letters")
        return {each.reading for each in letters if each.reading is not None}

    async def check(self, *, replayed: bool = False) -> None:
        """Compare table, dead letters and answers with the promises. After `finish`.

        `replayed`: no dead letter that is replayed may be left.
        """
        promises = self.promises
        letters = read(self.folder / "dead-letters")
        # As sets: a line that could not be taken back is there twice, and readers count an id once.
        refused = {each.reading for each in letters if each.reason == REFUSED}
        aside = {each.reading for each in letters if each.reason not in (REFUSED, INVALID)}
        assert not refused & promises.table.keys()
        assert not (replayed and aside)
        assert all(each is not None and each.value == BAD for each in refused)
        # `drained`: the journal was still broken at a stop.
        assert {each.reason for each in letters} <= {REFUSED, INVALID, EXHAUSTED, DRAINED}
        found = promises.table.keys() | refused | aside
        assert promises.kept <= found, f"{len(promises.kept - found)} readings are lost"
        assert found <= promises.posted
        assert not any(each.value == BAD for each in promises.table)
        there = {(each.original, each.code) for each in letters if each.reason == INVALID}
        assert {(each.original, each.code) for each in promises.letters} <= there
        for ack, readings in promises.acks:
            if not ack.resolved:
                continue
            outcome = await ack.wait()
            named = {readings[each.row] for each in outcome.refusals}
            if outcome.set_aside:
                continue
            assert named == {each for each in readings if each.value == BAD}
            assert named <= refused
            assert promises.table.keys() >= set(readings) - named
