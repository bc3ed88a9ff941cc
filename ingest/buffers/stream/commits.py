"""Posts that wait for their commit, in a gateway.

    reserve -> does a writer store now? -> no: refused
                                        -> yes: a message of the stream, with a mark
    writer stores it -> outcome -> the acks of the posts in this message

So these readings are in the stream as all others, for forwarders and for a rewind.
Promises: a post is refused, and not kept, if it is known that nothing is stored now. That is asked
once in KNOWN_S, for all posts.
Does not: ask for an outcome again. One that gets lost or comes after `outcome_s_max` is not known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from ingest.broker.connection import BrokerConnection
from ingest.broker.envelope import Message
from ingest.broker.roles import COMMIT
from ingest.buffers.stream.messages import NotOurs, decode_outcome
from ingest.model.ack import Ack, Outcome
from ingest.model.errors import BrokerAway, CommitRefused
from ingest.system.clock import monotonic_s

ANSWER_S_MAX = 2.0  # until a writer says whether it stores now
KNOWN_S = 1.0
_DETAILS = {
    "database_away": "no writer stores in the database in time now; nothing of the post is kept",
    "database_on_hold": "nothing of the post is kept",
    "broker_away": BrokerAway.detail,
}


class Awaited(NamedTuple):
    """A post in a message: its rows are `rows` ones from `first` on."""

    ack: Ack
    first: int
    rows: int


class Commits:
    """What the posts of one gateway wait for."""

    def __init__(self, connection: BrokerConnection, *, outcome_s_max: float) -> None:
        self._connection = connection
        self._outcome_s_max = outcome_s_max
        self._expected: dict[str, Sequence[Awaited]] = {}  # by the id of the message
        self._refused = ""  # a code, as was said last
        self._known_until_s = 0.0
        self._asking: asyncio.Task[None] | None = None

    def are_taken(self) -> bool:
        """Whether a writer has just said that it stores. False: it is asked now; see again soon.

        Raises CommitRefused.
        """
        if monotonic_s() < self._known_until_s:
            if self._refused:
                raise CommitRefused(self._refused, _DETAILS[self._refused])
            return True
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return False

    async def require_writer(self) -> None:
        """Return once a writer has said that it stores. Raises CommitRefused."""
        while not self.are_taken():
            assert self._asking is not None
            await asyncio.shield(self._asking)

    async def _ask(self) -> None:
        try:
            reply = await self._connection.request(COMMIT, b"", ANSWER_S_MAX)
            said = reply.data.decode(errors="replace")
        except BrokerAway:  # or no writer answers
            said = "database_away" if self._connection.up else "broker_away"
        self._refused = said if said in _DETAILS or not said else "database_away"
        self._known_until_s = monotonic_s() + KNOWN_S

    def expect(self, message_id: str, posts: Sequence[Awaited]) -> None:
        """Resolve the acks of these posts once the outcome of their message comes."""
        self._expected[message_id] = posts
        asyncio.get_running_loop().call_later(
            self._outcome_s_max, self._expected.pop, message_id, None
        )

    def heard(self, message: Message) -> None:
        """Take an outcome that a writer has sent."""
        try:
            message_id, outcome = decode_outcome(message.data)
        except NotOurs:
            return
        for ack, first, rows in self._expected.pop(message_id, ()):
            refusals = tuple(
                each._replace(row=each.row - first)
                for each in outcome.refusals
                if first <= each.row < first + rows
            )
            ack.resolve(Outcome(refusals, outcome.set_aside))
