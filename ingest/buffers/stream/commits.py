"""Posts that wait for their commit, in a gateway: each is a request to one of the writers.

    put -> request -> a writer has it        the post waits for its outcome
                   -> the outcome            the ack is resolved
                   -> no writer, or none that takes it: refused

It does not go through the stream: nobody was promised anything. So it takes one round trip more,
and no disk.
Promises: room is free again after the outcome, or after `outcome_s_max`.
Does not: ask again. After a writer has ended, the outcome stays unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from ingest.broker.envelope import Message
from ingest.broker.roles import COMMIT
from ingest.buffers.stream.messages import CommitReply, NotOurs, decode_reply, encode_message
from ingest.model.ack import Outcome
from ingest.model.block import Block
from ingest.model.errors import BrokerAway, BrokerOutcomeUnknown, CommitRefused, NotKept
from ingest.model.ledger import Ledger

ANSWER_S_MAX = 2.0  # until a writer says that it has the post
_DETAILS = {
    "database_away": "no writer can reach the database now; nothing of the post is kept",
    "database_on_hold": "nothing of the post is kept",
    "buffer_full": "the writer has no room for this post",
}


class Calls(Protocol):
    """Sends requests; see broker/connection.py."""

    def call(self, subject: str, payload: bytes, on_reply: Callable[[Message], None]) -> int | None:
        """Send a request; return the token of its replies, or None if there is no connection."""

    def forget(self, token: int | None) -> None:
        """Take no more replies."""


class CommitRequests:
    """The requests of one gateway. A post has failed without an outcome after `outcome_s_max`."""

    def __init__(self, calls: Calls, ledger: Ledger, *, outcome_s_max: float) -> None:
        self._calls = calls
        self._ledger = ledger
        self._outcome_s_max = outcome_s_max

    def ask(self, block: Block, ended: Callable[[], None]) -> Awaitable[None]:
        """Send a block, which has an ack; await that a writer has it.

        `ended` is called once its room is free. The await raises CommitRefused or BrokerAway:
        nothing is kept; or BrokerOutcomeUnknown.
        """
        return _Request(self._calls, self._ledger, block, ended, self._outcome_s_max).taken()


class _Request:
    def __init__(
        self,
        calls: Calls,
        ledger: Ledger,
        block: Block,
        ended: Callable[[], None],
        outcome_s_max: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._calls = calls
        self._ledger = ledger
        self._block = block
        self._ended: Callable[[], None] | None = ended
        self._answered: asyncio.Future[NotKept | None] = loop.create_future()
        block.seal()
        self._token = calls.call(COMMIT, encode_message(block), self._replied)
        if self._token is None:
            self._answer(BrokerAway("there is no connection to the broker"))
        self._timers = (
            loop.call_later(ANSWER_S_MAX, self._answer, BrokerOutcomeUnknown("no writer answers")),
            loop.call_later(outcome_s_max, self._end),
        )

    async def taken(self) -> None:
        """Return once a writer has the block. Raises NotKept."""
        try:
            error = await self._answered
        except asyncio.CancelledError:
            self._end()
            raise
        if error is not None:
            self._end()
            raise error
        self._ledger.published += self._block.rows

    def _replied(self, message: Message) -> None:
        if message.status:
            self._refuse("database_away")
            return
        try:
            reply = decode_reply(message.data)
        except NotOurs as why:
            self._answer(BrokerOutcomeUnknown(f"a reply that is none: {why}"))
            return
        if reply.refused:
            self._refuse(reply.refused)
        else:
            self._answer(None)
            self._resolve(reply)

    def _resolve(self, reply: CommitReply) -> None:
        if reply.outcome is None:
            return
        refusals, set_aside = reply.outcome
        ack = self._block.ack
        if ack is not None and not ack.resolved:
            ack.resolve(Outcome(tuple(refusals), set_aside))
        self._end()

    def _refuse(self, code: str) -> None:
        known = code if code in _DETAILS else "database_away"
        self._answer(CommitRefused(known, _DETAILS[known]))

    def _answer(self, error: NotKept | None) -> None:
        if not self._answered.done():
            self._answered.set_result(error)

    def _end(self) -> None:
        self._calls.forget(self._token)
        for timer in self._timers:
            timer.cancel()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()
