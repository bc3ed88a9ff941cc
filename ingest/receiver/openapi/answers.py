"""The answers to refused requests in the OpenAPI document: by status, with their codes.

A new code of `codes.PROBLEMS` is an answer to all posts, unless a set here says otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from ingest.model.codes import PROBLEMS
from ingest.receiver.line_replies import line_status
from ingest.receiver.openapi.schemas import (
    JSON,
    PROBLEM,
    VERSION,
    Schema,
    line_problem_of,
    problem_of,
    ref,
)
from ingest.receiver.sources import LATER

# Codes that only the admin port answers.
ADMIN_ONLY = frozenset({"forbidden", "too_slow"})
# Answers to requests for which the document has no operation.
UNPLACED = ("not_found", "method_not_allowed")
# Answers to any request; to one that is not HTTP, or needs TLS, also before its path is known.
ALWAYS = ("bad_request", "needs_tls", "headers_too_large", "internal")
OPEN = (*ALWAYS, "foreign_site", "wrong_host")  # answers of pages that need no token
BODY = (
    *("body_timeout", "body_too_large", "inflated_too_large", "bad_encoding"),
    *("unsupported_encoding", "buffer_full"),
)
JSON_ONLY = frozenset(
    {"not_json", "not_msgpack", "not_senml", "unknown_parameter", "unsupported_media_type"}
)
LINES_ONLY = frozenset({"not_lines"})


def _posts(without: frozenset[str] = frozenset()) -> list[str]:
    return [code for code in PROBLEMS if code not in (ADMIN_ONLY | without | {*UNPLACED})]


def _status(code: str) -> int:
    return PROBLEMS[code].status


# The kinds of pages that answer in the same way: their codes, and how these become answers.
KINDS: dict[str, tuple[Sequence[str], Callable[[str], int]]] = {
    "post": (_posts(), _status),
    "readings": (_posts(LINES_ONLY | {"busy"}), _status),
    "lines": (_posts(JSON_ONLY | {"busy"}), line_status),
    "source": (_posts(LINES_ONLY | LATER | {"not_msgpack", "not_senml"}), _status),
    "open": (OPEN, _status),
    "stub": (OPEN, line_status),
    "question": ((*OPEN, "bad_parameter"), line_status),
    "form": ((*OPEN, "bad_parameter", *BODY), line_status),
    "unplaced": (UNPLACED, _status),
}


def refused(kind: str) -> dict[str, Schema]:
    """Return the answers of a kind of pages by status, as references."""
    codes, status_of = KINDS[kind]
    return {
        str(status): ref("responses", f"{kind}{status}")
        for status in sorted(set(map(status_of, codes)))
    }


def responses() -> dict[str, Schema]:
    """Return all answers that `refused` refers to, and those without an operation."""
    found = dict[str, Schema]()
    for kind, (codes, status_of) in KINDS.items():
        make = _line_problem if status_of is line_status else _problem
        by_status = defaultdict[int, list[str]](list)
        for code in codes:
            by_status[status_of(code)].append(code)
        found |= {f"{kind}{status}": make(its, status) for status, its in by_status.items()}
    return found


def _problem(codes: list[str], status: int) -> Schema:
    name = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}.get(status)
    return {
        "description": "\n".join(
            f"- `{code}`: {PROBLEMS[code].title}. The client should {PROBLEMS[code].client_should}."
            for code in codes
        ),
        "content": {PROBLEM: {"schema": problem_of(codes, status)}},
        **({"headers": {name: ref("headers", name)}} if name else {}),
    }


def _line_problem(codes: list[str], status: int) -> Schema:
    usual = _problem(codes, status)
    content = {JSON: {"schema": line_problem_of(codes)}}
    if pathless := [code for code in codes if code in ALWAYS]:
        content[PROBLEM] = {"schema": problem_of(pathless, status)}
    return {**usual, "content": content, "headers": {**usual.get("headers", {}), **VERSION}}
