"""The pages of mapped sources: /v1/in/NAME and below, and the own paths of a source.

What the head of a post says to its mapping is: query, headers, path, topic, the token's device. No
token is in it. A large body is decoded alone: what is made of a document takes ten times its
memory. The senders of those that wait for this take turns.
Promises: a post that can be kept gets 200, also if it has faults or nothing to keep: its sender
cannot be changed, and most drop what gets anything else. "Later" is always 503.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote

import orjson

from ingest.buffers.memory import MemoryBuffer
from ingest.formats.mapped.body import MapPost, MapSteps, begin, context_of
from ingest.formats.mapped.documents import form_in
from ingest.formats.mapped.source import IN, Source, template_pattern
from ingest.formats.post import ItemError, Points, Post, Rules, shown
from ingest.http.request_and_answer import Answer, Head, Request, problem
from ingest.http.routes import OTHER, POST, READ, Pattern, Route, sent_path
from ingest.model.block import Outcome
from ingest.model.codes import NOT_ALLOWED
from ingest.model.errors import ConfigError, Refused
from ingest.model.reading import INVALID, MAPPED, Letter
from ingest.receiver.posts import Form, Plan, Posts
from ingest.receiver.small_posts import Page
from ingest.system.clock import unix_us

ALONE_BYTES = 64 * 1024  # of a body that is decoded alone
TURN_S_MAX = 3_600.0  # no post waits so long for its turn: before that its answer is due
# They can be sent again; a 4xx would lose what they have.
LATER = frozenset({"body_timeout", "too_fast", "too_many_connections"})
CREDENTIAL = "token"  # the name in a path's template that stands for the token
# Who posts for others says here where and when it got what it posts, as `ingest mqtt` does.
TOPIC, RECEIVED_AT = "X-Topic", "X-Received-At"
_TIMES = re.compile(r"[0-9]{1,17}(?:,[0-9]{1,17})*")


class SourceOptions(NamedTuple):
    """The settings of these pages. For the bounds of a post see MapPost.

    A post is answered `answer_s_max` after its body came.
    """

    rows_max: int
    rows_bytes_max: int
    answer_s_max: float


class Mapped(Form):
    """The pages of one source that have these `patterns`.

    Without `is_read` what comes there is ignored.
    """

    alone_bytes = ALONE_BYTES

    def __init__(
        self,
        source: Source,
        patterns: tuple[re.Pattern[str], ...],
        posts: Posts,
        options: SourceOptions,
        turns: MemoryBuffer,
        *,
        is_read: bool = True,
    ) -> None:
        self.page = Page(
            IN + source.name,
            lambda _ack, rows: _answer(rows, 0, 0),
            _problem,
            options.answer_s_max,
        )
        self.source = source.name
        self._mapping = source
        self._patterns = patterns
        self._posts = posts
        self._options = options
        self._turns = turns
        self._is_read = is_read

    def plan(self, request: Request, text: str) -> Plan:
        """Read the head. Raises Refused."""
        head, source = request.head, self._mapping
        in_path = _names_in_path(head, self._patterns)
        sender, query = self._posts.senders.find(
            request,
            text,
            source=source.name,
            form=MAPPED,
            in_path=in_path.get(CREDENTIAL, ""),
            in_query=not source.reads_query,
        )
        roots = _roots_of(head, source, query, in_path, sender.identity.entry.device)
        letter = Letter(
            *(INVALID, "", "", 0),
            format=MAPPED,
            source=self.page.label,
            context=context_of(roots),
        )
        # A GET has its query in place of a body.
        in_query = query.encode("utf-8", "replace") if request.method == "GET" else None
        times_us = _times_of(head, self._posts.rules)
        return Plan(
            sender,
            self._posts.ack_default,
            False,
            None,
            False,
            "",
            letter,
            (roots, in_query),
            (source.name, MAPPED),
            times_us,
        )

    def begin(self, body: bytes, plan: Plan, post: Post) -> Points | MapSteps:
        """Decode documents. Raises Refused."""
        if not self._is_read:
            return Points([], [], ignored=1)
        roots, in_query = plan.more
        options = self._options
        return begin(
            body if in_query is None else in_query,
            MapPost(
                post,
                self._mapping,
                roots,
                options.rows_max,
                options.rows_bytes_max,
                plan.times_us,
            ),
        )

    def alone(self, sender: str, size_bytes: int) -> AbstractAsyncContextManager[None]:
        """Wait for the turn of a large body."""
        return turn(self._turns, sender, size_bytes)

    def refusal(self, _plan: Plan, points: Points) -> Refused | None:
        """Refuse only documents of others' devices."""
        if points.blocks or any(each.code != NOT_ALLOWED for each in points.errors):
            return None
        return Refused("outside_scope", "the token may not speak for any device of the post")

    def answer(self, _plan: Plan, points: Points, _outcome: Outcome | None) -> Answer:
        """Say what the post has."""
        rows = sum(block.rows for block in points.blocks)
        faults = len(points.errors) + points.not_kept
        return _answer(rows, faults, points.ignored, points.errors, points.hints)


