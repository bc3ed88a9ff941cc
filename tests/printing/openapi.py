"""Prints the OpenAPI 3.1 document of the data port into the file that the service shows.

`python -m tests.printing.openapi` writes it: what each path does stands here, the codes and formats
are those of the code. Tests compare it with the code, and with the pages of a service. The limits
are not in it: each service puts its own ones before the descriptions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from ingest import __version__
from ingest.formats.media_types import FORMATS
from ingest.http.routes import READ
from ingest.model.reading import NDJSON
from ingest.receiver.endpoint import (
    FILE,
    OF_LINES,
    OF_READINGS,
    OF_SOURCES,
    PATH,
    SOURCE,
    in_path,
    operation_id,
)
from ingest.receiver.pages.json import ALLOWED, READINGS
from ingest.receiver.pages.lines import PRECISIONS, PREFIXES, WRITE_PATHS
from ingest.receiver.pages.mapped import RECEIVED_AT, TOPIC
from tests.printing.openapi_parts import (
    ACK,
    HEADERS,
    JSON,
    SCHEMAS,
    SECURITY,
    TEXT,
    VERSION,
    Schema,
    array,
    record,
    ref,
    refused,
    responses,
)

_FORM = "application/x-www-form-urlencoded"


def _answer(description: str, name: str = "", **more: Schema) -> Schema:
    """Return an answer whose body has the schema of this name, if it has a body."""
    content = {"content": {JSON: {"schema": ref("schemas", name)}}} if name else {}
    return {"description": description, **content, **more}


def _parameter(name: str, schema: Schema, description: str, **more: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": description, **more}


def _one_of(names: Iterable[str | None]) -> Schema:
    return {"type": "string", "enum": [name for name in names if name]}


_ACK = _parameter("ack", ACK, "When the answer comes; without it the service's setting decides.")
_BODIES: dict[str, Schema] = {  # of /v1/readings by media type
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
    "application/senml+json": {  # a second list here is more than makers of clients understand
        "example": [{"n": "urn:dev:mac:0024befffe804ff1:temperature", "u": "Cel", "v": 21.5}],
    },
}
_READINGS: Schema = {
    "tags": [OF_READINGS],
    "summary": "Post readings: one item or several",
    "description": "The media type says the format.",
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
        "200": _answer("In the table, or listed in `errors` (`ack=committed`).", "Accepted"),
        "202": _answer("Kept, as safely as `ack` says.", "Accepted"),
        **refused("readings"),
    },
}
_LINE: Schema = {"schema": TEXT, "example": "room,device=pi-1 temperature=21.5,humidity=40i"}
_LINES: Schema = {
    "tags": [OF_LINES],
    "summary": "Write line protocol, as to an InfluxDB",
    "description": "Lines with a fault become dead letters; the others are kept. "
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
        "204": _answer("What could be read is kept, as safely as `ack` says.", headers=VERSION),
        **refused("lines"),
    },
}
_SOURCE: Schema = {  # only its sender knows the body
    "tags": [OF_SOURCES],
    "summary": "Take what a sender sends in a form of its own",
    "description": "A table in the file of sources says what it becomes. The media type is not "
    "read. A running service lists its own sources here, also those with a path of their own.",
    "parameters": [
        *in_path(SOURCE),
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
            "description": "When the documents were received, in Unix microseconds: one time for "
            "all, or one for each. Without it they are received now.",
        },
    ],
    "responses": {"200": _answer("What could be read is kept.", "Mapped"), **refused("source")},
}
_SOURCE_BODY: Schema = {"content": {name: {"schema": {}} for name in (JSON, _FORM)}}
_PING: Schema = {
    "summary": "Whether it answers, for clients of InfluxDB",
    "parameters": [_parameter("verbose", TEXT, "`true`: with a body.", example="true")],
    "responses": {
        "200": _answer("`verbose=true`", "Ping", headers=VERSION),
        "204": _answer("It answers.", headers=VERSION),
        **refused("question"),
    },
}
_HEALTH: Schema = {
    "summary": "Whether it takes posts, for clients of InfluxDB",
    "responses": {
        **refused("stub"),
        "200": _answer("It takes posts.", "Health", headers=VERSION),
        "503": _answer("It takes none now.", "Health", headers=VERSION),
    },
}
_QUERY: Schema = {
    "summary": "CREATE and SHOW DATABASES, for clients that ask before they write",
    "parameters": [_parameter("q", TEXT, "The question.", example="SHOW DATABASES")],
    "responses": {
        "200": _answer("It is so.", "Results", headers=VERSION),
        **refused("question"),
    },
}
_QUERY_POST: Schema = {
    **_QUERY,
    "requestBody": {"content": {_FORM: {"schema": record({"q": TEXT})}}},
    "responses": {**_QUERY["responses"], **refused("form")},
}
_SETTINGS: Schema = {
    "summary": "Which versions of its protocol are read, for clients of QuestDB",
    "responses": {"200": _answer("These.", "Settings", headers=VERSION), **refused("stub")},
}
_LIVEZ: Schema = {
    "summary": "Whether the process runs",
    "responses": {
        "200": {"description": "It runs.", "content": {"text/plain": {"schema": TEXT}}},
        **refused("open"),
    },
}
_READYZ: Schema = {
    "summary": "Whether it takes posts now, and why not",
    "responses": {
        "200": _answer("It takes posts.", "Ready"),
        "503": _answer("It takes none now.", "Ready"),
        **refused("open"),
    },
}
_THIS: Schema = {
    "summary": "This document",
    "responses": {
        "200": {
            "description": "OpenAPI 3.1",
            "content": {JSON: {"schema": {"type": "object"}}},
        },
        **refused("open"),
    },
}


def _read(operation: Schema) -> dict[str, Schema]:
    return dict.fromkeys(READ, operation)


# What needs no token, and what does; by path and method.
_OPEN: dict[str, dict[str, Schema]] = {
    "/livez": _read(_LIVEZ),
    "/readyz": _read(_READYZ),
    PATH: _read(_THIS),
}
_PATHS: dict[str, dict[str, Schema]] = {
    READINGS: {"POST": _READINGS},
    SOURCE: {**_read(_SOURCE), "POST": {**_SOURCE, "requestBody": _SOURCE_BODY}},
}
for _prefix in PREFIXES:
    _PATHS |= {_prefix + path: {"POST": _LINES} for path in WRITE_PATHS}
    _OPEN |= {
        _prefix + "/ping": _read(_PING),
        _prefix + "/health": _read(_HEALTH),
        _prefix + "/settings": _read(_SETTINGS),
        _prefix + "/query": {"GET": _QUERY, "POST": _QUERY_POST},
    }


def document() -> Schema:
    """Return the document."""
    no_token: Schema = {"tags": ["questions"], "security": [{}]}
    opened = {
        path: {method: {**no_token, **made} for method, made in its.items()}
        for path, its in _OPEN.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "iot-ingest: the data port",
            "version": __version__,
            "description": "Takes sensor readings. A post that gets a 4xx or a 503 left nothing "
            "behind, unless its code says otherwise. A running service adds its limits.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, *({name: []} for name in SECURITY)],
        "paths": {
            path: {method.lower(): _named(path, method, made) for method, made in its.items()}
            for path, its in (_PATHS | opened).items()
        },
        "components": {
            "schemas": SCHEMAS,
            "headers": HEADERS,
            "securitySchemes": SECURITY,
            "responses": responses(),
        },
    }


def text() -> str:
    """Return the content of the file."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def _named(path: str, method: str, made: Schema) -> Schema:
    made = {"operationId": operation_id(method, path), **made}
    if method == "HEAD":  # the same, but nothing has a body
        without = {"description": "As for GET, without the body."}
        made["responses"] = dict.fromkeys(made["responses"], without)
    return made


if __name__ == "__main__":
    FILE.write_text(text())
