"""The CPU time of decoding line protocol, beside that of our JSON (compare runs, not machines).

As rows of `readings`, and as rows of declared tables with columns.

pytest benchmarks/bench_lines.py

Each round decodes some 1,000 readings, or one larger post; divide by `readings`. The aim: at most
1.4 times our JSON for lines of one field, at most once for lines of ten.

Measured alone for 100 lines of one field, in us a reading: splitting at spaces 0.07, times 0.10
(nanoseconds: 0.06 of it), values 0.06, names 0.05, rows 0.07. One regular expression for each line
1.2. The careful way, one by one: 6.
With columns, as a part of what it costs as rows of `readings`: lines of ten fields 0.45, JSON with
ten values 0.7, with four 0.85. A value that comes alone costs 1.7 to 2.3 times as much.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ingest.formats.json import body as json_body
from ingest.formats.lines import body as lines_body
from ingest.formats.lines.body import LinePost
from ingest.formats.lines.keys import Naming
from ingest.formats.post import DEVICE_TAGS, Post, Rules
from ingest.model.block import Block
from ingest.model.tables import NO_TABLES, ColumnTable, Tables

USAGES = tuple(f"usage_{number}" for number in range(10))
COLUMNS = Tables(
    [
        ColumnTable("climate", "", ("temperature", "humidity"), (0, 0)),
        ColumnTable("usage", "", USAGES, (0,) * 10),
        ColumnTable("cpu", "cpu", USAGES, (0,) * 10),
    ]
)
RULES = Rules(5_000, 946_684_800_000_000, 86_400_000_000)
NOW_S = 1_795_600_000
NAMING = Naming(DEVICE_TAGS)


def _line(i: int) -> str:
    stamp = f"{NOW_S - i}{i * 7_919 % 1_000_000_000:09}"
    return f"temperature,device_id=sensor-{i % 200:04},room=r{i % 7} value={i / 8} {stamp}"


def _no_time(i: int) -> str:
    return _line(i).rpartition(" ")[0]


def _telegraf(i: int) -> str:
    pairs = ",".join(f"usage_{m}={i + m / 4}" for m in range(10))
    return f"cpu,cpu=cpu{i % 8},host=web-{i // 8 % 100} {pairs} {NOW_S}000000000"


def _with_text(i: int) -> str:
    return _line(i).replace("value=", 'friendly_name="a lamp",value=')


def _json(i: int) -> str:
    ts = f"{NOW_S - i}{i % 1000:03}"
    names = f'"device_id":"sensor-{i % 200:04}","metric":"temperature"'
    return f'{{{names},"ts":{ts},"value":{i / 8}}}'


def _json_values(i: int) -> str:
    pairs = ",".join(f'"usage_{m}":{i + m / 4}' for m in range(10))
    return f'{{"device_id":"web-{i % 100:02}","ts":{NOW_S - i},"values":{{{pairs}}}}}'


def _json_4(i: int) -> str:
    pairs = ",".join(f'"usage_{m}":{i + m / 4}' for m in range(4))
    return f'{{"device_id":"web-{i % 100:02}","ts":{NOW_S - i},"values":{{{pairs}}}}}'


# Name, one line or item, how many of them, readings.
POSTS: list[tuple[str, Callable[[int], str], int, int]] = [
    ("json-100", _json, 100, 100),
    ("lines-100", _line, 100, 100),
    ("lines-100-no-time", _no_time, 100, 100),
    ("lines-100-with-text", _with_text, 100, 100),
    ("json-1", _json, 1, 1),
    ("lines-1", _line, 1, 1),
    ("json-100-of-10", _json_values, 100, 1_000),
    ("json-100-of-4", _json_4, 100, 400),
    ("json-1-of-10", _json_values, 1, 10),
    ("json-1-of-4", _json_4, 1, 4),
    ("lines-100-of-10", _telegraf, 100, 1_000),
    ("lines-1,000-of-10", _telegraf, 1_000, 10_000),
    ("lines-50,000", _line, 50_000, 50_000),
]


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("tables", [NO_TABLES, COLUMNS], ids=["rows", "columns"])
@pytest.mark.parametrize(
    ("item", "items", "readings"), [pytest.param(*post, id=name) for name, *post in POSTS]
)
def test_decode_lines(
    benchmark: BenchmarkFixture,
    item: Callable[[int], str],
    items: int,
    readings: int,
    tables: Tables,
) -> None:
    """From the body to blocks of encoded rows."""
    times = max(1, 1_000 // readings)
    post = Post(None, False, NOW_S * 1_000_000, 0.0, RULES._replace(tables=tables))
    texts = map(item, range(items))
    is_json = item in (_json, _json_values, _json_4)
    body = (f"[{','.join(texts)}]" if is_json else "\n".join(texts)).encode()

    def of_json() -> int:
        return sum(_rows(json_body.decode(body, post).block) for _ in range(times))

    def of_lines() -> int:
        line_post = LinePost(post, NAMING, 100_000, 32 << 20)
        found = [lines_body.decode(body, line_post).blocks for _ in range(times)]
        return sum(block.rows for blocks in found for block in blocks)

    benchmark.extra_info["readings"] = times * readings
    assert benchmark(of_json if is_json else of_lines) == times * readings


def _rows(block: Block | None) -> int:
    return block.rows if block else 0
