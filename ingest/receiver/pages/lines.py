"""The pages for line protocol: /write, /api/v2/write and /api/v3/write_lp, also below /influx.

Their queries are in the dialects of InfluxDB 1, 2 and 3. Its senders cannot be changed. So an
unknown parameter is ignored. Only a value that decides what is stored, or how safely, is refused if
it is not known.
The answers are as the parsers of all InfluxDB clients read them. A kept post gets 204 without a
body; some clients take any other 2xx for a failure. What may be sent again gets 503, never a 4xx:
Telegraf drops a batch on each 4xx. An error has `error` (for clients of InfluxDB 1), `code` and
`message` (2), `line` and `data` (3, QuestDB), and in `problem` our own code.
Some clients do not write before /ping, /health, /query or /settings has answered. Databases,
buckets and the like do not exist here: to make one is answered and does nothing, or it is not
found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qs, parse_qsl

import orjson

from ingest.formats.lines.body import LinePost, LineSteps, begin
from ingest.formats.lines.keys import Naming
from ingest.formats.post import ERRORS_MAX, ItemError, Points, Post
from ingest.http.request_and_answer import JSON, Answer, Reply, Request, problem, retry_after_s
from ingest.http.rounds import BodyLimits, PlainBodies
from ingest.http.routes import OTHER, POST, READ, Pattern, Route
from ingest.model.block import Outcome
from ingest.model.codes import NO_DEVICE, NOT_ALLOWED, PROBLEMS
from ingest.model.errors import Refused
from ingest.model.reading import INVALID, LINE, Letter
from ingest.receiver.posts import Form, Plan, Posts, Query
from ingest.receiver.small_posts import ACKS, Page
from ingest.system.words import counted, quoted

SOURCE = "line"  # what the scope of a token calls these pages
WRITE_PATHS = ("/write", "/api/v2/write", "/api/v3/write_lp")
PREFIXES = ("", "/influx")  # some senders are told to write below /influx
LARGE_BYTES = 1024 * 1024  # of a body, decompressed; larger ones are for these pages only
LARGE_MAX = 2  # of these posts are in work
VERSION = "1.8.10"  # of InfluxDB; clients compare it with the versions that they know
# On every answer, as of InfluxDB; a client of Rust ends if the first one is missing.
VERSION_HEADER = b"X-Influxdb-Build: OSS\r\nX-Influxdb-Version: %b\r\n" % VERSION.encode()
# It takes the seconds of Retry-After for milliseconds, so all its tries would be over in a second.
_READS_MILLISECONDS = "influxdb-client-js/"
LINE_BYTES_SHOWN = 200
_CODES = {
    400: "invalid",
    401: "unauthorized",
    403: "forbidden",
    404: "not found",
    405: "method not allowed",
    413: "request too large",
    415: "unsupported media type",
    500: "internal error",
    503: "unavailable",
}
# These can be sent again.
_STATUS = {"body_timeout": 503, "too_fast": 503, "too_many_connections": 503}

# Nobody needs a token for a question, so it is small and cheap to read.
_QUESTION = BodyLimits(4096, 4096)
_PARAMETERS_MAX = 16
DATABASES_MAX = 100  # that SHOW DATABASES has; the oldest leaves
NO_CONTENT = Answer(204, b"", headers=VERSION_HEADER)
_CREATE = re.compile(r'\s*create\s+database\b\s*(?:"([^"]{1,64})"|([^\s;"]{1,64}))?', re.IGNORECASE)
_POLICY = re.compile(r"\s*(?:create|alter)\s+retention\s+policy\b", re.IGNORECASE)
_SHOW = re.compile(r"\s*show\s+databases\b", re.IGNORECASE)
PRECISIONS: dict[str, str | None] = {
    "": None,
    "auto": None,
    **dict.fromkeys(("n", "ns", "nanosecond"), "ns"),
    **dict.fromkeys(("u", "us", "µ", "microsecond"), "us"),
    **dict.fromkeys(("ms", "millisecond"), "ms"),
    **dict.fromkeys(("s", "second"), "s"),
    "m": "m",
    "h": "h",
}


def parse_line_query(text: str) -> Query:
    """Parse the text after the `?`. Raises Refused("bad_parameter")."""
    given = dict(parse_qsl(text, keep_blank_values=True))
    precision = given.get("precision", "")
    if precision not in PRECISIONS:
        raise _bad("precision", precision, [each for each in PRECISIONS if each])
    ack = given.get("ack", "buffered" if given.get("no_sync") == "true" else None)
    if ack is not None and ack not in ACKS:
        raise _bad("ack", ack, ACKS)
    return Query(
        ack=ack or "",
        strict=given.get("strict") == "true" or given.get("accept_partial") == "false",
        precision=PRECISIONS[precision],
        database=given.get("db") or given.get("bucket") or "",
    )


def _bad(name: str, value: str, allowed: list[str] | tuple[str, ...]) -> Refused:
    return Refused(
        "bad_parameter",
        f"{name} is one of {', '.join(allowed)}, not {quoted(value)}",
        parameter=name,
        allowed=allowed,
    )


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


class Lines(Form):
    """One of the pages, at a path."""

    takes_empty = True

    def __init__(
        self,
        path: str,
        posts: Posts,
        options: LineOptions,
        large: list[None],
    ) -> None:
        self.page = Page(path, lambda _ack, _rows: NO_CONTENT, line_problem, options.answer_s_max)
        self.limits = options.bodies
        self._posts = posts
        self._options = options
        self._large = large
        self._query = lru_cache(maxsize=256)(parse_line_query)

    def plan(self, request: Request, text: str) -> Plan:
        """Read the head. Raises Refused."""
        rules = self._posts.rules
        sender, text = self._posts.senders.find(request, text, source=SOURCE, form=LINE)
        query, device = self._query(text), sender.identity.entry.device
        prefix = query.database if self._options.has_prefix else ""
        naming = Naming(rules.device_tags, device, prefix, rules.line_escapes)
        letter = Letter(
            *(INVALID, "", "", 0),
            precision=query.precision,
            format=LINE,
            source=self.page.label,
            device=naming.device,
            prefix=naming.prefix,
        )
        ack = self._posts.ack_of(query.ack)
        return Plan(
            sender, ack, query.strict, query.precision, False, "", letter, naming, (SOURCE, LINE)
        )

    def begin(self, body: bytes, plan: Plan, post: Post) -> Points | LineSteps:
        """Decode lines. Raises Refused."""
        options = self._options
        return begin(body, LinePost(post, plan.more, options.rows_max, options.rows_bytes_max))

    @contextmanager
    def counted(self, size_bytes: int) -> Iterator[None]:
        """Count a large post as in work. Raises Refused if there are enough."""
        if size_bytes <= LARGE_BYTES:
            yield
            return
        if len(self._large) >= LARGE_MAX:
            raise Refused("buffer_full", "too many large posts at once", retry_after_s=2)
        self._large.append(None)
        try:
            yield
        finally:
            self._large.pop()

    def refusal(self, plan: Plan, points: Points) -> Refused | None:
        """Refuse lines of others' devices, those of a strict post, or such as nobody can read."""
        errors = points.errors
        codes = {each.code for each in errors}
        if codes == {NOT_ALLOWED} and not points.blocks:
            return Refused("outside_scope", "the token may not speak for any device of the post")
        if errors and plan.strict:
            return _faulty("invalid_items", "and its sender wants all or nothing", errors)
        if codes and NO_DEVICE not in codes and not points.blocks:
            return _faulty("all_invalid", "and no reading", errors)
        return None

    def answer(self, _plan: Plan, _points: Points, _outcome: Outcome | None) -> Answer:
        """Say nothing else."""
        return NO_CONTENT


