"""The bodies of a post's answer: how many readings were accepted, and the errors of the others.

Promises: `accepted + dead_lettered` is the number of readings posted. At most ERRORS_MAX errors are
listed; `errors_truncated` is true if there are more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson

from ingest.formats.media_type import USUAL
from ingest.formats.post import ERRORS_MAX, ItemError, limited, named, shown
from ingest.http.request import Request
from ingest.http.response import Answer, problem
from ingest.model.ack import Outcome, Refusal
from ingest.model.block import Block
from ingest.model.codes import ITEM_CODES, NO_PARTITION, TS_TOO_OLD
from ingest.model.errors import Refused
from ingest.model.letter import REFUSED
from ingest.system.words import quoted

_KNOWN_TYPES = b"Accept: %b\r\n" % ", ".join(USUAL).encode()


def problem_of_readings(_: Request, refused: Refused, headers: bytes, close: bool) -> Answer:
    """Return the answer for a refused post; to an unknown media type it lists the known ones."""
    if refused.code == "unsupported_media_type":
        headers += _KNOWN_TYPES
    return problem(refused, headers=headers, close=close)


def accepted(ack: str, rows: int, errors: Sequence[ItemError]) -> Answer:
    """Answer a post whose readings are in the buffer: 202."""
    if not errors:
        return all_accepted(ack, rows)
    document = {"accepted": rows, "dead_lettered": len(errors), "ack": ack, **named(errors)}
    return Answer(202, orjson.dumps(document))


@lru_cache(maxsize=1024)
def all_accepted(ack: str, rows: int) -> Answer:
    """Answer a post whose readings are all in the buffer: 202. Many posts get the same answer."""
    return Answer(
        202,
        b'{"accepted":%d,"dead_lettered":0,"ack":"%b","errors":[]}' % (rows, ack.encode()),
    )


def committed(block: Block, errors: Sequence[ItemError], outcome: Outcome) -> Answer:
    """Answer a post that is in the table, without the rows that the database refused: 200.

    The database's own messages are not shown: they may have values and names of other tables.
    """
    told = [shown(error) for error in errors[:ERRORS_MAX]] + [
        _refused(each, each.row if block.items is None else block.items[each.row])
        for each in outcome.refusals[:ERRORS_MAX]
    ]
    told.sort(key=lambda error: error["index"])
    invalid = len(errors) + len(outcome.refusals)
    document = {
        "accepted": block.rows - len(outcome.refusals),
        "dead_lettered": invalid,
        "ack": "committed",
        **limited(told[:ERRORS_MAX], invalid),
    }
    return Answer(200, orjson.dumps(document))


def _refused(refusal: Refusal, index: int | None) -> dict[str, Any]:
    code = (TS_TOO_OLD if refusal.too_old else NO_PARTITION) if refusal.no_partition else REFUSED
    error = {
        "index": index,
        "code": code,
        "message": ITEM_CODES[code],
        "sqlstate": refusal.sqlstate,
    }
    if refusal.constraint is not None:
        error["message"] = f"the row violates the constraint {quoted(refusal.constraint)}"
        error["constraint"] = refusal.constraint
    return error
