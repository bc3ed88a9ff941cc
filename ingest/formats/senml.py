"""SenML JSON (RFC 8428): from a pack to a block of its readings, and errors for invalid records.

The body is cut into slices as JSON is. Each record is read exactly, and resolved with the base
fields that are in effect. `v` and `vb` are values; `vs` and `vd` are left out and counted; the sum
`s` is a metric of its own. A record that only has base fields gives no reading. The unit is a part
of the metric: a name may have several. Unknown fields are ignored.
Promises: a resolved record depends only on what the RFC calls resolved; how a sender splits names
and times between base fields and records changes nothing. Times and integers are exact. The bytes
of an error are a pack of one record without its brackets: the base fields are written into it. So
it is read later as what it was.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from ingest.formats.block_builder import ItemReader, ItemReadings, require_possible
from ingest.formats.json.body import originals_of
from ingest.formats.json.careful import PAIRS, Pairs, value_of
from ingest.formats.json_slices import SPACE, not_json, parsed, slices
from ingest.formats.line_escapes import tags_text
from ingest.formats.post import Decoded, ItemError, Post, Steps, finished
from ingest.formats.timestamp import sum_us
from ingest.model.codes import ITEM_CODES, NOT_ALLOWED
from ingest.model.errors import Refused
from ingest.model.reading import name_fault

WHOLE_BYTES = 4 * 1024  # a body of this size is decoded in one step
VERSION_MAX = 10  # of SenML
RELATIVE_US = (1 << 28) * 1_000_000  # a smaller time counts from now
SUM = ",sum"  # no name of SenML has a comma, so this is no other metric
# Of `bn` and `bu`, which are joined with each name of a pack; device and metric have 256 each.
BASE_CHARACTERS_MAX = 600
SHORT_NAME = 300  # in characters; longer ones are not kept in memory
NO_NAME = "value"  # the metric if a name is that of a device only

_VALUES = ("v", "vb", "vs", "vd")
BASE = frozenset({"bn", "bt", "bu", "bv", "bs", "bver"})
_KINDS: dict[str, tuple[type, ...]] = {
    "bn": (str,),
    "bt": (int, float),
    "bu": (str,),
    "bv": (int, float),
    "bs": (int, float),
    "bver": (int, float),  # 1e1 is 10
}
# RFC 9039: the device ends before the next separator.
_URN = re.compile(r"(urn:dev:[^:/_]+:[^:/_]+)(?:[:/_]+(.*))?", re.IGNORECASE | re.DOTALL)
_LAST = re.compile(r"[:/](?=[^:/]*$)")

_TEXTS = {
    "missing_field": "has none of v, vb, vs, vd and s",
    "both_shapes": "has more than one of v, vb, vs and vd",
    "unknown_field": "ends with _ and is unknown, so the record must not be used (RFC 8428)",
    "no_device": "has no device: a name is like urn:dev:mac:0123:temperature or room-1/temperature",
    "ts_in_future": "is beyond the newest accepted time",
    "ts_too_old": "is before the oldest accepted time",
}

Number = int | float


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
        self._base = _Base()

    def read_all(self, body: bytes) -> Generator[None, None, None]:
        """Read a body in slices."""
        reader = self.reader
        for each in slices(
            body,
            self._post.rules.post_rows_max,
            lambda text: parsed(text, is_suspect=reader.is_all_bad),
            keeps_moments=False,
        ):
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
        except _Bad as bad:
            usual = ITEM_CODES[bad.code]
            message = _TEXTS.get(bad.code, usual) if told else usual
            text = _alone(original, record, before)
            return None, ItemError(item, bad.field, bad.code, message, text)

    def _resolved(self, record: Any) -> ItemReadings | None:
        """Return the readings of a record; None if it has none. Raises _Bad, Refused."""
        if type(record) is not dict:
            raise _Bad(None, "not_an_object")
        base = self._base
        if not BASE.isdisjoint(record):
            base = self._base = base.after(record)
        for field in record:
            if field[-1:] == "_":
                raise _Bad(field[:64], "unknown_field")
        numbers = self._numbers(record, base)
        if not numbers:
            return None
        own = record.get("n", "")
        if type(own) is not str:
            raise _Bad("n", "wrong_type")
        ts_us = self._time(record, base)
        unit = record.get("u", base.bu)
        if type(unit) is not str:
            raise _Bad("u", "wrong_type")
        device, metric = self._name(base.bn + own, unit, numbers)
        return ts_us, device, {metric + kind: number for kind, number in numbers.items()}

    def _numbers(self, record: Any, base: _Base) -> dict[str, float]:
        """Return the value and the sum of a record, as far as it has them; count a text."""
        given = [field for field in _VALUES if field in record]
        if len(given) > 1:
            raise _Bad(given[1], "both_shapes")
        field = given[0] if given else ""
        has_more = not record.keys() <= BASE
        numbers: dict[str, float] = {}
        if field == "v" or (not given and base.bv is not None and has_more):
            numbers[""] = self._number("v", base.bv, record)
        elif field == "vb":
            if type(record["vb"]) is not bool:
                raise _Bad("vb", "wrong_type")
            numbers[""] = float(record["vb"])
        if "s" in record or (base.bs is not None and has_more):
            numbers[SUM] = self._number("s", base.bs, record)
        if field in ("vs", "vd"):
            self.reader.texts += 1
        elif has_more and not numbers:
            raise _Bad("v", "missing_field")
        return numbers

    def _number(self, field: str, base: Number | None, record: Any) -> float:
        """Return the sum of a base field and a field. Raises _Bad."""
        number = record.get(field, 0)
        if type(number) not in (int, float):
            raise _Bad(field, "wrong_type")
        try:
            number += 0 if base is None else base  # 0.0 is a base, too: the sum is a float64 then
        except OverflowError:
            raise _Bad(field, "value_out_of_range") from None
        found = value_of(number, self._post)
        if isinstance(found, str):
            raise _Bad(field, found)
        return found

    def _time(self, record: Any, base: _Base) -> int:
        post = self._post
        own = record.get("t")
        if own is None and base.bt is None and "t" not in record:
            return post.received_us
        if type(own) not in (int, float) and "t" in record:
            raise _Bad("t", "wrong_type")
        ts_us = sum_us(base.bt or 0, own or 0)
        if not isinstance(ts_us, int):
            raise _Bad("t", ts_us[0])
        if ts_us < RELATIVE_US:
            ts_us += post.received_us
        if fault := post.ts_fault(ts_us):
            raise _Bad("t", fault[0])
        return ts_us

    def _name(self, whole_name: str, unit: str, kinds: Iterable[str]) -> tuple[str, str]:
        """Return device and metric of a record. Raises _Bad."""
        device, metric = _split_name(whole_name)
        device = device or self._post.device
        metric += tags_text({"u": unit} if unit else {})
        if not device:
            raise _Bad("n", "no_device")
        if self._post.allows is not None and not self._post.allows(device):
            raise _Bad("n", NOT_ALLOWED)
        for name in (device, *(metric + kind for kind in kinds)):
            fault = name_fault(name)
            if fault is not None:
                raise _Bad("n", fault[0])
        return device, metric


class _Base(NamedTuple):
    """The base fields that are in effect; None: not set."""

    bn: str = ""
    bt: Number | None = None
    bv: Number | None = None
    bs: Number | None = None
    bver: Number | None = None
    bu: str = ""

    def after(self, record: dict[str, Any]) -> _Base:
        """Return the base with the fields of a record.

        Raises Refused (`not_senml`) if one is wrong: all later records would be read wrongly.
        """
        changed: dict[str, Any] = {}
        for field in BASE & record.keys():
            value = record[field]
            if type(value) not in _KINDS[field]:
                raise Refused("not_senml", f"the base field `{field}` has the wrong type")
            if type(value) is float and not math.isfinite(value):
                raise Refused("not_senml", f"the base field `{field}` does not fit into a float64")
            if type(value) is str and len(value) > BASE_CHARACTERS_MAX:
                why = f"the base field `{field}` has more than {BASE_CHARACTERS_MAX} characters"
                raise Refused("not_senml", why)
            if field == "bver" and not (1 <= value <= VERSION_MAX and value % 1 == 0):
                raise Refused("not_senml", f"only versions of SenML up to {VERSION_MAX} are known")
            changed[field] = value
        return self._replace(**changed)

    def fields(self) -> dict[str, Any]:
        """Return the fields as a record has them."""
        return {name: value for name, value in self._asdict().items() if value not in (None, "")}


def _split_name(name: str) -> tuple[str, str]:
    """Return the device and the metric of a record's whole name; the device may be empty."""
    return _split(name) if len(name) <= SHORT_NAME else _split.__wrapped__(name)


