"""The OpenAPI 3.1 document of the data port, made from its pages, codes, formats and limits.

Nothing is made for a request: the bytes of `/openapi.json` are made at the start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from ingest import __version__
from ingest.http.request import Request
from ingest.http.response import Answer
from ingest.http.routes import READ, Route
from ingest.receiver.openapi.answers import responses
from ingest.receiver.openapi.paths import PATH, StatedLimits, described
from ingest.receiver.openapi.schemas import HEADERS, SECURITY, Schema, schemas

_SEPARATORS = re.compile(r"[^a-zA-Z0-9]+")


def pages_with_document(
    pages: Mapping[str, Route], limits: StatedLimits
) -> tuple[dict[str, Route], bytes]:
    """Return the pages, the one that shows the document among them, and the document."""
    methods = {path: page.methods for path, page in pages.items()} | {PATH: READ}
    body = orjson.dumps(document(methods, limits))
    answer = Answer(200, body)

    def show(_request: Request, _query: str, _received_s: float) -> Answer:
        return answer

    return {**pages, PATH: Route(READ, show)}, body


def document(methods: Mapping[str, Iterable[str]], limits: StatedLimits) -> dict[str, Any]:
    """Return the document: `methods` are those of each path."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "iot-ingest: the data port",
            "version": __version__,
            "description": "Takes sensor readings. A post that gets a 4xx or a 503 left nothing "
            "behind, unless its code says otherwise.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, *({name: []} for name in SECURITY)],
        "paths": {
            path: {method.lower(): _operation(path, method, limits) for method in its}
            for path, its in methods.items()
        },
        "components": {
            "schemas": schemas(),
            "headers": HEADERS,
            "securitySchemes": SECURITY,
            "responses": responses(),
        },
    }


def _operation(path: str, method: str, limits: StatedLimits) -> Schema:
    made = described(path, limits)(method)
    if method == "HEAD":  # the same, but nothing has a body
        made["responses"] = {
            status: {"description": "As for GET, without the body."} for status in made["responses"]
        }
    words = _SEPARATORS.split(path.strip("/"))
    return {"operationId": method.lower() + "".join(map(str.title, words)), **made}
