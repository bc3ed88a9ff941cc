"""The writing half of the path: all real except the database and the dead-letter file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ingest.app.writing import WritingHalf
from ingest.buffers.memory import MemoryBuffer
from ingest.config.settings import Settings
from ingest.model.block import Ack, Block
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from ingest.model.moments import decode_readings
from ingest.model.reading import EXHAUSTED, REFUSED, Reading
from ingest.system.clock import monotonic_s
from ingest.writer.writer import stop_connecting
from tests.support import constants
from tests.support.fake_letters import FakeLetters
from tests.support.fake_sink import Refuse
from tests.support.fake_sink_scripted import Script, ScriptedSink
from tests.support.journals import block_of, make_reading

BAD = 666.0  # the value that the table refuses
QUICK: dict[str, Any] = {
    "batch_rows": 20,
    "batch_rows_max": 100,
    "batch_linger_s": 0.0,
    "wait_s_max": 0.001,
    "retries_max": 2,
}


def refuse_bad(reading: Reading) -> tuple[str, str] | None:
    """Refuse the bad value as a CHECK would."""
    return ("23514", "not that value") if reading.value == BAD else None


class Writing:
    """Takes posts at `post`; `check` checks the balance, and every ack against the real outcome."""

    def __init__(self, script: Script | None = None, **settings: Any) -> None:
        self.script = script or Script()
        self.buffer = MemoryBuffer(rows_max=100_000, bytes_max=1 << 26, put_wait_s_max=1)
        self.letters = FakeLetters()
        self.table: dict[Reading, None] = {}
        self.ledger = Ledger()
        self.ledger.gauges = Gauges(
            buffer=self.buffer.stats,
            dead_letters=DeadLetterStats,
            database_up=lambda: self.database_state.up,
            hold_reason=lambda: self.database_state.hold_reason,
        )
        settings, smaller = constants.split(settings)
        with constants.constants(**smaller):
            self.half = WritingHalf(
                replace(Settings(), **{**QUICK, **settings}),
                outlet=self.buffer,
                ledger=self.ledger,
            )
        self.halted = self.half.halted
        self.database_state = self.half.database_state
        self.cap = self.half.cap
        self.breaker = self.half.breaker
        self.sinks: list[ScriptedSink] = []
        self.blocks: list[tuple[Block, list[Reading]]] = []
        self.acks: list[Ack] = []
        self.small: set[Reading] = set()  # of posts that nobody waits for, and that share blocks
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, writers: int = 2, *, refuse: Refuse = refuse_bad) -> None:
        """Start the writers."""
        for _ in range(writers):
            self.sinks.append(ScriptedSink(self.script, self.table, refuse=refuse))
        self.half.sinks.extend(self.sinks)
        for writer in self.half.make_writers(self.letters):
            self.tasks.append(asyncio.create_task(writer.run()))

    async def write_all(self, writers: int = 2) -> None:
        """Start the writers, and wait until every post has its answer."""
        self.start(writers)
        await self.until(self.resolved)

    async def post(
        self, rows: int, *, bad: tuple[int, ...] = (), device_id: str | None = None
    ) -> Ack:
        """Put a block of fresh readings, those at `bad` refused by the table; return its ack."""
        readings = [
            make_reading(device_id=device_id, value=BAD if row in bad else 1.0)
            for row in range(rows)
        ]
        ack = Ack()
        block = block_of(readings, ack=ack)
        reservation = await self.buffer.reserve(rows, len(block.tuples))
        self.ledger.received += rows
        self.ledger.accepted += rows
        self.blocks.append((block, readings))
        self.acks.append(ack)
        reservation.put(block)
        return ack

    def post_small(
        self, rows: int, *, bad: tuple[int, ...] = (), received_us: int | None = None
    ) -> list[Reading]:
        """Post without an ack, into the block of other such posts; return the readings."""
        readings = [make_reading(value=BAD if row in bad else 1.0) for row in range(rows)]
        block = block_of(readings)
        if received_us is not None:
            block.received_us = received_us
        assert self.buffer.take_in(block)
        self.ledger.received += rows
        self.ledger.accepted += rows
        self.small.update(readings)
        return readings

    async def until(self, condition: Callable[[], bool], *, within_s: float = 5.0) -> None:
        """Wait until a condition is true, and check the balance all the time."""
        deadline_s = monotonic_s() + within_s
        while not condition():
            for task in self.tasks:
                assert not task.done() or task.exception() is None, task.exception()
            assert monotonic_s() < deadline_s, (
                f"never came true; the database state is {self.database_state.state}"
            )
            assert self.ledger.imbalance == 0
            await asyncio.sleep(0.0005)

    def resolved(self) -> bool:
        """Whether every post has its answer."""
        return all(each.resolved for each in self.acks)

    def over(self) -> bool:
        """Whether the writers were halted, or have nothing left to do."""
        return self.halted.is_set() or self.resolved()

    async def settled(self) -> None:
        """Wait until no call to a sink has begun for 10 ms."""
        calls = -1
        while calls != self.script.calls:
            calls = self.script.calls
            await asyncio.sleep(0.01)

    async def drain(self) -> None:
        """Stop as SIGTERM does: no further post is taken, the writers finish. Check all then."""
        self.buffer.shut_inlet()
        self.database_state.nudge()
        stop_connecting(self.buffer, self.sinks)
        await self._ended()

    async def halt(self) -> None:
        """Stop as at the end of `drain_s_max`: the writers give their blocks back. Check all."""
        self.halted.set()
        self.buffer.shut_inlet()
        for sink in self.sinks:
            sink.abort()
        await self._ended()

    async def _ended(self) -> None:
        async with asyncio.timeout(5):
            await asyncio.gather(*self.tasks)
        assert all(sink.closed for sink in self.sinks)
        await self.check()

    async def check(self) -> None:
        """Check the balance, and each answer against the table, the dead letters and the buffer."""
        assert self.script.complaints == []
        assert self.ledger.imbalance == 0
        assert self.ledger.dropped == 0
        refused = {each.reading for each in self.letters.letters if each.reason == REFUSED}
        aside = {each.reading for each in self.letters.letters if each.reason == EXHAUSTED}
        assert len(self.letters.letters) == len(refused) + len(aside)
        assert not refused & self.table.keys()
        assert all(each is not None and each.value == BAD for each in refused)
        for ack, (_, readings) in zip(self.acks, self.blocks, strict=True):
            if not ack.resolved:
                continue
            outcome = await ack.wait()
            named = {readings[each.row] for each in outcome.refusals}
            assert len(named) == len(outcome.refusals)
            if outcome.set_aside:
                assert aside | refused >= set(readings)
                continue
            assert named == {each for each in readings if each.value == BAD}
            assert refused >= named
            assert self.table.keys() >= set(readings) - named

    def left(self) -> list[Block]:
        """Take all blocks of the buffer, in order: exactly those without an answer."""
        left: list[Block] = []
        while taken := self.buffer.take(1_000):
            left += taken
        waiting = [
            block
            for ack, (block, _) in zip(self.acks, self.blocks, strict=True)
            if not ack.resolved
        ]
        assert [id(each) for each in left if each.ack is not None] == [id(each) for each in waiting]
        small = [row for each in left if each.ack is None for row in decode_readings(each.tuples)]
        aside = {each.reading for each in self.letters.letters}
        assert self.small - self.table.keys() - aside <= set(small) <= self.small  # or stored too
        assert len(small) == len(set(small))
        assert self.buffer.stats().rows == sum(block.rows for block in left)
        assert all(list(decode_readings(each.tuples)) for each in left)
        return left
