"""The page with the OpenAPI document: the file openapi.json, with what only this service knows.

These are its limits, and a path for each of its sources. `python -m tests.printing.openapi` writes
the file; there the path SOURCE stands for all sources.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from ingest.http.plain_body import BodyLimits
from ingest.http.request import Request
from ingest.http.response import Answer
from ingest.http.routes import READ, Pattern, Route

PATH = "/openapi.json"
FILE = Path(__file__).with_name("openapi.json")
OF_READINGS, OF_LINES, OF_SOURCES = "readings", "lines", "sources"  # tags of limited operations
SOURCE = "/v1/in/{source}"
_HOLE = re.compile(r"\{(\w+)\}")
_SEPARATORS = re.compile(r"[^a-zA-Z0-9]+")


def operation_id(method: str, path: str) -> str:
    """Return a name that no other operation has; programs that generate clients use it."""
    return method.lower() + "".join(map(str.title, _SEPARATORS.split(path.strip("/"))))


def in_path(path: str) -> list[dict[str, Any]]:
    """Return the parameters for the parts of a path that are in braces."""
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _HOLE.findall(path)
    ]


def size(bodies: BodyLimits) -> str:
    """Return how large a body may be, in words."""
    return f"{bodies[0]:,} bytes as sent, and {bodies[1]:,} bytes decompressed"


def page_of_document(limits: Mapping[str, str], patterns: Iterable[Pattern]) -> Route:
    """Return the page. `limits` are sentences by tag, `patterns` those of sources."""
    document = orjson.loads(FILE.read_bytes())
    paths: dict[str, dict[str, Any]] = document["paths"]
    model = paths.pop(SOURCE)
    for each in patterns:
        paths[each.label] = {
            method.lower(): _of_source(model[method.lower()], method, each.label)
            for method in each.route.methods
        }
    for operation in (each for item in paths.values() for each in item.values()):
        sentence = limits.get(operation["tags"][0])
        if sentence:
            operation["description"] = f"{sentence} {operation['description']}"
    answer = Answer(200, orjson.dumps(document))

    def show(_request: Request, _query: str, _received_s: float) -> Answer:
        return answer

    return Route(READ, show)


def _of_source(model: Mapping[str, Any], method: str, path: str) -> dict[str, Any]:
    headers = [each for each in model["parameters"] if each["in"] == "header"]
    named = {"operationId": operation_id(method, path), "parameters": [*in_path(path), *headers]}
    return {**model, **named}
