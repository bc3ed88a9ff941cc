"""The parts of the OpenAPI document of the data port: schemas, headers, tokens, refusals.

Programs that make clients understand them: no boolean has one value only, and where a schema
narrows a number of another one, it says the type again. A new code of `codes.PROBLEMS` is an answer
to all posts, unless a set here says otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ingest.formats.mapped.rows import HINTS_MAX
from ingest.formats.post import ERRORS_MAX
from ingest.model.codes import ITEM_CODES, PROBLEMS
from ingest.model.ports import STATES
from ingest.model.reading import NAME_CHARACTERS_MAX
from ingest.receiver.access import TOKEN_HEADERS
from ingest.receiver.pages.json import ALLOWED
from ingest.receiver.pages.lines import line_status
from ingest.receiver.pages.mapped import LATER

Schema = dict[str, Any]

PROBLEM = "application/problem+json"
JSON = "application/json"
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
# Further members of a problem document: the limit that the post has passed.
LIMITS_NAMED = ("readings_max", "body_bytes_max", "inflated_bytes_max", "item_bytes_max")
ACK: Schema = {"type": "string", "enum": list(ALLOWED["ack"])}


def record(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """Return the schema of an object that has these members and no others."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
        "additionalProperties": False,
    }


def array(items: Schema, most: int | None = None) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items} | ({} if most is None else {"maxItems": most})


def ref(kind: str, name: str) -> Schema:
    """Return a reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


_NAME = {  # no control characters
    "type": "string",
    "pattern": r"^[^\u0000-\u001F\u007F-\u009F]+$",
    "maxLength": NAME_CHARACTERS_MAX,
}
_VALUE = {
    "type": ["number", "boolean"],
    "description": "A finite number that a float64 can hold; true is 1, false is 0.",
}
_TS = {
    "type": ["string", "number"],
    "description": "RFC 3339 with an offset, or Unix time as a number; without it, the time of "
    "receipt counts, and a reading that is sent twice is stored twice.",
}
_CODE = {"type": "string", "enum": list(ITEM_CODES)}
_ERRORS = {
    "errors": array(ref("schemas", "Invalid"), ERRORS_MAX),
}
_TRUNCATED = {"errors_truncated": {"type": "boolean"}}
SCHEMAS: dict[str, Schema] = {
    "Reading": record({"device_id": _NAME, "metric": _NAME, "value": _VALUE}, {"ts": _TS}),
    "Values": record(
        {
            "device_id": _NAME,
            "values": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": _NAME,
                "additionalProperties": _VALUE,
            },
        },
        {"ts": _TS},
    ),
    "Item": {"oneOf": [ref("schemas", "Reading"), ref("schemas", "Values")]},
    "Accepted": record(
        {"accepted": COUNT, "dead_lettered": COUNT, "ack": ACK, **_ERRORS}, _TRUNCATED
    ),
    "Invalid": record(  # an entry of `errors`
        {"index": {"type": ["integer", "null"]}, "code": _CODE, "message": TEXT},
        {
            "field": TEXT,
            "also": array(record({"field": {"type": ["string", "null"]}, "code": _CODE})),
            "sqlstate": TEXT,
            "constraint": TEXT,
        },
    ),
    "Problem": record(
        {
            "type": {"type": "string", "pattern": "^urn:iot-ingest:problem:"},
            "title": TEXT,
            "status": COUNT,
            "detail": TEXT,
            "code": TEXT,
        },
        {
            "parameter": TEXT,
            "allowed": array(TEXT),
            "available": array(TEXT),
            **dict.fromkeys(LIMITS_NAMED, COUNT),
            "items": array(COUNT),
            **_ERRORS,
            **_TRUNCATED,
        },
    ),
    "LineProblem": record(
        {"error": TEXT, "code": TEXT, "message": TEXT, "problem": TEXT},
        {
            "line": COUNT,
            "data": array(
                record({"line_number": COUNT, "original_line": TEXT, "error_message": TEXT}),
                ERRORS_MAX,
            ),
        },
    ),
    "Ready": {
        "type": "object",
        "required": ["state", "reason", "since", "refusing", "cause"],
        "properties": {
            "state": {"type": "string", "enum": list(STATES)},
            "reason": TEXT,
            "since": {"type": "string", "format": "date-time"},
            "refusing": {"type": "boolean"},
            "cause": TEXT,
            "cause_since": {"type": ["string", "null"], "format": "date-time"},
            "runbook": TEXT,
            "full_in_s": {"type": "object"},
            "refused_60s": {"type": "object"},
            "closed_60s": {"type": "object"},
        },
    },
    "Mapped": record(
        {"accepted": COUNT, "faulty": COUNT, "ignored": COUNT},
        {"first_fault": ref("schemas", "Invalid"), "hints": array(TEXT, HINTS_MAX)},
    ),
    "Settings": record({"config": {"type": "object"}}),
    "Ping": record({"version": TEXT}),
    "Health": record(
        {
            "name": {"type": "string", "enum": ["influxdb"]},
            "status": {"type": "string", "enum": ["pass", "fail"]},
            "message": TEXT,
            "checks": array({}, 0),
            "version": TEXT,
        }
    ),
    "Results": record({"results": array({"type": "object", "required": ["statement_id"]})}),
}

HEADERS: dict[str, Schema] = {
    "Retry-After": {
        "description": "After how many seconds to send it again.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}},
    "X-Influxdb-Version": {
        "description": "Clients compare it with the versions that they know.",
        "schema": TEXT,
    },
}

VERSION = {"X-Influxdb-Version": ref("headers", "X-Influxdb-Version")}  # of an answer

SECURITY: dict[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "The token is the password; any user.",
    },
    "token": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "`Token TOKEN`, as clients of InfluxDB 2 send it.",
    },
    "p": {"type": "apiKey", "in": "query", "name": "p"},
    **{name: {"type": "apiKey", "in": "header", "name": name} for name in TOKEN_HEADERS},
}


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


def _posts(without: frozenset[str]) -> list[str]:
    return [code for code in PROBLEMS if code not in (ADMIN_ONLY | without | {*UNPLACED})]


def _status(code: str) -> int:
    return PROBLEMS[code].status


# The kinds of pages that answer in the same way: their codes, and how these become answers.
KINDS: dict[str, tuple[Sequence[str], Callable[[str], int]]] = {
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
        "content": {PROBLEM: {"schema": _narrowed("Problem", "code", codes, status)}},
        **({"headers": {name: ref("headers", name)}} if name else {}),
    }


def _line_problem(codes: list[str], status: int) -> Schema:
    usual = _problem(codes, status)
    content = {JSON: {"schema": _narrowed("LineProblem", "problem", codes)}}
    if pathless := [code for code in codes if code in ALWAYS]:
        content[PROBLEM] = {"schema": _narrowed("Problem", "code", pathless, status)}
    return {**usual, "content": content, "headers": {**usual.get("headers", {}), **VERSION}}


def _narrowed(schema: str, member: str, codes: list[str], status: int = 0) -> Schema:
    """Return a schema of which one member is one of these codes, and perhaps its status is this."""
    members: Schema = {member: {"enum": codes}}
    if status:
        members = {"status": {"type": "integer", "enum": [status]}, **members}
    return {"allOf": [ref("schemas", schema), {"properties": members}]}
