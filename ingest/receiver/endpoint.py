"""The receiver's port: POST /v1/readings, line protocol, mapped sources, and the probes.

The steps of a post: check admission; receive; decompress; decode. Then keeper.py keeps what was
decoded, and answers. If the body arrived with its head and no step has to wait, all of this is one
plain call.
Does not: know the database, or the buffer.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from ingest.formats.media_type import FORMATS, USUAL, format_of
from ingest.formats.post import Decode, Decoded, Post, Rules, Steps
from ingest.http.certificate import Certificate
from ingest.http.owner import Reply
from ingest.http.plain_body import PlainBodies
from ingest.http.request import Forwarding, Request
from ingest.http.response import Answer
from ingest.http.routes import POST, OnRefused, Port, Route, probes
from ingest.model.errors import ConfigError, Refused
from ingest.model.ledger import Ledger
from ingest.model.letter import SENML
from ingest.model.ports import Admission, Database, DeadLetters, PostInlet
from ingest.receiver import replies
from ingest.receiver.access import Access
from ingest.receiver.ack_waits import AckWaits
from ingest.receiver.at_once import ADMISSION_DETAILS, COMMITTED
from ingest.receiver.hints import note_body
from ingest.receiver.keeper import READINGS, Keeper, PostTerms
from ingest.receiver.line_keeper import LineKeeper
from ingest.receiver.line_stubs import SET_UP_CALLS, stubs
from ingest.receiver.lines import LineOptions, LinePages
from ingest.receiver.openapi import (
    OF_LINES,
    OF_READINGS,
    OF_SOURCES,
    PATH,
    page_of_document,
    size,
)
from ingest.receiver.query import Query, parse_query, with_ack
from ingest.receiver.senders import KnownSender, Senders
from ingest.receiver.sources import SourceOptions, SourcePages
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.logs import get_logger

SOURCE = "readings"  # what the scope of a token calls /v1/readings


class _Plan(NamedTuple):
    """What the head of a post says: who sent it, the query, and how to decode the body."""

    sender: KnownSender
    terms: PostTerms
    decode: Decode


class Endpoint:
    """The data port.

    `levels` are the acknowledgements that the buffer gives without the database, best first;
    `committed` is always available. Raises ConfigError if `ack_default` is none of them.
    `on_decoded` is called with every decoded post, kept or not. It must be quick and must not fail.
    `connection_s_max`, `certificate`, `proxies`: see Connections.
    """

    def __init__(
        self,
        *,
        rules: Rules,
        plain_bodies: PlainBodies,
        line_options: LineOptions,
        source_options: SourceOptions,
        connections_max: int,
        header_s_max: float,
        keepalive_s_max: float,
        ack_default: str,
        ack_wait_s_max: float,
        inlet: PostInlet,
        dead_letters: DeadLetters,
        ledger: Ledger,
        access: Access,
        senders: Senders,
        admission: Admission,
        database: Database,
        levels: tuple[str, ...],
        health: Callable[[], tuple[int, bytes]],
        on_refused: OnRefused,
        on_decoded: Callable[[Decoded], None] | None = None,
        connection_s_max: float = math.inf,
        certificate: Certificate | None = None,
        proxies: Forwarding | None = None,
    ) -> None:
        self._rules, self.senders = rules, senders
        self.certificate, self._plain_bodies = certificate, plain_bodies
        self._on_decoded = on_decoded
        self._on_refused = on_refused
        self._access = access
        self._ledger = ledger
        self._admission = admission
        self._levels = (*levels, COMMITTED)
        self._ack_default = _available(ack_default, self._levels)
        self._query = lru_cache(maxsize=256)(self._parse_query)
        outcomes = AckWaits(database, ack_wait_s_max, connections_max=connections_max)
        parts = (inlet, dead_letters, ledger, database, outcomes)
        self._keeper = Keeper(*parts, on_refused=self._refused)
        self._line_keeper = LineKeeper(*parts)
        pages = self._pages(line_options, health)
        patterns = self._sources(source_options).patterns({*pages, PATH})
        limits = _stated(rules, plain_bodies, line_options)
        shown = page_of_document(limits, patterns)
        self._port = Port(
            pages | self._guarded({PATH: shown}),
            ledger,
            patterns=[*patterns, SET_UP_CALLS],
            flag="--listen",
            connections_max=connections_max,
            header_s_max=header_s_max,
            keepalive_s_max=keepalive_s_max,
            connection_s_max=connection_s_max,
            certificate=certificate,
            proxies=proxies,
            round_queue=plain_bodies,
            on_refused=self._refused,
        )
        self._log = get_logger("endpoint")

    def _pages(
        self, line_options: LineOptions, health: Callable[[], tuple[int, bytes]]
    ) -> dict[str, Route]:
        lines = LinePages(
            line_options,
            rules=self._rules,
            plain_bodies=self._plain_bodies,
            senders=self.senders,
            admission=self._admission,
            keeper=self._keeper,
            line_keeper=self._line_keeper,
            levels=self._levels,
            ack_default=self._ack_default,
            on_decoded=self._on_decoded,
        )
        open_to_all = {**stubs(self._plain_bodies, health), **probes(health)}
        return {
            READINGS: Route(POST, self._readings, replies.problem_of_readings),
            **lines.pages(),
            **self._guarded(open_to_all),
        }

    def _refused(self, request: Request | None, refused: Refused) -> None:
        if request is not None:
            self.senders.refused(request)
        self._on_refused(request, refused)

    def _sources(self, options: SourceOptions) -> SourcePages:
        return SourcePages(
            options,
            rules=self._rules,
            plain_bodies=self._plain_bodies,
            senders=self.senders,
            admission=self._admission,
            keeper=self._keeper,
            line_keeper=self._line_keeper,
            ledger=self._ledger,
            ack=self._ack_default,
            on_decoded=self._on_decoded,
        )

    @property
    def needs_token(self) -> bool:
        """Whether only who has a token may post."""
        return not self._access.is_open

    async def start(
        self,
        host: str,
        port: int,
        given: Sequence[socket.socket] = (),
        accepts: Callable[[], bool] = lambda: True,
    ) -> str:
        """Listen, or serve at the sockets that are `given`; return the real HOST:PORT.

        It accepts from these once `accepts` says so. Raises StartError that names --listen or
        --access.
        """
        if given:
            address = self._port.take(given, accepts)
        else:
            address = await self._port.start(host, port)
        self._access.bound(address)
        return address

    async def step_down(self, *, idle_s: float, timeout_s: float) -> None:
        """Leave the socket to the next process. Posts are taken as before, and not refused.

        It returns when no connection is left, or after `timeout_s`. Idle ones end after `idle_s`.
        Then `finish` and `close`.
        """
        await self._port.step_down(idle_s=idle_s, timeout_s=timeout_s)

    async def finish(self, timeout_s: float) -> None:
        """Wait until no post is in work, at most `timeout_s`. Admission must refuse new ones."""
        until_s = monotonic_s() + timeout_s
        left = await self._keeper.finish(timeout_s)
        left += await self._line_keeper.finish(max(0.0, until_s - monotonic_s()))
        if left:
            self._log.warning("posts_left_inside", count=left)

    async def close(self) -> None:
        """Close the port. Dead letters that are being written are finished first. Repeatable."""
        await self._port.close()
        await self._line_keeper.close()
        await self._keeper.close()
        self._plain_bodies.close()

    # From request to answer

    def _readings(self, request: Request, text: str, received_s: float) -> Reply:
        """Take a post in at once if nothing has to wait; else return the coroutine that does it."""
        refusal = self._admission.refusal()
        if refusal is not None:
            raise Refused(refusal, ADMISSION_DETAILS[refusal])
        head = request.head
        plan: _Plan | None = head.plan
        if plan is None or not plan.sender.identity.live:
            plan = head.plan = self._plan(request, text)
        self.senders.take_post(request, plan.sender)
        body = request.body
        if body is None or not request.in_round:
            return self._keeper.inside(self._receive(request, plan, received_s))
        self._plain_bodies.check(len(body))
        decoded = self._decode(plan, body, received_s)
        if not isinstance(decoded, Decoded):
            return self._keeper.inside(self._go_on(request, plan, decoded, body))
        self._seen(request, decoded)
        return self._keeper.take(request, plan.terms, decoded, received_s)

    def _plan(self, request: Request, text: str) -> _Plan:
        """Read the head. Raises Refused."""
        unknown: Refused | None = None
        try:
            found = format_of(request.headers.get("Content-Type", ""))
        except Refused as refused:  # who has no token hears that first
            unknown, found = refused, FORMATS[USUAL[0]]
        sender, text = self.senders.find(request, text, source=SOURCE, form=found.name)
        if unknown is not None:
            raise unknown
        entry = sender.identity.entry
        device = entry.device if found.name == SENML else ""
        return _Plan(sender, PostTerms(self._query(text), found.name, device, entry), found.decode)

    def _guarded(self, pages: dict[str, Route]) -> dict[str, Route]:
        """Return pages that need no token, and that no page of another site may ask for."""

        def guarded(page: Route) -> Route:
            def answer(request: Request, query: str, received_s: float) -> Reply:
                self._access.check_site(request.head)
                return page.answer(request, query, received_s)

            return page._replace(answer=answer)

        return {path: guarded(page) for path, page in pages.items()}

    def _decode(self, plan: _Plan, body: bytes, received_s: float) -> Decoded | Steps:
        query = plan.terms.query
        post = Post(
            query.precision,
            query.ignore_unknown,
            unix_us(),
            received_s,
            self._rules,
            plan.sender.identity.allows,
            plan.terms.device,
        )
        try:
            return plan.decode(body, post)
        except Refused as refused:
            note_body(refused, body)
            raise

    async def _receive(self, request: Request, plan: _Plan, received_s: float) -> Answer:
        """Wait for the body and its place in a round; then keep what is in it."""
        async with self._plain_bodies.body(request) as body:
            decoded = self._decode(plan, body, received_s)
            if not isinstance(decoded, Decoded):
                decoded = await self._finish_steps(
                    decoded, body, request.account.sender, uncounted_bytes=0
                )
        del body
        return await self._keeper.keep(plan.terms, self._seen(request, decoded))

    async def _go_on(self, request: Request, plan: _Plan, steps: Steps, body: bytes) -> Answer:
        """Decode the rest in short steps; then keep what is in it."""
        decoded = await self._finish_steps(
            steps, body, request.account.sender, uncounted_bytes=len(body)
        )
        del body
        return await self._keeper.keep(plan.terms, self._seen(request, decoded))

    async def _finish_steps(
        self, steps: Steps, body: bytes, sender: str, *, uncounted_bytes: int
    ) -> Decoded:
        try:
            return await self._plain_bodies.finish(steps, uncounted_bytes, sender)
        except Refused as refused:
            note_body(refused, body)
            raise

    def _seen(self, request: Request, decoded: Decoded) -> Decoded:
        request.body = b""  # its memory is free while the post waits for space or for its outcome
        block, errors, _ = decoded
        rows = 0
        if block is not None:
            block.sender = request.account.sender
            rows = block.rows
        request.account.charge(rows + len(errors), rows)
        if self._on_decoded is not None:
            self._on_decoded(decoded)
        return decoded

    def _parse_query(self, text: str) -> Query:
        return with_ack(parse_query(text), self._ack_default, self._levels)


def _stated(rules: Rules, plain_bodies: PlainBodies, lines: LineOptions) -> dict[str, str]:
    body = size(plain_bodies.limits)
    return {
        OF_READINGS: f"A post has at most {rules.post_rows_max:,} readings, {body}.",
        OF_LINES: f"A post has at most {lines.rows_max:,} fields, {size(lines.bodies)}.",
        OF_SOURCES: f"A post has at most {body}.",
    }


def _available(ack: str, levels: tuple[str, ...]) -> str:
    """Return the default level. Raises ConfigError."""
    if ack == "best":
        return levels[0]
    if ack not in levels:
        raise ConfigError(
            f"setting ack_default: {ack} is not available; this service gives {', '.join(levels)}"
        )
    return ack
