"""Keeps the points of a post of line protocol: its readings, and its faulty lines.

Mapped posts are kept by it too; their faulty documents are what is called a line here.

A post may have several blocks. Room for all of them is reserved at once, before one is put. While
there is not enough, such a post asks again, one post at a time, and holds nothing while it waits.
So it keeps no other post out. Then the blocks are put in portions, one after the other. So posts
that come meanwhile wait for the disk with one portion, and not with the whole post.
Promises: each block is kept whole, or not. A decoded post goes on even if its client is gone. It is
answered in time. Without room until then it gets 503 `buffer_full`, and nothing of it is kept. If
it is not known what became of it, it gets 503 `outcome_unknown`. A line that cannot even be
dead-lettered costs the others nothing, and counts as `not_kept`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from ingest.formats.line_protocol import Points
from ingest.formats.map_post import received_at
from ingest.formats.post import ItemError
from ingest.model.ack import Ack
from ingest.model.block import Block
from ingest.model.codes import NO_DEVICE, NOT_ALLOWED
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
from ingest.model.ports import Database, DeadLetters, PostInlet, Reservation, Sizes
from ingest.receiver.ack_waits import AckWaits
from ingest.receiver.at_once import BUFFERED, COMMITTED, LATE, refusal_of
from ingest.receiver.line_query import LineQuery
from ingest.receiver.line_replies import faulty
from ingest.system.clock import monotonic_s

NOT_KEPT = "not_kept"
PAUSE_S = 0.02  # between two tries to reserve room
ANSWER_S = 0.1  # before the answer is due, a post gives up its wait for room
WAITING_BYTES_MAX = 16 * 1024 * 1024
FULL_S = 2.0  # after which a post should come again that found no room
LETTERS_AT_ONCE = 1_000  # so many are made in one step, of about 1 ms
PORTION_BYTES = 256 * 1024  # of blocks that are put together; a single block may have more
SLOW_S = 0.02  # after a portion that took longer, the next one has four times as many bytes
Portion = list[tuple[Block, Reservation]]


class LineTerms(NamedTuple):
    """What a post said of its lines, and where and when it came in; `sender` as in Block.

    It must be answered at `answer_by_s` (monotonic). `letter` has what all its dead letters have in
    common. For `times_us` of mapped documents see map_post.py.
    """

    query: LineQuery
    sender: str
    answer_by_s: float
    letter: Letter
    times_us: Sequence[int] = ()


class LineKeeper:
    """Keeps the posts of line protocol of one receiver.

    The posts of several blocks that wait for room have together at most `waiting_bytes_max` bytes.
    A single one may have more.
    """

    def __init__(
        self,
        inlet: PostInlet,
        dead_letters: DeadLetters,
        ledger: Ledger,
        database: Database,
        outcomes: AckWaits,
        *,
        waiting_bytes_max: int = WAITING_BYTES_MAX,
    ) -> None:
        self._inlet = inlet
        self._dead_letters = dead_letters
        self._ledger = ledger
        self._database = database
        self._outcomes = outcomes
        self._waiting_bytes_max = waiting_bytes_max
        self._waiting = Counter[str]()  # bytes of each sender
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

    def begin(self, points: Points, terms: LineTerms) -> asyncio.Task[None]:
        """Begin to keep a post; return its task, which goes on whatever happens. Raises Refused."""
        errors = points.errors
        codes = {each.code for each in errors}
        if codes == {NOT_ALLOWED} and not points.blocks:
            raise Refused("outside_scope", "the token may not speak for any device of the post")
        if errors and terms.query.strict:
            raise faulty("invalid_items", "and its sender wants all or nothing", errors)
        is_of_lines = terms.letter.format == LINE
        if is_of_lines and codes and NO_DEVICE not in codes and not points.blocks:
            raise faulty("all_invalid", "and no reading", errors)
        if monotonic_s() >= terms.answer_by_s:  # its client may be gone, and sends it again
            raise refusal_of(BufferFull(FULL_S))
        tail = asyncio.create_task(self._take_in(points, terms))
        self._tails.add(tail)
        tail.add_done_callback(self._tail_done)
        return tail

    async def kept(self, tail: asyncio.Task[None], points: Points, terms: LineTerms) -> None:
        """Wait until a post is kept, or must be answered. Raises Refused."""
        try:
            async with asyncio.timeout(max(0.0, terms.answer_by_s - monotonic_s())):
                await asyncio.shield(tail)  # raises its error
                for block in points.blocks:
                    if block.ack is not None:
                        await self._outcomes.of(block.ack)
        except TimeoutError:
            raise Refused("outcome_unknown", LATE) from None

    def _tail_done(self, tail: asyncio.Task[None]) -> None:
        self._tails.discard(tail)
        if not tail.cancelled():
            tail.exception()  # read here: the post may have been answered already

    async def _take_in(self, points: Points, terms: LineTerms) -> None:
        """Count the readings as received; keep them, or count them as rejected."""
        ledger = self._ledger
        rows = sum(block.rows for block in points.blocks)
        posted = rows + len(points.errors) + points.not_kept
        ledger.received += posted
        ledger.at_receiver += posted
        reserved: list[Reservation] = []
        code = "internal"
        try:
            reserved = await self._reserve(points.blocks, points.errors, terms)
            await self._set_aside(points, terms)
            posted = rows
            code = ""
        except Refused as refused:
            code = refused.code
            raise
        except (BufferFull, NotKept, Stopping) as error:
            refusal = refusal_of(error)
            code = refusal.code
            raise refusal from error
        except asyncio.CancelledError:
            code = "draining"
            raise
        finally:
            if code:
                for each in reserved:
                    each.release()
                ledger.at_receiver -= posted
                ledger.readings_rejected(code, posted)
        await self._put(points.blocks, reserved, terms.query)
        ledger.line_fields["text_ignored"] += points.strings
        ledger.line_fields["integer_rounded"] += points.rounded

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
        if not blocks:
            return []
        sizes = [(block.rows, len(block.tuples)) for block in blocks]
        sizes[0] = (sizes[0][0], sizes[0][1] + sum(len(error.original) for error in errors))
        left_s = max(0.0, terms.answer_by_s - ANSWER_S - monotonic_s())
        try:
            async with asyncio.timeout(left_s):
                if len(sizes) > 1:
                    return await self._collect(sizes, terms.sender, is_awaited)
                return [
                    await self._inlet.reserve(*sizes[0], awaited=is_awaited, sender=terms.sender)
                ]
        except TimeoutError:
            raise BufferFull(FULL_S) from None

    async def _collect(self, sizes: Sizes, sender: str, is_awaited: bool) -> list[Reservation]:
        """Wait until there is room for all blocks of a post. Posts of one block go before it."""
        size_bytes = sum(each[1] for each in sizes)
        own_bytes, all_bytes = self._waiting[sender], self._waiting.total()
        # A sender leaves as much to others as its own posts take, as in buffers/waiting.py.
        left_bytes = own_bytes + size_bytes if own_bytes else 0
        if all_bytes and all_bytes + size_bytes + left_bytes > self._waiting_bytes_max:
            raise BufferFull(FULL_S)
        self._waiting[sender] += size_bytes
        try:
            async with self._collecting:
                while True:
                    reserved = self._inlet.reserve_all(sizes, awaited=is_awaited)
                    if reserved is not None:
                        return reserved
                    await asyncio.sleep(PAUSE_S)
        finally:
            self._waiting[sender] -= size_bytes
            if not self._waiting[sender]:
                del self._waiting[sender]

    async def _set_aside(self, points: Points, terms: LineTerms) -> None:
        """Write faulty lines to the dead letters, or count that they cannot be kept."""
        ledger, errors = self._ledger, points.errors
        if not errors:
            return
        not_kept = points.not_kept
        letters: list[Letter] = []
        for at in range(0, len(errors), LETTERS_AT_ONCE):
            letters += [_letter(error, terms) for error in errors[at : at + LETTERS_AT_ONCE]]
            await asyncio.sleep(0)
        try:
            await self._dead_letters.append(letters, sender=terms.sender)
        except DeadLettersFull:
            not_kept += len(errors)
        except DeadLettersBroken:
            raise Refused("disk_low", "faulty lines could not be written to the disk") from None
        else:
            ledger.readings_dead_lettered(INVALID, len(errors))
        if not_kept:
            ledger.readings_rejected(NOT_KEPT, not_kept)
            ledger.post_refused(NOT_KEPT)
        ledger.at_receiver -= len(errors) + points.not_kept

    async def _put(
        self, blocks: Sequence[Block], reserved: Sequence[Reservation], query: LineQuery
    ) -> None:
        """Put the blocks in portions, and wait until it is known of each whether it is kept.

        After one of which not all is kept, no other one is put. On a slow disk they become larger.
        """
        ledger = self._ledger
        waiting = deque(zip(blocks, reserved, strict=True))
        portion_bytes = PORTION_BYTES
        failed: list[NotKept] = []
        while waiting and not failed:
            portion = _taken(waiting, portion_bytes)
            began_s = monotonic_s()
            # The next portion waits for this one, whatever the sender asked for.
            is_durable = query.ack != BUFFERED or bool(waiting)
            failed += await self._put_portion(portion, durable=is_durable)
            if monotonic_s() - began_s > SLOW_S:
                portion_bytes *= 4
        for block, reservation in waiting:
            reservation.release()
            ledger.readings_rejected(failed[0].code, block.rows)
            ledger.at_receiver -= block.rows
            failed.append(failed[0])
        if failed:
            raise _not_all_kept(failed, len(blocks))

    async def _put_portion(self, portion: Portion, *, durable: bool) -> list[NotKept]:
        """Put blocks together; wait for all of them; return the errors of those not kept."""
        ledger = self._ledger
        failed: list[NotKept] = []
        puts = [
            (block.rows, reservation, reservation.put(block, durable=durable))
            for block, reservation in portion
        ]
        for rows, reservation, put in puts:
            try:
                await put
            except NotKept as error:
                failed.append(error)
                ledger.readings_rejected(error.code, rows)
            else:
                ledger.accepted += rows
            finally:
                reservation.release()  # does nothing after put
            ledger.at_receiver -= rows
        return failed


def _taken(waiting: deque[tuple[Block, Reservation]], bytes_max: int) -> Portion:
    """Take the first blocks that have at most so many bytes together, or one block."""
    portion = [waiting.popleft()]
    left = bytes_max - len(portion[0][0].tuples)
    while waiting and (left := left - len(waiting[0][0].tuples)) >= 0:
        portion.append(waiting.popleft())
    return portion


def _not_all_kept(failed: Sequence[NotKept], blocks: int) -> Refused:
    """Return the refusal of a post with blocks that failed. Others may be kept."""
    unknown = [error for error in failed if error.code == "outcome_unknown"]
    if unknown or len(failed) == blocks:
        return refusal_of((unknown or failed)[0])
    return Refused(
        "outcome_unknown",
        "a part of the post is kept; sending it again is safe for lines with a time",
        retry_after_s=failed[0].retry_after_s,
    )


def _letter(error: ItemError, terms: LineTerms) -> Letter:
    return terms.letter._replace(
        code=error.code,
        message=error.message,
        received_us=received_at(terms.times_us, error.item, terms.letter.received_us),
        original=error.original,
        field=error.field,
        item=error.item,
    )
