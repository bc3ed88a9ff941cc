"""Posts that wait for their commit, in a gateway.

    put -> does a writer store now? -> no: refused
                                    -> yes: a message of the stream, with a mark
    writer stores it -> outcome -> the acks of the posts in this message

So these readings are in the stream as all others, for forwarders and for a rewind.
Promises: a post is refused, and not kept, if it is known that nothing is stored now. That is asked
once in KNOWN_S, for all posts.
Does not: ask for an outcome again. One that gets lost or comes after `outcome_s_max` is not known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, Protocol

from ingest.broker.roles import COMMIT
from ingest.broker.session import Message
from ingest.buffers.stream.messages import NotOurs, decode_outcome
from ingest.model.ack import Ack, Outcome
from ingest.model.errors import BrokerAway, CommitRefused
from ingest.system.clock import monotonic_s

ANSWER_S_MAX = 2.0  # until a writer says whether it stores now
KNOWN_S = 1.0
_DETAILS = {
    "database_away": "no writer can reach the database now; nothing of the post is kept",
    "database_on_hold": "nothing of the post is kept",
}


class Requests(Protocol):
    """Sends requests; see broker/connection.py."""

    @property
    def up(self) -> bool:
        """Whether there is a connection."""

    def request(self, subject: str, payload: bytes, within_s: float) -> Awaitable[Message]:
        """Return the first reply. Raises BrokerAway if there is none, or nobody who answers."""


class Awaited(NamedTuple):
    """A post in a message: its rows are `rows` ones from `first` on."""

    ack: Ack
    first: int
    rows: int


class Commits:
    """What the posts of one gateway wait for."""

    def __init__(self, requests: Requests, *, outcome_s_max: float) -> None:
        self._requests = requests
        self._outcome_s_max = outcome_s_max
        self._expected: dict[str, Sequence[Awaited]] = {}  # by the id of the message
        self._refused = ""  # a code, as was said last
        self._known_until_s = 0.0
        self._asking = asyncio.Lock()

    @property
    def are_taken(self) -> bool:
        """Whether a writer has said a moment ago that it stores."""
        return not self._refused and monotonic_s() < self._known_until_s

    async def require_writer(self) -> None:
        """Ask whether a writer stores now. Raises CommitRefused, and BrokerAway."""
        async with self._asking:
            if monotonic_s() >= self._known_until_s:
                self._refused = await self._ask()
                self._known_until_s = monotonic_s() + KNOWN_S
            if self._refused:
                raise CommitRefused(self._refused, _DETAILS[self._refused])

    async def _ask(self) -> str:
        try:
            reply = await self._requests.request(COMMIT, b"", ANSWER_S_MAX)
        except BrokerAway:
            if not self._requests.up:
                raise
            return "database_away"  # no writer answers
        code = reply.data.decode(errors="replace")
        return code if not code or code in _DETAILS else "database_away"

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
