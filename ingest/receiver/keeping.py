"""Keeps what was decoded of a post: readings in the buffer, faulty items in the dead letters.

A small post that has only valid readings is kept by one plain call: see small_posts.py. Any other
post goes through these steps, and each may wait: room is reserved for all its blocks at once, its
faults are dead-lettered, and its blocks are put into the buffer. `put` fails if the disk of a
journal fails, or the broker does not answer.
Blocks are put in portions, one after the other. So posts that come meanwhile wait for the disk with
one portion, and not with the whole post.
Promises: each block is kept whole, or not. After a refusal nothing of a post with one block is
kept, except perhaps dead letters of its faults. A 2xx means that every reading is kept. Every
decoded reading is counted once: as accepted, dead-lettered or rejected. Once a post with faults, or
of a page with a time for its answers, is being kept, it goes on even if its client is gone. Such a
page answers in time: without room until then 503 `buffer_full`, and nothing is kept; if it is not
known what became of the post, 503 `outcome_unknown`.
Does not: know the database, or the kind of the buffer.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

from ingest.formats.post import NOTHING_ELSE, ItemError, Points, named, received_at
from ingest.http.request_and_answer import Answer
from ingest.http.routes import OnRefused
from ingest.model.block import Ack, Block, Outcome, Reservation
from ingest.model.errors import (
    BufferFull,
    DeadLettersBroken,
    DeadLettersFull,
    NotKept,
    Refused,
    ShareUsed,
    Stopping,
)
from ingest.model.ledger import Ledger
from ingest.model.ports import Database, DeadLetters, Inlet, Sizes
from ingest.model.reading import INVALID, Letter
from ingest.receiver.outcomes import AckWaits
from ingest.receiver.small_posts import BUFFERED, COMMITTED, LATE, SmallPosts, refusal_of
from ingest.system.clock import monotonic_s
from ingest.system.waiting import in_slices

NOT_KEPT = "not_kept"
PAUSE_S = 0.02  # between two tries to reserve room
ANSWER_S = 0.1  # before the answer is due, a post gives up its wait for room
WAITING_BYTES_MAX = 16 * 1024 * 1024
FULL_S = 2.0  # after which a post should come again that found no room
PORTION_BYTES = 256 * 1024  # of blocks that are put together; a single block may have more
SLOW_S = 0.02  # after a portion that took longer, the next one has four times as many bytes
Portion = list[tuple[Block, Reservation]]


class Terms(NamedTuple):
    """How a post is kept, and for whom; `sender` as in Block.

    It must be answered at `answer_by_s` (monotonic). `letter` has what all its dead letters have in
    common. For `times_us` of mapped documents see post.py. `faults` is what its faulty items
    are called. `is_tolerant`: one that cannot even be dead-lettered costs the others nothing, and
    counts as `not_kept`; else the whole post is refused.
    """

    ack: str
    sender: str
    letter: Letter
    answer_by_s: float = math.inf
    times_us: Sequence[int] = ()
    faults: str = "faulty lines"
    is_tolerant: bool = True


class Keeping:
    """Keeps the posts of one receiver, and counts those in work.

    While posts wait for room, their faulty items, and posts of several blocks, have together at
    most WAITING_BYTES_MAX. A single post may have more.
    """

    def __init__(
        self,
        inlet: Inlet,
        dead_letters: DeadLetters,
        ledger: Ledger,
        database: Database,
        outcomes: AckWaits,
        *,
        on_refused: OnRefused,
    ) -> None:
        self._inlet = inlet
        self._dead_letters = dead_letters
        self._ledger = ledger
        self._database = database
        self._outcomes = outcomes
        self._waiting = Counter[str]()  # bytes of each sender
        self._waiting_bytes = 0  # of all of them
        self._collecting = asyncio.Lock(), asyncio.Lock()  # the second one: of awaited blocks
        self._posts_inside = 0
        self._tails: set[asyncio.Task[None]] = set()  # each keeps a post that is answered already
        self._left = asyncio.Event()  # set whenever a post or a tail has ended
        self.small = SmallPosts(inlet, ledger, on_refused=on_refused, on_answered=self._left.set)

    @property
    def in_work(self) -> int:
        """Posts that are not answered yet, and such as are not kept yet."""
        return self._posts_inside + self.small.inside + len(self._tails)

    async def finish(self, timeout_s: float) -> int:
        """Wait until no post is in work, at most `timeout_s`; return how many still are."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.in_work:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            pass
        return self.in_work

    async def close(self) -> None:
        """Finish the posts that are being kept. Repeatable."""
        if self._tails:
            await asyncio.wait(self._tails)
        self._outcomes.close()
        self.small.close()

    async def inside(self, coming: Coroutine[Any, Any, Answer]) -> Answer:
        """Count a post as in work until it is answered."""
        self._posts_inside += 1
        try:
            return await coming
        finally:
            self._posts_inside -= 1
            self._left.set()

    async def keep(
        self, points: Points, terms: Terms, held: ExitStack | None = None
    ) -> Outcome | None:
        """Keep readings and faults; return the outcome of an awaited block. Raises Refused.

        If the post goes on after its answer, what is `held` is, too.
        """
        if terms.answer_by_s == math.inf and points[1:] == NOTHING_ELSE and len(points.blocks) == 1:
            return await self._keep_block(points.blocks[0], terms)
        left_s = terms.answer_by_s - monotonic_s()
        if left_s <= 0:  # its client may be gone, and sends it again
            raise refusal_of(BufferFull(FULL_S))
        try:
            async with asyncio.timeout(None if left_s == math.inf else left_s):
                coming = self._take_in(points, terms)
                if points.errors or left_s != math.inf:
                    await self._to_its_end(coming, held or ExitStack())
                else:
                    await coming
                outcome = None
                for block in points.blocks:
                    if block.ack is not None:
                        outcome = await self._outcomes.of(block.ack)
                return outcome
        except TimeoutError:
            raise Refused("outcome_unknown", LATE) from None

    async def _keep_block(self, block: Block, terms: Terms) -> Outcome | None:
        """Keep a post that has only one block: what `_take_in` does, at a third of its cost."""
        ledger, rows = self._ledger, block.rows
        ledger.received += rows
        ledger.at_receiver += rows
        is_awaited = terms.ack == COMMITTED
        try:
            if is_awaited:
                self._prepare([block])
            reservation = await self._inlet.reserve(
                rows, len(block.tuples), awaited=is_awaited, sender=terms.sender
            )
            await reservation.put(block, durable=terms.ack != BUFFERED)
            ledger.accepted += rows
        except (Exception, asyncio.CancelledError) as error:
            ledger.rejected[_code_of(error)] += rows
            if isinstance(error, BufferFull | NotKept | Stopping):
                raise refusal_of(error) from error
            raise
        finally:
            ledger.at_receiver -= rows
        return None if block.ack is None else await self._outcomes.of(block.ack)

    async def _to_its_end(self, coming: Coroutine[Any, Any, None], held: ExitStack) -> None:
        """Keep a post; if the request ends before, this goes on."""
        tail = asyncio.create_task(coming)
        try:
            await asyncio.shield(tail)
        finally:
            if not tail.done():
                counted = held.pop_all()
                tail.add_done_callback(lambda _tail: counted.close())
                tail.add_done_callback(self._tail_done)
                self._tails.add(tail)

    def _tail_done(self, tail: asyncio.Task[None]) -> None:
        self._tails.discard(tail)
        self._left.set()
        if not tail.cancelled():
            tail.exception()  # read here: the post may have been answered already

    async def _take_in(self, points: Points, terms: Terms) -> None:
        """Count the readings as received; keep them, or count them as rejected."""
        ledger = self._ledger
        rows = sum(block.rows for block in points.blocks)
        posted = rows + len(points.errors) + points.not_kept
        ledger.received += posted
        ledger.at_receiver += posted
        reserved: list[Reservation] = []
        try:
            reserved = await self._reserve(points, terms)
            await self._set_aside(points, terms)
        except (Exception, asyncio.CancelledError) as error:
            for each in reserved:
                each.release()
            ledger.at_receiver -= posted
            ledger.rejected[_code_of(error)] += posted
            if isinstance(error, BufferFull | NotKept | Stopping):
                raise refusal_of(error) from error
            raise
        await self._put(points.blocks, reserved, terms.ack)
        ledger.line_fields["text_ignored"] += points.texts
        ledger.line_fields["integer_rounded"] += points.rounded

    async def _reserve(self, points: Points, terms: Terms) -> list[Reservation]:
        """Reserve room for all blocks."""
        blocks, is_awaited = points.blocks, terms.ack == COMMITTED
        if not blocks:
            return []
        if is_awaited:
            self._prepare(blocks)
        sizes = [(block.rows, len(block.tuples)) for block in blocks]
        more_bytes = sum(len(each.original) for each in points.errors)
        if len(sizes) > 1:
            more_bytes += sum(each[1] for each in sizes)
        left_s = terms.answer_by_s - ANSWER_S - monotonic_s()
        try:
            async with asyncio.timeout(None if left_s == math.inf else max(0.0, left_s)):
                with self._counted(more_bytes, terms.sender) if more_bytes else nullcontext():
                    return await self._room(sizes, terms.sender, is_awaited)
        except TimeoutError:
            raise BufferFull(FULL_S) from None

    def _prepare(self, blocks: Sequence[Block]) -> None:
        """Give blocks that a post waits for their acknowledgements. Raises Refused."""
        if self._database.hold_reason is not None:
            raise Refused("database_on_hold", "nothing of the post is kept")
        self._outcomes.require_place()
        for block in blocks:
            block.ack = Ack()

    async def _room(self, sizes: Sizes, sender: str, is_awaited: bool) -> list[Reservation]:
        """Wait until there is room for all blocks of a post. Posts of one block go first.

        One of several asks again while there is not enough, and holds nothing meanwhile: so it
        keeps no other post out. Of those with `ack=committed` one asks at a time, and of the others
        one.
        """
        if len(sizes) == 1:
            return [await self._inlet.reserve(*sizes[0], awaited=is_awaited, sender=sender)]
        async with self._collecting[is_awaited]:
            while True:
                reserved = self._inlet.reserve_all(sizes, awaited=is_awaited)
                if reserved is not None:
                    return reserved
                await asyncio.sleep(PAUSE_S)

    @contextmanager
    def _counted(self, size_bytes: int, sender: str) -> Iterator[None]:
        """Count what waits with a post and is counted nowhere else. Raises BufferFull."""
        own_bytes, all_bytes = self._waiting[sender], self._waiting_bytes
        # A sender leaves as much to others as its own posts take, as in buffers/waiting.py.
        left_bytes = own_bytes + size_bytes if own_bytes else 0
        if all_bytes and all_bytes + size_bytes + left_bytes > WAITING_BYTES_MAX:
            raise BufferFull(FULL_S)
        self._waiting[sender] += size_bytes
        self._waiting_bytes += size_bytes
        try:
            yield
        finally:
            self._waiting[sender] -= size_bytes
            self._waiting_bytes -= size_bytes
            if not self._waiting[sender]:
                del self._waiting[sender]

    async def _set_aside(self, points: Points, terms: Terms) -> None:
        """Write faults to the dead letters. If they cannot be kept, count that, or refuse."""
        ledger, errors = self._ledger, points.errors
        if not errors:
            return
        not_kept = points.not_kept
        letters = [_letter(error, terms) async for error in in_slices(errors)]
        try:
            await self._dead_letters.append(letters, sender=terms.sender)
        except DeadLettersFull as full:
            if not terms.is_tolerant:
                raise _letters_full(errors, share=isinstance(full, ShareUsed)) from None
            not_kept += len(errors)
        except DeadLettersBroken:
            why = f"{terms.faults} could not be written to the disk"
            raise Refused("disk_low", why) from None
        else:
            ledger.dead_lettered[INVALID] += len(errors)
        if not_kept:
            ledger.rejected[NOT_KEPT] += not_kept
            ledger.posts_refused[NOT_KEPT] += 1
        ledger.at_receiver -= len(errors) + points.not_kept

    async def _put(
        self, blocks: Sequence[Block], reserved: Sequence[Reservation], ack: str
    ) -> None:
        """Put the blocks in portions, and wait until it is known of each whether it is kept.

        After one of which not all is kept, no other one is put. On a slow disk they become larger.
        """
        ledger = self._ledger
        waiting = deque(zip(blocks, reserved, strict=True))
        portion_bytes = PORTION_BYTES
        failed: list[BaseException] = []
        while waiting and not failed:
            portion = _taken(waiting, portion_bytes)
            began_s = monotonic_s()
            # The next portion waits for this one, whatever the sender asked for.
            is_durable = ack != BUFFERED or bool(waiting)
            failed += await self._put_portion(portion, durable=is_durable)
            if monotonic_s() - began_s > SLOW_S:
                portion_bytes *= 4
        for block, reservation in waiting:
            reservation.release()
            ledger.rejected[_code_of(failed[0])] += block.rows
            ledger.at_receiver -= block.rows
            failed.append(failed[0])
        if failed:
            raise _not_all_kept(failed, len(blocks))

    async def _put_portion(self, portion: Portion, *, durable: bool) -> list[BaseException]:
        """Put blocks together; wait for all of them; return the errors of those not kept."""
        ledger = self._ledger
        failed: list[BaseException] = []
        puts = [
            (block.rows, reservation, reservation.put(block, durable=durable))
            for block, reservation in portion
        ]
        for rows, reservation, put in puts:
            try:
                await put
                ledger.accepted += rows
            except (Exception, asyncio.CancelledError) as error:  # the others may be kept
                failed.append(error)
                ledger.rejected[_code_of(error)] += rows
            reservation.release()  # does nothing after put
            ledger.at_receiver -= rows
        return failed