def patterns(posts: Posts, options: SourceOptions, pages: Collection[str]) -> list[Pattern]:
    """Return the pages of all sources. Raises ConfigError if one is among `pages` of others."""
    turns = turns_of_large_bodies()
    own: list[Pattern] = []
    named: list[Pattern] = []

    def route(source: Source, *matching: re.Pattern[str], is_read: bool = True) -> Route:
        methods = ("POST", "HEAD", "GET") if source.reads_query else ("POST", "HEAD")
        form = Mapped(source, matching, posts, options, turns, is_read=is_read)
        return Route(methods, posts.page(form, _answer(0, 0, 0)), _problem)

    for name, source in posts.rules.sources.items():
        posts.ledger.events_ignored[name] += 0
        taken = next((each for each in source.paths if each in pages), None)
        if taken is not None:
            raise ConfigError(f"source {name!r}, key path: {taken} is a page of the service")
        below = re.compile(re.escape(IN + name) + "(?:/(?P<rest>.*))?")
        matching = [template_pattern(each) for each in source.paths]
        read = route(source, *matching, below)
        own += map(Pattern, source.paths, matching, [read] * len(matching))
        for path in source.ignored_paths:
            pattern = template_pattern(path)
            own.append(Pattern(path, pattern, route(source, pattern, is_read=False)))
        named.append(Pattern(IN + name, below, read))
    return own + named


def _no_source(_request: Request, _query: str, _received_s: float) -> Answer:
    raise Refused(
        "not_found",
        "no source is declared: start the service with a file of sources (sources_file)",
    )


# For a service without sources; where there are some, the usual answer names them.
NO_SOURCE = Pattern(OTHER, re.compile(f"{IN}.*"), Route((*READ, *POST), _no_source))


def _names_in_path(head: Head, patterns: Sequence[re.Pattern[str]]) -> dict[str, str]:
    """Return what the path has for each name of its template."""
    path = sent_path(head)
    for pattern in patterns:
        found = pattern.fullmatch(path)
        if found is not None:
            return {name: unquote(_text(text or "")) for name, text in found.groupdict().items()}
    return {}


def _roots_of(
    head: Head, source: Source, query: str, in_path: dict[str, str], device: str
) -> dict[str, Any]:
    """Return the roots of the mapping's paths. Raises Refused if the query has too many fields."""
    headers = {name: _text(head.headers[name]) for name in source.headers if name in head.headers}
    return {
        "query": form_in(_text(query)) if query else {},
        "header": headers,
        "path": {name: text for name, text in in_path.items() if name != CREDENTIAL},
        "token": {"device": device} if device else {},
        # What is no UTF-8 becomes half surrogate pairs, as in headers: no name may have them.
        "topic": unquote(head.headers.get(TOPIC, ""), errors="surrogateescape"),
    }


def _times_of(head: Head, rules: Rules) -> tuple[int, ...]:
    """Return when the documents of a post were received, in Unix microseconds; often nothing.

    Raises Refused if the header has something else, or a time that no reading may have.
    """
    text = head.headers.get(RECEIVED_AT, "")
    if not text:
        return ()
    if not _TIMES.fullmatch(text):
        raise Refused(
            "bad_parameter",
            f"{RECEIVED_AT} has Unix microseconds: one time for all documents, or one for each, "
            "with commas between them",
        )
    times_us = tuple(map(int, text.split(",")))
    if min(times_us) < rules.ts_min_us or max(times_us) > unix_us() + rules.ts_ahead_us_max:
        raise Refused(
            "bad_parameter",
            f"{RECEIVED_AT} has a time that is too old or too far ahead of now; are the clocks "
            "right?",
        )
    return times_us


def _text(sent: str) -> str:
    """Return a text of the head; bytes that are not UTF-8 are replaced, as in a query."""
    return sent.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


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


def turns_of_large_bodies() -> MemoryBuffer:
    """Return a buffer with room for one row, in which nothing is ever put: see `turn`."""
    return MemoryBuffer(rows_max=1, bytes_max=1 << 62, put_wait_s_max=TURN_S_MAX)


@asynccontextmanager
async def turn(turns: MemoryBuffer, sender: str, size_bytes: int) -> AsyncIterator[None]:
    """Wait for a turn, which lasts until the context ends. Safe to cancel.

    Bodies wait as posts do for room in a buffer: of two senders that always have some, each gets
    half of the time, however many wait.
    """
    held = await turns.reserve(1, size_bytes, sender=sender)
    try:
        yield
    finally:
        held.release()
