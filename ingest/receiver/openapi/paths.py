"""What each path of the data port does, for the OpenAPI document.

A path that is not known here is described as a post of any body.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ingest.formats.media_type import FORMATS
from ingest.http.plain_body import BodyLimits
from ingest.model.letter import NDJSON
from ingest.receiver.keeper import READINGS
from ingest.receiver.line_query import PRECISIONS
from ingest.receiver.lines import PREFIXES, WRITE_PATHS
from ingest.receiver.openapi.answers import refused
from ingest.receiver.openapi.schemas import (
    ACK,
    JSON,
    TEXT,
    VERSION,
    Schema,
    array,
    record,
    ref,
)
from ingest.receiver.query import ALLOWED
from ingest.receiver.source_head import RECEIVED_AT, TOPIC

PATH = "/openapi.json"
_FORM = "application/x-www-form-urlencoded"
_HOLE = re.compile(r"\{(\w+)\}")

# The bodies of /v1/readings by media type.
_BODIES: dict[str, Schema] = {
    JSON: {
        "schema": {"oneOf": [ref("schemas", "Item"), array(ref("schemas", "Item"))]},
        "example": {"device_id": "boiler-7", "metric": "temperature", "value": 21.5},
    },
    **{
        name: {
            "schema": TEXT,
            "example": '{"device_id":"boiler-7","metric":"temperature","value":21.5}\n',
        }
        for name, form in FORMATS.items()
        if form.name == NDJSON
    },
    "application/senml+json": {
        "schema": {"type": "array", "items": {"type": "object"}},
        "example": [{"n": "urn:dev:mac:0024befffe804ff1:temperature", "u": "Cel", "v": 21.5}],
    },
}
_LINE: Schema = {"schema": TEXT, "example": "room,device=pi-1 temperature=21.5,humidity=40i"}


class StatedLimits(NamedTuple):
    """The settings that the document names. `lines`: the bodies of line protocol."""

    post_rows_max: int
    bodies: BodyLimits
    line_rows_max: int
    lines: BodyLimits


def described(path: str, limits: StatedLimits) -> Callable[[str], Schema]:
    """Return the function that describes a method of a path."""
    if path == READINGS:
        return lambda _method: _readings(limits)
    if path in _PROBES:
        return lambda _method: _open(_PROBES[path]())
    for prefix in sorted(PREFIXES, key=len, reverse=True):
        name = path.removeprefix(prefix)
        if path.startswith(prefix) and name in WRITE_PATHS:
            return lambda _method: _lines(limits)
        if path.startswith(prefix) and name in _STUBS:
            return lambda method: _open(_STUBS[name](method))
    return lambda method: _other(f"{method} {path}")


def _open(operation: Schema) -> Schema:
    """Return a page that needs no token."""
    return {**operation, "security": [{}]}


def _answer(description: str, schema: Schema, media_type: str = JSON) -> Schema:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _parameter(name: str, schema: Schema, description: str, example: str = "") -> Schema:
    shown = {"example": example} if example else {}
    return {"name": name, "in": "query", "schema": schema, "description": description, **shown}


def _one_of(names: Iterable[str | None]) -> Schema:
    return {"type": "string", "enum": [name for name in names if name]}


def _size(bodies: BodyLimits) -> str:
    return f"{bodies[0]:,} bytes as sent, and {bodies[1]:,} bytes decompressed"


# Posts

_ACK = _parameter("ack", ACK, "When the answer comes; without it the service's setting decides.")


def _readings(limits: StatedLimits) -> Schema:
    kept = ref("schemas", "Accepted")
    return {
        "summary": "Post readings: one item or several",
        "description": f"A post has at most {limits.post_rows_max:,} readings, "
        f"{_size(limits.bodies)}.",
        "parameters": [
            _ACK,
            _parameter("strict", _one_of(ALLOWED["strict"]), "Refuse all if one item is invalid."),
            _parameter("precision", _one_of(ALLOWED["precision"]), "The unit of a number in `ts`."),
            _parameter("unknown", _one_of(ALLOWED["unknown"]), "What an unknown member is."),
        ],
        "requestBody": {
            "required": True,
            "content": {name: _BODIES.get(name, {}) for name in FORMATS},
        },
        "responses": {
            "200": _answer("In the table, or listed in `errors` (`ack=committed`).", kept),
            "202": _answer("Kept, as safely as `ack` says.", kept),
            **refused("readings"),
        },
    }


def _lines(limits: StatedLimits) -> Schema:
    return {
        "summary": "Write line protocol, as to an InfluxDB",
        "description": f"A post has at most {limits.line_rows_max:,} fields, "
        f"{_size(limits.lines)}. Lines with a fault become dead letters; the others are kept. "
        "Other parameters are ignored, and so is the media type.",
        "parameters": [
            _ACK,
            _parameter("precision", _one_of(PRECISIONS), "The unit of the times."),
            _parameter("strict", TEXT, "`true`: refuse all if one line has a fault."),
            _parameter("accept_partial", TEXT, "`false`: the same."),
            _parameter("no_sync", TEXT, "`true`: as `ack=buffered`."),
            _parameter("db", TEXT, "Database. It is ignored, unless `line_prefix` is set."),
            _parameter("bucket", TEXT, "The same."),
        ],
        "requestBody": {"content": {"text/plain": _LINE}},
        "responses": {
            "204": {
                "description": "What could be read is kept, as safely as `ack` says.",
                "headers": VERSION,
            },
            **refused("lines"),
        },
    }


def _other(summary: str) -> Schema:
    kept: Schema = {"description": "Done."}
    return {
        "summary": summary,
        "responses": {"200": kept, "202": kept, "204": kept, **refused("post")},
    }


_OF_MESSAGES: list[Schema] = [
    {
        "name": TOPIC,
        "in": "header",
        "schema": TEXT,
        "description": "The topic of the MQTT messages in the body, percent-encoded.",
        "example": "sensors/greenhouse/temp",
    },
    {
        "name": RECEIVED_AT,
        "in": "header",
        "schema": {"type": "string", "pattern": "^[0-9]{1,17}(,[0-9]{1,17})*$"},
        "description": "When the documents were received, in Unix microseconds: one time for all, "
        "or one for each. Without it they are received now.",
    },
]


def source(path: str, method: str, limits: StatedLimits) -> Schema:
    """Describe a method of a mapped source, whose body only its sender knows."""
    body: Schema = {"content": {name: {"schema": {}} for name in (JSON, _FORM)}}
    return {
        "summary": "Take what a sender sends in a form of its own",
        "description": f"A table in the file of sources says what it becomes. It has at most "
        f"{_size(limits.bodies)}. The media type is not read.",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": TEXT}
            for name in _HOLE.findall(path)
        ]
        + _OF_MESSAGES,
        **({"requestBody": body} if method == "POST" else {}),
        "responses": {
            "200": _answer("What could be read is kept.", ref("schemas", "Mapped")),
            **refused("source"),
        },
    }


# Questions


def _ping(_method: str) -> Schema:
    return {
        "summary": "Whether it answers, for clients of InfluxDB",
        "parameters": [_parameter("verbose", TEXT, "`true`: with a body.", "true")],
        "responses": {
            "200": {**_answer("`verbose=true`", ref("schemas", "Ping")), "headers": VERSION},
            "204": {"description": "It answers.", "headers": VERSION},
            **refused("question"),
        },
    }


def _health(_method: str) -> Schema:
    health = ref("schemas", "Health")
    return {
        "summary": "Whether it takes posts, for clients of InfluxDB",
        "responses": {
            **refused("stub"),
            "200": {**_answer("It takes posts.", health), "headers": VERSION},
            "503": {**_answer("It takes none now.", health), "headers": VERSION},
        },
    }


def _query(method: str) -> Schema:
    is_post = method == "POST"
    form = {_FORM: {"schema": record({"q": TEXT})}}
    return {
        "summary": "CREATE and SHOW DATABASES, for clients that ask before they write",
        "parameters": [_parameter("q", TEXT, "The question.", "SHOW DATABASES")],
        **({"requestBody": {"content": form}} if is_post else {}),
        "responses": {
            "200": {**_answer("It is so.", ref("schemas", "Results")), "headers": VERSION},
            **refused("form" if is_post else "question"),
        },
    }


def _settings(_method: str) -> Schema:
    return {
        "summary": "Which versions of its protocol are read, for clients of QuestDB",
        "responses": {
            **refused("stub"),
            "200": {
                **_answer("These.", record({"config": {"type": "object"}})),
                "headers": VERSION,
            },
        },
    }


def _livez() -> Schema:
    return {
        "summary": "Whether the process runs",
        "responses": {"200": _answer("It runs.", TEXT, "text/plain"), **refused("open")},
    }


def _readyz() -> Schema:
    ready = ref("schemas", "Ready")
    return {
        "summary": "Whether it takes posts now, and why not",
        "responses": {
            "200": _answer("It takes posts.", ready),
            "503": _answer("It takes none now.", ready),
            **refused("open"),
        },
    }


def _this() -> Schema:
    return {
        "summary": "This document",
        "responses": {"200": _answer("OpenAPI 3.1", {"type": "object"}), **refused("open")},
    }


_STUBS = {"/ping": _ping, "/health": _health, "/query": _query, "/settings": _settings}
_PROBES = {"/livez": _livez, "/readyz": _readyz, PATH: _this}
