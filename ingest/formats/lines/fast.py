"""The fast path for line protocol: plain lines to the columns of their rows, all together.

Promises: it accepts nothing that careful.py would refuse, and reads the rest as that does.
Does not: name an error. At the first doubt it returns None; then there is a string, a comment, an
invalid line, or one of another form than the others.

It works on columns (all keys, all fields, all times); each step is one pass in C. A regular
expression for each line alone would cost more than all of this.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import orjson
from msgspec import Struct

from ingest.formats.lines.keys import Keys, Named
from ingest.formats.post import EXACT_MAX, Post
from ingest.formats.timestamp import integers_us, number_us
from ingest.model.block import PG_EPOCH_US

_ALL = bytes(range(256))
_NO_SPACES = _ALL.translate(None, b" \n")  # all bytes but these
_NO_MARKS = _ALL.translate(None, b"=, ")
_DIGITS = b"0123456789"
# What is left of a value without its digits, if JSON writes the value in the same way.
_SHAPES = {
    sign + point + exponent
    for sign in (b"", b"-")
    for point in (b"", b".")
    for exponent in (b"", b"e", b"E", b"e-", b"E-", b"e+", b"E+")
}
_INTEGERS = {b"i", b"-i", b"u"}
BOOLEANS = {
    **dict.fromkeys((b"t", b"T", b"true", b"True", b"TRUE"), b"1"),
    **dict.fromkeys((b"f", b"F", b"false", b"False", b"FALSE"), b"0"),
}
_KNOWN_SHAPES = _SHAPES | _INTEGERS | BOOLEANS.keys()
_DOUBTS = (KeyError, TypeError, ValueError)


# A line of one field, as most devices send it: key, field, number, time. `many` reads all else. It
# has nothing that would have to be marked.
_ONE = re.compile(
    rb"""([^ "\\\r\n\xff]+)[ ]([^ =,"\\\r\n\xff]+)=(-?(?:0|[1-9][0-9]{0,14})(?:[.][0-9]{1,15})?)
    (?:[ ](-?[1-9][0-9]{0,18}))?\n?""",
    re.VERBOSE,
)
ONE_BYTES_MAX = 512


class Columns(Struct, frozen=True, gc=False):
    """The rows of some lines. `counts[i]` is how many rows line i has; None: each has one."""

    times_pg_us: Sequence[int]
    names: list[bytes]
    values: list[float]
    newest_us: int
    lines: int
    counts: list[int] | None


def one(text: bytes, keys: Keys, post: Post) -> tuple[int, bytes, float] | None:
    """Return time (Unix microseconds), names and value of a body of one reading, or None.

    It costs a third of `many`. None is no fault: `many` reads more, and careful.py all.
    """
    found = _ONE.fullmatch(text)
    if found is None:
        return None
    key, field, number, stamp = found.groups()
    rules = post.rules
    ts_us = post.received_us if stamp is None else number_us(int(stamp), post.precision)
    if (
        not isinstance(ts_us, int)
        or not rules.ts_min_us <= ts_us <= post.received_us + rules.ts_ahead_us_max
    ):
        return None
    try:
        named, new = _named([key], keys, post)
        ((needle, shape),) = named
        names = needle + shape[field]
    except _DOUBTS:
        return None
    if new:
        keys.keep(new)
    return ts_us, names, float(number) + 0.0  # -0.0 becomes 0.0


def many(text: bytes, keys: Keys, post: Post) -> Columns | None:
    """Return the rows of whole lines, marked and without `"`, or None if there is a doubt.

    A line feed ends each line but the last one, which may have one.
    """
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").removesuffix(b"\r")
    text = text.removesuffix(b"\n")
    lines = text.count(b"\n") + 1
    spaces = text.translate(None, _NO_SPACES)
    parts = 3 if spaces[:2] == b"  " else 2
    if spaces != (b" " * (parts - 1) + b"\n") * (lines - 1) + b" " * (parts - 1):
        return None
    tokens = text.replace(b"\n", b" ").split(b" ")
    field_sets = tokens[1::parts]
    joined = b",".join(field_sets)
    rows = joined.count(b"=")
    if joined.translate(None, _NO_MARKS) != b"=," * (rows - 1) + b"=":
        return None
    cells = joined.replace(b"=", b",").split(b",")
    try:
        values = _values(cells[1::2])
        times = (
            _times(tokens[2::3], post)
            if parts == 3
            else ([post.received_us - PG_EPOCH_US] * lines, post.received_us)
        )
        if values is None or times is None or len(values) != rows:
            return None
        named, new = _named(tokens[::parts], keys, post)
        times_pg_us, newest_us = times
        counts = None
        if rows > lines:
            counts = [*map(bytes.count, field_sets, repeat(b"="))]
            named = _spread(named, counts)
            times_pg_us = [*_spread(times_pg_us, counts)]
        names = [
            needle + shape[field] for (needle, shape), field in zip(named, cells[::2], strict=True)
        ]
    except _DOUBTS:
        return None
    if new:
        keys.keep(new)
    return Columns(times_pg_us, names, values, newest_us, lines, counts)


def _named(texts: list[bytes], keys: Keys, post: Post) -> tuple[list[Named], dict[bytes, Named]]:
    """Do what `keys.named` does. Raises KeyError also if a device is not allowed."""
    named, new = keys.named(texts)
    allows = post.allows
    if allows is not None:
        for needle in {needle for needle, _ in named}:
            if not allows(needle[4:].decode()):
                raise KeyError(needle)
    return named, new


def _spread(cells: Any, counts: list[int]) -> Any:
    return chain.from_iterable(map(repeat, cells, counts))


def _values(texts: list[bytes]) -> list[float] | None:
    """Return the numbers of values, or None if one has a fault, or may be rounded."""
    joined = b",".join(texts)
    kinds = {*joined.translate(None, _DIGITS).split(b",")}
    if not kinds <= _SHAPES:
        if not kinds <= _KNOWN_SHAPES:
            return None
        if kinds & BOOLEANS.keys():
            joined = b",".join([BOOLEANS.get(each, each) for each in texts])
        if kinds & _INTEGERS:
            joined = (joined + b",").replace(b"i,", b",").replace(b"u,", b",")[:-1]
    numbers: list[int | float] = orjson.loads(b"[%b]" % joined)
    values = [number + 0.0 for number in numbers]  # -0.0 becomes 0.0
    return values if math.hypot(*values) < EXACT_MAX else None


def _times(texts: list[bytes], post: Post) -> tuple[Sequence[int], int] | None:
    """Return the times, and the newest one; None if one has a fault or is not allowed."""
    joined = b"[%b]" % b",".join(texts)
    if joined.translate(None, b"0123456789-,[]"):  # JSON has spaces that a time may not have
        return None
    stamps = orjson.loads(joined)
    if {*map(type, stamps)} != {int} or len(stamps) != len(texts):
        return None
    may_be_half = b"500," in joined or joined.endswith(b"500]")
    times = integers_us(stamps, post.precision, may_be_half=may_be_half)
    rules = post.rules
    if (
        times is None
        or times.oldest_us < rules.ts_min_us
        or times.newest_us > post.received_us + rules.ts_ahead_us_max
    ):
        return None
    return times.pg_us, times.newest_us
