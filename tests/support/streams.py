"""A stream in memory with a script, and both halves of the stream's buffer on it.

It stands for Publisher, nats-server and Puller in tests of what the real ones do seldom: an answer
that comes late, is lost or refuses, a message that comes twice. Others run on the real ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

from ingest.formats.post import Decoded, ItemError, Points
from ingest.http.request_and_answer import Answer, Request, problem
from ingest.model.block import SHARED_ROWS_MAX, Ack, Block, Reservation
from ingest.model.errors import BrokerOutcomeUnknown, NotKept, Refused
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from ingest.model.ports import BufferStats, JournalStats, Sizes, Told, Work
from ingest.model.reading import Letter
from ingest.receiver.keeping import Keeping, Terms
from ingest.receiver.outcomes import AckWaits
from ingest.receiver.small_posts import Page
from ingest.roles.group_queue import Commits
from ingest.roles.inlet import StreamInlet
from ingest.roles.nats.protocol import AWAITED, Message
from ingest.roles.nats.publishing import NO_HEADERS
from ingest.roles.nats.pulling import Delivery
from ingest.roles.outlet import StreamOutlet, decode_message
from tests.support.fakes import FakeDatabase, FakeDeadLetters

MANY = 1 << 40
INVALID = ItemError(0, "value", "missing", "there is no value", b"{}")


class Fate(NamedTuple):
    """What becomes of a publish: whether it is stored, and what is answered."""

    stores: bool = True
    error: Callable[[], NotKept | Exception] | None = None
    held: bool = False  # nothing happens until the test says so


STORED = Fate()
HELD = Fate(held=True)


class Tried(NamedTuple):
    """A publish that is not answered."""

    message_id: str
    payload: bytes
    result: asyncio.Future[None]


class _Wanted(asyncio.Event):
    """An event that says so when it is set: the real puller waits for it in a task."""

    def __init__(self, when_set: Callable[[], None]) -> None:
        super().__init__()
        self._when_set = when_set

    def set(self) -> None:
        """Set it."""
        super().set()
        self._when_set()


class ScriptedStream:
    """A stream with one reader: it stands for Publisher and Puller.

    `fates` are those of the next publishes; without one a publish is `STORED`. A message is stored
    once by its id. `requests` are the bounds of one pull request.
    """

    def __init__(self, request_max: int = 4) -> None:
        self.fates: deque[Fate] = deque()
        self.usual = STORED
        self.fate_of: dict[str, Fate] = {}  # by the id of the message
        self.held: deque[Tried] = deque()
        self.tried: list[tuple[str, bytes, float | None]] = []  # all publishes
        self.ids: dict[str, int] = {}
        self.awaited: set[str] = set()  # ids of messages whose gateway waits for the outcome
        self.stored: list[bytes] = []  # message i has the place i + 1
        self.pending: deque[int] = deque()  # places to be delivered
        self.tries: dict[int, int] = {}
        self.out: dict[int, Delivery] = {}  # delivered, and not done
        self.done_places: list[int] = []
        self.said: list[tuple[str, int]] = []
        self.loses_acks = False
        self.take: Callable[[Delivery], None] | None = None
        self.wanted: asyncio.Event = _Wanted(self._deliver)
        self._request_max = request_max
        self._left = 0  # of the pull request that is open

    # As a Publisher

    def publish(
        self,
        message_id: str,
        payload: bytes,
        within_s: float | None = None,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> asyncio.Future[Any]:
        """Try a message: see Fate."""
        if AWAITED in headers:
            self.awaited.add(message_id)
        loop = asyncio.get_running_loop()
        tried = Tried(message_id, payload, loop.create_future())
        self.tried.append((message_id, payload, within_s))
        fate = self.fate_of.get(message_id) or self.usual
        if self.fates:
            fate = self.fates.popleft()
        if fate.held:
            self.held.append(tried)
            timer = loop.call_later(within_s or 10, self._give_up, tried)
            tried.result.add_done_callback(lambda _: timer.cancel())
        else:
            self._answer(tried, fate)
        return tried.result

    def _give_up(self, tried: Tried) -> None:
        self._answer(tried, Fate(stores=False, error=lambda: BrokerOutcomeUnknown("time is over")))

    def answer(self, fate: Fate = STORED, at: int = 0) -> None:
        """Let a held publish go on."""
        tried = self.held[at]
        del self.held[at]
        self._answer(tried, fate)

    def _answer(self, tried: Tried, fate: Fate) -> None:
        if tried in self.held:
            self.held.remove(tried)
        if fate.stores and tried.message_id not in self.ids:
            self.stored.append(tried.payload)
            self.ids[tried.message_id] = len(self.stored)
            self.pending.append(len(self.stored))
            self._deliver()
        if tried.result.done():  # it was given up
            return
        if fate.error is None:
            tried.result.set_result(None)
        else:
            tried.result.set_exception(fate.error())

    @property
    def rows_stored(self) -> bytes:
        """The rows of all messages, in order."""
        return b"".join(decode_message(each).tuples for each in self.stored)

    # As a Puller

    def _deliver(self) -> None:
        while self.take is not None:
            if not self._left and self.wanted.is_set():
                self._left = self._request_max  # a request stays open, also if nothing is there
            if not self._left or not self.pending:
                return
            self._left -= 1
            self.deliver(self.pending.popleft())

    def deliver(self, place: int) -> None:
        """Deliver a message, for the first time or once more."""
        assert self.take is not None
        self.tries[place] = self.tries.get(place, 0) + 1
        message_id = next(each for each, at in self.ids.items() if at == place)
        delivery = Delivery(
            self.stored[place - 1],
            place,
            self.tries[place],
            f"ack.{place}",
            awaited=message_id if message_id in self.awaited else "",
        )
        self.out[place] = delivery
        self.take(delivery)

    def done(self, deliveries: Iterable[Delivery]) -> None:
        """Forget these; or not, if the stream loses acknowledgements."""
        for each in deliveries:
            self.said.append(("done", each.place))
            if not self.loses_acks:
                self.out.pop(each.place, None)
                self.done_places.append(each.place)

    def working(self, deliveries: Iterable[Delivery]) -> None:
        """Note it."""
        self.said += [("working", each.place) for each in deliveries]

    def give_back(self, deliveries: Iterable[Delivery], after_s: float = 0.0) -> None:
        """Let them come again, in a later round."""
        for each in deliveries:
            self.said.append(("later", each.place))
            if self.out.pop(each.place, None) is not None:
                self.pending.append(each.place)
        asyncio.get_running_loop().call_soon(self._deliver)


class Stores:
    """Stands for the connection of a gateway: a writer says that it stores."""

    async def request(self, subject: str, payload: bytes, within_s: float) -> Message:
        """Answer at once."""
        return Message("", b"", {})


class Joined:
    """Inlet and outlet with a stream between them: implements ports.Buffer."""

    levels: tuple[str, ...] = ("durable", "buffered")
    broken = False

    def __init__(
        self,
        *,
        rows_max: int = MANY,
        bytes_max: int = MANY,
        put_wait_s_max: float = 0.0,
        shared_rows_max: int = SHARED_ROWS_MAX,
        group_bytes_max: int = 256 * 1024,
        groups_in_flight: int = 2,
        wait_s_max: float = 10.0,
        request_max: int = 4,
        commits: Commits | None = None,
        outcome: Callable[[str, Ack], None] = lambda _id, _ack: None,
    ) -> None:
        self.stream = ScriptedStream(request_max)
        self.foreign: list[tuple[Delivery, str]] = []
        self.gateway, self.writer = Ledger(), Ledger()
        stores: Any = Stores()
        self.inlet = StreamInlet(
            self.stream,  # type: ignore[arg-type]
            self.gateway,
            life="life",
            rows_max=rows_max,
            bytes_max=bytes_max,
            put_wait_s_max=put_wait_s_max,
            group_rows_max=shared_rows_max,
            group_bytes_max=group_bytes_max,
            groups_in_flight=groups_in_flight,
            wait_s_max=wait_s_max,
            commits=commits or Commits(stores, outcome_s_max=5),
        )
        self.outlet = StreamOutlet(
            self.writer,
            lambda delivery, why: self.foreign.append((delivery, why)),
            outcome,
            rows_max=rows_max,
            bytes_max=bytes_max,
            put_wait_s_max=put_wait_s_max,
        )
        self.stream.take = self.outlet.deliver
        self.outlet.pull_from(self.stream)  # type: ignore[arg-type]
        self.take = self.outlet.take
        self.give_back = self.outlet.give_back
        self.wait_rows = self.outlet.wait_rows
        self.first_received_s = self.outlet.first_received_s
        for ledger, half in ((self.gateway, self.inlet), (self.writer, self.outlet)):
            ledger.gauges = Gauges(
                buffer=half.stats,
                dead_letters=DeadLetterStats,
                database_up=lambda: True,
                hold_reason=lambda: None,
            )

    @cached_property
    def poster(self) -> Poster:
        """Who posts to the gateway."""
        return Poster(self.inlet, self.gateway)

    def open(self) -> list[Work]:
        """Return no work."""
        return []

    def take_in(self, block: Block, waiter: object = None, told: Told | None = None) -> bool:
        """See the inlet."""
        return self.inlet.take_in(block, waiter, told)

    async def reserve(
        self, rows: int, size_bytes: int, *, awaited: bool = False, sender: str = ""
    ) -> Reservation:
        """See the inlet."""
        return await self.inlet.reserve(rows, size_bytes, awaited=awaited, sender=sender)

    def reserve_all(self, sizes: Sizes, *, awaited: bool = False) -> list[Reservation] | None:
        """See the inlet."""
        return self.inlet.reserve_all(sizes, awaited=awaited)

    @property
    def rows_waiting(self) -> int:
        """Rows that a writer may take."""
        return self.outlet.rows_waiting

    @property
    def commit_awaited(self) -> bool:
        """Whether a post waits for the commit of a block that a writer may take."""
        return self.outlet.commit_awaited

    @property
    def shut(self) -> bool:
        """Whether both halves are."""
        return self.outlet.shut

    def settle(self, blocks: Sequence[Block]) -> None:
        """Settle blocks as stored."""
        self.writer.committed += sum(block.rows for block in blocks)
        self.outlet.settle(blocks)

    def stats(self) -> BufferStats:
        """Return the sum of both halves."""
        first, second = self.inlet.stats(), self.outlet.stats()
        return second._replace(
            rows=first.rows + second.rows,
            size_bytes=first.size_bytes + second.size_bytes,
            posts_waiting=first.posts_waiting,
            oldest_received_s=min(
                (each.oldest_received_s for each in (first, second) if each.oldest_received_s),
                default=None,
            ),
        )

    def journal_stats(self) -> JournalStats:
        """Return zeros."""
        return JournalStats()

    def shut_inlet(self) -> None:
        """Stop both halves."""
        self.inlet.shut_inlet()
        self.outlet.shut_inlet()

    async def keep_rest(self) -> None:
        """See the outlet."""
        await self.outlet.keep_rest()

    async def close(self) -> None:
        """See the inlet."""
        await self.inlet.close()

    @property
    def imbalance(self) -> tuple[int, int]:
        """The balance check of both roles."""
        return self.gateway.imbalance, self.writer.imbalance


ACCEPTED = Answer(202, b"")
PAGE = Page(
    "/v1/readings",
    lambda _ack, _rows: ACCEPTED,
    lambda _request, refused, headers, close: problem(refused, headers=headers, close=close),
)


class Post:
    """A post as its client sees it; `status` once it is answered. It is its own connection."""

    def __init__(self, rows: bytes) -> None:
        self.sender = self
        self.rows = rows
        self.status = 0
        self.code = ""

    def reply(self, answer: Answer) -> None:
        """Take the answer."""
        assert not self.status, "answered twice"
        self.status = answer.status


def _refuse(request: Any, refused: Refused) -> None:
    request.code = refused.code


class Poster:
    """Gives posts to the real keeper of a gateway, which counts them."""

    def __init__(self, inlet: StreamInlet, ledger: Ledger) -> None:
        self.letters = FakeDeadLetters()
        self.posts: list[Post] = []
        self.tasks: list[asyncio.Task[None]] = []
        database = FakeDatabase()
        self.keeper = Keeping(
            inlet,
            self.letters,
            ledger,
            database,
            AckWaits(database, 1.0, connections_max=100),
            on_refused=_refuse,
        )

    def post(self, block: Block, ack: str = "durable", *, invalid: int = 0) -> Post:
        """Post readings, and perhaps invalid items with them, which takes the long way."""
        post = Post(block.tuples)
        self.posts.append(post)
        block.sender = "192.0.2.1"
        points = Decoded(block, [INVALID] * invalid).points
        if not invalid and ack != "committed":
            at_s = block.received_s
            reply = self.keeper.small.keep(cast(Request, post), PAGE, block, ack, at_s)
            if reply is not False:
                if reply is not None:
                    post.reply(reply)
                return post
        letter = Letter("invalid", "", "", block.received_us)
        terms = Terms(ack, block.sender, letter, faults="invalid items", is_tolerant=False)
        coming = self.keeper.inside(self._keep(points, terms))
        self.tasks.append(asyncio.create_task(self._finish(post, coming)))
        return post

    async def _keep(self, points: Points, terms: Terms) -> Answer:
        await self.keeper.keep(points, terms)
        return ACCEPTED

    async def _finish(self, post: Post, coming: Awaitable[Answer]) -> None:
        try:
            post.reply(await coming)
        except Refused as refused:
            post.status, post.code = 503, refused.code
        except asyncio.CancelledError:
            post.status, post.code = 499, "gone"

    async def finish(self) -> None:
        """Wait for all posts that have tasks. One that was cancelled may have its answer."""
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.keeper.close()
