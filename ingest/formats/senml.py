"""SenML JSON (RFC 8428): from a pack to a block of its readings, and errors for invalid records.

The body is cut into slices as JSON is. Each record is read exactly (senml_record.py), and resolved
with the base fields that are in effect. `v` and `vb` are values; `vs` and `vd` are left out and
counted; the sum `s` is a metric of its own. A record that only has base fields gives no reading.
The unit is a part of the metric: a name may have several. Unknown fields are ignored.
Promises: the bytes of an error are a pack of one record without its brackets: the base fields are
written into it. So it is read later as what it was.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from ingest.formats.item_reader import ItemReader, ItemReadings, require_possible
from ingest.formats.json_item import value_of
from ingest.formats.json_post import originals_of
from ingest.formats.json_slices import SPACE, slices
from ingest.formats.line_escapes import tags_text
from ingest.formats.post import Decoded, ItemError, Post, Steps, finished
from ingest.formats.senml_record import Bad, alone, error_of, exactly
from ingest.formats.senml_state import BASE, SUM, Base, Number, split_name, time_us
from ingest.model.codes import NOT_ALLOWED
from ingest.model.errors import Refused
from ingest.model.reading import name_fault

WHOLE_BYTES = 4 * 1024  # a body of this size is decoded in one step
_VALUES = ("v", "vb", "vs", "vd")


def begin(body: bytes, post: Post) -> Decoded | Steps:
    """Return the steps to one block of the valid readings and errors for the other records.

    The steps raise Refused: `not_json`, `not_senml`, `empty` if no record has a number,
    `too_many_readings`, `item_too_large`, `invalid_items`.
    """
    pack = _Pack(post, len(body))
    steps: Decoded | Steps = pack.reader.finish(pack.read_all(body))
    return finished(steps) if len(body) <= WHOLE_BYTES else steps


class _Pack:
    """What has been read of one pack."""

    def __init__(self, post: Post, body_bytes: int) -> None:
        self.reader = ItemReader(post, body_bytes)
        self._post = post
        self._base = Base()

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
            yield from reader.read_some(records, originals_of(text), self._read)
        if not reader.rows and not reader.errors:
            raise Refused("empty", "no record has a number; texts (vs, vd) are not stored")

    def _read(
        self, record: Any, original: bytes, item: int, _post: Post, told: bool
    ) -> tuple[ItemReadings | None, ItemError | None]:
        """Return the readings of a record, or its error; neither if it has no number.

        `record` is the parsed `original`; the parser may have hidden something of it. Raises
        Refused if a base field is wrong.
        """
        before = self._base
        try:
            return self._resolved(exactly(original)), None
        except Bad as bad:
            return None, error_of(bad, item, alone(original, record, before), told=told)

    def _resolved(self, record: Any) -> ItemReadings | None:
        """Return the readings of a record; None if it has none. Raises Bad, Refused."""
        if type(record) is not dict:
            raise Bad(None, "not_an_object")
        base = self._base
        if not BASE.isdisjoint(record):
            base = self._base = base.after(record)
        for field in record:
            if field[-1:] == "_":
                raise Bad(field[:64], "unknown_field")
        numbers = self._numbers(record, base)
        if not numbers:
            return None
        own = record.get("n", "")
        if type(own) is not str:
            raise Bad("n", "wrong_type")
        ts_us = self._time(record, base)
        unit = record.get("u", base.bu)
        if type(unit) is not str:
            raise Bad("u", "wrong_type")
        device, metric = self._name(base.bn + own, unit, numbers)
        return ts_us, device, {metric + kind: number for kind, number in numbers.items()}

    def _numbers(self, record: Any, base: Base) -> dict[str, float]:
        """Return the value and the sum of a record, as far as it has them; count a text."""
        given = [field for field in _VALUES if field in record]
        if len(given) > 1:
            raise Bad(given[1], "both_shapes")
        field = given[0] if given else ""
        has_more = not record.keys() <= BASE
        numbers: dict[str, float] = {}
        if field == "v" or (not given and base.bv is not None and has_more):
            numbers[""] = self._number("v", base.bv, record)
        elif field == "vb":
            if type(record["vb"]) is not bool:
                raise Bad("vb", "wrong_type")
            numbers[""] = float(record["vb"])
        if "s" in record or (base.bs is not None and has_more):
            numbers[SUM] = self._number("s", base.bs, record)
        if field in ("vs", "vd"):
            self.reader.texts += 1
        elif has_more and not numbers:
            raise Bad("v", "missing_field")
        return numbers

    def _number(self, field: str, base: Number | None, record: Any) -> float:
        """Return the sum of a base field and a field. Raises Bad."""
        number = record.get(field, 0)
        if type(number) not in (int, float):
            raise Bad(field, "wrong_type")
        try:
            number += 0 if base is None else base  # 0.0 is a base, too: the sum is a float64 then
        except OverflowError:
            raise Bad(field, "value_out_of_range") from None
        found = value_of(number, self._post)
        if isinstance(found, str):
            raise Bad(field, found)
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

    def _name(self, whole_name: str, unit: str, kinds: Iterable[str]) -> tuple[str, str]:
        """Return device and metric of a record. Raises Bad."""
        device, metric = split_name(whole_name)
        device = device or self._post.device
        metric += tags_text({"u": unit} if unit else {})
        if not device:
            raise Bad("n", "no_device")
        if self._post.allows is not None and not self._post.allows(device):
            raise Bad("n", NOT_ALLOWED)
        for name in (device, *(metric + kind for kind in kinds)):
            fault = name_fault(name)
            if fault is not None:
                raise Bad("n", fault[0])
        return device, metric
