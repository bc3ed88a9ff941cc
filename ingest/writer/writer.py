"""The writer: a loop that gathers a batch, writes it, and resolves the acks of its blocks.

After a failed write the verdict decides: the writer waits, retries, isolates, or pauses writes.

Promises: a block is settled only when each of its rows is committed, or fsynced as a dead letter.
In all other cases the block goes back to the front of the buffer, in order.
A writer is never cancelled. It ends when the buffer is shut and empty, or when `halted` is set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ingest.model.block import Block, Outcome, Refusal
from ingest.model.causes import OF_ONE_ROW, TOO_MANY_CONNECTIONS, Verdict, WriteFailed
from ingest.model.ledger import Ledger
from ingest.model.ports import DeadLetters, Outlet, Sink, Stored
from ingest.model.reading import EXHAUSTED
from ingest.system.clock import monotonic_s, sleep_unless, unix_us
from ingest.system.logs import get_logger
from ingest.system.waiting import backoff_s
from ingest.writer.batch import Batch, BatchCap, Gatherer, in_pieces, isolated
from ingest.writer.database_state import BREAKER, NONE, CircuitBreaker, DatabaseState, Refused
from ingest.writer.refused_rows import (
    append_or_hold,
    block_letters,
    counted,
    refusal_letters,
    refusals_by_block,
    sample_rows,
    votes_of,
)

STORED = Outcome()
RETRY_S_MIN = 0.1
# Between two tries to connect, while the server is full and another writer has a connection.
RECONNECT_S = 2.0
KNOWN_ROWS_MAX = 2_000  # looked through and made dead letters of in one go: some 10 ms
IDLE_S = 2.0  # without a batch: then the server is checked, and not only at the next post
UNKNOWN_TRIES_MAX = 5  # tries with an unknown SQLSTATE before writes are paused


class Writer:
    """One writer, with a sink of its own; `sinks` are those of all writers."""

    def __init__(
        self,
        *,
        retries_max: int,
        retry_s_max: float,
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
        self._outlet = outlet
        self._gatherer = gatherer
        self._cap = cap
        self._sink = sink
        self._sinks = sinks
        self._database_state = database_state
        self._breaker = breaker
        self._dead_letters = dead_letters
        self._ledger = ledger
        self._halted = halted
        self._log = get_logger("writer")
        self._unknown_tries_left = 0
        self._lacks_connection = False  # the server is full, and another writer has a connection
        self._rows_at_fault = False  # found out for the batch that is being written
        self._blocks: list[Block] = []  # taken, and neither settled nor given back; in order

    async def run(self) -> None:
        """Write until the buffer is shut and empty, or `halted` is set. Raises no WriteFailed."""
        try:
            while not self._is_over():
                if not self._database_state.is_open:
                    await self._probe()
                elif self._lacks_connection:
                    await self._reconnect()
                else:
                    await self._write_next()
        finally:
            self._give_back()
            await self._sink.close()

    def _is_over(self) -> bool:
        return self._halted.is_set() or self._has_ended()

    def _has_ended(self) -> bool:
        return self._outlet.shut and self._outlet.rows_waiting == 0

    async def _write_next(self) -> None:
        """Deliver the next batch. If none comes for IDLE_S, check the server."""
        try:
            async with asyncio.timeout(IDLE_S):
                batch = await self._gatherer.gather()
        except TimeoutError:
            await self._check_server()
        else:
            if batch is not None:
                await self._deliver(batch)

    async def _check_server(self) -> None:
        """Connect if no writer has a connection, to see whether the server is there.

        Otherwise this writer needs none now, and a server with a limit might refuse a second one.
        """
        database_state = self._database_state
        async with database_state.probing:
            if self._is_over() or not database_state.is_open or self._any_connection():
                return
            try:
                await self._sink.open()
            except WriteFailed as failure:
                # Any other verdict may be gone at the next check.
                lasts = failure.verdict in (Verdict.WAIT, Verdict.HOLD)
                if lasts and not (self._any_connection() or self._has_ended()):
                    self._failed(failure)

    async def _reconnect(self) -> None:
        """The server was full, and another writer has a connection: try again, without a batch."""
        await sleep_unless(self._halted, RECONNECT_S)
        if self._is_over():
            return
        self._lacks_connection = False
        try:
            await self._sink.open()
        except WriteFailed:
            # If no other writer has a connection, our next batch finds out what is wrong.
            self._lacks_connection = self._any_connection()

    def _any_connection(self) -> bool:
        return any(sink.is_open for sink in self._sinks)

    # While the server is away, or writes are paused

    async def _probe(self) -> None:
        """Pause, then try the server, with one batch if any waits. One writer at a time does so."""
        database_state = self._database_state
        async with database_state.probing:
            if database_state.is_open or self._has_ended():
                return
            await database_state.pause(self._halted)
            if self._is_over():
                return
            try:
                await self._sink.open()
            except WriteFailed as failure:
                if not self._has_ended():
                    self._failed(failure)
                return
            self._lacks_connection = False
            # A server with a full disk accepts connections. So if rows wait, a connection proves
            # nothing: only a batch does.
            if self._outlet.rows_waiting == 0:
                if self._outlet.stats().rows_taken == 0:  # else another writer's batch decides
                    database_state.opened()
                return
            batch = await self._gatherer.gather()
            if batch is not None and await self._deliver(batch, probing=True):
                if database_state.hold_reason == BREAKER:
                    self._breaker.forget()  # fixed, or released for what waits
                database_state.opened()

    def _failed(self, failure: WriteFailed) -> None:
        """Report it to the database state: the server is away, or an operator has to fix it.

        If the server is full, and another writer has a connection, only this writer waits.
        """
        if failure.reason == TOO_MANY_CONNECTIONS and self._any_connection():
            if not self._lacks_connection:
                self._lacks_connection = True
                self._log.warning("writer_left_out", message=failure.message)
            return
        verdict = Verdict.WAIT if failure.verdict is Verdict.WAIT else Verdict.HOLD
        self._ledger.retries[verdict.value] += 1
        self._database_state.failed(failure)

    # Delivering one batch

    async def _deliver(self, batch: Batch, *, probing: bool = False) -> bool:
        """Write a batch, in pieces if need be; give back the rest; return whether none is left."""
        self._blocks = list(batch.blocks)
        if not self._database_state.is_open and not probing:
            self._give_back()  # the write of another writer failed meanwhile
            return False
        self._ledger.batch_gathered(batch.trigger, batch.rows)
        self._rows_at_fault = False
        on_hold = self._database_state.hold_reason is not None
        self._unknown_tries_left = 0 if on_hold else UNKNOWN_TRIES_MAX - 1
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
        done = not self._blocks
        self._give_back()
        return done

    async def _write(self, piece: list[Block]) -> None:
        """Write one piece and settle it. If it is marked `isolate`, write it row by row."""
        sink = self._sink
        rows = sum(block.rows for block in piece)
        tuples = [block.tuples for block in piece]
        began_s = monotonic_s()
        if not piece[0].isolate:
            idempotent = any(block.doubtful for block in piece)
            stored = await sink.write(tuples, rows, idempotent=idempotent)
            self._breaker.written(piece)
            self._cap.written(rows, monotonic_s() - began_s)
            self._settle(piece, stored, began_s)
            return
        refusals: dict[int, list[Refusal]] = {}

        async def set_aside(refused: list[Refusal]) -> None:
            by_block = refusals_by_block(piece, refused)
            if votes := votes_of(by_block):
                last = next(each for each in reversed(refused) if each.votes)
                self._breaker.judge(piece, votes, last)
            await append_or_hold(self._dead_letters, refusal_letters(piece, by_block))
            refusals.update(by_block)

        stored = await sink.write_isolating(tuples, rows, set_aside, at_fault=self._rows_at_fault)
        self._breaker.written(piece, votes_of(refusals))
        for reason, count in counted(refusals).items():
            self._ledger.dead_lettered[reason] += count
        self._settle(piece, stored, began_s, refusals)

    async def _pieces_after(self, failure: WriteFailed, piece: list[Block]) -> list[list[Block]]:
        """Return what to write after a failure. Raises it again if nothing may be written now."""
        for block in piece:
            block.doubtful |= failure.doubtful
        if failure.may_be_row and not (self._rows_at_fault and piece[0].isolate):
            try:
                return await self._refused(failure, piece)
            except WriteFailed as other:
                failure = other  # perhaps the server failed while it was asked
        verdict = Verdict.ISOLATE if failure.verdict in OF_ONE_ROW else failure.verdict
        if verdict is Verdict.UNKNOWN and self._unknown_tries_left > 0:
            self._unknown_tries_left -= 1
            verdict = Verdict.RETRY
        to_cut = verdict is Verdict.ISOLATE and not piece[0].isolate
        if to_cut and failure.known_rows:  # the sink finds them at once, among however many
            self._ledger.retries[verdict.value] += 1
            return [isolated(each) for each in in_pieces(piece, KNOWN_ROWS_MAX)]
        if not to_cut and verdict is not Verdict.RETRY:
            raise failure
        self._ledger.retries[verdict.value] += 1
        return self._cut(piece) if to_cut else await self._retried(piece, failure)

    async def _refused(self, failure: WriteFailed, piece: list[Block]) -> list[list[Block]]:
        """Isolate the piece if rows are at fault. Raises the failure again if an operator is.

        What was found out for one piece of a batch holds for its other pieces.
        """
        self._rows_at_fault = (
            self._rows_at_fault
            or self._breaker.is_released(piece)
            or await self._sink.takes_any(sample_rows(piece), like_stored=True)
        )
        if not self._rows_at_fault:
            raise failure
        self._ledger.retries[Verdict.ISOLATE.value] += 1
        return [isolated(piece)]

    def _cut(self, piece: list[Block]) -> list[list[Block]]:
        """Halve a piece that has a bad row; mark it `isolate` if it is too small for that."""
        rows = sum(block.rows for block in piece)
        self._cap.shrink(rows)
        pieces = self._cap.halved(piece, rows)
        return pieces if len(pieces) > 1 else [isolated(piece)]

    async def _retried(self, piece: list[Block], failure: WriteFailed) -> list[list[Block]]:
        """Pause; return what to write again. Blocks that failed too often are dead-lettered."""
        rows = sum(block.rows for block in piece)
        self._database_state.retried(failure, rows=rows, attempt=piece[0].attempts + 1)
        for block in piece:
            block.attempts += 1
            # The rows may be in the table. From now on only the key makes another write safe.
            block.doubtful = True
        self._cap.shrink(rows)
        # A failure with an unknown SQLSTATE never costs a reading: it pauses writes in the end.
        if failure.verdict is Verdict.RETRY:
            retries_max = self._retries_max
            if exhausted := [each for each in piece if each.attempts > retries_max]:
                await self._exhaust(exhausted, failure)
            piece = [each for each in piece if each.attempts <= retries_max]
        if not piece:
            return []
        attempt = min(block.attempts for block in piece) - 1
        pause_s = backoff_s(attempt, first_s=RETRY_S_MIN, cap_s=self._retry_s_max)
        await sleep_unless(self._halted, pause_s)
        return self._cap.halved(piece, rows)

    async def _exhaust(self, blocks: list[Block], failure: WriteFailed) -> None:
        """Dead-letter whole blocks, for the automatic replay. Raises WriteFailed(HOLD)."""
        letters = block_letters(blocks, EXHAUSTED, failure.sqlstate or "", failure.message)
        await append_or_hold(self._dead_letters, letters)
        self._ledger.dead_lettered[EXHAUSTED] += len(letters)
        self._settle_blocks(blocks)
        for block in blocks:
            if block.ack is not None:
                block.ack.resolve(Outcome(set_aside=True))

    # When blocks leave the writer

    def _settle(
        self, piece: list[Block], stored: Stored, began_s: float, refusals: Refused = NONE
    ) -> None:
        """Settle a piece whose rows are committed or dead letters; resolve the acks, and count."""
        now_s = monotonic_s()
        now_us = unix_us()
        ledger = self._ledger
        ledger.batch_stored(self._sink.method, now_s - began_s, stored.committed, stored.duplicate)
        self._settle_blocks(piece)
        self._database_state.stored()
        commit, lag = ledger.commit_s.observe, ledger.lag_s.observe
        for index, block in enumerate(piece):
            commit(now_s - block.received_s, block.posts)
            lag((now_us - block.newest_ts_us) / 1e6, block.posts)
            if block.ack is not None:
                refused = refusals.get(index)
                block.ack.resolve(Outcome(tuple(refused)) if refused else STORED)

    def _settle_blocks(self, blocks: Sequence[Block]) -> None:
        self._outlet.settle(blocks)
        if len(blocks) == len(self._blocks):
            self._blocks = []
        else:
            gone = {id(block) for block in blocks}
            self._blocks = [block for block in self._blocks if id(block) not in gone]

    def _give_back(self) -> None:
        blocks, self._blocks = self._blocks, []
        if blocks:
            self._outlet.give_back(blocks)


def stop_connecting(outlet: Outlet, sinks: Sequence[Sink]) -> None:
    """If nothing is to be written, cut connections that are being opened. Open ones stay."""
    if outlet.rows_waiting == 0 and outlet.stats().rows_taken == 0:
        for sink in sinks:
            if not sink.is_open:
                sink.abort()
