"""The schemas, headers and security schemes of the OpenAPI document of the data port."""

from __future__ import annotations

from typing import Any

from ingest.formats.map_values import HINTS_MAX
from ingest.formats.post import ERRORS_MAX
from ingest.model.codes import ITEM_CODES
from ingest.model.ports import STATES
from ingest.model.reading import NAME_CHARACTERS_MAX
from ingest.receiver.credentials import TOKEN_HEADERS
from ingest.receiver.query import ALLOWED

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


_NAME = r"^[^\u0000-\u001F\u007F-\u009F]+$"  # no control characters
_ERRORS = array(ref("schemas", "Invalid"), ERRORS_MAX)


def _item() -> tuple[Schema, Schema]:
    """Return the schemas of an item: one reading, or the values of one time."""
    name = {"type": "string", "pattern": _NAME, "maxLength": NAME_CHARACTERS_MAX}
    value = {
        "type": ["number", "boolean"],
        "description": "A finite number that a float64 can hold; true is 1, false is 0.",
    }
    ts = {
        "type": ["string", "number"],
        "description": "RFC 3339 with an offset, or Unix time as a number; without it, the time of "
        "receipt counts, and a reading that is sent twice is stored twice.",
    }
    one = record({"device_id": name, "metric": name, "value": value}, {"ts": ts})
    values = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": name,
        "additionalProperties": value,
    }
    return one, record({"device_id": name, "values": values}, {"ts": ts})


def _invalid() -> Schema:
    """Return the schema of one entry of `errors`."""
    code = {"type": "string", "enum": list(ITEM_CODES)}
    also = record({"field": {"type": ["string", "null"]}, "code": code})
    return record(
        {"index": {"type": ["integer", "null"]}, "code": code, "message": TEXT},
        {"field": TEXT, "also": array(also), "sqlstate": TEXT, "constraint": TEXT},
    )


def _accepted() -> Schema:
    return record(
        {"accepted": COUNT, "dead_lettered": COUNT, "ack": ACK, "errors": _ERRORS},
        {"errors_truncated": {"const": True}},
    )


def _ready() -> Schema:
    times = {"type": ["string", "null"], "format": "date-time"}
    return {
        "type": "object",
        "required": ["state", "reason", "since", "refusing", "cause"],
        "properties": {
            "state": {"type": "string", "enum": list(STATES)},
            "reason": TEXT,
            "since": {"type": "string", "format": "date-time"},
            "refusing": {"type": "boolean"},
            "cause": TEXT,
            "cause_since": times,
            "runbook": TEXT,
            "full_in_s": {"type": "object"},
            "refused_60s": {"type": "object"},
            "closed_60s": {"type": "object"},
        },
    }


def _problem() -> Schema:
    return record(
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
            "errors": _ERRORS,
            "errors_truncated": {"const": True},
        },
    )


def _line_problem() -> Schema:
    line = record({"line_number": COUNT, "original_line": TEXT, "error_message": TEXT})
    return record(
        {"error": TEXT, "code": TEXT, "message": TEXT, "problem": TEXT},
        {"line": COUNT, "data": array(line, ERRORS_MAX)},
    )


def problem_of(codes: list[str], status: int) -> Schema:
    """Return the schema of a problem document with one of these codes."""
    members = {"status": {"const": status}, "code": {"enum": codes}}
    return {"allOf": [ref("schemas", "Problem"), {"properties": members}]}


def line_problem_of(codes: list[str]) -> Schema:
    """Return the schema of an error on the paths of line protocol with one of these codes."""
    members = {"problem": {"enum": codes}}
    return {"allOf": [ref("schemas", "LineProblem"), {"properties": members}]}


def schemas() -> dict[str, Schema]:
    """Return the named schemas."""
    one, several = _item()
    return {
        "Reading": one,
        "Values": several,
        "Item": {"oneOf": [ref("schemas", "Reading"), ref("schemas", "Values")]},
        "Accepted": _accepted(),
        "Invalid": _invalid(),
        "Problem": _problem(),
        "LineProblem": _line_problem(),
        "Ready": _ready(),
        "Mapped": record(
            {"accepted": COUNT, "faulty": COUNT, "ignored": COUNT},
            {"first_fault": ref("schemas", "Invalid"), "hints": array(TEXT, HINTS_MAX)},
        ),
        "Ping": record({"version": TEXT}),
        "Health": record(
            {
                "name": {"const": "influxdb"},
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
