"""The pages for line protocol: /write, /api/v2/write and /api/v3/write_lp, also below /influx.

The steps of a post: check admission; receive; decompress; decode; then line_keeper.py keeps it.
Large bodies are allowed here that are none on /v1/readings; at most LARGE_MAX of them are in work.
Does not: know the database, or the buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import NamedTuple

from ingest.formats.line_protocol import LinePost, LineSteps, Points, begin
from ingest.formats.line_series import Naming
from ingest.formats.post import Decoded, Post, Rules
from ingest.http.owner import Reply
from ingest.http.plain_body import BodyLimits, PlainBodies
from ingest.http.request import Request
from ingest.http.response import Answer
from ingest.http.routes import POST, Route
from ingest.model.errors import Refused
from ingest.model.letter import INVALID, LINE, Letter
from ingest.model.ports import Admission
from ingest.receiver.at_once import ADMISSION_DETAILS, Page
from ingest.receiver.hints import note_body
from ingest.receiver.in_time import in_time
from ingest.receiver.keeper import Keeper
from ingest.receiver.line_keeper import LineKeeper, LineTerms
from ingest.receiver.line_query import LineQuery, parse_line_query
from ingest.receiver.line_replies import NO_CONTENT, line_problem
from ingest.receiver.query import with_ack
from ingest.receiver.senders import KnownSender, Senders
from ingest.system.clock import monotonic_s, unix_us

SOURCE = "line"  # what the scope of a token calls these pages
WRITE_PATHS = ("/write", "/api/v2/write", "/api/v3/write_lp")
PREFIXES = ("", "/influx")  # some senders are told to write below /influx
LARGE_BYTES = 1024 * 1024  # of a body, decompressed
LARGE_MAX = 2
SMALL_BYTES = 16 * 1024  # of a body that is decoded at once
NO_POINTS = Points([], [], 0, 0)
NOTHING_ELSE = NO_POINTS[1:]  # of a post whose lines are all kept as they are


class LineOptions(NamedTuple):
    """The settings of these pages. For the bounds of a post see LinePost and BodyLimits.

    With `has_prefix` the name of the database or bucket is put in front of each metric. A post is
    answered `answer_s_max` after its body came.
    """

    rows_max: int
    rows_bytes_max: int
    bodies: BodyLimits
    has_prefix: bool
    answer_s_max: float


class _Plan(NamedTuple):
    """What the head of a post says: who sent it, the query, and how lines are named."""

    sender: KnownSender
    query: LineQuery
    naming: Naming


class LinePages:
    """The pages for line protocol of one data port. `levels` and `ack_default`: see Endpoint."""

    def __init__(
        self,
        options: LineOptions,
        *,
        rules: Rules,
        plain_bodies: PlainBodies,
        senders: Senders,
        admission: Admission,
        keeper: Keeper,
        line_keeper: LineKeeper,
        levels: tuple[str, ...],
        ack_default: str,
        on_decoded: Callable[[Decoded], None] | None,
    ) -> None:
        self._rules = rules
        self._options = options
        self._plain_bodies = plain_bodies
        self._senders = senders
        self._admission = admission
        self._keeper = keeper
        self._line_keeper = line_keeper
        self._levels = levels
        self._ack_default = ack_default
        self._on_decoded = on_decoded
        self._large = 0  # posts in work
        self._query = lru_cache(maxsize=256)(self._parse_query)

    def pages(self) -> dict[str, Route]:
        """Return the pages by path."""
        return {
            prefix + path: Route(POST, self._page(prefix + path), line_problem)
            for prefix in PREFIXES
            for path in WRITE_PATHS
        }

    def _page(self, path: str) -> Callable[[Request, str, float], Reply]:
        kept_at = Page(path, _no_content, line_problem, self._options.answer_s_max)

        def answer(request: Request, text: str, received_s: float) -> Reply:
            refusal = self._admission.refusal()
            if refusal is not None:
                raise Refused(refusal, ADMISSION_DETAILS[refusal])
            head = request.head
            plan: _Plan | None = head.plan
            if plan is None or not plan.sender.identity.live:
                sender, text = self._senders.find(request, text, source=SOURCE, form=LINE)
                plan = head.plan = self._plan(sender, text)
            self._senders.take_post(request, plan.sender)
            body = request.body
            if body is None or not request.in_round or len(body) > SMALL_BYTES:
                return self._keeper.inside(self._receive(request, plan, kept_at))
            return self._small(request, plan, kept_at, received_s)

        return answer

    def _plan(self, sender: KnownSender, text: str) -> _Plan:
        query = self._query(text)
        prefix = query.database if self._options.has_prefix else ""
        rules, device = self._rules, sender.identity.entry.device
        return _Plan(sender, query, Naming(rules.device_tags, device, prefix, rules.line_escapes))

    def _small(self, request: Request, plan: _Plan, page: Page, received_s: float) -> Reply:
        """Take a small post in at once if nothing has to wait; else return the coroutine."""
        body = request.body
        assert body is not None, "it has come with its head"
        self._plain_bodies.check(len(body), self._options.bodies)
        post = self._post(plan, received_s)
        points = self._begun(body, plan, post)
        if not isinstance(points, Points):
            return self._keeper.inside(self._go_on(request, plan, page, post, points))
        self._seen(request, points)
        if len(points.blocks) == 1 and points[1:] == NOTHING_ELSE:
            block, ack = points.blocks[0], plan.query.ack
            reply = self._keeper.take_block(request, page, block, ack, received_s)
            if reply is not False:
                return reply
        terms = self._terms(request, plan, page, post)
        return self._keeper.inside(self._keep(points, terms, request))

    def _post(self, plan: _Plan, received_s: float) -> Post:
        allows = plan.sender.identity.allows
        return Post(plan.query.precision, False, unix_us(), received_s, self._rules, allows)

    def _terms(self, request: Request, plan: _Plan, page: Page, post: Post) -> LineTerms:
        """Return the terms of a post whose body came at `post.received_s`."""
        entry, naming = plan.sender.identity.entry, plan.naming
        return LineTerms(
            plan.query,
            request.account.sender,
            post.received_s + self._options.answer_s_max,
            Letter(
                *(INVALID, "", "", post.received_us),
                precision=plan.query.precision,
                format=LINE,
                source=page.label,
                device=naming.device,
                prefix=naming.prefix,
                sender=entry.name,
                devices=entry.globs,
            ),
        )

    async def _receive(self, request: Request, plan: _Plan, page: Page) -> Answer:
        """Wait for the body and its place in a round; keep what is in it."""
        with ExitStack() as stack:
            async with self._plain_bodies.body(request, self._options.bodies) as body:
                stack.enter_context(self._counted(len(body)))
                post = self._post(plan, monotonic_s())  # a slow network is not our fault
                async with in_time(post.received_s + self._options.answer_s_max):
                    begun, sender = self._begun(body, plan, post), request.account.sender
                    points = await self._finished(begun, body, sender, uncounted_bytes=0)
            del body
            self._seen(request, points)
            terms = self._terms(request, plan, page, post)
            tail = self._line_keeper.begin(points, terms)
            counted = stack.pop_all()  # until all of it is kept, even if the client is gone
            tail.add_done_callback(lambda _tail: counted.close())
        return await self._kept(tail, points, terms, request)

    async def _go_on(
        self,
        request: Request,
        plan: _Plan,
        page: Page,
        post: Post,
        steps: LineSteps,
    ) -> Answer:
        """Decode the rest in short steps; keep what is in it."""
        body = request.body or b""
        async with in_time(post.received_s + self._options.answer_s_max):
            points = await self._finished(
                steps, body, request.account.sender, uncounted_bytes=len(body)
            )
        del body
        self._seen(request, points)
        return await self._keep(points, self._terms(request, plan, page, post), request)

    async def _keep(self, points: Points, terms: LineTerms, request: Request) -> Answer:
        tail = self._line_keeper.begin(points, terms)
        return await self._kept(tail, points, terms, request)

    async def _kept(
        self, tail: asyncio.Task[None], points: Points, terms: LineTerms, request: Request
    ) -> Answer:
        await self._line_keeper.kept(tail, points, terms)
        faults = len(points.errors) + points.not_kept
        if faults and not points.blocks:
            self._senders.nothing_stored(request.account, faults)
        return NO_CONTENT

    def _seen(self, request: Request, points: Points) -> None:
        request.body = b""  # its memory is free while the post waits
        rows = 0
        for block in points.blocks:
            block.sender = request.account.sender
            rows += block.rows
        request.account.charge(rows + len(points.errors) + points.not_kept, rows)
        if self._on_decoded is not None:
            for at, each in enumerate(points.blocks or [None]):
                self._on_decoded(Decoded(each, points.errors if at == 0 else []))

    @contextmanager
    def _counted(self, body_bytes: int) -> Iterator[None]:
        """Count a large post as in work. Raises Refused if there are enough."""
        if body_bytes <= LARGE_BYTES:
            yield
            return
        if self._large >= LARGE_MAX:
            raise Refused("buffer_full", "too many large posts at once", retry_after_s=2)
        self._large += 1
        try:
            yield
        finally:
            self._large -= 1

    def _begun(self, body: bytes, plan: _Plan, post: Post) -> Points | LineSteps:
        options = self._options
        line_post = LinePost(post, plan.naming, options.rows_max, options.rows_bytes_max)
        try:
            return begin(body, line_post)
        except Refused as refused:
            return _refused(refused, body)

    async def _finished(
        self, points: Points | LineSteps, body: bytes, sender: str, *, uncounted_bytes: int
    ) -> Points:
        if isinstance(points, Points):
            return points
        try:
            return await self._plain_bodies.finish(points, uncounted_bytes, sender)
        except Refused as refused:
            return _refused(refused, body)

    def _parse_query(self, text: str) -> LineQuery:
        return with_ack(parse_line_query(text), self._ack_default, self._levels)


def _refused(refused: Refused, body: bytes) -> Points:
    """Return no points for an empty body. Raises the refusal of any other."""
    if refused.code == "empty":
        return NO_POINTS
    note_body(refused, body)
    raise refused


def _no_content(_ack: str, _rows: int) -> Answer:
    return NO_CONTENT
