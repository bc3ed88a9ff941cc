"""What a body costs with declared tables: about what it costs without, whatever pieces it has.

Bodies of the smallest pieces, since a price that is paid for each line or item shows in them.
`python -m tests.unit.formats.test_cost_of_tables` prints the table for bodies of 4 MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from ingest.formats import messagepack, senml
from ingest.formats.json.body import begin, begin_lines
from ingest.formats.lines.body import LinePost
from ingest.formats.lines.body import begin as begin_line_protocol
from ingest.formats.lines.keys import Naming
from ingest.formats.mapped.body import MapPost
from ingest.formats.mapped.body import begin as begin_mapped
from ingest.formats.mapped.source import compile_source
from ingest.formats.post import Post
from ingest.model.tables import ColumnTable, Tables
from tests.support.decode_cost import Cost, least_cost
from tests.support.posts import NOW_US, RULES

SIZE = 400_000
COSTS_MAX = 3.0  # times the same body without tables; measured are up to 1.4, a defect was 18
JOINED_MAX = 12.0  # if a metric stands twice in a moment, all of 5,000 values; measured are 6.0
LITTLE_S = 0.002
STEP_MAX = 24  # longest steps of a good body (0.4 ms on 2 cores of 2026); measured are up to 7
WIDE = tuple(f"c{number}" for number in range(100))
TABLES = Tables(
    [
        ColumnTable("climate", "", ("temperature", "humidity", "v"), (0, 0, 0)),
        ColumnTable("cpu", "cpu", ("idle", "user", "v"), (0, 0, 0)),
        ColumnTable("wide", "wide", WIDE, (0,) * 100),
    ]
)
SOURCE = compile_source({"name": "s", "device": "id"})
Begin = Callable[[bytes, Post], object]


def repeated(piece: bytes, size: int = SIZE) -> bytes:
    """Return a piece so often that it has this size."""
    return piece * (size // len(piece))


def numbered(piece: Callable[[int], bytes], size: int = SIZE) -> bytes:
    """Return pieces of 0, 1, 2 and so on that have about this size."""
    return b"".join(map(piece, range(size // len(piece(10_000)))))


def array(pieces: bytes) -> bytes:
    """Return an array of lines."""
    return b"[" + pieces.rstrip(b"\n ").replace(b"\n", b",") + b"]"


def packed(piece: Any, size: int = SIZE) -> bytes:
    """Return an array of MessagePack."""
    text = msgspec.msgpack.encode(piece)
    return b"\xdd" + (size // len(text)).to_bytes(4, "big") + repeated(text, size)


PIECES = {
    "blank": b"\n",
    "space": b" \n",
    "cr": b"\r\n",
    "spaces": b" " * 50 + b"\n",
    "number": b"0\n",
    "null": b"null\n",
    "text": b'""\n',
    "quote": b'"\n',
    "brace": b"}\n",
    "object": b"{}\n",
    "array": b"[]\n",
    "nested": b"[" * 20 + b"]" * 20 + b"\n",
    "device": b'{"device_id":1}\n',
    "name of device": b'"device_id":\n',
    "names": b'"ts":"device_id":\n',
    "bad value": b'{"device_id":"d","metric":"v","value":"a"}\n',
}
VALUES = b'{"device_id":"d%d","values":{"temperature":1,"humidity":2}}\n'
ITEM = b'{"device_id":"d%d","metric":"temperature","value":1}\n'
LINE = b"cpu,host=h%d idle=1,user=2 1795600000\n"


def bodies(size: int = SIZE) -> Iterator[tuple[str, Begin, bytes]]:
    """Give the name, the format and the bytes of each body."""
    for name, piece in PIECES.items():
        yield f"ndjson {name}", begin_lines, repeated(piece, size)
        yield f"json {name}", begin, array(repeated(piece, size))
    good = {
        "values": numbered(lambda number: VALUES % number, size),
        "items": numbered(lambda number: ITEM % number, size),
        "times": numbered(lambda n: VALUES.replace(b"{", b'{"ts":17955%05d,' % n, 1) % 1, size),
        "wide": numbered(lambda n: b'{"device_id":"d%d","values":{%b}}\n' % (n, WIDE_JSON), size),
    }
    for name, body in good.items():
        yield f"ndjson {name}", begin_lines, body
        yield f"json {name}", begin, array(body)
    yield "ndjson blank lines, an item", begin_lines, repeated(b"\n", size) + ITEM % 1
    yield "ndjson an item, blank lines", begin_lines, ITEM % 1 + repeated(b"\n", size)
    yield "ndjson items, blank lines", begin_lines, repeated(ITEM % 1 + b"\n" * 500, size)
    yield "json spaces", begin, b" " * size
    yield "json no objects", begin, array(repeated(b"}, {", size))
    yield "json commas", begin, array(repeated(b",", size))
    lines = (
        "\n",
        " \n",
        "   \n",
        "\r\n",
        "#\n",
        "a\n",
        ",\n",
        "=\n",
        "m v=1\n",
        "cpu,host=h v=x\n",
    )
    for line in (*lines, 'cpu,host=h v=""\n', "c\\ pu,host=h v=1\n"):
        yield f"lines {line!r}", begin_line, repeated(line.encode(), size)
    yield "lines good", begin_line, numbered(lambda number: LINE % number, size)
    yield "lines a line, blank ones", begin_line, LINE % 1 + repeated(b"\n", size)
    yield "lines with blank ones", begin_line, repeated(LINE % 1 + b"\n" * 500, size)
    values: list[Any] = [0, None, {}, [], {"device_id": "d"}, {"device_id": "d", "value": "x"}]
    for value in values:
        yield f"msgpack {value}", messagepack.begin, packed(value, size)
    for text in (b"{}\n", b"0\n", b'{"n":"d/v","v":1}\n', b'{"bn":"d/","v":1}\n', b'{"vs":""}\n'):
        yield f"senml {text!r}", senml.begin, array(repeated(text, size))
    for text in (b"{}\n", b"0\n", b"[]\n", b"{}" + b"\n" * 40, b'{"id":"d","v":1}\n'):
        yield f"source {text!r}", begin_source, b"{}\n" + repeated(text, size)


WIDE_JSON = b",".join(b'"wide.%b":1' % column.encode() for column in WIDE)
# Values of one device and time, of which each has a rival: they become rows one by one.
JOINED: dict[str, tuple[Begin, bytes]] = {
    "items": (begin, array(repeated(ITEM % 1))),
    "values": (begin_lines, repeated(VALUES % 1)),
    "kinds": (begin_lines, numbered(lambda n: b'{"device_id":"d","values":{"c%d":1,"v":2}}\n' % n)),
}


def begin_line(body: bytes, post: Post) -> object:
    """Begin a body of line protocol."""
    return begin_line_protocol(body, LinePost(post, Naming(("host",)), 5_000, 1 << 24))


def begin_source(body: bytes, post: Post) -> object:
    """Begin a body of a mapped source."""
    return begin_mapped(body, MapPost(post, SOURCE, {}, 5_000, 1 << 24))


def post_of(tables: Tables | None, *, has_token: bool = False) -> Post:
    """Return a post with or without tables and a token."""
    rules = RULES if tables is None else RULES._replace(tables=tables)
    allows = (lambda device: device[:1] == "d") if has_token else None
    return Post(None, False, NOW_US, 7.0, rules, allows)


@pytest.fixture(scope="module")
def good() -> Cost:
    """Both costs of a good body with tables."""
    return least_cost(partial(begin, array(numbered(lambda n: ITEM % n)), post_of(TABLES)), 6)


@pytest.mark.parametrize(("begins", "body"), [each[1:] for each in bodies()])
@pytest.mark.parametrize("has_token", [False, True])
def test_body_costs_with_tables_what_it_costs_without(
    begins: Begin, body: bytes, has_token: bool, good: Cost
) -> None:
    """Whatever is done for each line or item has a bound."""
    without = least_cost(partial(begins, body, post_of(None, has_token=has_token)), 3)
    most = Cost(COSTS_MAX * without.total_s + LITTLE_S, STEP_MAX * good.step_s)
    found = least_cost(partial(begins, body, post_of(TABLES, has_token=has_token)), 20, most)
    assert found.total_s <= most.total_s
    assert found.step_s <= most.step_s


@pytest.mark.parametrize("name", JOINED)
def test_values_that_stand_twice_in_a_moment_cost_a_bounded_time(name: str, good: Cost) -> None:
    """They are read one by one."""
    begins, body = JOINED[name]
    without = least_cost(partial(begins, body, post_of(None)), 3)
    most = Cost(JOINED_MAX * without.total_s + LITTLE_S, STEP_MAX * good.step_s)
    found = least_cost(partial(begins, body, post_of(TABLES)), 20, most)
    assert found.total_s <= most.total_s
    assert found.step_s <= most.step_s


if __name__ == "__main__":
    for name, begins, body in bodies(4 << 20):
        without, found = (least_cost(partial(begins, body, post_of(t)), 5) for t in (None, TABLES))
        print(  # noqa: T201
            f"{name:32}{without.total_s * 1e3:9.1f}{found.total_s * 1e3:9.1f} ms "
            f"x{found.total_s / without.total_s:5.2f}, steps {without.step_s * 1e3:5.2f} "
            f"{found.step_s * 1e3:5.2f} ms"
        )
