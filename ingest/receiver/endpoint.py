"""The receiver's port: POST /v1/readings, and the probes.

A post goes through these steps: check admission; receive; decompress; decode; reserve room;
dead-letter the invalid items; put the block into the buffer; answer. `put` fails only if the disk
of a journal fails.
Promises: after a refusal nothing of the post is kept, except perhaps dead letters of its invalid
items. A 2xx means that every reading is kept. Every decoded reading is counted once: as accepted,
dead-lettered or rejected.
Does not: know the database, or the kind of the buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ingest.formats.media_type import FORMATS, Decode, format_of
from ingest.formats.post import Decoded, ItemError, Post, Rules, Steps, named
from ingest.http.owner import Reply
from ingest.http.plain_body import PlainBodies
from ingest.http.request import Request
from ingest.http.response import Answer, problem
from ingest.http.routes import POST, OnRefused, Port, Route, probes
from ingest.model.ack import Ack
from ingest.model.block import Block
from ingest.model.errors import (
    BufferFull,
    ConfigError,
    DeadLettersBroken,
    DeadLettersFull,
    JournalBroken,
    Refused,
    ShareUsed,
    Stopping,
)
from ingest.model.ledger import Ledger
from ingest.model.letter import INVALID, Letter
from ingest.model.ports import Admission, Database, DeadLetters, Inlet
from ingest.receiver import replies
from ingest.receiver.ack_waits import AckWaits
from ingest.receiver.query import Query, parse_query
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.logs import get_logger
from ingest.system.words import counted

READINGS = "/v1/readings"
DURABLE, BUFFERED, COMMITTED = "durable", "buffered", "committed"
NOT_WRITTEN = "the journal could not be written to the disk"
ADMISSION_DETAILS = {
    "starting": "the service has not connected to its database and checked its table yet",
    "draining": "the service is stopping; another one may replace it",
    "disk_low": "the disk with the journal and the dead letters is full or has failed",
}


_Waiter = tuple[Request, int, float]  # its rows, and when it was received (monotonic)


class _Plan(NamedTuple):
    """What the head of a post says about its body."""

    query: Query
    decode: Decode


class Endpoint:
    """The data port.

    `levels` are the acknowledgements that the buffer gives without the database, best first;
    `committed` is always available. Raises ConfigError if `ack_default` is none of them.
    `on_decoded` is called with every decoded post, kept or not. It must be quick and must not fail.
    """

    def __init__(
        self,
        *,
        rules: Rules,
        plain_bodies: PlainBodies,
        connections_max: int,
        header_s_max: float,
        keepalive_s_max: float,
        ack_default: str,
        ack_wait_s_max: float,
        inlet: Inlet,
        dead_letters: DeadLetters,
        ledger: Ledger,
        admission: Admission,
        database: Database,
        levels: tuple[str, ...],
        health: Callable[[], tuple[int, bytes]],
        on_refused: OnRefused,
        on_decoded: Callable[[Decoded], None] | None = None,
    ) -> None:
        self._rules = rules
        self._plain_bodies = plain_bodies
        self._on_decoded = on_decoded
        self._inlet = inlet
        self._dead_letters = dead_letters
        self._ledger = ledger
        self._admission = admission
        self._database = database
        self._levels = (*levels, COMMITTED)
        self._ack_default = levels[0] if ack_default == "best" else ack_default
        if self._ack_default not in self._levels:
            raise ConfigError(
                f"setting ack_default: {ack_default} is not available; this service gives "
                f"{', '.join(self._levels)}"
            )
        self._query = lru_cache(maxsize=256)(self._parse_query)
        self._port = Port(
            {READINGS: Route(POST, self._readings), **probes(health)},
            ledger,
            flag="--listen",
            connections_max=connections_max,
            header_s_max=header_s_max,
            keepalive_s_max=keepalive_s_max,
            round_queue=plain_bodies,
            on_refused=on_refused,
        )
        self._on_refused = on_refused
        self._told = self._tell  # one object for all posts
        self._outcomes = AckWaits(database, ack_wait_s_max, connections_max=connections_max)
        self._posts_inside = 0
        self._tails: set[asyncio.Task[None]] = set()  # each finishes a post with invalid items
        self._left = asyncio.Event()  # set whenever a post or a tail has ended
        self._log = get_logger("endpoint")

    async def start(self, host: str, port: int) -> str:
        """Listen; return the real HOST:PORT. Raises StartError that names --listen."""
        return await self._port.start(host, port)

    async def finish(self, timeout_s: float) -> None:
        """Wait until no post is in work, at most `timeout_s`. Admission must refuse new ones."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._posts_inside or self._tails:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            self._log.warning("posts_left_inside", count=self._posts_inside + len(self._tails))

    async def close(self) -> None:
        """Close the port. Dead letters that are being written are finished first. Repeatable."""
        await self._port.close()
        if self._tails:
            await asyncio.wait(self._tails)
        self._plain_bodies.close()
        self._outcomes.close()

    # From request to answer

    def _readings(self, request: Request, text: str, received_s: float) -> Reply:
        """Take a post in at once if nothing has to wait; else return what waits."""
        refusal = self._admission.refusal()
        if refusal is not None:
            raise Refused(refusal, ADMISSION_DETAILS[refusal])
        head = request.head
        plan: _Plan | None = head.plan
        if plan is None:
            media_type = head.headers.get("Content-Type", "")
            decode = FORMATS[media_type] if media_type in FORMATS else format_of(media_type)
            plan = head.plan = _Plan(self._query(text), decode)
        body = request.body
        if body is None or not request.in_round:
            return self._inside(self._receive(request, plan, received_s))
        self._plain_bodies.check(len(body))
        decoded = self._decode(plan, body, received_s)
        if not isinstance(decoded, Decoded):
            return self._inside(self._go_on(request, plan, decoded, body))
        self._seen(request, decoded)
        block, ack = decoded.block, plan.query.ack
        if block is not None and not decoded.errors and ack != COMMITTED:
            rows, ledger = block.rows, self._ledger
            if ack == BUFFERED and self._inlet.take_in(block):
                ledger.received += rows
                ledger.accepted += rows
                return replies.all_accepted(BUFFERED, rows)
            waiter = (request, rows, received_s)
            if ack == DURABLE and self._inlet.take_in(block, waiter, self._told):
                ledger.received += rows
                ledger.at_receiver += rows
                self._posts_inside += 1
                return None  # `_tell` answers it
        return self._inside(self._keep_parts(plan.query, decoded))

    def _tell(self, waiters: Sequence[_Waiter], broken: JournalBroken | None) -> None:
        """The posts of a group are on the disk, or refused: answer all of them."""
        ledger = self._ledger
        rows = sum(waiter[1] for waiter in waiters)
        ledger.at_receiver -= rows
        now_s = monotonic_s()
        took_s = [now_s - waiter[2] for waiter in waiters]
        self._posts_inside -= len(waiters)
        self._left.set()
        if broken is None:
            ledger.accepted += rows
            ledger.requests_answered(READINGS, 202, took_s)
            for request, posted, _ in waiters:
                request.reply(replies.all_accepted(DURABLE, posted))
            return
        ledger.readings_rejected("disk_low", rows)
        ledger.requests_answered(READINGS, 503, took_s)
        refused = Refused("disk_low", NOT_WRITTEN)
        for request, _, _ in waiters:
            self._on_refused(request, refused)
            request.reply(problem(refused))

    async def _inside(self, coming: Coroutine[Any, Any, Answer]) -> Answer:
        self._posts_inside += 1
        try:
            return await coming
        finally:
            self._posts_inside -= 1
            self._left.set()

    def _decode(self, plan: _Plan, body: bytes, received_s: float) -> Decoded | Steps:
        query = plan.query
        post = Post(query.precision, query.ignore_unknown, unix_us(), received_s, self._rules)
        try:
            return plan.decode(body, post)
        except Refused as refused:
            refused.body_start = body
            raise

    async def _receive(self, request: Request, plan: _Plan, received_s: float) -> Answer:
        """Wait for the body and its place in a round; then keep what is in it."""
        async with self._plain_bodies.body(request) as body:
            decoded = self._decode(plan, body, received_s)
            if not isinstance(decoded, Decoded):
                decoded = await self._finish_steps(decoded, body, uncounted_bytes=0)
        del body  # its memory is free while the post waits for room or for its outcome
        return await self._keep_parts(plan.query, self._seen(request, decoded))

    async def _go_on(self, request: Request, plan: _Plan, steps: Steps, body: bytes) -> Answer:
        """Decode the rest in short steps; then keep what is in it."""
        decoded = await self._finish_steps(steps, body, uncounted_bytes=len(body))
        del body
        return await self._keep_parts(plan.query, self._seen(request, decoded))

    async def _finish_steps(self, steps: Steps, body: bytes, *, uncounted_bytes: int) -> Decoded:
        try:
            return await self._plain_bodies.finish(steps, uncounted_bytes=uncounted_bytes)
        except Refused as refused:
            refused.body_start = body
            raise

    def _seen(self, request: Request, decoded: Decoded) -> Decoded:
        if decoded.block is not None:
            decoded.block.sender = request.client.network
        if self._on_decoded is not None:
            self._on_decoded(decoded)
        return decoded

    def _parse_query(self, text: str) -> Query:
        query = parse_query(text)
        if query.ack is None:
            return query._replace(ack=self._ack_default)
        if query.ack not in self._levels:
            raise Refused(
                "ack_unavailable",
                f"this service cannot give ack={query.ack}; it gives {', '.join(self._levels)}",
                available=self._levels,
            )
        return query

    async def _keep_parts(self, query: Query, decoded: Decoded) -> Answer:
        """Keep readings and invalid items, however long that takes; return the answer."""
        if not decoded.errors:
            await self._take_in(decoded, query)
        else:
            # Once invalid items are being dead-lettered, the other readings must be kept too, even
            # if the client disconnects and this task is cancelled.
            tail = asyncio.create_task(self._take_in(decoded, query))
            self._tails.add(tail)
            tail.add_done_callback(self._tail_done)
            await asyncio.shield(tail)
        block, errors = decoded
        assert block is not None, "a post without a valid reading has been refused"
        if block.ack is not None:
            outcome = await self._outcomes.of(block.ack)
            return replies.committed(block, errors, outcome)
        return replies.accepted(query.ack or "", block.rows, errors)

    def _tail_done(self, tail: asyncio.Task[None]) -> None:
        self._tails.discard(tail)
        self._left.set()
        if not tail.cancelled():
            # Read here: if the handler was cancelled, no task awaits the tail, and asyncio would
            # log its exception as never retrieved.
            tail.exception()

    # From the receiver into the buffer

    async def _take_in(self, decoded: Decoded, query: Query) -> None:
        """Count the readings as received, keep them or raise Refused, count the result."""
        ledger = self._ledger
        block, errors = decoded
        rows = block.rows if block is not None else 0
        posted = rows + len(errors)
        ledger.received += posted
        ledger.at_receiver += posted
        code = "internal"
        try:
            await self._keep(decoded, query)
            code = ""
        except Refused as refused:
            code = refused.code
            if errors:
                refused.body_start = errors[0].original
            raise
        except BufferFull as full:
            code = "buffer_full"
            raise Refused(code, str(full), retry_after_s=full.retry_after_s) from full
        except JournalBroken as broken:
            code = "disk_low"
            raise Refused(code, NOT_WRITTEN) from broken
        except (Stopping, asyncio.CancelledError) as stopped:
            code = "draining"
            if isinstance(stopped, Stopping):
                raise Refused(code, ADMISSION_DETAILS[code]) from stopped
            raise
        finally:
            ledger.at_receiver -= posted
            if code:
                ledger.readings_rejected(code, posted)
            else:
                ledger.accepted += rows
                if errors:
                    ledger.readings_dead_lettered(INVALID, len(errors))

    async def _keep(self, decoded: Decoded, query: Query) -> None:
        """Reserve, dead-letter, put. Nothing is kept if this raises."""
        block, errors = decoded
        if block is None:
            raise Refused("all_invalid", "all readings of the post are invalid", **named(errors))
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
            block.rows, len(block.tuples) + original_bytes, awaited=query.ack == COMMITTED
        )
        try:
            if errors:
                await self._set_aside(errors, query, block)
            await reservation.put(block, durable=query.ack != BUFFERED)
        finally:
            reservation.release()  # does nothing after put

    async def _set_aside(self, errors: list[ItemError], query: Query, block: Block) -> None:
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
                ignore_unknown=query.ignore_unknown,
            )
            for error in errors
        ]
        try:
            await self._dead_letters.append(letters, sender=block.sender)
        except DeadLettersFull as full:
            raise _letters_full(errors, share=isinstance(full, ShareUsed)) from None
        except DeadLettersBroken:
            raise Refused("disk_low", "invalid items could not be written to the disk") from None


def _letters_full(errors: list[ItemError], *, share: bool = False) -> Refused:
    why = "your address has used its share of the space" if share else "there is no space"
    return Refused(
        "dead_letters_full",
        f"{why} to keep the invalid items; post the other items without them",
        items=sorted({error.item for error in errors}),
        **named(errors),
    )
