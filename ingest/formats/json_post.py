"""The JSON format: from a body to a block of its valid readings, and errors for the others.

json_whole.py decodes most bodies as a whole. Where it returns None, the body is tried again in
chunks. A chunk for which it returns None goes through json_item.py, item by item.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from ingest.formats.json_item import read_item
from ingest.formats.json_whole import Rows, fast
from ingest.formats.post import Decoded, ItemError, Post, too_many
from ingest.formats.series import SERIES
from ingest.model.block import Block
from ingest.model.errors import Refused

CHUNK_ITEMS = 16
LARGE_BODY_BYTES = 65_536
COMMAS_PER_READING_MAX = 16  # a reading has 4; a post with over 65,536 may be refused unread
JSON_SPACE = b" \t\n\r"

_RAWS = msgspec.json.Decoder(list[Raw])
_RAW = msgspec.json.Decoder(Raw)


def decode(body: bytes, post: Post) -> Decoded:
    """Return one block of the valid readings, and errors for the others.

    Raises Refused: `not_json`, `empty`, `too_many_readings`.
    """
    if len(body) > LARGE_BODY_BYTES:
        _refuse_crowd(body, post.rules.post_rows_max)
    errors: list[ItemError] = []
    try:
        rows = fast(body, post) or _careful(body, post, errors)
    except RecursionError:
        raise Refused("not_json", "the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise Refused("not_json", f"the body is not valid JSON: {fault}") from None
    if rows.rows == 0:
        return Decoded(None, errors)
    block = Block(
        rows.tuples,
        rows.rows,
        received_s=post.received_s,
        received_us=post.received_us,
        newest_ts_us=rows.newest_us,
        items=rows.items,
    )
    return Decoded(block, errors)


def _refuse_crowd(body: bytes, rows_max: int) -> None:
    """Refuse a body of very many small parts before it is parsed, since each part takes memory.

    Every reading and every item but the first has a comma before it.
    """
    commas = body.count(b",")
    if commas > COMMAS_PER_READING_MAX * max(rows_max, 4_096):
        raise too_many(rows_max, f"the body has {commas} commas, so it was not read")


def _careful(body: bytes, post: Post, errors: list[ItemError]) -> Rows:
    """Encode the valid readings, chunk by chunk, item by item; append errors for the others."""
    originals = _originals(body, post.rules.post_rows_max)
    tuples: list[bytes] = []
    newest_us = 0
    owners: list[int] = []
    for start in range(0, len(originals), CHUNK_ITEMS):
        chunk = originals[start : start + CHUNK_ITEMS]
        rows = fast(b"[%b]" % b",".join(chunk), post) if len(originals) > 1 else None
        if rows is not None:
            tuples.append(rows.tuples)
            newest_us = max(newest_us, rows.newest_us)
            owners += [start + i for i in rows.items or range(rows.rows)]
            chunk = []
        for item, original in enumerate(chunk, start):
            readings, faults = read_item(original, item, post)
            tuples += [SERIES.encode(each) for each in readings]
            newest_us = max(newest_us, *(each.ts_us for each in readings), 0)
            owners += [item] * len(readings)
            errors += faults
        if len(owners) + len(errors) > post.rules.post_rows_max:
            raise too_many(post.rules.post_rows_max, "the post has more readings")
    return Rows(b"".join(tuples), len(owners), newest_us, owners)


def _originals(body: bytes, rows_max: int) -> list[bytes]:
    """Return the bytes of each item.

    Raises msgspec.DecodeError or UnicodeDecodeError if the body is not JSON in UTF-8.
    """
    body.decode()  # msgspec does not check the text that it skips
    if body.lstrip(JSON_SPACE)[:1] != b"[":
        _RAW.decode(body)
        return [body.strip(JSON_SPACE)]
    raws = _RAWS.decode(body)
    if len(raws) > rows_max:
        raise too_many(rows_max, f"the post has {len(raws)} items")
    return [bytes(raw) for raw in raws]
