"""Makes random bodies of each format, decodes them, and compares the result with an oracle.

A body is made by a grammar that knows the format, and every second one is then damaged: bytes are
changed, removed, added, or copied from another place. The same seed makes the same bodies.
A comparison fails if the decoder raises anything but Refused, or if a value, a name or a time is
not the oracle's. Where an oracle says nothing of a body, only the first is checked.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from ingest.formats.lines.keys import Naming
from ingest.model.block import encode_reading
from ingest.model.codes import ITEM_CODES, PROBLEMS
from ingest.model.errors import Refused
from tests.fuzz import mappings
from tests.support.encodings import ORACLES, decoded
from tests.support.lines import expected_of, points_of, told_of
from tests.support.posts import NOW_US, readings_of

NAMES = (
    "room-1",
    "a",
    "b:c",
    "d/e",
    "ä",
    "urn:dev:mac:0024",
    "x" * 300,
    "",
    "\x01",
    "temp.1",
    "t ts",
)
NUMBERS = (0, 1, -1, 21.5, -0.0, 1e300, 5e-324, 2**53, 2**53 + 1, 2**64 + 1, 1e22, True, False)
NO_NUMBERS: tuple[Any, ...] = (None, "1", [], [1, [2]], {}, {"a": 1}, "x" * 40)
NAMING = Naming(("device_id", "host"))


def some_time(chance: random.Random) -> Any:
    """Return a time: mostly a good one in microseconds."""
    if chance.random() < 0.8:
        return NOW_US - chance.randrange(10**12)
    return chance.choice((NOW_US / 1.0, "2026-01-01T00:00:00Z", 0, -5, 1e30, None, 2**63))


def an_item(chance: random.Random) -> Any:
    """Return an item of our own, which may have faults."""
    item: dict[str, Any] = {
        "device_id": chance.choice(NAMES[:5] if chance.random() < 0.8 else NAMES),
        "metric": chance.choice(NAMES[:5]),
        "ts": some_time(chance),
        "value": chance.choice(NUMBERS[:7] if chance.random() < 0.8 else NUMBERS),
    }
    drawn = chance.random() * 1.6
    if drawn < 0.06:
        del item[chance.choice([*item])]
    elif drawn < 0.12:
        item[chance.choice(("unit", "ts", "value", "device_id"))] = chance.choice(NO_NUMBERS)
    elif drawn < 0.18:
        values = {chance.choice(NAMES): chance.choice((*NUMBERS, None)) for _ in range(3)}
        item = {"device_id": "a", "values": values}
    elif drawn < 0.2:
        return chance.choice((*NUMBERS, *NO_NUMBERS))
    return item


def a_body_of_lines_of_json(chance: random.Random) -> bytes:
    """Return NDJSON."""
    texts = [json.dumps(an_item(chance)) for _ in range(chance.randrange(1, 7))]
    return chance.choice(("\n", "\n", "\r\n", "\n \n")).join(texts).encode()


def a_body_of_messagepack(chance: random.Random) -> bytes:
    """Return MessagePack; some numbers have longer or shorter forms than usual."""

    def small(value: Any) -> Any:
        is_large = isinstance(value, int) and not -(2**63) <= value < 2**64
        return float(value) if is_large else value

    items = [an_item(chance) for _ in range(chance.randrange(1, 7))]
    for item in items:
        if isinstance(item, dict):
            item.update({name: small(each) for name, each in item.items()})
            if isinstance(item.get("values"), dict):
                item["values"] = {name: small(each) for name, each in item["values"].items()}
    body = msgspec.msgpack.encode([small(each) for each in items])
    if chance.random() < 0.3:
        body = body.replace(b"\xcb\x40\x35\x80\0\0\0\0\0", b"\xca\x41\xac\0\0")
    if chance.random() < 0.2:
        body = body.replace(b"\xa5value", b"\xd9\x05value")
    if chance.random() < 0.2:
        body = b"\xdd" + (body[0] & 15).to_bytes(4) + body[1:]
    return body


def a_pack(chance: random.Random) -> bytes:
    """Return SenML."""
    records: list[dict[str, Any]] = []
    is_good = chance.random() < 0.5
    for _ in range(chance.randrange(1, 7)):
        record: dict[str, Any] = {"n": chance.choice(("t", "rpm", "µ:x")), "v": 21.5}
        drawn = chance.random() * (0.9 if is_good else 1.0)
        if not is_good:
            record["n"] = chance.choice(("t", "/x", "", "urn:dev:ow:1"))
        if not records or drawn < 0.3:
            record["bn"] = chance.choice(("room-1/", "a:b:", "ä/"))
        if not is_good and chance.random() < 0.3:
            record["bn"] = chance.choice(("q/w/e", "urn:dev:mac:0024:", "", "a//"))
        if chance.random() < 0.4:
            record["bt"] = chance.choice((1_795_600_000, 1.795e9, 1_795_599_999.25, 0, -60))
        if chance.random() < 0.5:
            record["t"] = chance.choice((-5, 0.125, 0.1, 1e-7, -0.3))
        if chance.random() < 0.3:
            record[chance.choice(("u", "bu"))] = chance.choice(("Cel", "%RH", "", "m/s"))
        if not is_good and chance.random() < 0.1:
            record["t"] = chance.choice((2**28, 1e300, -1e300, 2**28 - 5))
        record["v"] = chance.choice(NUMBERS[:5] if is_good else NUMBERS[:9])
        if drawn > 0.9:
            record[chance.choice(("vs", "vb", "s", "x_", "u", "bver", "bv", "v"))] = chance.choice(
                (*NUMBERS, *NO_NUMBERS)
            )
        records.append(record)
    return json.dumps(records).encode()


GOOD_KEYS = (
    "m,host=h",
    "cpu,cpu=cpu0,host=h",
    "ä,device_id=d,host=h",
    "m\\ x,r=\\,,device_id=d\\=",
)
KEYS = (*GOOD_KEYS, "m", "#", "", "m,host=", "m,host=h,host=i", "m,e", "m,host=h,")
GOOD_FIELDS = (
    "value=1",
    "a=21.5",
    "b\\=c=2i",
    "d=t",
    "e=FALSE",
    "f=-1e-300",
    "g=9007199254740993i",
)
FIELDS = (*GOOD_FIELDS, 's="te xt"', "n=nan", "x=1e999", "u=9u", "y=-", 'q="', "=1", "z", "é=0x1")
STAMPS = (" x", " 5", " -1", " 99999999999999999999", " 1 2")


def a_body_of_lines(chance: random.Random) -> bytes:
    """Return line protocol."""
    is_good = chance.random() < 0.5
    lines = []
    for _ in range(chance.randrange(1, 7)):
        key = chance.choice(GOOD_KEYS if is_good else KEYS)
        some = chance.sample(GOOD_FIELDS if is_good else FIELDS, chance.randrange(1, 4))
        stamp = chance.choice(("", f" {NOW_US - chance.randrange(10**9)}", " 1795600000"))
        if not is_good and chance.random() < 0.2:
            stamp = chance.choice(STAMPS)
        lines.append(f"{key} {','.join(some)}{stamp}")
    return chance.choice(("\n", "\n", "\r\n", "\n\n")).join(lines).encode()


def damaged(body: bytes, chance: random.Random) -> bytes:
    """Replace, remove or add some bytes, or copy a part to another place."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, other = chance.randrange(len(body) + 1), chance.randrange(len(body) + 1)
        new = chance.choice((b"", bytes((chance.randrange(256),)), body[other : other + 9], b"1e3"))
        body = body[:at] + new + body[at + chance.randrange(3) :]
    return body


