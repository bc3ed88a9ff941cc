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
from collections.abc import Iterable, Sequence
from itertools import repeat

import orjson
from msgspec import Struct

from ingest.formats.lines.keys import Keys, Named
from ingest.formats.moments import each_of, place_moment
from ingest.formats.post import EXACT_MAX, Post
from ingest.formats.timestamp import Times, integers_us, number_us
from ingest.model.block import PG_EPOCH_US, encode_row

_ALL = bytes(range(256))
_NO_SPACES = _ALL.translate(None, b" \n")  # all bytes but these
NO_MARKS = _ALL.translate(None, b"=, ")
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
DOUBTS = (KeyError, TypeError, ValueError)


# A line of one field, as most devices send it: key, field, number, time. `many` reads all else. It
# has nothing that would have to be marked.
_ONE = re.compile(
    rb"""([^ "\\\r\n\xff]+)[ ]([^ =,"\\\r\n\xff]+)=(-?(?:0|[1-9][0-9]{0,14})(?:[.][0-9]{1,15})?)
    (?:[ ](-?[1-9][0-9]{0,18}))?\n?""",
    re.VERBOSE,
)
ONE_BYTES_MAX = 512


class Columns(Struct, frozen=True, gc=False):
    """The rows of some lines. `counts[i]` is how many rows line i has; None: each has one.

    `are_taken`: declared tables may take some of them.
    """

    times_pg_us: Sequence[int]
    names: list[bytes]
    values: list[float]
    newest_us: int
    lines: int
    counts: list[int] | None
    are_taken: bool


class TakenLines(Struct, frozen=True, gc=False):
    """Lines of which declared tables may take some values: key, fields and time of each.

    `named` are what the keys tell, and `new` those that are not kept yet.
    """

    keys: list[bytes]
    fields: list[bytes]
    times: Times
    named: list[Named]
    new: dict[bytes, Named]

    def columns(self, *, are_taken: bool) -> Columns | None:
        """Return the rows of these lines, or None if there is a doubt."""
        try:
            cells = _cells(self.fields)
            if cells is None:
                return None
            named, times_pg_us, counts = _of_fields(cells[0], self.fields, self.named, self.times)
            columns = zip(named, cells[0], strict=True)
            names = [
                needle + (shape.taken.get(field) or shape[field])
                for (needle, shape), field in columns
            ]
        except DOUBTS:
            return None
        newest_us, lines = self.times.newest_us, len(self.keys)
        return Columns(times_pg_us, names, cells[1], newest_us, lines, counts, are_taken)


def one(text: bytes, keys: Keys, post: Post) -> tuple[int, bytes] | None:
    """Return time (Unix microseconds) and row of a body of one reading, or None.

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
    value = float(number) + 0.0  # -0.0 becomes 0.0
    try:
        named, new = _named([key], keys, post)
        ((needle, shape),) = named
        try:
            row = encode_row(ts_us, needle + shape[field], value)
        except KeyError:
            device_id, metric = needle[4:].decode(), shape.taken[field][4:-4].decode()
            row = place_moment(ts_us, device_id, {metric: value}, rules.tables)[0]
    except DOUBTS:
        return None
    if new:
        keys.keep(new)
    return ts_us, row


def many(text: bytes, keys: Keys, post: Post) -> Columns | TakenLines | None:
    """Return the rows of whole lines, marked and without `"`, or None if there is a doubt.

    A line feed ends each line but the last one, which may have one. If a declared table may take
    some of the values, they are returned as lines.
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
    try:
        stamps = tokens[2::3] if parts == 3 else []
        return _read(tokens[::parts], tokens[1::parts], stamps, keys, post)
    except DOUBTS:
        return None


def _read(
    texts: list[bytes], field_sets: list[bytes], stamps: list[bytes], keys: Keys, post: Post
) -> Columns | TakenLines | None:
    """Read keys, fields and times of lines; without times there are no stamps. Raises DOUBTS."""
    found = None
    if keys.kept.are_taken:
        found = _named(texts, keys, post)
        if _are_taken(found[0]):
            times = _times(stamps, post) if stamps else _times_of_receipt(len(texts), post)
            return None if times is None else TakenLines(texts, field_sets, times, *found)
    cells = _cells(field_sets)
    times = _times(stamps, post) if stamps else _times_of_receipt(len(texts), post)
    if cells is None or times is None:
        return None
    named, new = found or _named(texts, keys, post)
    fields, values = cells
    of_fields, times_pg_us, counts = _of_fields(fields, field_sets, named, times)
    try:
        columns = zip(of_fields, fields, strict=True)
        names = [needle + shape[field] for (needle, shape), field in columns]
    except KeyError:
        if not _are_taken(named):
            raise
        return TakenLines(texts, field_sets, times, named, new)
    if new:
        keys.keep(new)
    return Columns(times_pg_us, names, values, times.newest_us, len(texts), counts, False)


def _are_taken(named: list[Named]) -> bool:
    """Whether declared tables take some fields of these keys."""
    return bool([shape for _, shape in named if shape.taken])


def _cells(field_sets: list[bytes]) -> tuple[list[bytes], list[float]] | None:
    """Return name and value of all fields, or None if there is a doubt."""
    joined = b",".join(field_sets)
    rows = joined.count(b"=")
    if joined.translate(None, NO_MARKS) != b"=," * (rows - 1) + b"=":
        return None
    cells = joined.replace(b"=", b",").split(b",")
    values = values_of(cells[1::2])
    return None if values is None or len(values) != rows else (cells[::2], values)


def _of_fields(
    fields: list[bytes], field_sets: list[bytes], named: Iterable[Named], times: Times
) -> tuple[Iterable[Named], Sequence[int], list[int] | None]:
    """Return what the key of each field tells, its time, and how many fields the lines have."""
    if len(fields) == len(field_sets):
        return named, times.pg_us, None
    counts = [*map(bytes.count, field_sets, repeat(b"="))]
    return each_of(named, counts), [*each_of(times.pg_us, counts)], counts


def _named(texts: list[bytes], keys: Keys, post: Post) -> tuple[list[Named], dict[bytes, Named]]:
    """Do what `keys.named` does. Raises KeyError also if a device is not allowed."""
    named, new = keys.named(texts)
    allows = post.allows
    if allows is not None:
        for needle in {needle for needle, _ in named}:
            if not allows(needle[4:].decode()):
                raise KeyError(needle)
    return named, new


def values_of(texts: list[bytes]) -> list[float] | None:
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


def _times(texts: list[bytes], post: Post) -> Times | None:
    """Return the times, or None if one has a fault or is not allowed."""
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
    return times


def _times_of_receipt(lines: int, post: Post) -> Times:
    received_us = post.received_us
    return Times([received_us - PG_EPOCH_US] * lines, received_us, received_us)
