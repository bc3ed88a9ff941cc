"""What every format shares: the rules of a post, what it asks for, and what came of its body."""

from __future__ import annotations

from typing import NamedTuple

from ingest.model.block import Block
from ingest.model.errors import Refused


class Rules(NamedTuple):
    """What the settings say about a post."""

    post_rows_max: int
    ts_min_us: int
    ts_ahead_us_max: int


class ItemError(NamedTuple):
    """One reading, or one item as a whole, that is not kept.

    `item` is the index in the array, `code` a key of `codes.ITEM_CODES`, `original` the bytes of
    the whole item as posted.
    """

    item: int
    field: str | None
    code: str
    message: str
    original: bytes


class Post(NamedTuple):
    """What all items of one post have in common."""

    precision: str | None
    ignore_unknown: bool
    received_us: int
    rules: Rules


class Decoded(NamedTuple):
    """What a body held. `block` is None if no reading is valid.

    Readings posted: `block.rows` and one for each error.
    """

    block: Block | None
    errors: list[ItemError]


def too_many(rows_max: int, found: str) -> Refused:
    """Return the refusal of a post that has more readings than it may."""
    return Refused(
        "too_many_readings",
        f"{found}; a post may have {rows_max} readings",
        readings_max=rows_max,
    )
