"""The path below the door, whole: journal buffer, loader, two writers, dead letters, all real.

Only the table is scripted, and the files' system calls may fail. `Whole` is one folder over many
lives; it knows what was promised, and `check` holds table and dead letters against that.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ingest.batch import BatchCap, Gatherer
from ingest.breaker import Breaker
from ingest.clock import monotonic_s
from ingest.config import Settings
from ingest.dead_letter import DeadLetterFolder
from ingest.errors import BufferFull, DeadLettersBroken, JournalBroken, Stopping
from ingest.gate import Gate
from ingest.ports import DRAINED, EXHAUSTED, INVALID, REFUSED, Ack, Letter
from ingest.reading import Reading
from ingest.set_aside import set_aside_rest
from ingest.writer import Writer
from tests.blocks import block_of, make_reading
from tests.journals import FailingCalls, Life
from tests.letters import invalid, read
from tests.unit.fake_sink_scripted import Script, ScriptedSink
from tests.unit.writing import BAD, QUICK, refuse_bad

DURABLE, BUFFERED, COMMITTED = "durable", "buffered", "committed"


@dataclass
class Promises:
    """What was posted and what was answered, over all lives of one folder."""

    table: dict[Reading, None] = field(default_factory=dict)
    posted: set[Reading] = field(default_factory=set)
    kept: set[Reading] = field(default_factory=set)  # told to be kept, whatever comes
    letters: list[Letter] = field(default_factory=list)  # of the door, told to be kept
    acks: list[tuple[Ack, list[Reading]]] = field(default_factory=list)


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
        self.settings = replace(Settings(), **{**QUICK, "batch_rows_max": 30})
        self.life = Life(folder / "journal", calls=self.journal_calls, **bounds)
        self.metrics = self.life.metrics
        self.buffer = self.life.buffer
        self.dead_letters = DeadLetterFolder(
            folder / "dead-letters",
            bytes_max=1 << 30,
            segment_bytes=2_000,
            keep_days=7,
            calls=self.letter_calls.calls,
        )
        self.gate = Gate(wait_s_min=0.0005, wait_s_max=0.001, hold_probe_s=0.001)
        self.halted = asyncio.Event()
        self.at_door = 0  # posts under way
        self.sinks: list[ScriptedSink] = []
        self.writers: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Open both folders, and let loader and writers loose. Raises StartError."""
        self.buffer.open()
        await self.dead_letters.open()
        await self.life.scan()
        self.life.load()
        cap = BatchCap(self.settings.batch_rows, self.settings.batch_rows_max, write_s_max=1)
        gatherer = Gatherer(self.buffer, cap, linger_s=0.0)
        breaker = Breaker(window_rows=1_000, rows_max=1_000)
        for _ in range(2):
            sink = ScriptedSink(self.script, self.promises.table, refuse=refuse_bad)
            sink.inner.pause_s = 0
            self.sinks.append(sink)
            writer = Writer(
                settings=self.settings,
                outlet=self.buffer,
                gatherer=gatherer,
                cap=cap,
                sink=sink,
                sinks=self.sinks,
                gate=self.gate,
                breaker=breaker,
                dead_letters=self.dead_letters,
                metrics=self.metrics,
                halted=self.halted,
            )
            self.writers.append(asyncio.create_task(writer.run()))

    async def post(self, rows: int, *, ack: str = DURABLE, bad: int = 0, letters: int = 0) -> str:
        """Post as the door does: room, dead letters of invalid items, put. Return what came of it.

        `kept`, or why nothing is promised: `full`, `letters`, `journal`. Of `rows` the table will
        refuse the first `bad`; `letters` further items are no readings.
        """
        self.at_door += 1
        try:
            return await self._post(rows, ack, bad, letters)
        finally:
            self.at_door -= 1

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
        if letters and not await self._door_letters(letters):
            room.release()
            return "letters"
        self.promises.posted.update(readings)
        if waits is not None:
            self.promises.acks.append((waits, readings))
        self.metrics.received += rows
        self.metrics.at_door += rows
        try:
            handed = room.put(block, durable=ack == DURABLE)
            await handed
        except JournalBroken:
            self.metrics.readings_rejected("disk_low", rows)
            return "journal"
        finally:
            self.metrics.at_door -= rows
        if ack == DURABLE:
            self.promises.kept.update(readings)
        return "kept"

    async def _door_letters(self, count: int) -> bool:
        letters = [
            invalid(f"no reading {make_reading().ts_us} {number}".encode())
            for number in range(count)
        ]
        try:
            await self.dead_letters.append(letters, from_door=True)
        except DeadLettersBroken:
            return False
        self.promises.letters += letters
        self.metrics.received += count
        self.metrics.readings_dead_lettered(INVALID, count)
        return True

    async def until(self, condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
        """Wait until a condition holds; fail if a writer dies or it never does."""
        deadline_s = monotonic_s() + within_s
        while not condition():
            for task in self.writers:
                assert not task.done() or task.exception() is None, task.exception()
            assert monotonic_s() < deadline_s, f"never came true; {self.gate.message}"
            await asyncio.sleep(0.0005)

    @property
    def rows(self) -> int:
        """Rows that are held."""
        return self.buffer.stats().rows

    def heal(self) -> None:
        """Let every call succeed from now on."""
        self.script.heal()
        self.journal_calls.failing = {}
        self.letter_calls.failing = {}

    async def finish(self) -> None:
        """Heal, wait until all is stored or set aside, and end in order."""
        self.heal()
        await self.until(lambda: self.rows == 0 and not self.at_door)
        await self.quiet()
        await self.halt()
        assert self.promises.kept <= self.promises.table.keys() | self._lettered()

    async def halt(self, *, keeps_rest: bool = True) -> None:
        """Stop as the end of `drain_s_max` does; what is left goes where it is safe."""
        self.halted.set()
        self.life.stopping.set()
        self.buffer.shut_inlet()
        for sink in self.sinks:
            sink.abort()
        if self.writers:
            async with asyncio.timeout(10):
                await asyncio.gather(*self.writers)
        await self.until(lambda: not self.at_door)  # as the service waits for its handlers
        if keeps_rest:
            await self.buffer.keep_rest()
            await set_aside_rest(self.buffer, self.dead_letters, self.metrics)
            assert self.metrics.imbalance == 0
            assert self.metrics.dropped == 0
        await self.life.end()
        await self.dead_letters.close()
        assert self.script.complaints == []

    async def kill(self, to: Path) -> None:
        """End as a kill -9 does, as far as files are concerned: they are copied to `to` now.

        The loop stands still meanwhile, so nothing is answered or settled; the files' threads may
        append what nobody was told of yet, and remove a segment of which all is settled.
        """
        promises = self.promises
        promises.acks = [each for each in promises.acks if each[0].resolved]
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
        await self.life.quiet()
        assert self.metrics.imbalance == 0
        assert self.metrics.dropped == 0

    def _lettered(self) -> set[Reading]:
        letters = read(self.folder / "dead-letters")
        return {each.reading for each in letters if each.reading is not None}

    async def check(self) -> None:
        """Hold table, dead letters and answers against what was promised. After `finish`."""
        promises = self.promises
        letters = read(self.folder / "dead-letters")
        # As sets: what could not be taken back stands there twice, and readers count an id once.
        refused = {each.reading for each in letters if each.reason == REFUSED}
        aside = {each.reading for each in letters if each.reason not in (REFUSED, INVALID)}
        assert not refused & promises.table.keys()
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
