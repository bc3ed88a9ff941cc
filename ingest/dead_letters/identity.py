"""The id of a dead letter: when two letters are one.

Promises: two readings are one if they are equal, two invalid items if their bytes are equal and say
when they were measured, and their senders may speak for the same devices.
It is a file of its own because it knows the formats, and a program that only writes must not: that
one reads and writes the lines of format.py.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import orjson

from ingest.dead_letters.format import ID_CHARACTERS, utf8
from ingest.formats.lines.body import has_usable_time
from ingest.formats.post import Rules
from ingest.formats.timestamp import number_us, text_us
from ingest.model.block import PG_EPOCH_US
from ingest.model.reading import JSON, LINE, MAPPED, Letter

# The times of the settings' defaults.
DEFAULT_RULES = Rules(post_rows_max=1_000, ts_min_us=PG_EPOCH_US, ts_ahead_us_max=86_400_000_000)


def letter_id(letter: Letter, rules: Rules = DEFAULT_RULES) -> str:
    """Return a 128-bit hash of the reading, or of the bytes of the item.

    An item without a usable time is a new reading each time it comes, also twice in one post. So
    the time of receipt and its place in the post are hashed too. A time that `rules` refuse is not
    usable: such a clock may stand still.
    """
    digest = blake2b(digest_size=ID_CHARACTERS // 2)
    if letter.reading is not None:
        ts_us, device_id, metric, value = letter.reading
        device, name = utf8(device_id), utf8(metric)
        digest.update(struct.pack(">sqdI", b"r", ts_us, value, len(device)) + device + name)
        return digest.hexdigest()
    precision, field = utf8(letter.precision or ""), utf8(letter.field or "")
    digest.update(struct.pack(">sII", b"o", len(precision), len(field)) + precision + field)
    if letter.format != JSON:
        defaults = "\0".join((letter.format, letter.device, letter.prefix))
        if letter.format == MAPPED:
            defaults = "\0".join((defaults, letter.source, letter.context))
        digest.update(b"f%b\0" % utf8(defaults))
    if letter.devices:
        digest.update(b"d%b\0" % utf8("\0".join(letter.devices)))
    original = letter.original or b""
    if not _has_usable_time(original, letter, rules):
        digest.update(
            struct.pack(">qq", letter.received_us, -1 if letter.item is None else letter.item)
        )
    digest.update(original)
    return digest.hexdigest()


def _has_usable_time(original: bytes, letter: Letter, rules: Rules) -> bool:
    """Whether the item says when it was measured, so that equal bytes mean one reading.

    Where that is unknown: one letter too many is better than two readings kept as one letter.
    """
    # A clock that was never set counts from 1970, and one that is ahead is wrong too.
    ts_us_max = letter.received_us + rules.ts_ahead_us_max
    if letter.format == LINE:
        return has_usable_time(original, letter.precision, rules.ts_min_us, ts_us_max)
    if letter.format == MAPPED:
        return False  # the mapping knows, and it may change
    try:
        item = orjson.loads(original)
    except ValueError:
        return False
    ts = item.get("ts") if isinstance(item, dict) else None
    if isinstance(ts, str):
        ts_us = text_us(ts)
    elif isinstance(ts, int | float) and not isinstance(ts, bool):
        ts_us = number_us(ts, letter.precision)
    else:
        return False
    return isinstance(ts_us, int) and rules.ts_min_us <= ts_us <= ts_us_max
