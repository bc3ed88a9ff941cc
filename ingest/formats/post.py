"""What all formats share: what a decoder is given besides the body, and what it returns."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

from msgspec import Struct

from ingest.model.block import Block
from ingest.model.errors import Refused

# So many errors of a post get a message of their own and all their faults; the others the text of
# their code. A message costs as much as decoding ten readings.
ERRORS_TOLD_MAX = 20


class Rules(NamedTuple):
    """The settings that decide what a valid post is."""

    post_rows_max: int
    ts_min_us: int
    ts_ahead_us_max: int
    integers_rounded: bool = False  # a value that float64 cannot hold is no error


class ItemError(Struct, frozen=True, gc=False):
    """One invalid item. Its valid entries of `values`, if it has some, are readings all the same.

    `item` is the index in the array, `code` a key of `codes.ITEM_CODES`, `original` the bytes of
    the whole item as posted. `also` has further faults of the item: field and code. A post may have
    thousands: the garbage collector need not look at them.
    """

    item: int
    field: str | None
    code: str
    message: str
    original: bytes
    also: tuple[tuple[str | None, str], ...] = ()


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

    A post counts as `block.rows` readings and one for each error.
    """

    block: Block | None
    errors: list[ItemError]


# Each `next` does a short step of the work; the result comes with StopIteration. Raises Refused.
Steps = Generator[None, None, Decoded]


def too_many(rows_max: int) -> Refused:
    """Return the refusal of a post that has more readings than allowed."""
    return Refused(
        "too_many_readings",
        f"the post has more readings than allowed; a post may have {rows_max} readings",
        readings_max=rows_max,
    )
