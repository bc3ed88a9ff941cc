"""What the head of a mapped post says to its mapping: query, headers, path, and the token's device.

Promises: no token is in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from ingest.formats.map_documents import form_in
from ingest.formats.map_source import Source
from ingest.http.request import Head
from ingest.http.routes import sent_path

CREDENTIAL = "token"  # the name in a path's template that stands for the token


def names_in_path(head: Head, patterns: Sequence[re.Pattern[str]]) -> dict[str, str]:
    """Return what the path has for each name of its template."""
    path = sent_path(head)
    for pattern in patterns:
        found = pattern.fullmatch(path)
        if found is not None:
            return {name: unquote(_text(text or "")) for name, text in found.groupdict().items()}
    return {}


def roots_of(
    head: Head, source: Source, query: str, in_path: dict[str, str], device: str
) -> dict[str, Any]:
    """Return the roots of the mapping's paths. Raises Refused if the query has too many fields."""
    headers = {name: _text(head.headers[name]) for name in source.headers if name in head.headers}
    return {
        "query": form_in(_text(query)) if query else {},
        "header": headers,
        "path": {name: text for name, text in in_path.items() if name != CREDENTIAL},
        "token": {"device": device} if device else {},
    }


def _text(sent: str) -> str:
    """Return a text of the head; bytes that are not UTF-8 are replaced, as in a query."""
    return sent.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
