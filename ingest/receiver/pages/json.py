"""The page POST /v1/readings: items of JSON, NDJSON, MessagePack or SenML; its query, its answers.

Promises: nothing in the query is guessed. An unknown name or value is refused; the text has the
known ones. In an answer `accepted + dead_lettered` is the number of readings posted. At most
ERRORS_MAX errors are listed; `errors_truncated` is true if there are more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import orjson

from ingest.formats.media_types import FORMATS, USUAL, format_of
from ingest.formats.post import (
    ERRORS_MAX,
    Decoded,
    ItemError,
    Points,
    Post,
    Steps,
    limited,
    named,
    shown,
)
from ingest.formats.timestamp import PRECISIONS
from ingest.http.bodies import check_size
from ingest.http.request_and_answer import Answer, Reply, Request, problem
from ingest.http.routes import POST, Route
from ingest.model.block import Block, Outcome, Refusal
from ingest.model.codes import ITEM_CODES, NO_PARTITION, NOT_ALLOWED, TS_TOO_OLD
from ingest.model.errors import Refused
from ingest.model.reading import INVALID, REFUSED, SENML, Letter
from ingest.receiver.posts import Form, Plan, Posts, Query, note_body
from ingest.receiver.small_posts import ACKS, ADMISSION_DETAILS, COMMITTED, Page
from ingest.system.words import counted, quoted

READINGS = "/v1/readings"
SOURCE = "readings"  # what the scope of a token calls it
ALLOWED: dict[str, tuple[str, ...]] = {
    "ack": ACKS,
    "strict": ("true", "false"),
    "precision": PRECISIONS,
    "unknown": ("error", "ignore"),
}


def parse_query(text: str) -> Query:
    """Parse the text after the `?`. Raises Refused("unknown_parameter" or "bad_parameter")."""
    given: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        allowed = ALLOWED.get(name)
        if allowed is None:
            raise Refused(
                "unknown_parameter",
                f"there is no query parameter {quoted(name)}; known: {', '.join(ALLOWED)}",
                parameter=name[:80].encode("ascii", "backslashreplace").decode(),
            )
        if name in given:
            raise Refused("bad_parameter", f"{name} is given twice", parameter=name)
        if value not in allowed:
            raise Refused(
                "bad_parameter",
                f"{name} is one of {', '.join(allowed)}, not {quoted(value)}",
                parameter=name,
                allowed=allowed,
            )
        given[name] = value
    return Query(
        ack=given.get("ack", ""),
        strict=given.get("strict") == "true",
        precision=given.get("precision"),
        ignore_unknown=given.get("unknown") == "ignore",
    )


class Readings(Form):
    """The page. `label` is its name in metrics."""

    faults = "invalid items"
    is_tolerant = False

    def __init__(self, posts: Posts, label: str = READINGS) -> None:
        self.page = Page(label, _all_accepted, _problem)
        self._posts = posts
        self._query = lru_cache(maxsize=256)(parse_query)

    def pages(self) -> dict[str, Route]:
        """Return the page by its path."""
        return {READINGS: Route(POST, self.take, _problem)}

    def take(self, request: Request, text: str, received_s: float) -> Reply:
        """Do what the pages of Posts do; for the hot path it is written once more, in one piece."""
        posts = self._posts
        refusal = posts.admission.refusal()
        if refusal is not None:
            raise Refused(refusal, ADMISSION_DETAILS[refusal])
        head = request.head
        plan: Plan | None = head.plan
        if plan is None or not plan.sender.identity.live:
            plan = head.plan = posts.plan(request, self, text)
        posts.senders.take_post(request, plan.sender)
        body = request.body
        if body is None or not request.in_round:
            return posts.keeping.inside(posts.receive(request, self, plan))
        check_size(len(body), posts.plain_bodies.limits.body_bytes_max)
        post = posts.post(plan, received_s)
        try:
            found = plan.more(body, post)
        except Refused as refused:
            note_body(refused, body)
            raise
        if not isinstance(found, Decoded):
            return posts.keeping.inside(posts.go_on(request, self, plan, post, found))
        block, errors, texts = found
        if block is None or errors or texts or plan.ack == COMMITTED:
            points = posts.seen(request, self, found)
            return posts.keeping.inside(posts.keep(request, self, plan, post, points))
        request.body = b""  # its memory is free while the post waits for its outcome
        account = request.account
        block.sender = account.sender
        account.charge(block.rows, block.rows)
        if posts.on_decoded is not None:
            posts.on_decoded(found)
        reply = posts.keeping.small.keep(request, self.page, block, plan.ack, received_s)
        if reply is False:
            return posts.keeping.inside(posts.keep(request, self, plan, post, found.points))
        return reply

    def plan(self, request: Request, text: str) -> Plan:
        """Read the head. Raises Refused."""
        unknown: Refused | None = None
        try:
            found = format_of(request.headers.get("Content-Type", ""))
        except Refused as refused:  # who has no token hears that first
            unknown, found = refused, FORMATS[USUAL[0]]
        sender, text = self._posts.senders.find(request, text, source=SOURCE, form=found.name)
        if unknown is not None:
            raise unknown
        query = self._query(text)
        device = sender.identity.entry.device if found.name == SENML else ""
        letter = Letter(
            *(INVALID, "", "", 0),
            precision=query.precision,
            format=found.name,
            ignore_unknown=query.ignore_unknown,
            device=device,
        )
        return Plan(
            sender,
            self._posts.ack_of(query.ack),
            query.strict,
            query.precision,
            query.ignore_unknown,
            device,
            letter,
            found.decode,
            (SOURCE, found.name),
            of_any_device=found.name != SENML,
        )

    def begin(self, body: bytes, plan: Plan, post: Post) -> Decoded | Steps:
        """Decode items. Raises Refused."""
        found: Decoded | Steps = plan.more(body, post)
        return found

    def refusal(self, plan: Plan, points: Points) -> Refused | None:
        """Refuse a post without a valid reading, or one that is strict; count its readings."""
        errors = points.errors
        if not points.blocks:
            if all(error.code == NOT_ALLOWED for error in errors):
                code, why = "outside_scope", "the token may not speak for any device of the post"
            else:
                code, why = (
                    "all_invalid",
                    f"no reading is valid; first: {errors[0].field or 'item'} {errors[0].message}",
                )
        elif plan.strict:
            code = "invalid_items"
            why = f"the post has {counted(len(errors), 'invalid reading')} and strict=true"
        else:
            return None
        readings = len(errors) + sum(block.rows for block in points.blocks)
        self._posts.ledger.received += readings
        self._posts.ledger.rejected[code] += readings
        return Refused(code, why, **named(errors))

    def answer(self, plan: Plan, points: Points, outcome: Outcome | None) -> Answer:
        """Say how many readings are accepted: 200 if they are in the table, else 202."""
        (block,) = points.blocks
        if outcome is not None:
            return _committed(block, points.errors, outcome)
        return _accepted(plan.ack, block.rows, points.errors)


_KNOWN_TYPES = b"Accept: %b\r\n" % ", ".join(USUAL).encode()


def _problem(_: Request, refused: Refused, headers: bytes, close: bool) -> Answer:
    """Return the answer for a refused post; to an unknown media type it lists the known ones."""
    if refused.code == "unsupported_media_type":
        headers += _KNOWN_TYPES
    return problem(refused, headers=headers, close=close)


def _accepted(ack: str, rows: int, errors: Sequence[ItemError]) -> Answer:
    """Answer a post whose readings are in the buffer: 202."""
    if not errors:
        return _all_accepted(ack, rows)
    document = {"accepted": rows, "dead_lettered": len(errors), "ack": ack, **named(errors)}
    return Answer(202, orjson.dumps(document))


@lru_cache(maxsize=1024)
def _all_accepted(ack: str, rows: int) -> Answer:
    """Answer a post whose readings are all in the buffer: 202. Many posts get the same answer."""
    return Answer(
        202,
        b'{"accepted":%d,"dead_lettered":0,"ack":"%b","errors":[]}' % (rows, ack.encode()),
    )


def _committed(block: Block, errors: Sequence[ItemError], outcome: Outcome) -> Answer:
    """Answer a post that is in the table, without the rows that the database refused: 200.

    The database's own messages are not shown: they may have values and names of other tables.
    """
    told = [shown(error) for error in errors[:ERRORS_MAX]] + [
        _refused(each, each.row if block.items is None else block.items[each.row])
        for each in outcome.refusals[:ERRORS_MAX]
    ]
    told.sort(key=lambda error: error["index"])
    invalid = len(errors) + len(outcome.refusals)
    document = {
        "accepted": block.rows - len(outcome.refusals),
        "dead_lettered": invalid,
        "ack": "committed",
        **limited(told[:ERRORS_MAX], invalid),
    }
    return Answer(200, orjson.dumps(document))


def _refused(refusal: Refusal, index: int | None) -> dict[str, Any]:
    code = (TS_TOO_OLD if refusal.too_old else NO_PARTITION) if refusal.no_partition else REFUSED
    error = {
        "index": index,
        "code": code,
        "message": ITEM_CODES[code],
        "sqlstate": refusal.sqlstate,
    }
    if refusal.constraint is not None:
        error["message"] = f"the row violates the constraint {quoted(refusal.constraint)}"
        error["constraint"] = refusal.constraint
    return error
