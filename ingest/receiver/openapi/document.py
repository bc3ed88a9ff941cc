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
from ingest.http.routes import READ, Pattern, Route
from ingest.receiver.openapi.answers import responses
from ingest.receiver.openapi.paths import PATH, StatedLimits, described, source
from ingest.receiver.openapi.schemas import HEADERS, SECURITY, Schema, schemas

_SEPARATORS = re.compile(r"[^a-zA-Z0-9]+")


def page_of_document(
    pages: Mapping[str, Route], patterns: Iterable[Pattern], limits: StatedLimits
) -> tuple[Route, bytes]:
    """Return the page that shows the document, and the document. `patterns` are of sources."""
    methods = {path: page.methods for path, page in pages.items()} | {PATH: READ}
    sources = {each.label: each.route.methods for each in patterns}
    body = orjson.dumps(document(methods, sources, limits))
    answer = Answer(200, body)

    def show(_request: Request, _query: str, _received_s: float) -> Answer:
        return answer

    return Route(READ, show), body


def document(
    methods: Mapping[str, Iterable[str]],
    sources: Mapping[str, Iterable[str]],
    limits: StatedLimits,
) -> dict[str, Any]:
    """Return the document: `methods` are those of each path, `sources` those of mapped ones."""
    of_pages = {
        path: {each: described(path, limits)(each) for each in its} for path, its in methods.items()
    }
    of_sources = {
        path: {each: source(path, each, limits) for each in its} for path, its in sources.items()
    }
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
            path: {method.lower(): _named(path, method, its[method]) for method in its}
            for path, its in (of_pages | of_sources).items()
        },
        "components": {
            "schemas": schemas(),
            "headers": HEADERS,
            "securitySchemes": SECURITY,
            "responses": responses(),
        },
    }


def _named(path: str, method: str, made: Schema) -> Schema:
    if method == "HEAD":  # the same, but nothing has a body
        made["responses"] = {
            status: {"description": "As for GET, without the body."} for status in made["responses"]
        }
    words = _SEPARATORS.split(path.strip("/"))
    return {"operationId": method.lower() + "".join(map(str.title, words)), **made}
