"""What came beside the body of a mapped post, as a dead letter keeps it: a text of JSON.

Promises: it has no token, and of the headers only those that the mapping names.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from ingest.formats.map_paths import ROOTS

CONTEXT_BYTES_MAX = 16 * 1024


def context_of(roots: dict[str, Any]) -> str:
    """Return the text; too much of it is left out, and then a replay finds nothing there."""
    kept = {name: each for name, each in roots.items() if each}
    try:
        text = orjson.dumps(kept) if kept else b""
    except TypeError:  # half of a surrogate pair, from a header that is not UTF-8
        text = json.dumps(kept).encode()
    return text.decode() if len(text) <= CONTEXT_BYTES_MAX else ""


def roots_of(context: str) -> dict[str, Any]:
    """Return what a text of `context_of` says; somebody may have edited it."""
    try:
        roots = json.loads(context or "{}")  # it reads half surrogate pairs, too
    except (ValueError, RecursionError):
        return {}
    return {name: roots[name] for name in ROOTS if name in roots} if type(roots) is dict else {}
