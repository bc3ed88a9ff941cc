"""What clients of InfluxDB ask before they write: /ping, /health and /query, also below /influx.

Some do not write before these have answered. Nothing here reads or changes data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs

import orjson

from ingest.http.owner import Reply
from ingest.http.plain_body import PlainBodies
from ingest.http.request import Request
from ingest.http.response import JSON, Answer
from ingest.http.routes import READ, Route
from ingest.model.errors import Refused
from ingest.receiver.line_replies import NO_CONTENT, VERSION, VERSION_HEADER, line_problem
from ingest.receiver.lines import PREFIXES

_CREATE = re.compile(r"\s*create\s+database\b", re.IGNORECASE)
_SHOW = re.compile(r"\s*show\s+databases\b", re.IGNORECASE)


def stubs(plain_bodies: PlainBodies, health: Callable[[], tuple[int, bytes]]) -> dict[str, Route]:
    """Return the pages by path. `health` is the status of /readyz."""

    def ping(_request: Request, query: str, _received_s: float) -> Answer:
        if "true" not in parse_qs(query).get("verbose", ()):
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
        asked = parse_qs(query).get("q")
        return _answered(asked[0]) if asked else posted(request)

    async def posted(request: Request) -> Answer:
        async with plain_bodies.body(request) as body:
            asked = parse_qs(body.decode("utf-8", "replace")).get("q", [""])
        return _answered(asked[0])

    return {
        prefix + path: Route(methods, page, line_problem)
        for prefix in PREFIXES
        for path, methods, page in (
            ("/ping", READ, ping),
            ("/health", READ, is_healthy),
            ("/query", ("GET", "POST"), query_page),
        )
    }


def _answered(asked: str) -> Answer:
    result: dict[str, object] = {"statement_id": 0}
    if _SHOW.match(asked):
        result["series"] = [{"name": "databases", "columns": ["name"], "values": []}]
    elif not _CREATE.match(asked):
        raise Refused("bad_parameter", "here one can only write; a query goes to the database")
    return _document(200, {"results": [result]})


def _document(status: int, document: dict[str, object]) -> Answer:
    return Answer(status, orjson.dumps(document), JSON, headers=VERSION_HEADER)
