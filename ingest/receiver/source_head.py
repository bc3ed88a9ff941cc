"""What the head of a mapped post says to its mapping: query, headers, path, topic, token's device.

Promises: no token is in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from ingest.formats.map_documents import form_in
from ingest.formats.map_source import Source
from ingest.formats.post import Rules
from ingest.http.request import Head
from ingest.http.routes import sent_path
from ingest.model.errors import Refused
from ingest.system.clock import unix_us

CREDENTIAL = "token"  # the name in a path's template that stands for the token
# Who posts for others says here where and when it got what it posts, as `ingest mqtt` does.
TOPIC, RECEIVED_AT = "X-Topic", "X-Received-At"
_TIMES = re.compile(r"[0-9]{1,17}(?:,[0-9]{1,17})*")


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
        # What is no UTF-8 becomes half surrogate pairs, as in headers: no name may have them.
        "topic": unquote(head.headers.get(TOPIC, ""), errors="surrogateescape"),
    }


def times_of(head: Head, rules: Rules) -> tuple[int, ...]:
    """Return when the documents of a post were received, in Unix microseconds; often nothing.

    Raises Refused if the header has something else, or a time that no reading may have.
    """
    text = head.headers.get(RECEIVED_AT, "")
    if not text:
        return ()
    if not _TIMES.fullmatch(text):
        raise Refused(
            "bad_parameter",
            f"{RECEIVED_AT} has Unix microseconds: one time for all documents, or one for each, "
            "with commas between them",
        )
    times_us = tuple(map(int, text.split(",")))
    if min(times_us) < rules.ts_min_us or max(times_us) > unix_us() + rules.ts_ahead_us_max:
        raise Refused(
            "bad_parameter",
            f"{RECEIVED_AT} has a time that is too old or too far ahead of now; are the clocks "
            "right?",
        )
    return times_us


def _text(sent: str) -> str:
    """Return a text of the head; bytes that are not UTF-8 are replaced, as in a query."""
    return sent.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