def pages(posts: Posts, options: LineOptions) -> dict[str, Route]:
    """Return the pages by path."""
    large: list[None] = []  # one for each large post in work
    forms = [
        Lines(prefix + path, posts, options, large) for prefix in PREFIXES for path in WRITE_PATHS
    ]
    return {form.page.label: Route(POST, posts.page(form), line_problem) for form in forms}


def line_status(code: str) -> int:
    """Return the status of a problem on the paths of line protocol."""
    status = _STATUS.get(code, PROBLEMS[code].status)
    return 400 if status == 422 else status


def line_problem(request: Request, refused: Refused, headers: bytes, close: bool) -> Answer:
    """Return the answer for a refused request to a path of line protocol."""
    status = line_status(refused.code)
    if refused.code in _STATUS and refused.retry_after_s is None:
        refused.retry_after_s = retry_after_s(1.0)  # each 503 says when
    data: Any = refused.fields.get("data", [])
    document: dict[str, Any] = {
        "error": refused.detail,
        "code": _CODES.get(status, "invalid"),
        "message": refused.detail,
        "problem": refused.code,
    }
    if data:
        document |= {"line": data[0]["line_number"], "data": data}
    usual = problem(refused, headers=headers, close=close)
    headers = VERSION_HEADER + usual.headers
    if request.headers.get("User-Agent", "").startswith(_READS_MILLISECONDS):
        lines = headers.split(b"\r\n")
        kept = [line for line in lines if not line.startswith(b"Retry-After:")]
        headers = b"\r\n".join(kept)
    return Answer(status, orjson.dumps(document), JSON, headers=headers, close=usual.closes)


