"""What all formats share: what a decoder is given besides the body, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

from msgspec import Struct

from ingest.formats.mapped.source import Source
from ingest.model.block import Block
from ingest.model.errors import Refused
from ingest.model.tables import NO_TABLES, Tables

# So many errors of a post get a message of their own and all their faults; the others the text of
# their code. A message costs as much as decoding ten readings.
ERRORS_TOLD_MAX = 20
ERRORS_MAX = 100  # are listed in an answer
# A dead letter of `0` has 369 bytes. So a post may have few invalid items that are shorter than a
# valid one can be: `{"device_id":"a","values":{"b":1}}` has 34 bytes.
INVALID_FEW = ERRORS_MAX
ITEM_BYTES_MIN = 32
EXACT_MAX = 2.0**53  # a float64 holds every integer up to this one
# The tags of line protocol whose value is the device; the first one that a line has. They are of
# our own clients, ChirpStack, Home Assistant, airRohr, vzlogger and Telegraf.
DEVICE_TAGS = ("device_id", "device", "dev_eui", "entity_id", "node", "uuid", "host")


class Rules(NamedTuple):
    """The settings that decide what a valid post is.

    `device_tags` and `line_escapes` are of line protocol. `sources` are the mappings by name.
    `tables` are the declared ones.
    """

    post_rows_max: int
    ts_min_us: int
    ts_ahead_us_max: int
    integers_rounded: bool = False  # a value that float64 cannot hold is no error
    device_tags: tuple[str, ...] = DEVICE_TAGS
    line_escapes: str = "influxdb"
    sources: Mapping[str, Source] = MappingProxyType({})
    tables: Tables = NO_TABLES


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


class Post(Struct, frozen=True, gc=False):
    """What all items of one post have in common.

    `precision` is the unit of numeric times (s, ms, us, ns; None: by magnitude). The post was
    received at `received_us` (Unix microseconds) and at `received_s` (monotonic). A reading without
    a time gets `received_us`. `allows`: whether the sender may speak for a device; None: for all.
    `device`: that of a SenML record that names none; "" if there is none.
    """

    precision: str | None
    ignore_unknown: bool
    received_us: int
    received_s: float
    rules: Rules
    allows: Callable[[str], bool] | None = None
    device: str = ""

    def ts_fault(self, ts_us: int) -> tuple[str, str] | None:
        """Return why no reading may have this time: a code, and words behind the time."""
        if ts_us < self.rules.ts_min_us:
            return "ts_too_old", "is before the oldest time that is accepted"
        is_ahead = ts_us > self.received_us + self.rules.ts_ahead_us_max
        return ("ts_in_future", "is too far ahead of now") if is_ahead else None


class Decoded(NamedTuple):
    """What a decoder returns. `block` is None if no reading is valid.

    A post counts as `block.rows` readings and one for each error. `texts` are values of SenML that
    are no numbers, and are left out.
    """

    block: Block | None
    errors: list[ItemError]
    texts: int = 0

    @property
    def points(self) -> Points:
        """The same as what a post of several blocks has."""
        return Points([] if self.block is None else [self.block], self.errors, self.texts)


class Points(NamedTuple):
    """What a post has: its readings in blocks, an error for each item with a fault, or nothing.

    `texts` of its values are text; they are not kept. `rounded` of them are integers that float64
    cannot hold. `not_kept` of its items have a fault and no entry in `errors`, since there are too
    many of them. `ignored` events are left out by a mapping. `hints` are sentences about values
    that the author of the mapping may mean otherwise.
    """

    blocks: Sequence[Block]
    errors: list[ItemError]
    texts: int = 0
    rounded: int = 0
    not_kept: int = 0
    ignored: int = 0
    hints: tuple[str, ...] = ()

    def of_item(self, body_bytes: int, why_empty: str) -> Decoded:
        """Return the same for an item, which has at most one block. Raises Refused."""
        if self.not_kept:
            raise too_many_invalid(self.errors, body_bytes)
        if not (self.blocks or self.errors):
            raise Refused("empty", why_empty)
        return Decoded(self.blocks[0] if self.blocks else None, self.errors)


NO_POINTS = Points([], [])
NOTHING_ELSE = NO_POINTS[1:]  # of a post that has only readings


# Each `next` does a short step of the work; the result comes with StopIteration. Raises Refused.
Steps = Generator[None, None, Decoded]
# From the bytes of a body to a block and errors, or to the steps that lead there if they take more
# than a moment. Raises Refused and nothing else.
Decode = Callable[[bytes, Post], Decoded | Steps]
_Read = TypeVar("_Read")


def finished(begun: _Read | Generator[None, None, _Read]) -> _Read:
    """Return what a decoder has returned, or do its steps in one go. Raises Refused."""
    if not isinstance(begun, Generator):
        return begun
    while True:
        try:
            next(begun)
        except StopIteration as end:
            return cast("_Read", end.value)


def too_many_of_post(readings_max: int) -> Refused:
    """Return the refusal of a post of a mapped source with too many readings."""
    return Refused(
        "too_many_readings",
        f"a post may have {readings_max} readings; split it",
        readings_max=readings_max,
    )


def too_many(rows_max: int, why: str = "the post has too many readings") -> Refused:
    """Return the refusal of a post with more readings than allowed, or with too many parts."""
    return Refused(
        "too_many_readings",
        f"{why}: a post may have {rows_max} readings, and each entry of `values` is one",
        readings_max=rows_max,
    )


def received_at(times_us: Sequence[int], at: int, post_us: int) -> int:
    """Return when document `at` was received: by who has posted it, else by us with its post.

    A document behind the last time has the last time.
    """
    return times_us[min(at, len(times_us) - 1)] if times_us else post_us


def most_invalid(body_bytes: int) -> int:
    """Return how many invalid items a post may have: at least as many as fit in at full length."""
    return INVALID_FEW + body_bytes // ITEM_BYTES_MIN


def most_items(body_bytes: int) -> int:
    """Return a number of items: if a body has more, too many are surely too short to be valid.

    Each item has at least one byte and a comma; if v of n items are valid, 33 v + 2 (n - v) is at
    most the body. For n above this number, n - v is above `most_invalid`.
    """
    return INVALID_FEW + body_bytes // (ITEM_BYTES_MIN // 2)


def too_many_invalid(errors: Sequence[ItemError], body_bytes: int) -> Refused:
    """Return the refusal of a post with more invalid items than are kept."""
    return Refused(
        "invalid_items",
        f"the post has more than {most_invalid(body_bytes)} invalid items: {INVALID_FEW}, and one "
        f"for each {ITEM_BYTES_MIN} bytes",
        **named(errors),
    )


def named(errors: Sequence[ItemError]) -> dict[str, Any]:
    """Return the members `errors` and, if there are too many, `errors_truncated`."""
    return limited([shown(error) for error in errors[:ERRORS_MAX]], len(errors))


def shown(error: ItemError) -> dict[str, Any]:
    """Return the entry of `errors` for one invalid item."""
    field = {} if error.field is None else {"field": error.field}
    shown = {"index": error.item, "code": error.code, "message": error.message, **field}
    if error.also:
        shown["also"] = [{"field": field, "code": code} for field, code in error.also]
    return shown


def limited(entries: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Return the member `errors`, and `errors_truncated` if `count` errors are more than these."""
    truncated = {"errors_truncated": True} if count > len(entries) else {}
    return {"errors": entries, **truncated}