@lru_cache(maxsize=8_192)
def _split(name: str) -> tuple[str, str]:
    urn = _URN.fullmatch(name)
    if urn is not None:
        return urn[1], urn[2] or NO_NAME
    last = _LAST.search(name)
    if last is None:
        return "", name
    device, metric = name[: last.start()].rstrip(":/"), name[last.end() :]
    if not metric:
        return device, NO_NAME
    if device.startswith(("/", ":")) or not device:
        return "", name.lstrip(":/")
    return device, metric


class _Bad(Exception):
    """A fault of a record: its field and its code."""

    def __init__(self, field: str | None, code: str) -> None:
        super().__init__(field, code)
        self.field = field
        self.code = code


def exactly(original: bytes) -> Any:
    """Return a record with exact integers. Raises _Bad if a name stands in it twice.

    Raises Refused if that is a base field, or if it is nested too deeply.
    """
    try:
        pairs = PAIRS.decode(original.decode())
    except RecursionError as fault:
        raise not_json(fault) from None
    if type(pairs) is not Pairs:
        return pairs
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen and name in BASE:
                raise Refused("not_senml", f"the base field `{name}` appears twice in one record")
            if name in seen:
                raise _Bad(name[:64], "repeated_field")
            seen.add(name)
    return record


def _alone(original: bytes, record: Any, base: _Base) -> bytes:
    """Return the bytes of a record with the base fields that it has from the records before."""
    if original[:1] != b"{":
        return original
    own = record if type(record) is dict else {}
    inherited = {name: each for name, each in base.fields().items() if name not in own}
    if not inherited:
        return original
    inner = original[1:].lstrip(SPACE)
    comma = b"" if inner == b"}" else b","
    text = json.dumps(inherited, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace")[:-1] + comma + inner
