"""The CPU time of decoding and encoding a post (compare runs, not machines).

pytest benchmarks/bench_decode.py

Each round decodes posts of some 1,000 readings together, or one larger post; divide by `posts`.

Measured alone and lost, in us. A time, 0.15 as it is: one regular expression about 2, slices and
int() 0.36, tables of digits 0.22, `datetime.fromisoformat` less the epoch 0.27 (and it takes more
than RFC 3339). A row, 0.055 as it is: pack with six arguments instead of four 0.073.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ingest.formats.json.body import decode
from ingest.formats.post import ItemError, Post, Rules

RULES = Rules(5_000, 946_684_800_000_000, 86_400_000_000)
NOW_S = 1_795_600_000


def _array(count: int, item: Callable[[int], str]) -> bytes:
    return f"[{','.join(item(i) for i in range(count))}]".encode()


def _flat(ts: str) -> str:
    return f'"metric":"temperature","ts":{ts},"value":'


def _text(i: int) -> str:
    ts = f'"2026-11-25T10:{i % 7 + 10}:{i % 60:02}.{i * 7_919 % 1_000_000:06}Z"'
    return f'{{"device_id":"sensor-{i % 200:04}",{_flat(ts)}{i / 8}}}'


def _offset(i: int) -> str:
    return _text(i).replace('Z"', '+02:00"')


def _millis(i: int) -> str:
    ts = f"{NOW_S - i}{i % 1000:03}"
    return f'{{"device_id":"sensor-{i % 200:04}",{_flat(ts)}{i / 8}}}'


def _values(i: int) -> str:
    pairs = ",".join(f'"metric_{m}":{i + m / 4}' for m in range(4))
    return f'{{"device_id":"sensor-{i % 200:04}","ts":{NOW_S - i},"values":{{{pairs}}}}}'


def _bad_at(place: int, item: Callable[[int], str]) -> Callable[[int], str]:
    return lambda i: item(i) if i != place else item(i).replace("T10", "X10")


def _unknown(i: int) -> str:
    return _text(i)[:-1] + ',"unit":"C"}'


def _hostile(ts: str, value: str) -> str:
    return f'{{"device_id":"d","metric":"m","ts":{ts},"value":{value}}}'


# Name, body, readings, errors.
POSTS: list[tuple[str, bytes, int, int]] = [
    ("1-text", _text(3).encode(), 1, 0),
    ("1-ms", _millis(3).encode(), 1, 0),
    ("100-text", _array(100, _text), 100, 0),
    ("100-text-with-offset", _array(100, _offset), 100, 0),
    ("100-ms", _array(100, _millis), 100, 0),
    ("1,000-ms", _array(1_000, _millis), 1_000, 0),
    ("5,000-text", _array(5_000, _text), 5_000, 0),
    ("25-of-4-values", _array(25, _values), 100, 0),
    ("100-one-bad", _array(100, _bad_at(70, _text)), 99, 1),
    ("100-unknown-ignored", _array(100, _unknown), 100, 0),
    ("100-all-bad", _array(100, lambda i: _text(i).replace("metric", "metrik")), 0, 100),
    ("5,000-one-bad", _array(5_000, _bad_at(70, _text)), 4_999, 1),
    ("5,000-hostile-times", _array(5_000, lambda i: _hostile("1e308", "5e-324")), 0, 5_000),
    ("5,000-hostile-values", _array(5_000, lambda i: _hostile(str(NOW_S), "1e308")), 5_000, 0),
    ("5,000-no-value", _array(5_000, lambda i: _hostile(str(NOW_S), "null")), 0, 5_000),
    ("4,700-nested", _array(4_700, lambda i: f'{{"a":{"[" * 400}{"]" * 400}}}'), 0, 4_700),
]


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize(
    ("body", "rows", "bad"), [pytest.param(*post, id=name) for name, *post in POSTS]
)
def test_decode_a_post(benchmark: BenchmarkFixture, body: bytes, rows: int, bad: int) -> None:
    """From the body to a block of encoded rows, and its errors."""
    times = max(1, 1_000 // (rows + bad))

    def many() -> tuple[int, int]:
        block, errors = None, list[ItemError]()
        for _ in range(times):
            post = Post(None, b"unit" in body, NOW_S * 1_000_000, 0.0, RULES)
            block, errors, _ = decode(body, post)
        return block.rows if block else 0, len(errors)

    benchmark.extra_info["posts"] = times
    assert benchmark(many) == (rows, bad)
