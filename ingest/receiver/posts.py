"""From a request to its answer: the way of all pages that take posts.

The steps of a post: check admission; read the head; receive; decompress; decode. Then keeping.py
keeps what was decoded. If a small body arrived with its head and no step has to wait, all of this
is one plain call. What the pages say differently is in their `Form`.
Does not: know the database, the buffer, or a format.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    nullcontext,
)
from typing import Any, NamedTuple

from ingest.formats.post import NO_POINTS, NOTHING_ELSE, Decoded, Points, Post, Rules
from ingest.http.bodies import check_size
from ingest.http.request_and_answer import AUTHORIZATION, Answer, Reply, Request
from ingest.http.rounds import BodyLimits, PlainBodies
from ingest.model.block import Outcome
from ingest.model.errors import ConfigError, Refused
from ingest.model.ledger import Ledger
from ingest.model.ports import Admission
from ingest.model.reading import Letter
from ingest.receiver.keeping import Keeping, Terms
from ingest.receiver.senders import KnownSender, Senders
from ingest.receiver.small_posts import ADMISSION_DETAILS, COMMITTED, Page
from ingest.system.clock import monotonic_s, unix_us

SMALL_BYTES = 16 * 1024  # of a body that is decoded at once
ALONE = "decoded alone"  # no sender is called so
AGAIN_S = 2.0  # after which a post should come again that could not be read in time
Found = Decoded | Points
Steps = Generator[None, None, Found]
_UNREADABLE = frozenset({"not_json", "not_lines", "not_msgpack", "not_senml"})
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # how they begin
_LOOKED_AT_BYTES = 64


class Query(NamedTuple):
    """The query parameters of a post. `ack` "": the setting decides.

    `precision` None: by magnitude. `database` is the name of a database or bucket that a post of
    lines has, empty if there is none.
    """

    ack: str = ""
    strict: bool = False
    precision: str | None = None
    ignore_unknown: bool = False
    database: str = ""


class Plan(NamedTuple):
    """What the head of a post says.

    `letter` has what its dead letters have in common, but for the sender. `more` is of the page:
    what its decoder needs. `of_any_device`: what a token says of its device changes nothing.
    `scope` is the source and the format that its sender must be allowed.
    """

    sender: KnownSender
    ack: str
    strict: bool
    precision: str | None
    ignore_unknown: bool
    device: str
    letter: Letter
    more: Any
    scope: tuple[str, str]
    times_us: tuple[int, ...] = ()
    of_any_device: bool = False

    def is_common_with(self, sender: KnownSender) -> bool:
        """Whether another sender has the same, with the same head but for its token."""
        return self.of_any_device or not sender.identity.entry.device


class Form(ABC):
    """What a page says differently. `page` has how its posts are answered.

    `takes_empty`: an empty body is no fault. `source` is that of a mapping. For `faults` and
    `is_tolerant` see Terms. A body over `alone_bytes` is decoded inside of `alone`.
    """

    page: Page
    limits: BodyLimits | None = None
    takes_empty = False
    source = ""
    faults = "faulty lines"
    is_tolerant = True
    alone_bytes = math.inf

    @abstractmethod
    def plan(self, request: Request, text: str) -> Plan:
        """Read the head, and the query `text`. Raises Refused."""

    @abstractmethod
    def begin(self, body: bytes, plan: Plan, post: Post) -> Found | Steps:
        """Return what a body has, or the steps to it, whose last one returns it. Raises Refused."""

    def alone(self, _sender: str, _size_bytes: int) -> AbstractAsyncContextManager[None]:
        """Return what is entered while a large body is decoded."""
        return nullcontext()

    def counted(self, _size_bytes: int) -> AbstractContextManager[None]:
        """Return what is entered until a post is kept. It may raise Refused."""
        return nullcontext()

    @abstractmethod
    def refusal(self, plan: Plan, points: Points) -> Refused | None:
        """Return why nothing of a post with faults is kept, if it is so."""

    @abstractmethod
    def answer(self, plan: Plan, points: Points, outcome: Outcome | None) -> Answer:
        """Return the answer to a post that is kept."""


class Posts:
    """The posts of one data port. `levels` and `ack_default`: see Endpoint.

    Raises ConfigError if the default is none of the levels.
    """

    def __init__(
        self,
        *,
        rules: Rules,
        plain_bodies: PlainBodies,
        senders: Senders,
        admission: Admission,
        keeping: Keeping,
        ledger: Ledger,
        on_decoded: Callable[[Decoded], None] | None,
        levels: tuple[str, ...],
        ack_default: str,
    ) -> None:
        self.rules = rules
        self.plain_bodies = plain_bodies
        self.senders = senders
        self.admission = admission
        self.keeping = keeping
        self.ledger = ledger
        self.on_decoded = on_decoded
        self.levels = (*levels, COMMITTED)
        self.ack_default = self.levels[0] if ack_default == "best" else ack_default
        if self.ack_default not in self.levels:
            raise ConfigError(
                f"setting ack_default: {ack_default} is not available; this service gives "
                f"{', '.join(self.levels)}"
            )

    def page(
        self, form: Form, to_head: Answer | None = None
    ) -> Callable[[Request, str, float], Reply]:
        """Return what answers the posts of a form, and a HEAD by `to_head`."""
        small, inside = self.keeping.small, self.keeping.inside

        def answer(request: Request, text: str, received_s: float) -> Reply:
            refusal = self.admission.refusal()
            if refusal is not None:
                raise Refused(refusal, ADMISSION_DETAILS[refusal])
            head = request.head
            plan: Plan | None = head.plan
            if plan is None or not plan.sender.identity.live:
                plan = head.plan = self.plan(request, form, text)
            if to_head is not None and head.method == "HEAD":
                return to_head
            self.senders.take_post(request, plan.sender)
            body = request.body
            if body is not None:
                check_size(len(body), (form.limits or self.plain_bodies.limits).body_bytes_max)
            if body is None or not request.in_round or len(body) > SMALL_BYTES:
                return inside(self.receive(request, form, plan))
            post = self.post(plan, received_s)
            found = self._begun(form, body, plan, post)
            if not isinstance(found, (Points, Decoded)):  # as Generator it would take 0.2 us
                return inside(self.go_on(request, form, plan, post, found))
            points = self.seen(request, form, found)
            if len(points.blocks) == 1 and points[1:] == NOTHING_ELSE and plan.ack != COMMITTED:
                reply = small.keep(request, form.page, points.blocks[0], plan.ack, received_s)
                if reply is not False:
                    return reply
            return inside(self.keep(request, form, plan, post, points))

        return answer

    def plan(self, request: Request, form: Form, text: str) -> Plan:
        """Read the head, and the query `text`; what other tokens had in common with it is known.

        Raises Refused.
        """
        common = request.head.common
        if common is not None and (known := common.plan) is not None:
            sender = self.senders.find_by(request.headers[AUTHORIZATION], *known.scope)
            if sender is not None and known.is_common_with(sender):
                plan: Plan = known._replace(sender=sender)
                return plan
        plan = form.plan(request, text)
        if common is not None and plan.is_common_with(plan.sender):
            common.plan = plan
        return plan

    def ack_of(self, asked: str) -> str:
        """Return the acknowledgement that counts; "" asks for none. Raises Refused."""
        if asked and asked not in self.levels:
            raise Refused(
                "ack_unavailable",
                f"this service cannot give ack={asked}; it gives {', '.join(self.levels)}",
                available=self.levels,
            )
        return asked or self.ack_default

    def post(self, plan: Plan, received_s: float) -> Post:
        """Return what all items of a post have in common."""
        return Post(
            plan.precision,
            plan.ignore_unknown,
            unix_us(),
            received_s,
            self.rules,
            plan.sender.identity.allows,
            plan.device,
        )

    async def receive(self, request: Request, form: Form, plan: Plan) -> Answer:
        """Wait for the body and its place in a round; keep what is in it."""
        with ExitStack() as held:
            async with self.plain_bodies.body(request, form.limits) as body:
                held.enter_context(form.counted(len(body)))
                post = self.post(plan, monotonic_s())  # a slow network is not our fault
                turns_of = request.account.sender
                alone: AbstractAsyncContextManager[None] = nullcontext()
                if len(body) > form.alone_bytes:
                    # The others wait for one that is decoded alone: it has turns of its own.
                    alone, turns_of = form.alone(turns_of, len(body)), ALONE
                async with in_time(post.received_s + form.page.answer_s_max), alone:
                    found = self._begun(form, body, plan, post)
                    if isinstance(found, Generator):
                        found = await self._finished(form, found, body, 0, turns_of)
            del body
            points = self.seen(request, form, found)
            return await self.keep(request, form, plan, post, points, held=held)

    async def go_on(
        self, request: Request, form: Form, plan: Plan, post: Post, steps: Steps
    ) -> Answer:
        """Decode the rest of a body that is not counted as in memory; keep what is in it."""
        body, turns_of = request.body or b"", request.account.sender
        async with in_time(post.received_s + form.page.answer_s_max):
            found = await self._finished(form, steps, body, len(body), turns_of)
        del body
        return await self.keep(request, form, plan, post, self.seen(request, form, found))

    async def keep(
        self,
        request: Request,
        form: Form,
        plan: Plan,
        post: Post,
        points: Points,
        *,
        held: ExitStack | None = None,
    ) -> Answer:
        """Keep what a post has; return its answer. Raises Refused. For `held` see Keeping.keep."""
        outcome = None
        faults = len(points.errors) + points.not_kept
        try:
            if faults and (refusal := form.refusal(plan, points)) is not None:
                raise refusal
            if points.blocks or faults or points.texts:
                identity = plan.sender.identity
                letter = plan.letter
                if faults:
                    letter = letter._replace(
                        received_us=post.received_us,
                        sender=identity.entry.name,
                        devices=identity.globs,
                    )
                terms = Terms(
                    plan.ack,
                    request.account.sender,
                    letter,
                    post.received_s + form.page.answer_s_max,
                    plan.times_us,
                    form.faults,
                    form.is_tolerant,
                )
                outcome = await self.keeping.keep(points, terms, held)
        except Refused as refused:
            if points.errors:
                refused.body_start = points.errors[0].original
            raise
        if faults and not points.blocks:
            self.senders.nothing_stored(request.account, faults)
        return form.answer(plan, points, outcome)

    def _begun(self, form: Form, body: bytes, plan: Plan, post: Post) -> Found | Steps:
        try:
            return form.begin(body, plan, post)
        except Refused as refused:
            return _nothing(form, refused, body)

    async def _finished(
        self, form: Form, steps: Steps, body: bytes, uncounted_bytes: int, turns_of: str
    ) -> Found:
        try:
            found: Found = await self.plain_bodies.finish(steps, uncounted_bytes, turns_of)
        except Refused as refused:
            return _nothing(form, refused, body)
        return found

    def seen(self, request: Request, form: Form, found: Found) -> Points:
        """Charge the sender; show what was decoded; return it."""
        request.body = b""  # its memory is free while the post waits for space or for its outcome
        points = found if isinstance(found, Points) else found.points
        account, rows = request.account, 0
        for block in points.blocks:
            block.sender = account.sender
            rows += block.rows
        account.charge(rows + len(points.errors) + points.not_kept, rows)
        if points.ignored:
            self.ledger.events_ignored[form.source] += points.ignored
        if self.on_decoded is not None:
            for at, each in enumerate(points.blocks or [None]):
                self.on_decoded(Decoded(each, points.errors if at == 0 else []))
        return points


def _nothing(form: Form, refused: Refused, body: bytes) -> Points:
    """Return no points for an empty body, if that is no fault. Raises the refusal of any other."""
    if form.takes_empty and refused.code == "empty":
        return NO_POINTS
    note_body(refused, body)
    raise refused


def note_body(refused: Refused, body: bytes) -> None:
    """Note the body of a refused post; tell its sender if it begins as another format does."""
    refused.body_start = body
    if refused.code not in _UNREADABLE:
        return
    for begin, encoding in _COMPRESSED.items():
        if body.startswith(begin):
            refused.detail += (
                f"; it begins as {encoding} does: is the header Content-Encoding: {encoding} "
                "missing, or was it compressed twice?"
            )
    if refused.code == "not_lines" and body[:_LOOKED_AT_BYTES].lstrip()[:1] in (b"{", b"["):
        refused.detail += "; JSON is posted to /v1/readings"


@asynccontextmanager
async def in_time(answer_by_s: float) -> AsyncIterator[None]:
    """Cancel what is inside when the answer is due (monotonic; inf: never).

    Decoding takes turns with other posts. So it may take long, though each step is short. Raises
    Refused (`buffer_full`) then: nothing of the post is kept.
    """
    left_s = answer_by_s - monotonic_s()
    due = asyncio.timeout(None if left_s == math.inf else max(0.0, left_s))
    try:
        async with due:
            yield
    except TimeoutError:
        if not due.expired():
            raise  # of what is inside
        why = "the service could not read the post in time, since it reads others; nothing is kept"
        raise Refused("buffer_full", why, retry_after_s=AGAIN_S) from None
