"""The same readings in all formats of items; and their oracles, which share no code with ours.

An oracle gives the readings of a body that it takes as a whole. It gives None if the body, or one
of its items, is not as usual: then it says nothing about it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import msgspec

from ingest.formats import messagepack, senml
from ingest.formats.json import body as json_body
from ingest.formats.post import Decode, Decoded, Post, finished
from ingest.model.reading import Reading
from tests.support.posts import NOW_US, RULES

FIELDS = ("ts", "device_id", "metric", "value")
BEGIN: dict[str, Decode] = {
    "json": json_body.begin,
    "ndjson": json_body.begin_lines,
    "msgpack": messagepack.begin,
    "senml": senml.begin,
}


def objects_of(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """Return readings as items, with their time in microseconds."""
    return [dict(zip(FIELDS, reading, strict=True)) for reading in readings]


def written(name: str, readings: Sequence[Reading]) -> bytes:
    """Write readings in a format. For SenML, names must have no `:` and `/`."""
    items = objects_of(readings)
    if name == "msgpack":
        return msgspec.msgpack.encode(items)
    if name == "senml":
        return b"[%b]" % b",".join(map(_record, readings))
    texts = [json.dumps(each).encode() for each in items]
    return b"[%b]" % b",".join(texts) if name == "json" else b"\n".join(texts)


def _record(reading: Reading) -> bytes:
    ts_us, device_id, metric, value = reading
    seconds, us = divmod(ts_us, 1_000_000)
    name = json.dumps(f"{device_id}/{metric}").encode()
    return b'{"n":%b,"v":%b,"bt":%d,"t":%b}' % (
        name,
        json.dumps(value).encode(),
        seconds,
        f"0.{us:06}".encode(),
    )


def post(**changes: Any) -> Post:
    """Return what a post says whose times are in microseconds."""
    return Post(
        **{
            "precision": "us",
            "ignore_unknown": False,
            "received_us": NOW_US,
            "received_s": 7.0,
            "rules": RULES,
            **changes,
        }
    )


def decoded(name: str, body: bytes, **changes: Any) -> Decoded:
    """Decode a body. Raises Refused."""
    return finished(BEGIN[name](body, post(**changes)))


# Oracles


class Other(Exception):
    """The oracle says nothing of this body."""


def readings_of_json(body: bytes) -> list[Reading] | None:
    """Read NDJSON."""
    return _or_none(lambda: [_item(_json(line)) for line in body.split(b"\n") if line.strip()])


def readings_of_msgpack(body: bytes) -> list[Reading] | None:
    """Read MessagePack, with a decoder that goes from byte to byte."""

    def read() -> list[Reading]:
        value, at = unpacked(body, 0)
        if at != len(body):
            raise Other
        return [_item(each) for each in (value if type(value) is list else [value])]

    return _or_none(read)


def readings_of_senml(body: bytes) -> list[Reading] | None:
    """Read SenML: numbers as decimals, so nothing is rounded before the end."""
    return _or_none(lambda: _resolved(_json(body, parse_float=Decimal, parse_int=Decimal)))


ORACLES: dict[str, Callable[[bytes], list[Reading] | None]] = {
    "ndjson": readings_of_json,
    "msgpack": readings_of_msgpack,
    "senml": readings_of_senml,
}


def _or_none(read: Callable[[], list[Reading]]) -> list[Reading] | None:
    try:
        return read()
    except (Other, ValueError, RecursionError, ArithmeticError, IndexError, struct.error):
        return None


def _json(text: bytes, **how: Any) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(found)) < len(found):
            raise Other
        return dict(found)

    def refuse(_: str) -> Any:
        raise Other

    return json.loads(text.decode(), object_pairs_hook=pairs, parse_constant=refuse, **how)


def _item(item: Any) -> Reading:
    """Read a plain item: four fields, its time a number of microseconds."""
    if type(item) is not dict or item.keys() != {*FIELDS}:
        raise Other
    ts, value = item["ts"], item["value"]
    if type(ts) not in (int, float) or type(value) not in (int, float, bool):
        raise Other
    return _reading(_rounded(Decimal(ts)), item["device_id"], item["metric"], value)


def _rounded(number: Decimal) -> int:
    if not number.is_finite() or abs(number) > Decimal(10) ** 20:
        raise Other
    return int(number.quantize(Decimal(1), ROUND_HALF_EVEN))


def _reading(ts_us: int, device: Any, metric: Any, value: Any) -> Reading:
    for name in (device, metric):
        if type(name) is not str or not 1 <= len(name) <= 60 or not name.isprintable():
            raise Other
    number = float(value)
    if not math.isfinite(number) or (isinstance(value, int) and int(number) != value):
        raise Other
    if not RULES.ts_min_us <= ts_us <= NOW_US + RULES.ts_ahead_us_max:
        raise Other
    return Reading(ts_us, device, metric, number + 0.0)


def _resolved(pack: Any) -> list[Reading]:
    base: dict[str, Any] = {"bn": "", "bt": Decimal(0), "bu": ""}
    readings = []
    for record in pack if type(pack) is list else [None]:
        if type(record) is not dict or not record.keys() <= {
            "bn",
            "bt",
            "bver",
            "bu",
            "n",
            "t",
            "u",
            "v",
        }:
            raise Other
        base |= {name: record[name] for name in base.keys() & record.keys()}
        name, own, value = record.get("n", ""), record.get("t", Decimal(0)), record.get("v")
        version = record.get("bver", Decimal(5))
        unit = record.get("u", base["bu"])
        for each, kind in (
            (unit, str),
            (base["bu"], str),
            (base["bn"], str),
            (name, str),
            (base["bt"], Decimal),
            (own, Decimal),
        ):
            if type(each) is not kind:
                raise Other
        if type(version) is not Decimal or not 1 <= version <= 10 or version % 1:
            raise Other
        if type(value) is not Decimal or ("v" not in record):
            raise Other
        is_whole = not value.as_tuple().exponent
        # JSON numbers are float64 for the service, also before two are added.
        seconds = sum((Decimal(float(each)) for each in (base["bt"], own)), Decimal(0))
        us = _rounded(seconds * 1_000_000)
        if abs(seconds - 2**28) < 1:
            raise Other
        device, mark, metric = (base["bn"] + name).replace(":", "/").rpartition("/")
        if (
            not mark
            or not device
            or not metric
            or "//" in (base["bn"] + name).replace(":", "/")
            or device[:1] == "/"
        ):
            raise Other
        if "urn" in device.lower():
            raise Other
        whole = base["bn"] + name
        device = whole[: len(device)]
        us = us if seconds >= 2**28 else NOW_US + us
        if not {*",=\\"}.isdisjoint(unit):
            raise Other
        metric += f",u={unit}" if unit else ""
        readings.append(_reading(us, device, metric, int(value) if is_whole else float(value)))
    return readings


def unpacked(body: bytes, at: int, depth: int = 0) -> tuple[Any, int]:  # noqa: PLR0911
    """Return the value of MessagePack at a place, and where it ends."""
    if depth > 20:
        raise Other
    first = body[at]
    at += 1
    if first < 0x80:
        return first, at
    if first >= 0xE0:
        return first - 256, at
    if first < 0xC0:
        size = first & (0x1F if first >= 0xA0 else 0x0F)
        if first >= 0xA0:
            return _text(body, at, size)
        return _group(body, at, size, depth, is_object=first < 0x90)
    numbers = {
        0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
        0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
    }  # fmt: skip
    if first in numbers:
        form = numbers[first]
        return struct.unpack_from(form, body, at)[0], at + struct.calcsize(form)
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    sizes = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
    if first not in sizes:
        raise Other
    after = at + sizes[first]
    size = int.from_bytes(body[at:after])
    if first <= 0xDB:
        return _text(body, after, size)
    return _group(body, after, size, depth, is_object=first >= 0xDE)


def _text(body: bytes, at: int, size: int) -> tuple[str, int]:
    if at + size > len(body):
        raise Other
    return body[at : at + size].decode(), at + size


def _group(body: bytes, at: int, size: int, depth: int, *, is_object: bool) -> tuple[Any, int]:
    if size > len(body):
        raise Other
    values = []
    for _ in range(size * (1 + is_object)):
        value, at = unpacked(body, at, depth + 1)
        values.append(value)
    if not is_object:
        return values, at
    if any(type(name) is not str for name in values[::2]):
        raise Other
    found = dict(zip(values[::2], values[1::2], strict=True))
    if len(found) < size:
        raise Other
    return found, at
