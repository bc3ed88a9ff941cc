"""The loop of the second half: gather a batch, write it, tell its posts; or wait, retry, isolate.

Promises: a block is settled only after the commit, or after the dead-letter fsync of all of it that
did not commit; on every other way out it goes back to the front of the buffer, in order.
A writer is stopped by flags, never by cancellation: the buffer's shut and empty, or `halted`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ingest.model.ack import Outcome
from ingest.model.block import Block
from ingest.model.errors import DeadLettersBroken, DeadLettersFull
from ingest.model.ledger import Ledger
from ingest.model.letter import EXHAUSTED, REFUSED, Letter
from ingest.model.ports import BadRow, DeadLetters, Outlet, Sink, Stored
from ingest.model.verdict import LETTERS_FULL, TOO_MANY_CONNECTIONS, Verdict, WriteFailed
from ingest.system.backoff import backoff_s
from ingest.system.clock import monotonic_s, sleep_unless, unix_us
from ingest.system.logs import get_logger
from ingest.writer.batch import Batch, BatchCap, Gatherer, halves
from ingest.writer.breaker import BREAKER, CircuitBreaker
from ingest.writer.database_state import DatabaseState
from ingest.writer.set_aside import block_letters, refusal_letters, refusals_by_block

STORED = Outcome()
RETRY_S_MIN = 0.1
FULL_S = 2.0  # between the tries of a writer that is not let in while another writes
IDLE_S = 2.0  # without a batch: then a server that is gone is noticed, not at the next post


def stop_connecting(outlet: Outlet, sinks: Sequence[Sink]) -> None:
    """If nothing is to be written, wait for no server; who has a line closes it politely."""
    if outlet.rows_waiting == 0 and outlet.stats().rows_taken == 0:
        for sink in sinks:
            if not sink.is_open:
                sink.abort()


class Writer:
    """One writer with a line to the database of its own. `run` ends when there is nothing left."""

    def __init__(
        self,
        *,
        retries_max: int,
        retry_s_max: float,
        unknown_tries_max: int,
        outlet: Outlet,
        gatherer: Gatherer,
        cap: BatchCap,
        sink: Sink,
        sinks: Sequence[Sink],
        database_state: DatabaseState,
        breaker: CircuitBreaker,
        dead_letters: DeadLetters,
        ledger: Ledger,
        halted: asyncio.Event,
    ) -> None:
        self._retries_max = retries_max
        self._retry_s_max = retry_s_max
        self._unknown_tries_max = unknown_tries_max
        self._outlet = outlet
        self._gatherer = gatherer
        self._cap = cap
        self._sink = sink
        self._sinks = sinks  # of all writers
        self._database_state = database_state
        self._breaker = breaker
        self._dead_letters = dead_letters
        self._ledger = ledger
        self._halted = halted
        self._log = get_logger("writer")
        self._unknown_tries_left = 0
        self._is_left_out = False
        self._in_hand: list[Block] = []  # taken and neither settled nor given back, in order

    async def run(self) -> None:
        """Write until the buffer is shut and empty, or `halted` is set. Raises nothing expected."""
        try:
            while not self._halted.is_set():
                if not self._database_state.is_open:
                    await self._probe()
                    if self._has_ended():
                        return
                    continue
                if self._is_left_out:
                    await self._knock()
                    if self._has_ended():
                        return
                    continue
                try:
                    async with asyncio.timeout(IDLE_S):
                        batch = await self._gatherer.gather()
                except TimeoutError:
                    await self._look()
                    continue
                if batch is None:
                    return
                await self._deliver(batch)
        finally:
            self._give_back()
            await self._sink.close()

    def _has_ended(self) -> bool:
        return self._outlet.shut and self._outlet.rows_waiting == 0

    async def _look(self) -> None:
        """Nobody posts, and no writer has a line any more: see whether the server is there.

        While one has a line no other is opened: who needs none may not be let in.
        """
        database_state = self._database_state
        async with database_state.probing:
            over = self._halted.is_set() or self._has_ended()
            if over or not database_state.is_open or self._any_connection():
                return
            try:
                await self._sink.open()
            except WriteFailed as failure:
                passes = failure.verdict not in (Verdict.WAIT, Verdict.HOLD)  # looked at again
                if not (passes or self._any_connection() or self._has_ended()):
                    self._failed(failure)

    async def _knock(self) -> None:
        """The server is full, and another writer has a line: try again, without a batch."""
        await sleep_unless(self._halted, FULL_S)
        if self._halted.is_set() or self._has_ended():
            return
        self._is_left_out = False
        try:
            await self._sink.open()
        except WriteFailed:
            self._is_left_out = (
                self._any_connection()
            )  # it will tell what is wrong; else our next batch

    def _any_connection(self) -> bool:
        return any(sink.is_open for sink in self._sinks)

    # Probing, while the gate is not open

    async def _probe(self) -> None:
        """Wait, then try the server: one writer at a time, with one batch if any waits."""
        database_state = self._database_state
        async with database_state.probing:
            if database_state.is_open or self._has_ended():
                return
            await database_state.pause(self._halted)
            if self._halted.is_set() or self._has_ended():
                return
            try:
                await self._sink.open()
            except WriteFailed as failure:
                if not self._has_ended():
                    self._failed(failure)
                return
            self._is_left_out = False
            if self._outlet.rows_waiting == 0:  # else write: a full disk lets us in all the same
                if self._outlet.stats().rows_taken == 0:  # else another writer's batch will tell
                    database_state.opened()
                return
            batch = await self._gatherer.gather()
            if batch is not None and await self._deliver(batch, probing=True):
                if database_state.hold_reason == BREAKER:
                    self._breaker.forget()  # mended, or released for what is held
                database_state.opened()

    def _failed(self, failure: WriteFailed) -> None:
        """Close the gate; not if the server is there, and full, and another writer has a line."""
        if failure.reason == TOO_MANY_CONNECTIONS and self._any_connection():
            if not self._is_left_out:
                self._is_left_out = True
                self._log.warning("writer_left_out", message=failure.message)
            return
        verdict = Verdict.WAIT if failure.verdict is Verdict.WAIT else Verdict.HOLD
        self._ledger.retries[verdict.value] += 1
        self._database_state.failed(failure)

    # Delivering one batch

    async def _deliver(self, batch: Batch, *, probing: bool = False) -> bool:
        """See a batch through, in pieces if need be. False: what is left went back (gate shut)."""
        self._in_hand = list(batch.blocks)
        if not self._database_state.is_open and not probing:
            self._give_back()  # another writer met trouble while this one gathered
            return False
        self._ledger.batch_gathered(batch.trigger, batch.rows)
        on_hold = self._database_state.hold_reason is not None
        self._unknown_tries_left = 0 if on_hold else self._unknown_tries_max - 1
        pieces = [batch.blocks]
        while pieces and not self._halted.is_set() and (probing or self._database_state.is_open):
            piece = pieces.pop()
            try:
                await self._write(piece)
            except WriteFailed as failure:
                if probing:
                    self._database_state.answered(failure)
                try:
                    pieces += await self._pieces_after(failure, piece)
                except WriteFailed as final:
                    self._failed(final)
                    break
        done = not self._in_hand
        self._give_back()
        return done

    async def _write(self, piece: list[Block]) -> None:
        """Write one piece and settle it. Isolates row by row if it cannot be cut any more."""
        sink = self._sink
        rows = sum(block.rows for block in piece)
        tuples = [block.tuples for block in piece]
        began_s = monotonic_s()
        if not piece[0].isolate:
            idempotent = any(block.doubtful for block in piece)
            stored = await sink.write(tuples, rows, idempotent=idempotent)
            self._breaker.written(tuples, rows)
            self._cap.written(rows, monotonic_s() - began_s)
            self._settle(piece, stored, began_s)
            return
        bad: list[BadRow] = []

        async def set_aside(refused: list[BadRow]) -> None:
            received_s = min(block.received_s for block in piece)
            self._breaker.judge(tuples, rows, refused, received_s=received_s)
            await self._append(refusal_letters(piece, refused))
            bad[:] = refused

        stored = await sink.write_isolating(tuples, rows, set_aside)
        self._breaker.written(tuples, rows, [each.row for each in bad])
        self._settle(piece, stored, began_s, bad)

    async def _append(self, letters: Sequence[Letter]) -> None:
        """Dead-letter, or hold: what can be neither stored nor set aside stays where it is."""
        try:
            await self._dead_letters.append(letters)
        except DeadLettersFull as error:
            raise WriteFailed(Verdict.HOLD, str(error), reason=LETTERS_FULL) from error
        except DeadLettersBroken as error:
            raise WriteFailed(Verdict.HOLD, str(error), reason="dead_letters_broken") from error

    # After a failed write: what to try next, or WriteFailed again if nothing may be tried now

    async def _pieces_after(self, failure: WriteFailed, piece: list[Block]) -> list[list[Block]]:
        if failure.doubtful:
            for block in piece:
                block.doubtful = True
        verdict = failure.verdict
        if verdict is Verdict.UNKNOWN and self._unknown_tries_left > 0:
            self._unknown_tries_left -= 1
            verdict = Verdict.RETRY
        to_cut = verdict is Verdict.ISOLATE and not piece[0].isolate
        if not to_cut and verdict is not Verdict.RETRY:
            raise failure
        self._ledger.retries[verdict.value] += 1
        return self._cut(piece) if to_cut else await self._retried(piece, failure)

    def _cut(self, piece: list[Block]) -> list[list[Block]]:
        """Halve a piece that holds a bad row; a small one is written again row by row."""
        rows = sum(block.rows for block in piece)
        self._cap.shrink(rows)
        if len(piece) > 1 and rows > self._cap.rows_min:
            first, second = halves(piece)
            return [second, first]
        for block in piece:
            block.isolate = True
        return [piece]

    async def _retried(self, piece: list[Block], failure: WriteFailed) -> list[list[Block]]:
        """Back off; return what to try again. Blocks that failed too often are set aside."""
        rows = sum(block.rows for block in piece)
        self._log.warning(
            "write_failed",
            sqlstate=failure.sqlstate,
            message=failure.message,
            rows=rows,
            attempt=piece[0].attempts + 1,
        )
        for block in piece:
            block.attempts += 1
            block.doubtful = True  # a time-out is not "not written": only the key makes it safe
        self._cap.shrink(rows)
        if failure.verdict is Verdict.RETRY:  # what is unknown goes on hold, never aside
            retries_max = self._retries_max
            if exhausted := [each for each in piece if each.attempts > retries_max]:
                await self._exhaust(exhausted, failure)
            piece = [each for each in piece if each.attempts <= retries_max]
        if not piece:
            return []
        attempt = min(block.attempts for block in piece) - 1
        pause_s = backoff_s(attempt, first_s=RETRY_S_MIN, cap_s=self._retry_s_max)
        await sleep_unless(self._halted, pause_s)
        if len(piece) > 1 and rows > self._cap.rows_min:
            first, second = halves(piece)
            return [second, first]
        return [piece]

    async def _exhaust(self, blocks: list[Block], failure: WriteFailed) -> None:
        """Set whole blocks aside for the auto-replay. Raises WriteFailed(HOLD) if that fails."""
        letters = [
            letter
            for block in blocks
            for letter in block_letters(block, EXHAUSTED, failure.sqlstate or "", failure.message)
        ]
        await self._append(letters)
        self._ledger.readings_dead_lettered(EXHAUSTED, len(letters))
        self._release(blocks)
        for block in blocks:
            if block.ack is not None:
                block.ack.resolve(Outcome(set_aside=True))

    # Ends

    def _settle(
        self, piece: list[Block], stored: Stored, began_s: float, bad: Sequence[BadRow] = ()
    ) -> None:
        """Everything of this piece is in the table or the dead-letter queue: count and tell."""
        now_s = monotonic_s()
        now_us = unix_us()
        ledger = self._ledger
        ledger.batch_stored(self._sink.method, now_s - began_s, stored.committed, stored.duplicate)
        ledger.readings_dead_lettered(REFUSED, len(bad))
        self._release(piece)
        refusals = refusals_by_block(piece, bad) if bad else {}
        commit, lag = ledger.commit_s.observe, ledger.lag_s.observe
        for index, block in enumerate(piece):
            commit(now_s - block.received_s)
            lag((now_us - block.newest_ts_us) / 1e6)
            if block.ack is not None:
                refused = refusals.get(index)
                block.ack.resolve(Outcome(tuple(refused)) if refused else STORED)

    def _release(self, blocks: list[Block]) -> None:
        self._outlet.settle(blocks)
        if len(blocks) == len(self._in_hand):
            self._in_hand = []
        else:
            gone = {id(block) for block in blocks}
            self._in_hand = [block for block in self._in_hand if id(block) not in gone]

    def _give_back(self) -> None:
        blocks, self._in_hand = self._in_hand, []
        if blocks:
            self._outlet.give_back(blocks)
