"""Bodies of posts for tests; decodes them with the rules of the default settings."""

from __future__ import annotations

import json

from ingest.formats.json.body import decode
from ingest.formats.post import Decoded, Post, Rules
from ingest.model.moments import decode_readings
from ingest.model.reading import Reading

RULES = Rules(post_rows_max=5_000, ts_min_us=946_684_800_000_000, ts_ahead_us_max=86_400_000_000)
NOW_US = 1_795_600_000_000_001
GOOD = b'{"device_id":"pump-1","metric":"rpm","ts":1795600000,"value":21.5}'
GOOD_READING = Reading(1_795_600_000_000_000, "pump-1", "rpm", 21.5)


def decoded(
    body: bytes,
    *,
    precision: str | None = None,
    ignore_unknown: bool = False,
    rules: Rules = RULES,
) -> Decoded:
    """Decode a body that was received at NOW_US."""
    return decode(body, Post(precision, ignore_unknown, NOW_US, 7.0, rules))


def readings_of(result: Decoded) -> list[Reading]:
    """Return the readings of a block, none if there is no block."""
    return list(decode_readings(result.block.tuples)) if result.block else []


def item(**changes: object) -> bytes:
    """Return GOOD as JSON with fields changed, or left out if changed to `...`."""
    fields: dict[str, object] = {"device_id": "pump-1", "metric": "rpm", "value": 21.5}
    fields.update(changes)
    return json.dumps({name: each for name, each in fields.items() if each is not ...}).encode()


def array(*items: bytes) -> bytes:
    """Return a JSON array of items."""
    return b"[" + b",".join(items) + b"]"