def _faulty(code: str, why: str, errors: Sequence[ItemError]) -> Refused:
    """Return the refusal of a post for its faulty lines, with the first of them."""
    return Refused(
        code,
        f"the post has {counted(len(errors), 'faulty line')}, {why}; "
        f"line {errors[0].item + 1}: {errors[0].message}",
        data=[
            {
                "line_number": error.item + 1,
                "original_line": error.original[:LINE_BYTES_SHOWN].decode("utf-8", "replace"),
                "error_message": error.message,
            }
            for error in errors[:ERRORS_MAX]
        ],
    )


def stubs(plain_bodies: PlainBodies, health: Callable[[], tuple[int, bytes]]) -> dict[str, Route]:
    """Return the pages by path. `health` is the status of /readyz."""
    # Names of databases, for clients that look whether theirs is there.
    created: dict[str, None] = {}

    def ping(_request: Request, query: str, _received_s: float) -> Answer:
        if _parameter(query, "verbose") != "true":
            return NO_CONTENT
        return _document(200, {"version": VERSION})

    def is_healthy(_request: Request, _query: str, _received_s: float) -> Answer:
        is_ready = health()[0] == 200
        return _document(
            200 if is_ready else 503,
            {
                "name": "influxdb",
                "status": "pass" if is_ready else "fail",
                "message": "ready to take lines" if is_ready else "/readyz says what is wrong",
                "checks": [],
                "version": VERSION,
            },
        )

    def query_page(request: Request, query: str, _received_s: float) -> Reply:
        asked = _parameter(query, "q")
        return _answered(asked, created) if asked else posted(request)

    async def posted(request: Request) -> Answer:
        async with plain_bodies.body(request, _QUESTION) as body:
            return _answered(_parameter(body.decode("utf-8", "replace"), "q"), created)

    def settings(_request: Request, _query: str, _received_s: float) -> Answer:
        # As of QuestDB: the versions of its protocol, and how many bytes a name may have.
        return _document(
            200,
            {"config": {"line.proto.support.versions": [1], "cairo.max.file.name.length": 127}},
        )

    return {
        prefix + path: Route(methods, page, line_problem)
        for prefix in PREFIXES
        for path, methods, page in (
            ("/ping", READ, ping),
            ("/health", READ, is_healthy),
            ("/query", ("GET", "POST"), query_page),
            ("/settings", READ, settings),
        )
    }


def _not_here(_request: Request, _query: str, _received_s: float) -> Answer:
    raise Refused(
        "not_found",
        "here one can only write: leave out calls for buckets, organisations, users and set-up; "
        "any bucket can be written to, and /health says whether posts are taken",
    )


# What makes or lists buckets and the like: there is none, and clients read it in their own form.
SET_UP_CALLS = Pattern(
    OTHER,
    re.compile(f"(?:{'|'.join(PREFIXES)})(?:/ready|/api/v2/.*)"),
    Route((*READ, "POST", "PATCH", "DELETE"), _not_here, line_problem),
)


def _parameter(text: str, name: str) -> str:
    """Return the first value of a parameter; empty if there is none. Raises Refused."""
    try:
        return parse_qs(text, max_num_fields=_PARAMETERS_MAX).get(name, [""])[0]
    except ValueError:
        raise Refused(
            "bad_parameter", f"there are more than {_PARAMETERS_MAX} parameters; leave some out"
        ) from None


def _answered(asked: str, created: dict[str, None]) -> Answer:
    result: dict[str, object] = {"statement_id": 0}
    create = _CREATE.match(asked)
    if create:
        created[create[1] or create[2] or "(no name)"] = None
        if len(created) > DATABASES_MAX:
            del created[next(iter(created))]
    elif _SHOW.match(asked):
        result["series"] = [
            {"name": "databases", "columns": ["name"], "values": [[name] for name in created]}
        ]
    elif not _POLICY.match(asked):
        raise Refused("bad_parameter", "here one can only write; a query goes to the database")
    return _document(200, {"results": [result]})


def _document(status: int, document: dict[str, object]) -> Answer:
    return Answer(status, orjson.dumps(document), JSON, headers=VERSION_HEADER)
