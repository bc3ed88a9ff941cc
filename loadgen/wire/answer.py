"""What an answer of the service says: its JSON, read without trust.

A proxy or another service may answer in its place. So every reader takes what is there and of the
right type, and nothing raises.
"""

from __future__ import annotations

import json
from typing import Any


def fields_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object of an answer; an empty one if the body is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # ValueError: also bytes that are not UTF-8
        return {}
    return document if isinstance(document, dict) else {}


def counts_of(fields: dict[str, Any]) -> tuple[int, int] | None:
    """Return the readings (accepted, dead-lettered); None if the answer does not say them."""
    accepted, dead_lettered = fields.get("accepted"), fields.get("dead_lettered", 0)
    if isinstance(accepted, int) and isinstance(dead_lettered, int):
        return accepted, dead_lettered
    return None


def item_errors_of(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the errors that name an item of the post by its index."""
    listed = fields.get("errors")
    return [
        each
        for each in (listed if isinstance(listed, list) else ())
        if isinstance(each, dict) and isinstance(each.get("index"), int)
    ]
