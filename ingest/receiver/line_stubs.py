"""What clients of InfluxDB ask before they write: /ping, /health and /query, also below /influx.

Some do not write before these have answered. Nothing here reads or changes data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs

import orjson

from ingest.http.owner import Reply
from ingest.http.plain_body import BodyLimits, PlainBodies
from ingest.http.request import Request
from ingest.http.response import JSON, Answer
from ingest.http.routes import READ, Route
from ingest.model.errors import Refused
from ingest.receiver.line_replies import NO_CONTENT, VERSION, VERSION_HEADER, line_problem
from ingest.receiver.lines import PREFIXES

# Nobody needs a token here, so a question is small and cheap to read.
_QUESTION = BodyLimits(4096, 4096)
_PARAMETERS_MAX = 16

_CREATE = re.compile(r"\s*create\s+database\b", re.IGNORECASE)
_SHOW = re.compile(r"\s*show\s+databases\b", re.IGNORECASE)


def stubs(plain_bodies: PlainBodies, health: Callable[[], tuple[int, bytes]]) -> dict[str, Route]:
    """Return the pages by path. `health` is the status of /readyz."""

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
        return _answered(asked) if asked else posted(request)

    async def posted(request: Request) -> Answer:
        async with plain_bodies.body(request, _QUESTION) as body:
            return _answered(_parameter(body.decode("utf-8", "replace"), "q"))

    return {
        prefix + path: Route(methods, page, line_problem)
        for prefix in PREFIXES
        for path, methods, page in (
            ("/ping", READ, ping),
            ("/health", READ, is_healthy),
            ("/query", ("GET", "POST"), query_page),
        )
    }


def _parameter(text: str, name: str) -> str:
    """Return the first value of a parameter; empty if there is none. Raises Refused."""
    try:
        return parse_qs(text, max_num_fields=_PARAMETERS_MAX).get(name, [""])[0]
    except ValueError:
        raise Refused(
            "bad_parameter", f"there are more than {_PARAMETERS_MAX} parameters; leave some out"
        ) from None


def _answered(asked: str) -> Answer:
    result: dict[str, object] = {"statement_id": 0}
    if _SHOW.match(asked):
        result["series"] = [{"name": "databases", "columns": ["name"], "values": []}]
    elif not _CREATE.match(asked):
        raise Refused("bad_parameter", "here one can only write; a query goes to the database")
    return _document(200, {"results": [result]})


def _document(status: int, document: dict[str, object]) -> Answer:
    return Answer(status, orjson.dumps(document), JSON, headers=VERSION_HEADER)
