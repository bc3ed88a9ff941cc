"""The CPU time of decoding each format of items, beside that of our JSON, in one run.

pytest benchmarks/bench_formats.py

Each round decodes the same 1,000 readings, in posts of 1, of 100 or of 1,000, or 100 items of ten
values. MessagePack with float32 is what boards write that have no float64. With zstd and gzip the
body is decompressed too.

Measured in one run, times the CPU of JSON: NDJSON 1.0 to 1.9, MessagePack 6 (single ones) to 13,
SenML 8 to 11: each of their items is read alone, in Python.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ingest.formats import json_post, ndjson, packed_post, senml
from ingest.formats.post import Decode, Post, Rules, finished
from ingest.http.inflate import GZIP, inflated

RULES = Rules(5_000, 946_684_800_000_000, 86_400_000_000)
NOW_S = 1_795_600_000
POST = Post(None, False, NOW_S * 1_000_000, 0.0, RULES)
Items = list[dict[str, Any]]


def _items(count: int, values: int = 1) -> Items:
    """Return items whose values a float32 has too."""
    head = [{"device_id": f"sensor-{i % 200:04}", "ts": NOW_S - i} for i in range(count)]
    if values > 1:
        named = [{f"usage_{m}": i + m / 4 for m in range(values)} for i in range(count)]
        return [{**each, "values": some} for each, some in zip(head, named, strict=True)]
    return [{**each, "metric": "temperature", "value": i / 8} for i, each in enumerate(head)]


def _json(items: Items) -> bytes:
    return json.dumps(items[0] if len(items) == 1 else items, separators=(",", ":")).encode()


def _lines(items: Items) -> bytes:
    return b"\n".join(json.dumps(each, separators=(",", ":")).encode() for each in items)


def _packed(items: Items) -> bytes:
    return msgspec.msgpack.encode(items[0] if len(items) == 1 else items)


def _short(items: Items) -> bytes:
    """Write each number with a point as a float32."""
    import struct  # noqa: PLC0415

    body = _packed(items)
    for each in items:
        value = each["value"]
        long, short = (b"\xcb" + struct.pack(">d", value), b"\xca" + struct.pack(">f", value))
        body = body.replace(b"\xa5value" + long, b"\xa5value" + short)
    return body


def _records(items: Items) -> bytes:
    return _json(
        [
            {
                "n": f"urn:dev:mac:{each['device_id']}:temperature",
                "t": each["ts"],
                "v": each["value"],
            }
            for each in items
        ]
    ).join((b"[", b"]") if len(items) == 1 else (b"", b""))


FORMATS: dict[str, tuple[Callable[[Items], bytes], Decode]] = {
    "json": (_json, json_post.begin),
    "json-gzip": (
        lambda items: gzip.compress(_json(items), 1),
        lambda body, post: json_post.begin(inflated(body, GZIP, 1 << 22), post),
    ),
    "ndjson": (_lines, ndjson.begin),
    "msgpack": (_packed, packed_post.begin),
    "msgpack-float32": (_short, packed_post.begin),
    "senml": (_records, senml.begin),
}
POSTS = [(form, count, 1) for count in (1, 100, 1_000) for form in FORMATS]
POSTS += [(form, 100, 10) for form in ("json", "ndjson", "msgpack")]


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize(("form", "count", "values"), POSTS)
def test_decode_formats(benchmark: BenchmarkFixture, form: str, count: int, values: int) -> None:
    """From the body to one block of encoded rows."""
    write, begin = FORMATS[form]
    body = write(_items(count, values))
    times = 1_000 // (count * values)

    def all_posts() -> int:
        blocks = [finished(begin(body, POST)).block for _ in range(times)]
        return sum(block.rows for block in blocks if block)

    benchmark.extra_info["readings"] = 1_000
    assert benchmark(all_posts) == 1_000