def compare_lines(body: bytes) -> str:
    """Compare one body of line protocol; return what became of it."""
    expected = expected_of(body, NAMING, None)
    assert told_of(points_of(body, NAMING)) == expected, body
    if isinstance(expected, str):
        return "refused"
    return "readings" if expected.readings and not expected.errors else "with faults"


def compare_items(name: str, body: bytes) -> str:
    """Compare one body of another format; return what became of it."""
    expected = ORACLES[name](body)
    try:
        found = decoded(name, body)
    except Refused as refused:
        is_fault_of_client = 400 <= PROBLEMS[refused.code].status < 500
        if expected or not is_fault_of_client:
            raise AssertionError(body) from refused
        return "refused"
    assert found.block or found.errors, body
    assert all(error.code in ITEM_CODES for error in found.errors), body
    readings = readings_of(found)
    if not expected:
        return "with faults"
    assert not found.errors, body
    assert [*map(encode_reading, readings)] == [*map(encode_reading, expected)], body
    return "readings"


Make = Callable[[random.Random], Any]
Compare = Callable[[Any], str]
# How a body of a format is made, and how it is compared. That of a mapping is a Case with a body.
FORMATS: dict[str, tuple[Make, Compare]] = {
    "lines": (a_body_of_lines, compare_lines),
    "msgpack": (a_body_of_messagepack, partial(compare_items, "msgpack")),
    "senml": (a_pack, partial(compare_items, "senml")),
    "ndjson": (a_body_of_lines_of_json, partial(compare_items, "ndjson")),
    "mappings": (mappings.a_case, mappings.compare),
}


def campaign(name: str, bodies: int, seed: int = 1) -> Counter[str]:
    """Compare so many bodies of a format; count what became of them.

    An AssertionError has the body. Any other exception is a fault of the decoder.
    """
    chance = random.Random(f"{name} {seed}")
    make, compare = FORMATS[name]
    came: Counter[str] = Counter()
    for number in range(bodies):
        body = make(chance)
        if number % 2 and isinstance(body, mappings.Case):
            body = body._replace(body=damaged(body.body, chance))
        elif number % 2:
            body = damaged(body, chance)
        try:
            came[compare(body)] += 1
        except Exception as error:
            error.add_note(f"{name}, seed {seed}, body {number}: {body!r}")
            raise
    return came
