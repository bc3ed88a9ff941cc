"""The pages of mapped sources: /v1/in/NAME and below, and the own paths of a source.

The steps of a post: check admission; receive; decompress; decode by the mapping; then
line_keeper.py keeps it. A small body that came with its head, and has readings and nothing else, is
kept at once. A large body is decoded alone: what is made of a document takes ten times its memory.
The senders of those that wait for this take turns.
Promises: a post that can be kept gets 200, also if it has faults or nothing to keep: its sender
cannot be changed, and most drop what gets anything else. "Later" is always 503.
Does not: know the database, or the buffer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import orjson

from ingest.formats.line_protocol import Points
from ingest.formats.map_post import Mapped, MapPost, MapSteps, begin
from ingest.formats.map_roots import context_of
from ingest.formats.map_source import IN, Source, template_pattern
from ingest.formats.post import Decoded, ItemError, Post, Rules, shown
from ingest.http.owner import Reply
from ingest.http.plain_body import PlainBodies
from ingest.http.request import Request
from ingest.http.response import Answer, problem
from ingest.http.routes import Pattern, Route
from ingest.model.errors import ConfigError, Refused
from ingest.model.ledger import Ledger
from ingest.model.letter import INVALID, MAPPED, Letter
from ingest.model.ports import Admission
from ingest.receiver.at_once import ADMISSION_DETAILS, Page
from ingest.receiver.hints import note_body
from ingest.receiver.in_time import in_time
from ingest.receiver.keeper import Keeper
from ingest.receiver.line_keeper import LineKeeper, LineTerms
from ingest.receiver.line_query import LineQuery
from ingest.receiver.one_by_one import OneByOne
from ingest.receiver.senders import KnownSender, Senders
from ingest.receiver.source_head import CREDENTIAL, names_in_path, roots_of, times_of
from ingest.system.clock import monotonic_s, unix_us

SMALL_BYTES = 16 * 1024  # of a body that is decoded at once
ALONE_BYTES = 64 * 1024  # of a body that is decoded alone
ALONE = "decoded alone"  # no sender is called so
NOTHING_ELSE = Points([], [], 0, 0)[1:]  # of a post that has only readings
# They can be sent again; a 4xx would lose what they have.
LATER = frozenset({"body_timeout", "too_fast", "too_many_connections"})


class SourceOptions(NamedTuple):
    """The settings of these pages. For the bounds of a post see MapPost.

    A post is answered `answer_s_max` after its body came.
    """

    rows_max: int
    rows_bytes_max: int
    answer_s_max: float


class _Plan(NamedTuple):
    """What the head of a post says: who sent it, and what its mapping may read of it."""

    sender: KnownSender
    roots: dict[str, Any]
    query: str
    times_us: tuple[int, ...]


class SourcePages:
    """The pages of all sources of one data port. `ack` is how safely posts are kept."""

    def __init__(
        self,
        options: SourceOptions,
        *,
        rules: Rules,
        plain_bodies: PlainBodies,
        senders: Senders,
        admission: Admission,
        keeper: Keeper,
        line_keeper: LineKeeper,
        ledger: Ledger,
        ack: str,
        on_decoded: Callable[[Decoded], None] | None,
    ) -> None:
        self._rules = rules
        self._options = options
        self._plain_bodies = plain_bodies
        self._senders = senders
        self._admission = admission
        self._keeper = keeper
        self._line_keeper = line_keeper
        self._ledger = ledger
        self._query = LineQuery(ack=ack)
        self._on_decoded = on_decoded
        self._alone = OneByOne()

    def patterns(self, pages: Collection[str]) -> list[Pattern]:
        """Return the pages. Raises ConfigError if one is among `pages`, which others have."""
        own: list[Pattern] = []
        named: list[Pattern] = []
        for name, source in self._rules.sources.items():
            self._ledger.events_ignored[name] += 0
            taken = next((each for each in source.paths if each in pages), None)
            if taken is not None:
                raise ConfigError(f"source {name!r}, key path: {taken} is a page of the service")
            below = re.compile(re.escape(IN + name) + "(?:/(?P<rest>.*))?")
            patterns = [template_pattern(each) for each in source.paths]
            route = self._route(source, (*patterns, below))
            own += map(Pattern, source.paths, patterns, [route] * len(patterns))
            own += [
                Pattern(path, pattern, self._route(source, (pattern,), is_read=False))
                for path in source.ignored_paths
                for pattern in [template_pattern(path)]
            ]
            named.append(Pattern(IN + name, below, route))
        return own + named

    def _route(
        self, source: Source, patterns: tuple[re.Pattern[str], ...], *, is_read: bool = True
    ) -> Route:
        methods = ("POST", "HEAD", "GET") if source.reads_query else ("POST", "HEAD")
        return Route(methods, self._page(source, patterns, is_read), _problem)

    def _page(
        self, source: Source, patterns: tuple[re.Pattern[str], ...], is_read: bool
    ) -> Callable[[Request, str, float], Reply]:
        page = Page(IN + source.name, _kept, _problem, self._options.answer_s_max)

        def answer(request: Request, text: str, received_s: float) -> Reply:
            refusal = self._admission.refusal()
            if refusal is not None:
                raise Refused(refusal, ADMISSION_DETAILS[refusal])
            plan: _Plan | None = request.head.plan
            if plan is None or not plan.sender.identity.live:
                plan = request.head.plan = self._plan(request, source, patterns, text)
            if request.method == "HEAD":
                return _answer(0, 0, 0)
            self._senders.take_post(request, plan.sender)
            body = request.body
            is_here = body is not None and request.in_round and len(body) <= SMALL_BYTES
            if is_here and is_read and request.method == "POST":
                return self._small(request, source, plan, page, received_s)
            return self._keeper.inside(self._receive(request, source, plan, received_s, is_read))

        return answer

    def _plan(
        self, request: Request, source: Source, patterns: tuple[re.Pattern[str], ...], text: str
    ) -> _Plan:
        head = request.head
        in_path = names_in_path(head, patterns)
        sender, query = self._senders.find(
            request,
            text,
            source=source.name,
            form=MAPPED,
            in_path=in_path.get(CREDENTIAL, ""),
            in_query=not source.reads_query,
        )
        roots = roots_of(head, source, query, in_path, sender.identity.entry.device)
        return _Plan(sender, roots, query, times_of(head, self._rules))

    def _small(
        self,
        request: Request,
        source: Source,
        plan: _Plan,
        page: Page,
        received_s: float,
    ) -> Reply:
        """Take a small post in at once if nothing has to wait; else return the coroutine."""
        body = request.body
        assert body is not None, "it has come with its head"
        self._plain_bodies.check(len(body))
        post = self._post(plan, received_s)
        begun = self._begun(body, source, plan, post)
        if not isinstance(begun, Mapped):
            return self._keeper.inside(self._go_on(request, source, plan, post, begun))
        self._seen(request, source, begun)
        points = begun.points
        if len(points.blocks) == 1 and begun[1:] == (0, []) and points[1:] == NOTHING_ELSE:
            block, ack = points.blocks[0], self._query.ack
            reply = self._keeper.take_block(request, page, block, ack, received_s)
            if reply is not False:
                return reply
        terms = self._terms(request, source, plan, post)
        return self._keeper.inside(self._keep(begun, terms, request))

    async def _receive(
        self,
        request: Request,
        source: Source,
        plan: _Plan,
        received_s: float,
        is_read: bool,
    ) -> Answer:
        """Wait for the body and its place in a round; keep what is in it."""
        post = self._post(plan, received_s)
        async with self._plain_bodies.body(request) as body:
            if not is_read:
                self._ledger.events_ignored[source.name] += 1
                return _answer(0, 0, 1)
            terms = self._terms(request, source, plan, post, came_s=monotonic_s())
            text = plan.query.encode("utf-8", "replace") if request.method == "GET" else body
            is_large = len(text) > ALONE_BYTES
            alone = self._alone.turn(terms.sender, len(text)) if is_large else nullcontext()
            async with in_time(terms.answer_by_s), alone:
                begun = self._begun(text, source, plan, post)
                # The others wait for one that is decoded alone: it has turns of its own.
                turns_of = ALONE if is_large else terms.sender
                mapped = await self._finished(begun, text, turns_of, uncounted_bytes=0)
        del body, text
        self._seen(request, source, mapped)
        return await self._keep(mapped, terms, request)

    async def _go_on(
        self,
        request: Request,
        source: Source,
        plan: _Plan,
        post: Post,
        steps: MapSteps,
    ) -> Answer:
        """Decode the rest in short steps; keep what is in it."""
        terms = self._terms(request, source, plan, post)
        body = request.body or b""
        async with in_time(terms.answer_by_s):
            mapped = await self._finished(steps, body, terms.sender, uncounted_bytes=len(body))
        del body
        self._seen(request, source, mapped)
        return await self._keep(mapped, terms, request)

    async def _keep(self, mapped: Mapped, terms: LineTerms, request: Request) -> Answer:
        points, ignored, hints = mapped
        rows = sum(block.rows for block in points.blocks)
        faults = len(points.errors) + points.not_kept
        if rows or faults:
            tail = self._line_keeper.begin(points, terms)
            await self._line_keeper.kept(tail, points, terms)
            if not rows:
                self._senders.nothing_stored(request.account, faults)
        return _answer(rows, faults, ignored, points.errors, hints)

    def _seen(self, request: Request, source: Source, mapped: Mapped) -> None:
        """Count what a post has, and charge its sender."""
        request.body = b""  # its memory is free while the post waits
        points, ignored, _ = mapped
        self._ledger.events_ignored[source.name] += ignored
        rows = 0
        for block in points.blocks:
            block.sender = request.account.sender
            rows += block.rows
        faults = len(points.errors) + points.not_kept
        request.account.charge(rows + faults, rows)
        if self._on_decoded is not None:
            for at, each in enumerate(points.blocks or [None]):
                self._on_decoded(Decoded(each, points.errors if at == 0 else []))

    def _post(self, plan: _Plan, received_s: float) -> Post:
        allows = plan.sender.identity.allows
        return Post(None, False, unix_us(), received_s, self._rules, allows)

    def _terms(
        self,
        request: Request,
        source: Source,
        plan: _Plan,
        post: Post,
        *,
        came_s: float | None = None,
    ) -> LineTerms:
        """Return the terms of a post whose body came at `came_s`, or with its head."""
        return LineTerms(
            self._query,
            request.account.sender,
            (came_s or post.received_s) + self._options.answer_s_max,
            Letter(
                *(INVALID, "", "", post.received_us),
                precision=self._query.precision,
                format=MAPPED,
                source=IN + source.name,
                context=context_of(plan.roots),
                sender=plan.sender.identity.entry.name,
                devices=plan.sender.identity.entry.globs,
            ),
            plan.times_us,
        )

    def _begun(self, body: bytes, source: Source, plan: _Plan, post: Post) -> Mapped | MapSteps:
        options = self._options
        rows_max, bytes_max = options.rows_max, options.rows_bytes_max
        try:
            return begin(
                body, MapPost(post, source, plan.roots, rows_max, bytes_max, plan.times_us)
            )
        except Refused as refused:
            note_body(refused, body)
            raise

    async def _finished(
        self, mapped: Mapped | MapSteps, body: bytes, turns_of: str, *, uncounted_bytes: int
    ) -> Mapped:
        if isinstance(mapped, Mapped):
            return mapped
        try:
            return await self._plain_bodies.finish(mapped, uncounted_bytes, turns_of)
        except Refused as refused:
            note_body(refused, body)
            raise


def _kept(_ack: str, rows: int) -> Answer:
    return _answer(rows, 0, 0)


def _answer(
    rows: int,
    faults: int,
    ignored: int,
    errors: Sequence[ItemError] = (),
    hints: Sequence[str] = (),
) -> Answer:
    document: dict[str, Any] = {"accepted": rows, "faulty": faults, "ignored": ignored}
    if errors:
        document["first_fault"] = shown(errors[0])
    if hints:
        document["hints"] = hints
    return Answer(200, orjson.dumps(document), headers=b"Cache-Control: no-store\r\n")


def _problem(_request: Request, refused: Refused, headers: bytes, close: bool) -> Answer:
    """Return the answer for a refusal."""
    if refused.code in LATER:
        refused = Refused("busy", refused.detail, retry_after_s=refused.retry_after_s)
        close = close or not refused.retry_after_s
    return problem(refused, headers=headers, close=close)
