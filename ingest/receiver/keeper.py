"""Keeps what was decoded of a post: readings in the buffer, invalid items in the dead letters.

If a post has only valid readings, one plain call keeps it (`take`), if there is room and it need
not wait for its commit. Small posts then share a block. For any other post (`keep`), room is
reserved, its invalid items are dead-lettered, and its block is put into the buffer. Each of these
steps may wait. `put` fails if the disk of a journal fails, or the broker does not answer.
Promises: after a refusal nothing of the post is kept, except perhaps dead letters of its invalid
items. A 2xx means that every reading is kept. Every decoded reading is counted once: as accepted,
dead-lettered or rejected.
Does not: know the database, or the kind of the buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal, NamedTuple

from ingest.access.entries import TokenEntry
from ingest.formats.post import Decoded, ItemError, named
from ingest.http.owner import Reply
from ingest.http.request import Request
from ingest.http.response import Answer
from ingest.http.routes import OnRefused
from ingest.model.ack import Ack
from ingest.model.block import Block
from ingest.model.codes import NOT_ALLOWED
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
from ingest.model.letter import INVALID, Letter
from ingest.model.ports import Database, DeadLetters, Inlet
from ingest.receiver import replies
from ingest.receiver.ack_waits import AckWaits
from ingest.receiver.at_once import (
    BUFFERED,
    COMMITTED,
    AtOnce,
    Page,
    refusal_of,
)
from ingest.receiver.query import Query
from ingest.system.words import counted

READINGS = "/v1/readings"


class PostTerms(NamedTuple):
    """What a post said of its items. `device`: that of records that name none.

    `entry` is that of its sender's token.
    """

    query: Query
    format: str
    device: str
    entry: TokenEntry


class Keeper:
    """Keeps the posts of one receiver, and counts those in work."""

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
        self.at_once = AtOnce(inlet, ledger, on_refused=on_refused, on_answered=self._answered)
        self._page = Page(READINGS, replies.all_accepted, replies.problem_of_readings)
        self.posts_inside = 0
        self._tails: set[asyncio.Task[None]] = set()  # each finishes a post with invalid items
        self._left = asyncio.Event()  # set whenever a post or a tail has ended

    async def finish(self, timeout_s: float) -> int:
        """Wait until no post is in work, at most `timeout_s`; return how many still are."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.posts_inside or self._tails:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            pass
        return self.posts_inside + len(self._tails)

    async def close(self) -> None:
        """Finish the dead letters that are being written. Repeatable."""
        if self._tails:
            await asyncio.wait(self._tails)
        self._outcomes.close()
        self.at_once.close()

    async def inside(self, coming: Coroutine[Any, Any, Answer]) -> Answer:
        """Count a post as in work until it is answered."""
        self.posts_inside += 1
        try:
            return await coming
        finally:
            self.posts_inside -= 1
            self._left.set()

    # At once

    def take(
        self, request: Request, terms: PostTerms, decoded: Decoded, received_s: float
    ) -> Reply:
        """Keep a post at once if that is possible; else return the coroutine that keeps it."""
        block, ack = decoded.block, terms.query.ack
        if (
            block is not None
            and ack != COMMITTED
            and not decoded.errors
            and not decoded.texts  # are counted once the post is kept
            and (reply := self.take_block(request, self._page, block, ack, received_s)) is not False
        ):
            return reply
        return self.inside(self.keep(terms, decoded))

    def take_block(
        self, request: Request, page: Page, block: Block, ack: str | None, received_s: float
    ) -> Answer | Literal[False] | None:
        """Keep a block at once; return a Reply, or False: then it is not kept."""
        reply = self.at_once.keep(request, page, block, ack, received_s)
        if reply is True:
            self.posts_inside += 1
            return None
        return reply

    def _answered(self, posts: int) -> None:
        self.posts_inside -= posts
        self._left.set()

    # With waits

    async def keep(self, terms: PostTerms, decoded: Decoded) -> Answer:
        """Keep readings and invalid items; return the answer. Raises Refused."""
        if not decoded.errors:
            await self._take_in(decoded, terms)
        else:
            # Once invalid items are being dead-lettered, the other readings must be kept too, even
            # if the client disconnects and this task is cancelled.
            tail = asyncio.create_task(self._take_in(decoded, terms))
            self._tails.add(tail)
            tail.add_done_callback(self._tail_done)
            await asyncio.shield(tail)
        block, errors, _ = decoded
        assert block is not None, "a post without a valid reading has been refused"
        if block.ack is not None:
            outcome = await self._outcomes.of(block.ack)
            return replies.committed(block, errors, outcome)
        return replies.accepted(terms.query.ack or "", block.rows, errors)

    def _tail_done(self, tail: asyncio.Task[None]) -> None:
        self._tails.discard(tail)
        self._left.set()
        if not tail.cancelled():
            # Read here: if the handler was cancelled, no task awaits the tail, and asyncio would
            # log its exception as never retrieved.
            tail.exception()

    async def _take_in(self, decoded: Decoded, terms: PostTerms) -> None:
        """Count the readings as received, keep them or raise Refused, count the result."""
        ledger = self._ledger
        block, errors, texts = decoded
        rows = block.rows if block is not None else 0
        posted = rows + len(errors)
        ledger.received += posted
        ledger.at_receiver += posted
        code = "internal"
        try:
            await self._keep(decoded, terms)
            code = ""
        except Refused as refused:
            code = refused.code
            if errors:
                refused.body_start = errors[0].original
            raise
        except (BufferFull, NotKept, Stopping) as error:
            refusal = refusal_of(error)
            code = refusal.code
            raise refusal from error
        except asyncio.CancelledError:
            code = "draining"
            raise
        finally:
            ledger.at_receiver -= posted
            if code:
                ledger.readings_rejected(code, posted)
            else:
                ledger.accepted += rows
                ledger.line_fields["text_ignored"] += texts
                if errors:
                    ledger.readings_dead_lettered(INVALID, len(errors))

    async def _keep(self, decoded: Decoded, terms: PostTerms) -> None:
        """Reserve, dead-letter, put. If this raises, no reading is kept."""
        block, errors, _ = decoded
        query = terms.query
        if block is None:
            raise _nothing_valid(errors)
        if errors and query.strict:
            raise Refused(
                "invalid_items",
                f"the post has {counted(len(errors), 'invalid reading')} and strict=true",
                **named(errors),
            )
        if query.ack == COMMITTED:
            if self._database.hold_reason is not None:
                raise Refused("database_on_hold", "nothing of the post is kept")
            self._outcomes.require_place()
            block.ack = Ack()
        original_bytes = sum(len(error.original) for error in errors)
        reservation = await self._inlet.reserve(
            block.rows,
            len(block.tuples) + original_bytes,
            awaited=query.ack == COMMITTED,
            sender=block.sender,
        )
        try:
            if errors:
                await self._set_aside(errors, terms, block)
            await reservation.put(block, durable=query.ack != BUFFERED)
        finally:
            reservation.release()  # does nothing after put

    async def _set_aside(self, errors: list[ItemError], terms: PostTerms, block: Block) -> None:
        query = terms.query
        letters = [
            Letter(
                reason=INVALID,
                code=error.code,
                message=error.message,
                received_us=block.received_us,
                original=error.original,
                precision=query.precision,
                field=error.field,
                item=error.item,
                format=terms.format,
                ignore_unknown=query.ignore_unknown,
                device=terms.device,
                sender=terms.entry.name,
                devices=terms.entry.globs,
            )
            for error in errors
        ]
        try:
            await self._dead_letters.append(letters, sender=block.sender)
        except DeadLettersFull as full:
            raise _letters_full(errors, share=isinstance(full, ShareUsed)) from None
        except DeadLettersBroken:
            raise Refused("disk_low", "invalid items could not be written to the disk") from None


def _nothing_valid(errors: list[ItemError]) -> Refused:
    if all(error.code == NOT_ALLOWED for error in errors):
        text = "the token may not speak for any device of the post"
        return Refused("outside_scope", text, **named(errors))
    return Refused("all_invalid", "all readings of the post are invalid", **named(errors))


def _letters_full(errors: list[ItemError], *, share: bool = False) -> Refused:
    why = "this sender has used its share of the space" if share else "there is no space"
    return Refused(
        "dead_letters_full",
        f"{why} to keep the invalid items; post the other items without them",
        items=sorted({error.item for error in errors}),
        **named(errors),
    )