def _code_of(error: BaseException) -> str:
    """Return the code under which readings count that were not kept because of it."""
    if isinstance(error, BufferFull | NotKept | Stopping):
        error = refusal_of(error)
    if isinstance(error, Refused):
        return error.code
    return "draining" if isinstance(error, asyncio.CancelledError) else "internal"


def _taken(waiting: deque[tuple[Block, Reservation]], bytes_max: int) -> Portion:
    """Take the first blocks that have at most so many bytes together, or one block."""
    portion = [waiting.popleft()]
    left = bytes_max - len(portion[0][0].tuples)
    while waiting and (left := left - len(waiting[0][0].tuples)) >= 0:
        portion.append(waiting.popleft())
    return portion


def _not_all_kept(failed: Sequence[BaseException], blocks: int) -> BaseException:
    """Return what a post raises with blocks that failed. Others may be kept."""
    worst = max(failed, key=lambda error: (not isinstance(error, NotKept), _is_unknown(error)))
    if not isinstance(worst, NotKept):  # a bug
        return worst
    if _is_unknown(worst) or len(failed) == blocks:
        return refusal_of(worst)
    return Refused(
        "outcome_unknown",
        "a part of the post is kept; sending it again is safe for lines with a time",
        retry_after_s=worst.retry_after_s,
    )


def _is_unknown(error: BaseException) -> bool:
    return _code_of(error) == "outcome_unknown"


def _letters_full(errors: Sequence[ItemError], *, share: bool) -> Refused:
    why = "this sender has used its share of the space" if share else "there is no space"
    return Refused(
        "dead_letters_full",
        f"{why} to keep the invalid items; post the other items without them",
        items=sorted({error.item for error in errors}),
        **named(errors),
    )


def _letter(error: ItemError, terms: Terms) -> Letter:
    return terms.letter._replace(
        code=error.code,
        message=error.message,
        received_us=received_at(terms.times_us, error.item, terms.letter.received_us),
        original=error.original,
        field=error.field,
        item=error.item,
    )
