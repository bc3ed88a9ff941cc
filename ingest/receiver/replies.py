"""The bodies of a post's answer: what was accepted, and which items were not.

Promises: `accepted + dead_lettered` is the number of readings posted; at most ERRORS_MAX errors are
listed, and `errors_truncated` says when there are more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from ingest.formats.post import ItemError
from ingest.http.response import Answer
from ingest.model.ack import Outcome
from ingest.model.block import Block
from ingest.model.codes import ITEM_CODES

ERRORS_MAX = 100
REFUSED = "refused_by_database"


def named(errors: Sequence[ItemError]) -> dict[str, Any]:
    """Return the members `errors` and, where needed, `errors_truncated`."""
    return _limited([_shown(error) for error in errors[:ERRORS_MAX]], len(errors))


def accepted(ack: str, rows: int, errors: Sequence[ItemError]) -> Answer:
    """Answer a post that is on its way: 202."""
    if not errors:
        return Answer(
            202,
            b'{"accepted":%d,"dead_lettered":0,"ack":"%b","errors":[]}' % (rows, ack.encode()),
        )
    document = {"accepted": rows, "dead_lettered": len(errors), "ack": ack, **named(errors)}
    return Answer(202, orjson.dumps(document))


def committed(block: Block, errors: Sequence[ItemError], outcome: Outcome) -> Answer:
    """Answer a post that is in the table, but for the rows that the database refused: 200.

    The database's own words stay inside: its messages show names of tables and constraints.
    """
    shown = [_shown(error) for error in errors]
    for refusal in outcome.refusals:
        index = refusal.row if block.items is None else block.items[refusal.row]
        shown.append(
            {
                "index": index,
                "code": REFUSED,
                "message": ITEM_CODES[REFUSED],
                "sqlstate": refusal.sqlstate,
            }
        )
    shown.sort(key=lambda error: error["index"])
    document = {
        "accepted": block.rows - len(outcome.refusals),
        "dead_lettered": len(errors) + len(outcome.refusals),
        "ack": "committed",
        **_limited(shown[:ERRORS_MAX], len(shown)),
    }
    return Answer(200, orjson.dumps(document))


def _shown(error: ItemError) -> dict[str, Any]:
    shown = {"index": error.item, "code": error.code, "message": error.message}
    if error.field is not None:
        shown["field"] = error.field
    return shown


def _limited(shown: list[dict[str, Any]], count: int) -> dict[str, Any]:
    if count > len(shown):
        return {"errors": shown, "errors_truncated": True}
    return {"errors": shown}
