"""What all formats share: what a decoder is given besides the body, and what it returns."""

from __future__ import annotations

from typing import NamedTuple

from ingest.model.block import Block
from ingest.model.errors import Refused


class Rules(NamedTuple):
    """The settings that decide what a valid post is."""

    post_rows_max: int
    ts_min_us: int
    ts_ahead_us_max: int


class ItemError(NamedTuple):
    """One invalid reading, or one item that is invalid as a whole.

    `item` is the index in the array, `code` a key of `codes.ITEM_CODES`, `original` the bytes of
    the whole item as posted.
    """

    item: int
    field: str | None
    code: str
    message: str
    original: bytes


class Post(NamedTuple):
    """What all items of one post have in common.

    `precision` is the unit of numeric times (s, ms, us, ns; None: by magnitude). The post was
    received at `received_us` (Unix microseconds) and at `received_s` (monotonic). A reading without
    a time gets `received_us`.
    """

    precision: str | None
    ignore_unknown: bool
    received_us: int
    received_s: float
    rules: Rules


class Decoded(NamedTuple):
    """What a decoder returns. `block` is None if no reading is valid.

    The number of readings posted is `block.rows` and one for each error.
    """

    block: Block | None
    errors: list[ItemError]


def too_many(rows_max: int, found: str) -> Refused:
    """Return the refusal of a post that has more readings than allowed."""
    return Refused(
        "too_many_readings",
        f"{found}; a post may have {rows_max} readings",
        readings_max=rows_max,
    )
