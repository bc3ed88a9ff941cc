"""The answers to posts of line protocol: as the parsers of all InfluxDB clients read them.

A kept post gets 204 without a body; some clients take any other 2xx for a failure. What may be
sent again gets 503, never a 4xx: Telegraf drops a batch on each 4xx. An error has `error` (for
clients of InfluxDB 1), `code` and `message` (2), `line` and `data` (3, QuestDB), and in `problem`
our own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from ingest.formats.post import ERRORS_MAX, ItemError
from ingest.http.request import Request
from ingest.http.response import JSON, Answer, problem, retry_after_s
from ingest.model.codes import PROBLEMS
from ingest.model.errors import Refused
from ingest.system.words import counted

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

NO_CONTENT = Answer(204, b"", headers=VERSION_HEADER)


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


def faulty(code: str, why: str, errors: Sequence[ItemError]) -> Refused:
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
