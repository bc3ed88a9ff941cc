"""Keeps the points of a post of line protocol: its readings, and its faulty lines.

A post may have several blocks. Room for all of them is reserved before one is put. Only one such
post at a time collects room, so two cannot wait for each other. While there is none, it asks again
until it must be answered; posts that came between are served before it.
Promises: each block is kept whole, or not. A decoded post goes on even if its client is gone. It is
answered in time; if it is not known by then what became of it, with 503 `outcome_unknown`. A line
that cannot even be dead-lettered costs the others nothing, and counts as `not_kept`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import NamedTuple

from ingest.formats.line_protocol import Points
from ingest.formats.line_series import Naming
from ingest.formats.post import ERRORS_MAX, ItemError
from ingest.model.ack import Ack
from ingest.model.block import Block
from ingest.model.codes import NOT_ALLOWED
from ingest.model.errors import (
    BufferFull,
    DeadLettersBroken,
    DeadLettersFull,
    NotKept,
    Refused,
    Stopping,
)
from ingest.model.ledger import Ledger
from ingest.model.letter import INVALID, LINE, Letter
from ingest.model.ports import Database, DeadLetters, Inlet, Reservation
from ingest.receiver.ack_waits import AckWaits
from ingest.receiver.keeper import ADMISSION_DETAILS, BUFFERED, COMMITTED
from ingest.receiver.line_query import LineQuery
from ingest.system.clock import monotonic_s
from ingest.system.words import counted

NOT_KEPT = "not_kept"
LINE_BYTES_SHOWN = 200
PAUSE_S = 0.02  # between two tries to reserve room
ANSWER_S = 0.1  # before the answer is due, a post gives up its wait for room


class LineTerms(NamedTuple):
    """What a post said of its lines, and where and when it came in; `sender` as in Block.

    It must be answered at `answer_by_s` (monotonic).
    """

    query: LineQuery
    naming: Naming
    source: str
    sender: str
    received_us: int
    received_s: float
    answer_by_s: float


class LineKeeper:
    """Keeps the posts of line protocol of one receiver."""

    def __init__(
        self,
        inlet: Inlet,
        dead_letters: DeadLetters,
        ledger: Ledger,
        database: Database,
        outcomes: AckWaits,
    ) -> None:
        self._inlet = inlet
        self._dead_letters = dead_letters
        self._ledger = ledger
        self._database = database
        self._outcomes = outcomes
        self._collecting = asyncio.Lock()
        self._tails: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Finish the posts in work. Repeatable."""
        if self._tails:
            await asyncio.wait(self._tails)

    async def finish(self, timeout_s: float) -> int:
        """Wait until no post is in work, at most `timeout_s`; return how many still are."""
        if self._tails:
            await asyncio.wait(self._tails, timeout=timeout_s)
        return len(self._tails)

    async def keep(self, points: Points, terms: LineTerms) -> None:
        """Keep a post. Raises Refused."""
        codes = {error.code for error in points.errors}
        if codes == {NOT_ALLOWED} and not points.blocks:
            raise Refused("outside_scope", "the token may not speak for any device of the post")
        if points.errors and terms.query.strict:
            raise _not_strict(points.errors)
        tail = asyncio.create_task(self._take_in(points, terms))
        self._tails.add(tail)
        tail.add_done_callback(self._tail_done)
        try:
            async with asyncio.timeout(max(0.0, terms.answer_by_s - monotonic_s())):
                await asyncio.shield(tail)  # raises its error
                for block in points.blocks:
                    if block.ack is not None:
                        await self._outcomes.of(block.ack)
        except TimeoutError:
            raise Refused(
                "outcome_unknown", "it is not known in time what became of the post"
            ) from None

    def _tail_done(self, tail: asyncio.Task[None]) -> None:
        self._tails.discard(tail)
        if not tail.cancelled():
            tail.exception()  # read here: the post may have been answered already

    async def _take_in(self, points: Points, terms: LineTerms) -> None:
        """Count the readings as received; keep them, or count them as rejected."""
        ledger = self._ledger
        ledger.line_fields["text_ignored"] += points.strings
        ledger.line_fields["integer_rounded"] += points.rounded
        rows = sum(block.rows for block in points.blocks)
        posted = rows + len(points.errors)
        ledger.received += posted
        ledger.at_receiver += posted
        reserved: list[Reservation] = []
        code = "internal"
        try:
            reserved = await self._reserve(points.blocks, points.errors, terms)
            await self._set_aside(points.errors, terms)
            posted = rows
            code = ""
        except Refused as refused:
            code = refused.code
            raise
        except BufferFull as full:
            code = "buffer_full"
            raise Refused(code, str(full), retry_after_s=full.retry_after_s) from full
        except NotKept as error:
            code = error.code
            raise _refused(error) from error
        except (Stopping, asyncio.CancelledError) as stopped:
            code = "draining"
            if isinstance(stopped, Stopping):
                raise Refused(code, ADMISSION_DETAILS[code]) from stopped
            raise
        finally:
            if code:
                for each in reserved:
                    each.release()
                ledger.at_receiver -= posted
                ledger.readings_rejected(code, posted)
        await self._put(points.blocks, reserved, terms.query)

    async def _reserve(
        self, blocks: Sequence[Block], errors: Sequence[ItemError], terms: LineTerms
    ) -> list[Reservation]:
        """Reserve room for all blocks, and for the faulty lines with the first one."""
        is_awaited = terms.query.ack == COMMITTED
        if is_awaited and blocks:
            if self._database.hold_reason is not None:
                raise Refused("database_on_hold", "nothing of the post is kept")
            self._outcomes.require_place()
            for block in blocks:
                block.ack = Ack()
        reserved: list[Reservation] = []
        more_bytes = sum(len(error.original) for error in errors)
        async with AsyncExitStack() as stack:
            unless_all = stack.enter_context(ExitStack())
            if len(blocks) > 1:  # a small post does not wait for a large one
                await stack.enter_async_context(self._collecting)
            for block in blocks:
                size_bytes = len(block.tuples) + more_bytes
                more_bytes = 0
                reservation = await self._room(block.rows, size_bytes, terms, is_awaited)
                reserved.append(reservation)
                unless_all.callback(reservation.release)
            unless_all.pop_all()
        return reserved

    async def _room(
        self, rows: int, size_bytes: int, terms: LineTerms, is_awaited: bool
    ) -> Reservation:
        while True:
            try:
                return await self._inlet.reserve(rows, size_bytes, awaited=is_awaited)
            except BufferFull:
                if monotonic_s() + PAUSE_S > terms.answer_by_s - ANSWER_S:
                    raise
            await asyncio.sleep(PAUSE_S)

    async def _set_aside(self, errors: Sequence[ItemError], terms: LineTerms) -> None:
        """Write faulty lines to the dead letters, or count that they cannot be kept."""
        if not errors:
            return
        ledger = self._ledger
        letters = [_letter(error, terms) for error in errors]
        try:
            await self._dead_letters.append(letters, sender=terms.sender)
        except DeadLettersFull:
            ledger.readings_rejected(NOT_KEPT, len(errors))
            ledger.post_refused(NOT_KEPT)
        except DeadLettersBroken:
            raise Refused("disk_low", "faulty lines could not be written to the disk") from None
        else:
            ledger.readings_dead_lettered(INVALID, len(errors))
        ledger.at_receiver -= len(errors)

    async def _put(
        self, blocks: Sequence[Block], reserved: Sequence[Reservation], query: LineQuery
    ) -> None:
        """Put all blocks, and wait until it is known of each whether it is kept."""
        ledger = self._ledger
        is_durable = query.ack != BUFFERED
        failed: NotKept | None = None
        puts = [
            (block.rows, reservation, reservation.put(block, durable=is_durable))
            for block, reservation in zip(blocks, reserved, strict=True)
        ]
        for rows, reservation, put in puts:
            try:
                await put
            except NotKept as error:
                failed = error
                ledger.readings_rejected(error.code, rows)
            else:
                ledger.accepted += rows
            finally:
                reservation.release()  # does nothing after put
            ledger.at_receiver -= rows
        if failed is not None:
            raise _refused(failed)


def _refused(error: NotKept) -> Refused:
    return Refused(error.code, error.detail, retry_after_s=error.retry_after_s)


def _letter(error: ItemError, terms: LineTerms) -> Letter:
    return Letter(
        reason=INVALID,
        code=error.code,
        message=error.message,
        received_us=terms.received_us,
        original=error.original,
        precision=terms.query.precision,
        field=error.field,
        item=error.item,
        format=LINE,
        source=terms.source,
        device=terms.naming.device,
        prefix=terms.naming.prefix,
    )


def _not_strict(errors: Sequence[ItemError]) -> Refused:
    return Refused(
        "invalid_items",
        f"the post has {counted(len(errors), 'faulty line')}, and its sender wants all or nothing; "
        f"line {errors[0].item + 1}: {errors[0].message}",
        data=[
            {
                "line_number": error.item + 1,
                "original_line": error.original[:LINE_BYTES_SHOWN].decode("utf-8", "replace"),
                "error_message": error.message,
            }
            for error in errors[:ERRORS_MAX]
        ],
    )
