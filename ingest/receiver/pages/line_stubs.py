"""What clients of InfluxDB and QuestDB ask before they write, also below /influx.

Some do not write before /ping, /health, /query or /settings has answered. Databases, buckets and
the like do not exist here: to make one is answered and does nothing, or it is not found. Nothing
here reads or changes data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs

import orjson

from ingest.http.plain_body import BodyLimits, PlainBodies
from ingest.http.request import Request
from ingest.http.response import JSON, Answer, Reply
from ingest.http.routes import OTHER, READ, Pattern, Route
from ingest.model.errors import Refused
from ingest.receiver.pages.lines import (
    NO_CONTENT,
    PREFIXES,
    VERSION,
    VERSION_HEADER,
    line_problem,
)

# Nobody needs a token here, so a question is small and cheap to read.
_QUESTION = BodyLimits(4096, 4096)
_PARAMETERS_MAX = 16

DATABASES_MAX = 100  # that SHOW DATABASES has; the oldest leaves

_CREATE = re.compile(r'\s*create\s+database\b\s*(?:"([^"]{1,64})"|([^\s;"]{1,64}))?', re.IGNORECASE)
_POLICY = re.compile(r"\s*(?:create|alter)\s+retention\s+policy\b", re.IGNORECASE)
_SHOW = re.compile(r"\s*show\s+databases\b", re.IGNORECASE)


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
