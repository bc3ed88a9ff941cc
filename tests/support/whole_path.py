"""The path below the door, whole: journal buffer, loader, two writers, dead letters, all real.

Only the table is scripted, and the files' system calls may fail. `Whole` is one folder over many
lives; it knows what was promised, and `check` holds table and dead letters against that.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ingest.app.writing import WritingHalf
from ingest.config.settings import Settings
from ingest.dead_letters.auto_replay import REPLAYED
from ingest.dead_letters.queue import DeadLetterFolder
from ingest.dead_letters.reader import live_letters
from ingest.model.ack import Ack
from ingest.model.errors import BufferFull, DeadLettersBroken, JournalBroken, Stopping
from ingest.model.letter import DRAINED, EXHAUSTED, INVALID, REFUSED, Letter
from ingest.model.reading import Reading
from ingest.model.rows import decode_rows
from ingest.system.clock import monotonic_s, unix_us
from ingest.writer.set_aside import set_aside_rest
from tests.support.blocks import block_of, make_reading
from tests.support.fake_sink_scripted import Script, ScriptedSink
from tests.support.journals import FailingCalls, JournalRun, on_disk
from tests.support.letters import invalid, keep, make_store, read
from tests.support.replays import replay_by_hand
from tests.support.writing import BAD, QUICK, refuse_bad

DURABLE, BUFFERED, COMMITTED = "durable", "buffered", "committed"
BLOCKS: dict[str, Any] = {"batch_rows_max": 30, "post_rows_max": 40, "statement_s_max": 1.0}
NO_BREAKER: dict[str, Any] = {"breaker_rows_max": 1_000}
REPLAYS: dict[str, Any] = {"dlq_replay_pause_s": 0.002, "dlq_replay_rows_per_s": 1_000_000}


@dataclass
class Promises:
    """What was posted and what was answered, over all lives of one folder."""

    table: dict[Reading, None] = field(default_factory=dict)
    posted: set[Reading] = field(default_factory=set)
    kept: set[Reading] = field(default_factory=set)  # told to be kept, whatever comes
    buffered: set[Reading] = field(default_factory=set)  # the same, but for a kill; then in `kept`
    letters: list[Letter] = field(default_factory=list)  # of the door, told to be kept
    acks: list[tuple[Ack, list[Reading]]] = field(default_factory=list)

    def leave_aside(self, folder: Path, rows: int, *, bad: int) -> None:
        """Leave dead letters that come back by themselves, the first `bad` to be refused then."""
        readings = [make_reading(value=BAD if row < bad else 1.0) for row in range(rows)]
        reasons = itertools.cycle((DRAINED, EXHAUSTED))
        store = make_store(folder / "dead-letters", segment_bytes=2_000)
        keep(store, [Letter(next(reasons), "", "", unix_us(), each) for each in readings])
        store.close()
        self.posted.update(readings)
        self.kept.update(readings)


class Whole:
    """One life on `folder`: enter it, `post`, break it, then `finish`, `halt` or `kill` it."""

    def __init__(
        self, folder: Path, promises: Promises, script: Script | None = None, **bounds: Any
    ) -> None:
        self.folder = folder
        self.promises = promises
        self.script = script or Script()
        self.journal_calls = FailingCalls()
        self.letter_calls = FailingCalls()
        self.journal_run = JournalRun(folder / "journal", calls=self.journal_calls, **bounds)
        self.ledger = self.journal_run.ledger
        self.buffer = self.journal_run.buffer
        self.dead_letters = DeadLetterFolder(
            folder / "dead-letters",
            bytes_max=1 << 30,
            segment_bytes=2_000,
            keep_days=0,
            calls=self.letter_calls.calls,
        )
        self.halted = asyncio.Event()
        self.half = WritingHalf(
            replace(Settings(), **{**QUICK, **BLOCKS, **REPLAYS, **NO_BREAKER}),
            outlet=self.buffer,
            ledger=self.ledger,
            halted=self.halted,
        )
        self.database_state = self.half.database_state
        self.at_receiver = 0  # posts under way
        self.sinks: list[ScriptedSink] = []
        self.writers: list[asyncio.Task[None]] = []
        self.replaying: asyncio.Task[None] | None = None
        self.new_by_hand = 0  # rows that a replay by hand was told to be new

    async def open(self) -> None:
        """Open both folders, and let loader and writers loose. Raises StartError."""
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
        """Post as the door does: room, dead letters of invalid items, put. Return what came of it.

        `kept`, or why nothing is promised: `full`, `letters`, `journal`. Of `rows` the table will
        refuse the first `bad`; `letters` further items are no readings.
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
        try:
            room = await self.buffer.reserve(rows, len(block.tuples), awaited=waits is not None)
        except BufferFull:
            return "full"
        except JournalBroken:
            return "journal"
        except Stopping:
            return "stopping"
        if letters and not await self._receiver_letters(letters):
            room.release()
            return "letters"
        self.promises.posted.update(readings)
        if waits is not None:
            self.promises.acks.append((waits, readings))
        self.ledger.received += rows
        self.ledger.at_receiver += rows
        try:
            handed = room.put(block, durable=ack == DURABLE)
            await handed
        except JournalBroken:
            self.ledger.readings_rejected("disk_low", rows)
            return "journal"
        finally:
            self.ledger.at_receiver -= rows
        if ack == DURABLE:
            self.promises.kept.update(readings)
        elif ack == BUFFERED:
            self.promises.buffered.update(readings)
        return "kept"

    async def _receiver_letters(self, count: int) -> bool:
        letters = [
            invalid(f"no reading {make_reading().ts_us} {number}".encode())
            for number in range(count)
        ]
        try:
            await self.dead_letters.append(letters, from_receiver=True)
        except DeadLettersBroken:
            return False
        self.promises.letters += letters
        self.ledger.received += count
        self.ledger.readings_dead_lettered(INVALID, count)
        return True

    async def replay(self) -> None:
        """Let the service's own replay of dead letters loose, if it is not yet, until a halt."""
        if self.replaying is not None:
            return
        replayer = self.half.make_replayer(self.dead_letters, self.buffer)
        self.replaying = asyncio.create_task(replayer.run(self.journal_run.stopping))

    async def replay_by_hand(self) -> None:
        """Let somebody send all dead letters again, with a line to the same table."""
        sink = ScriptedSink(self.script, self.promises.table, refuse=refuse_bad)
        sink.inner.pause_s = 0
        self.new_by_hand += (await replay_by_hand(self.folder / "dead-letters", sink)).new

    async def until(self, condition: Callable[[], bool], *, every_s: float = 0.0005) -> None:
        """Wait until a condition holds; fail if a writer dies or it never does."""
        deadline_s = monotonic_s() + 20
        while not condition():
            for task in [*self.writers, *([self.replaying] if self.replaying else [])]:
                assert not task.done() or task.exception() is None, task.exception()
            assert monotonic_s() < deadline_s, f"never came true; {self.database_state.message}"
            await asyncio.sleep(every_s)

    @property
    def new(self) -> int:
        """Rows that this life has put into the table, by what was counted."""
        return self.ledger.committed + self.script.unsaid + self.new_by_hand

    @property
    def rows(self) -> int:
        """Rows that are held."""
        return self.buffer.stats().rows

    def heal(self) -> None:
        """Let every call succeed from now on."""
        self.script.heal()
        self.journal_calls.failing = {}
        self.letter_calls.failing = {}

    async def finish(self, *, replays: bool = False) -> None:
        """Heal, wait until all is stored or set aside, and end in order.

        With `replays` it ends once what comes back by itself has come back from the dead letters.
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
        """Whether nothing is held, and no dead letter is left that comes back by itself."""
        letters = live_letters(self.folder / "dead-letters", where=REPLAYED)
        return self.rows == 0 and not any(letters)

    async def halt(self, *, keeps_rest: bool = True) -> None:
        """Stop as the end of `drain_s_max` does; what is left goes where it is safe.

        Then also what was acknowledged from memory is on the disk or in the table, whatever comes.
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
            reading for each in on_disk(self.folder / "journal") for reading in decode_rows(each)
        }
        lost = promises.kept - promises.table.keys() - self._lettered() - in_journal
        assert not lost, f"the stop has lost {len(lost)} readings"

    async def kill(self, to: Path) -> None:
        """End as a kill -9 does, as far as files are concerned: they are copied to `to` now.

        The loop stands still meanwhile, so nothing is answered or settled; the files' threads may
        append what nobody was told of yet, and remove a segment of which all is settled.
        """
        promises = self.promises
        promises.acks = [each for each in promises.acks if each[0].resolved]
        promises.buffered.clear()
        self.promises = Promises(promises.table, promises.posted)  # what comes now, nobody hears
        for name in ("journal", "dead-letters"):
            (to / name).mkdir(parents=True)
            for path in sorted((self.folder / name).glob("*")):
                if path.name != "lock":
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copyfile(path, to / name / path.name)
        self.heal()
        await self.halt(keeps_rest=False)

    async def quiet(self) -> None:
        """Wait until the journal has nothing to do, and hold the law."""
        await self.journal_run.quiet()
        assert self.ledger.imbalance == 0
        assert self.ledger.dropped == 0

    def _lettered(self) -> set[Reading]:
        letters = read(self.folder / "dead-letters")
        return {each.reading for each in letters if each.reading is not None}

    async def check(self, *, replayed: bool = False) -> None:
        """Hold table, dead letters and answers against what was promised. After `finish`.

        `replayed`: nothing that comes back by itself is a dead letter any more.
        """
        promises = self.promises
        letters = read(self.folder / "dead-letters")
        # As sets: what could not be taken back stands there twice, and readers count an id once.
        refused = {each.reading for each in letters if each.reason == REFUSED}
        aside = {each.reading for each in letters if each.reason not in (REFUSED, INVALID)}
        assert not refused & promises.table.keys()
        assert not (replayed and aside)
        assert all(each is not None and each.value == BAD for each in refused)
        # `drained`: at a stop the journal was broken still.
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
