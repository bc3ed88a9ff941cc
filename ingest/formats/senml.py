"""SenML JSON (RFC 8428): from a pack to a block of its readings, and errors for invalid records.

The body is cut into slices as JSON is, and each record is resolved with the base fields that are in
effect. `v` and `vb` are values; `vs` and `vd` are left out and counted; the sum `s` is a metric of
its own. A record that only has base fields gives no reading. The unit is a part of the metric: a
name may have several. Unknown fields are ignored.
Promises: the bytes of an error are a pack of one record without its brackets: the base fields are
written into it. So it is read later as what it was.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

from ingest.formats.item_reader import CAREFUL_ITEMS, ItemReader, require_possible, whole
from ingest.formats.json_post import originals_of
from ingest.formats.json_slices import SPACE, slices
from ingest.formats.json_whole import EXACT_MAX, Rows, may_repeat
from ingest.formats.line_series import tags_text
from ingest.formats.post import ERRORS_TOLD_MAX, Decoded, ItemError, Post, Steps
from ingest.formats.senml_record import Bad, alone, error_of, exactly
from ingest.formats.senml_state import BASE, SUM, Base, Number, split_name, time_us
from ingest.formats.series import SERIES
from ingest.model.codes import NOT_ALLOWED
from ingest.model.errors import Refused
from ingest.model.reading import name_fault
from ingest.model.rows import PG_EPOCH_US, encode_rows

WHOLE_BYTES = 4 * 1024  # a body of this size is decoded in one step
LARGE_FLOAT = 2.0**63  # the parser gives an integer beyond 64 bits as a float
_VALUES = ("v", "vb", "vs", "vd")
_SINGLE = frozenset({"n", "u", "v", "t", "ut", *BASE})  # fields of a record with one number
_PLAIN = _SINGLE - BASE


class _Doubtful(Exception):
    """The parser may have hidden something of this slice."""


def decode(body: bytes, post: Post) -> Decoded:
    """Do what `begin` does, in one go."""
    return whole(begin, body, post)


def begin(body: bytes, post: Post) -> Decoded | Steps:
    """Return the steps to one block of the valid readings and errors for the other records.

    The steps raise Refused: `not_json`, `not_senml`, `empty` if no record has a number,
    `too_many_readings`, `item_too_large`, `invalid_items`.
    """
    pack = _Pack(post, len(body))
    steps = pack.reader.finish(pack.read_all(body))
    return whole(lambda *_: steps, body, post) if len(body) <= WHOLE_BYTES else steps


class _Pack:
    """What has been read of one pack."""

    def __init__(self, post: Post, body_bytes: int) -> None:
        self.reader = ItemReader(post, body_bytes)
        self._post = post
        self._base = Base()
        self._names: dict[tuple[str, str, str], bytes] = {}  # by whole name, unit and kind
        self._text = b""  # the slice that is read
        self._originals: list[bytes] = []  # its records, if they were needed

    def read_all(self, body: bytes) -> Generator[None, None, None]:
        """Read a body in slices."""
        reader = self.reader
        for each in slices(body, self._post.rules.post_rows_max, lambda: reader.is_all_bad):
            yield
            if each is None:
                continue  # the parser tried a slice that was too short
            records, text = each
            if text.lstrip(SPACE)[:1] != b"[":
                raise Refused("not_senml", "a SenML pack is an array of records")
            if not reader.items:
                require_possible(len(records), self._post)
            self._text, self._originals = text, []
            if reader.is_crowd(len(records)):
                self._read_few(records[:CAREFUL_ITEMS], 0)
                raise reader.too_many_invalid()
            yield from self._read(records)
        if not reader.rows and not reader.errors:
            raise Refused("empty", "no record has a number; texts (vs, vd) are not stored")

    def _read(self, records: list[Any]) -> Generator[None, None, None]:
        """Read the records of a slice, a few in each step."""
        is_careful = _may_repeat(records, self._text)
        for start in range(0, len(records), CAREFUL_ITEMS):
            if start:
                yield
            some = records[start : start + CAREFUL_ITEMS]
            before = self._base, self.reader.texts
            try:
                self._read_few(some, start, is_careful=is_careful)
            except _Doubtful:
                self._base, self.reader.texts = before
                is_careful = True
                self._read_few(some, start, is_careful=True)
            self.reader.check_errors()

    def _original(self, place: int) -> bytes:
        """Return the bytes of a record of the slice."""
        self._originals = self._originals or originals_of(self._text)
        return self._originals[place]

    def _read_few(self, records: list[Any], start: int, *, is_careful: bool = False) -> None:
        reader = self.reader
        times_us: list[int] = []
        names: list[bytes] = []
        values: list[float] = []
        owners: list[int] = []
        errors: list[ItemError] = []
        for place, record in enumerate(records):
            before = self._base
            try:
                if is_careful:
                    record = exactly(self._original(start + place))  # noqa: PLW2901
                found = self._resolved(record, is_careful=is_careful)
            except Bad as bad:
                original = alone(self._original(start + place), record, before)
                told = len(reader.errors) + len(errors) < ERRORS_TOLD_MAX
                errors.append(error_of(bad, reader.items + place, original, told=told))
                continue
            if found is not None:
                ts_us, numbers = found
                times_us += [ts_us - PG_EPOCH_US] * len(numbers)
                owners += [place] * len(numbers)
                for name, number in numbers:
                    names.append(name)
                    values.append(number)
        reader.errors += errors
        reader.is_all_bad = bool(errors) and not names
        newest_us = max(times_us) + PG_EPOCH_US if times_us else 0
        tuples = encode_rows(times_us, names, values) if names else b""
        items = None if owners == [*range(len(records))] else owners
        reader.keep(Rows(tuples, len(names), newest_us, items), len(records))

    def _resolved(
        self, record: Any, *, is_careful: bool
    ) -> tuple[int, list[tuple[bytes, float]]] | None:
        """Return the time of a record, and its values with their names; None if it has none.

        Raises Bad, _Doubtful, and Refused if a base field is wrong.
        """
        if type(record) is not dict:
            raise Bad(None, "not_an_object")
        base = self._base
        if not _PLAIN.issuperset(record):
            if not BASE.isdisjoint(record):
                base = self._base = base.after(record)
                if not is_careful and base.is_large(LARGE_FLOAT):
                    raise _Doubtful
            for field in record:
                if field[-1:] == "_":
                    raise Bad(field[:64], "unknown_field")
        if "v" in record and base.bs is None and _SINGLE.issuperset(record):
            numbers = [("", self._number("v", base.bv, record, is_careful))]
        else:
            numbers = self._numbers(record, base, is_careful)
        if not numbers:
            return None
        own = record.get("n", "")
        if type(own) is not str:
            raise Bad("n", "wrong_type")
        ts_us = self._time(record, base)
        unit = record.get("u", base.bu)
        if type(unit) is not str:
            raise Bad("u", "wrong_type")
        whole = base.bn + own
        return ts_us, [(self._name(whole, unit, kind), number) for kind, number in numbers]

    def _numbers(self, record: Any, base: Base, is_careful: bool) -> list[tuple[str, float]]:
        """Return the value and the sum of a record, as far as it has them; count a text."""
        given = [field for field in _VALUES if field in record]
        if len(given) > 1:
            raise Bad(given[1], "both_shapes")
        field = given[0] if given else ""
        has_more = not record.keys() <= BASE
        numbers: list[tuple[str, float]] = []
        if field == "v" or (not given and base.bv is not None and has_more):
            numbers.append(("", self._number("v", base.bv, record, is_careful)))
        elif field == "vb":
            if type(record["vb"]) is not bool:
                raise Bad("vb", "wrong_type")
            numbers.append(("", float(record["vb"])))
        if "s" in record or (base.bs is not None and has_more):
            numbers.append((SUM, self._number("s", base.bs, record, is_careful)))
        if field in ("vs", "vd"):
            self.reader.texts += 1
        elif has_more and not numbers:
            raise Bad("v", "missing_field")
        return numbers

    def _number(self, field: str, base: Number | None, record: Any, is_careful: bool) -> float:
        """Return the sum of a base field and a field. Raises Bad and _Doubtful."""
        number = record.get(field, 0)
        kind = type(number)
        if kind is not float and kind is not int:
            raise Bad(field, "wrong_type")
        if kind is float and abs(number) >= LARGE_FLOAT and not is_careful:
            raise _Doubtful
        try:
            if base is not None:
                number += base
            found: float = number + 0.0  # -0.0 becomes 0.0
        except OverflowError:
            raise Bad(field, "value_out_of_range") from None
        if not math.isfinite(found):
            raise Bad(field, "value_out_of_range")
        is_large = type(number) is int and abs(found) >= EXACT_MAX
        if is_large and int(found) != number and not self._post.rules.integers_rounded:
            raise Bad(field, "value_not_exact")
        return found

    def _time(self, record: Any, base: Base) -> int:
        post = self._post
        own = record.get("t")
        if own is None and base.bt is None and "t" not in record:
            return post.received_us
        if type(own) not in (int, float) and "t" in record:
            raise Bad("t", "wrong_type")
        ts_us = time_us(base.bt, own, post.received_us)
        if not isinstance(ts_us, int):
            raise Bad("t", ts_us[0])
        if ts_us < post.rules.ts_min_us:
            raise Bad("t", "ts_too_old")
        if ts_us > post.received_us + post.rules.ts_ahead_us_max:
            raise Bad("t", "ts_in_future")
        return ts_us

    def _name(self, whole_name: str, unit: str, kind: str) -> bytes:
        """Return the names of a row. Raises Bad."""
        key = whole_name, unit, kind
        known = self._names.get(key)
        if known is not None:
            return known
        device, metric = split_name(whole_name)
        device = device or self._post.device
        metric += tags_text({"u": unit} if unit else {})
        if not device:
            raise Bad("n", "no_device")
        if self._post.allows is not None and not self._post.allows(device):
            raise Bad("n", NOT_ALLOWED)
        try:
            names = self._names[key] = SERIES.names(metric + kind, device)
        except KeyError:
            fault = name_fault(device) or name_fault(metric + kind)
            raise Bad("n", fault[0] if fault else "name_empty") from None
        return names


def _may_repeat(records: list[Any], text: bytes) -> bool:
    try:
        return may_repeat(records, text)
    except TypeError:  # a number that is infinite cannot be written again
        return True
