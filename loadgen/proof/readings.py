"""Numbered readings, the traffic of `loadgen verify`; each proves its own outcome. Pure.

A plan (seed, sizes, shares) decides the content of each post. So a ledger notes only numbers, and a
reconciliation makes the readings again. Reading `n` has its own microsecond and a value whose bits
contain `n`: negative, subnormal, huge, of 17 digits or whole, but never 0. Values of one item share
the time of the first one. Some items come again later, within WINDOW items.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple

from loadgen.traffic.encode import FORMATS, letter_text

VERSION = 1  # of the choices below: another version makes other readings of the same plan
# Fresh items within which an item may come again. A reconciliation reads so far ahead.
WINDOW = 1_000
POST_READINGS_MAX = 4_900  # the service's limit is 5,000 by default; a repeated item may add 3
METRICS = ("humidity", "power", "pressure", "temperature")  # in byte order, like the table's key
REFUSED_METRIC = "refused"  # the metric that an operator's CHECK constraint must refuse

SEVERAL_SHARE = 0.1  # of the items: one object with several `values`
NUMBERS_MAX = 1 << 40

VALID, REFUSED = -1, -2  # kinds of items; 0 and more: an index into INVALID


class Invalid(NamedTuple):
    """A kind of invalid item: the code that the service gives it, and its text (`%` for parts)."""

    code: str
    text: str


INVALID = (
    Invalid("wrong_type", '{"device_id":"%(d)s","metric":"power","ts":%(t)d,"value":"%(v)s"}'),
    Invalid("wrong_type", '{"device_id":"%(d)s","metric":"power","ts":%(t)d,"value":null}'),
    Invalid("missing_field", '{"device_id":"%(d)s","metric":"power","ts":%(t)d}'),
    Invalid(
        "ts_in_future",
        '{"device_id":"%(d)s","metric":"power","ts":"9999-01-01T00:00:00Z","value":%(v)s}',
    ),
    Invalid(
        "ts_too_old",
        '{"device_id":"%(d)s","metric":"power","ts":"1970-01-01T00:00:00Z","value":%(v)s}',
    ),
    Invalid(
        "ts_without_offset",
        '{"device_id":"%(d)s","metric":"power","ts":"2026-01-01T00:00:00","value":%(v)s}',
    ),
    Invalid(
        "unknown_field",
        '{"device_id":"%(d)s","metric":"power","ts":%(t)d,"value":%(v)s,"unit":"W"}',
    ),
    Invalid(
        "name_control_character",
        '{"device_id":"%(d)s\\u0001","metric":"power","ts":%(t)d,"value":%(v)s}',
    ),
    Invalid("name_empty", '{"device_id":"%(d)s","metric":"","ts":%(t)d,"value":%(v)s}'),
    Invalid(
        "value_out_of_range", '{"device_id":"%(d)s","metric":"power","ts":%(t)d,"value":-1e999}'
    ),
    Invalid("not_an_object", '"%(d)s"'),
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ELSEWHERE = timezone(timedelta(hours=5, minutes=45))
_MASK = NUMBERS_MAX - 1
_STRETCH = 0x9E_3779_B97B  # odd, so that multiplying is one to one
_SHRINK = pow(_STRETCH, -1, NUMBERS_MAX)
_MIX, _MIX_MASK = 0x9E37_79B9_7F4A_7C15, (1 << 64) - 1
_SIGN, _TOP = 1 << 63, 0xFFF << 40
_FLOAT, _BITS = struct.Struct("<d"), struct.Struct("<Q")
_DIGITS = [f"{number:03}" for number in range(1_000)]


@dataclass(slots=True, eq=False)
class Item:
    """One item of a post: `count` readings from number `first` on (one, if it is invalid).

    `flags` and `note` are for the reconciliation: several posts may have the same item.
    """

    first: int
    count: int
    kind: int
    flags: int = 0
    note: Any = None


@dataclass(frozen=True)
class Plan:
    """The content of a run. The same plan gives the same posts, byte by byte.

    `run` names it (8 hexadecimal digits); `first_us` is the time of reading 0, Unix microseconds;
    `sizes` are (readings a post, weight); shares are of the items, 0 to 1. `format` is a key of
    traffic.encode.FORMATS; formats without answers cannot have `invalid` and `refused` readings.
    """

    run: str
    seed: int
    first_us: int
    sizes: tuple[tuple[int, float], ...] = ((1, 1.0),)
    duplicates: float = 0.0
    invalid: float = 0.0
    refused: float = 0.0
    devices: int = 500
    format: str = "json"

    @property
    def prefix(self) -> str:
        """The prefix of the device_id of all readings of this run, and of no others."""
        return f"verify-{self.run}-"

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Plan:
        """Read the object of `to_json`. Raises TypeError, ValueError or KeyError."""
        fields = dict(fields)
        if fields.pop("version") != VERSION:
            raise ValueError("its plan is of another version of loadgen")
        return cls(**{**fields, "sizes": tuple((int(n), float(w)) for n, w in fields["sizes"])})

    def posts(self) -> Iterator[list[Item]]:
        """Yield the items of post 0, 1, 2 ..; an item that comes again is the same object."""
        rng = random.Random(self.seed)
        draw = rng.random
        sizes = [size for size, _ in self.sizes]
        weights = [weight for _, weight in self.sizes]
        recent: list[Item] = []
        fresh = first = 0
        duplicate = self.duplicates
        invalid = duplicate + self.invalid
        refused = invalid + self.refused
        several = refused + SEVERAL_SHARE * (1 - refused)
        while True:
            left = sizes[0] if len(sizes) == 1 else rng.choices(sizes, weights)[0]
            items = []
            while left > 0:
                drawn = draw()
                count, kind = 1, VALID
                if drawn < several:
                    if drawn < duplicate and recent:
                        again = recent[int(draw() * len(recent))]
                        if again.kind < 0:
                            items.append(again)
                            left -= again.count
                            continue
                    elif duplicate <= drawn < invalid:
                        kind = int(draw() * len(INVALID))
                    elif invalid <= drawn < refused:
                        kind = REFUSED
                    elif drawn >= refused:
                        count = min(left, 1 + int(draw() * len(METRICS)))
                item = Item(first, count, kind)
                if fresh < WINDOW:
                    recent.append(item)
                else:
                    recent[fresh % WINDOW] = item
                fresh += 1
                first += count
                left -= count
                items.append(item)
            yield items


class Names:
    """The names and values of a plan's readings, and their items as JSON."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._body = FORMATS[plan.format].body
        self._salt = int(plan.run, 16) & _MASK
        self._prefix = plan.prefix
        self._second = -1
        self._texts = ("", "")

    def device(self, item: Item) -> str:
        """Return the device_id of an item that is not invalid."""
        return f"{self._prefix}{item.first * 7_919 % self.plan.devices:04}"

    def invalid_device(self, item: Item) -> str:
        """Return the device_id of an invalid item, which no other item has."""
        return f"{self.plan.prefix}bad-{item.first}"

    def metrics(self, item: Item) -> Sequence[str]:
        """Return the metrics of an item's readings, in their order."""
        if item.kind == REFUSED:
            return (REFUSED_METRIC,)
        return METRICS[: item.count] if item.count > 1 else (METRICS[item.first & 3],)

    def value(self, number: int) -> float:
        """Return the value of reading `number`, finite and not 0; no two of a run are equal."""
        bits = _bits(((number + 1) * _STRETCH + self._salt) & _MASK)
        value: float = _FLOAT.unpack(_BITS.pack(bits))[0]
        return value

    def number(self, value: float) -> int | None:
        """Return the number of the reading with this value; None if no reading has it."""
        mixed = _BITS.unpack(_FLOAT.pack(value))[0] & _MASK
        number = ((mixed - self._salt) * _SHRINK - 1) & _MASK
        return number if self.value(number) == value else None

    def body(self, items: Sequence[Item], post: int) -> bytes:
        """Return a post's body: in JSON a single item is an object, several are an array.

        It takes 2 us a reading. All values of a post are made together: one by one they would take
        as long as all the rest.
        """
        numbers: list[int] = []
        for item in items:
            if item.count == 1:
                numbers.append(item.first)
            else:
                numbers.extend(range(item.first, item.first + item.count))
        values = self._values(numbers)
        style = post % 5  # one style for each post, as devices do
        texts: list[str] = []
        place = 0
        for item in items:
            first, count = item.first, item.count
            if item.kind >= 0:
                texts.append(self.invalid_text(item))
            else:
                us = self.plan.first_us + first
                ts = str(us) if style == 3 else self._time(us, elsewhere=style == 4)
                if count == 1 and item.kind == VALID:
                    texts.append(
                        f'{{"device_id":"{self.device(item)}","metric":"{METRICS[first & 3]}",'
                        f'"ts":{ts},"value":{values[place]}}}'
                    )
                else:
                    texts.append(self._odd(item, ts, values[place : place + count]))
            place += count
        return self._body(texts)

    def _values(self, numbers: Sequence[int]) -> list[str]:
        """Return the values of some readings as they are posted."""
        salt = self._salt
        bits = [_bits(((number + 1) * _STRETCH + salt) & _MASK) for number in numbers]
        count = len(bits)
        floats = struct.unpack(f"<{count}d", struct.pack(f"<{count}Q", *bits))
        # Whole numbers become JSON integers: these are the texts of repr that end in ".0".
        return repr([*floats, 0])[1:-1].replace(".0,", ",").split(", ")

    def _odd(self, item: Item, ts: str, values: Sequence[str]) -> str:
        """Return an item of several readings, or one that a CHECK must refuse."""
        device = self.device(item)
        if item.kind == REFUSED:
            return (
                f'{{"device_id":"{device}","metric":"{REFUSED_METRIC}","ts":{ts},'
                f'"value":{values[0]}}}'
            )
        entries = ",".join(
            f'"{metric}":{value}' for metric, value in zip(METRICS, values, strict=False)
        )
        return f'{{"device_id":"{device}","ts":{ts},"values":{{{entries}}}}}'

    def invalid_original(self, item: Item) -> str:
        """Return what the dead letter of an invalid item has; bytes as characters."""
        return letter_text(self.plan.format, self.invalid_text(item))

    def invalid_text(self, item: Item) -> str:
        """Return an invalid item as it is posted."""
        parts = {
            "d": self.invalid_device(item),
            "t": self.plan.first_us + item.first,
            "v": repr(self.value(item.first)),
        }
        return INVALID[item.kind].text % parts

    def _time(self, us: int, *, elsewhere: bool) -> str:
        second, rest = divmod(us, 1_000_000)
        if second != self._second:  # formatted once a second
            moment = _EPOCH + timedelta(seconds=second)
            there = moment.astimezone(_ELSEWHERE)
            self._second = second
            self._texts = (f'"{moment:%Y-%m-%dT%H:%M:%S}.', f'"{there:%Y-%m-%dT%H:%M:%S}.')
        thousands, ones = divmod(rest, 1_000)
        zone = '+05:45"' if elsewhere else 'Z"'
        return f"{self._texts[elsewhere]}{_DIGITS[thousands]}{_DIGITS[ones]}{zone}"


def _exponents() -> list[int]:
    """Return the exponents of values, shifted to their bits: most are those of sensors."""
    table = [1_013 + index % 21 for index in range(1 << 12)]  # 0.001 to 2,000
    for index in range(1, len(table), 16):
        table[index] = 1_075  # whole, 16 digits
    for index in range(2, len(table), 32):
        table[index] = 0  # subnormal
    for index in range(3, len(table), 32):
        table[index] = 1 + index * 2_045 // len(table)  # anything finite, up to 1e308
    return [exponent << 52 for exponent in table]


_EXPONENTS = _exponents()


def _bits(mixed: int) -> int:
    """Spread 40 bits over sign, exponent and mantissa, so that they can be read again."""
    more = mixed * _MIX & _MIX_MASK
    return more & _SIGN | _EXPONENTS[more >> 36 & 0xFFF] | more >> 11 & _TOP | mixed
