"""The requests of the corpus, always the same: posts of readings to a service without a fault.

The other files `cases_*` have requests about HTTP itself, the admin port and services with faults.
Each post has a device of its own, so that a row of the table shows its post.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tests.path.recorded.exchange import Case, Part, expand
from tests.path.recorded.forms import (
    ASKED,
    BAD_QUERIES,
    BROKEN,
    BROKEN_BYTES,
    FUTURE,
    MEDIA_TYPES,
    NAMES,
    PRECISIONS,
    TS_FORMS,
    VALUES,
)

SEED, DRAWN = 12, 24
READINGS = "/v1/readings"
JSON_TYPE = "application/json"
BODY_BYTES_MAX, INFLATED_BYTES_MAX, POST_ROWS_MAX = 20_000, 262_144, 120
_numbers = itertools.count(1)


def device() -> str:
    """Return a name that no other request has."""
    return f"d{next(_numbers)}"


def item(**fields: Any) -> dict[str, Any]:
    """Return a good reading with some fields changed; a field that is `...` is left out."""
    whole = {
        "device_id": device(),
        "metric": "temperature",
        "ts": "2025-06-01T12:00:00Z",
        "value": 21.5,
        **fields,
    }
    return {name: value for name, value in whole.items() if value is not ...}


def raw(ts: str = '"2025-06-01T12:00:00Z"', value: str = "21.5", metric: str = '"m"') -> str:
    """Return a reading as JSON text whose parts need not be valid."""
    return f'{{"device_id":"{device()}","metric":{metric},"ts":{ts},"value":{value}}}'


def binary(data: bytes) -> Part:
    """Return bytes as a part: as text, where they are ASCII."""
    if data.isascii() and b"\x00" not in data:
        return data.decode()
    return {"base64": base64.b64encode(data).decode()}


def times(text: str, count: int) -> Part:
    """Return a part that repeats a text."""
    return {"text": text, "times": count}


def head(method: str, target: str, *lines: str, version: str = "1.1") -> str:
    """Return the head of a request."""
    first = [f"{method} {target} HTTP/{version}", "Host: localhost"]
    return "\r\n".join([*first, *lines, "", ""])


def post(
    body: Any,
    query: str = "",
    *lines: str,
    kind: str | None = JSON_TYPE,
    size: int | None = None,
) -> list[Part]:
    """Return a post of parts, of text, or of any other value as JSON. `size`: Content-Length."""
    if isinstance(body, bytes):
        body = [binary(body)]
    elif isinstance(body, str):
        body = [body]
    elif not (isinstance(body, tuple)):
        body = [json.dumps(body, separators=(",", ":"))]
    body_bytes = sum(len(expand(part)) for part in body) if size is None else size
    headers = [f"Content-Type: {kind}"] if kind is not None else []
    start = head("POST", READINGS + query, *headers, f"Content-Length: {body_bytes}", *lines)
    return [start + body[0], *body[1:]] if isinstance(body[0], str) else [start, *body]


def working(group: str, sends: Iterable[tuple[str, list[Part]]]) -> Iterator[Case]:
    """Yield requests to the data port of a service without a fault, with names."""
    for name, send in sends:
        yield Case(f"{group}: {name}", "working", "data", send)


def singles() -> Iterator[tuple[str, list[Part]]]:
    """One reading a post: all forms of values, names and times."""
    for name, text in VALUES.items():
        yield f"value {name}", post(raw(value=text))
    for name, text in NAMES.items():
        yield f"metric {name}", post(raw(metric=text))
    for name, text in list(NAMES.items())[::3]:
        named = f'{{"device_id":{text},"metric":"m{device()}","ts":1748779200,"value":1}}'
        yield f"device {name}", post(named)
    for name, text in TS_FORMS.items():
        yield f"ts {name}", post(raw(ts=text))
    for name, text in PRECISIONS.items():
        yield f"precision {name}", post(raw(ts=text), f"?precision={re.split('[ ,]', name)[0]}")
    for field in ("device_id", "metric", "ts", "value"):
        yield f"without {field}", post(item(**{field: ...}))
    yield "without metric and value", post(item(metric=..., value=...))
    yield "with a misspelt field", post(item(timestamp=1))
    yield "with a long misspelt field", post(item(**{"x" * 100: 1}))
    yield "with a repeated field", post(raw()[:-1] + ',"value":3}')
    yield "with a field repeated in escapes", post(raw()[:-1] + ',"v\\u0061lue":3}')
    yield "with space around", post(" \r\n\t" + json.dumps(item(), indent=2) + "\n")
    yield "in another order", post(dict(reversed(item().items())))


def arrays() -> Iterator[tuple[str, list[Part]]]:
    """Several items a post, and several readings an item."""
    name = device()
    series = [item(device_id=name, ts=1_748_779_200 + number) for number in range(20)]
    texts = [item(device_id=f"{name}t", ts=f"2025-06-01T12:00:{n:02}.5Z") for n in range(14)]
    yield "of one", post([item()])
    yield "of 20 with numbers", post(series)
    yield "of 14 with texts", post(texts)
    yield "of 14 with texts, one bad", post([*texts[:13], item(ts="2025-06-01T12:00:29.5")])
    yield "of 20 that are one fact", post([item(device_id=device())] * 20, "?ack=committed")
    kinds = (1748779200, "2025-06-01T12:00:00Z", ...)
    yield "with all kinds of ts", post([item(ts=ts) for ts in kinds])
    bad = {
        "not_an_object": 5,
        "missing_field": item(metric=...),
        "unknown_field": item(unit="C"),
        "both_shapes": item(values={"a": 1}),
        "values_empty": item(metric=..., value=..., values={}),
        "wrong_type": item(value="warm"),
        "name_empty": item(metric=""),
        "name_too_long": item(device_id="x" * 257),
        "name_control_character": item(metric="a\tb"),
        "ts_unreadable": item(ts="soon"),
        "ts_without_offset": item(ts="2025-06-01T12:00:00"),
        "ts_too_old": item(ts=5),
        "ts_in_future": item(ts=FUTURE),
    }
    for code, each in bad.items():
        yield f"with {code}", post([item(), each, item()])
    yield "with value_out_of_range", post(f"[{raw()},{raw(value='1e400')}]")
    yield "with repeated_field", post(f'[{raw()},{raw()[:-1]},"ts":5}}]')
    yield "with every error", post([item(), *bad.values()])
    yield "with every error, strict", post([item(), *bad.values()], "?strict=true")
    yield "with every error, committed", post([*bad.values(), item()], "?ack=committed")
    yield "of errors only", post(list(bad.values()))
    yield "of 110 errors", post((json.dumps([item(device_id="o")])[:-1], times(",11111", 110), "]"))
    yield "of 110 errors only", post(("[0", times(",11111", 109), "]"))
    yield "nested", post([[item()]])
    yield "with nulls", post([item(), None, item()])
    unknown = [item(unit="C"), item(x={"y": [1]})]
    yield "with unknown fields ignored", post(unknown, "?unknown=ignore")
    yield "with unknown fields named", post([item(unit="C"), item()], "?unknown=error")
    yield "ignoring what is repeated", post(raw()[:-1] + ',"x":1,"x":2}', "?unknown=ignore")


def values_items() -> Iterator[tuple[str, list[Part]]]:
    """Items of the shape `values`."""

    def several(values: Any, **fields: Any) -> dict[str, Any]:
        return item(metric=..., value=..., values=values, **fields)

    yield "of one", post(several({"a": 1}))
    yield "of two", post(several({"temperature": 21.5, "humidity": 40}))
    yield "of all kinds of numbers", post(several({"a": -0.0, "b": True, "c": 1e300, "d": 10**20}))
    yield "with a bad value", post(several({"a": 1, "b": "x", "c": None}))
    yield "with a bad name", post(several({"": 1, "b": 2, "c\n": 3, "n" * 257: 4}))
    yield "with bad values only", post(several({"a": None, "b": []}))
    yield "with a bad value, strict", post(several({"a": 1, "b": "x"}), "?strict=true")
    yield "repeated", post(f'{{"device_id":"{device()}","values":{{"a":1,"a":2,"b":3}}}}')
    yield "beside metric", post(item(value=..., values={"a": 1}))
    yield "beside value", post(item(metric=..., values={"a": 1}))
    for name, wrong in {"null": None, "an array": [1], "a number": 5, "a text": "x"}.items():
        yield f"that are {name}", post(several(wrong))
    yield "without ts", post(several({"a": 1}, ts=...))
    yield "with a bad ts", post(several({"a": 1, "b": 2}, ts="x"))
    yield "without device", post(several({"a": 1}, device_id=...))
    yield "in an array", post([several({"a": 1, "b": "x"}), item(), several({"c": 1})])
    yield "in an array, committed", post([several({"a": 1, "b": "x"}), item()], "?ack=committed")
    full = {f"m{number}": number for number in range(POST_ROWS_MAX)}
    yield "of as many as may be", post(several(full))
    yield "of one too many", post(several({**full, "more": 1}))
    yield "of too many in two items", post([several(full), item()])


def queries() -> Iterator[tuple[str, list[Part]]]:
    """Queries of a post, allowed and not allowed."""
    acks = ("buffered", "durable", "committed")
    for ack, strict in itertools.product(acks, ("", "true", "false")):
        query = f"?ack={ack}" + (f"&strict={strict}" if strict else "")
        yield f"{query}, good", post([item(), item()], query)
        yield f"{query}, one bad", post([item(), item(value=None)], query)
    for query in BAD_QUERIES.split():
        yield query, post(item(), query)
    yield "a long name", post(item(), f"?{'x' * 200}=1")
    for name in ("first", "second"):
        fixed = item(device_id="same", ts="2025-06-02T00:00:00Z")
        yield f"the same fact, {name}", post(fixed, "?ack=committed")
    refused = item(value=666)
    yield "refused by the database", post(refused, "?ack=committed")
    yield "some refused by the database", post([item(), refused, item()], "?ack=committed")
    mixed = [item(value=None), item(value=666), item(), {"x": 1}, item(value=666.0)]
    yield "refused and invalid", post(mixed, "?ack=committed")
    several = item(metric=..., value=..., values={"a": 1, "b": 666, "c": 2})
    yield "refused among values", post(several, "?ack=committed")
    yield "refused later", post([item(), item(value=666)], "?ack=durable")


def broken() -> Iterator[tuple[str, list[Part]]]:
    """Bodies that are not JSON, or no readings."""
    for name, text in BROKEN.items():
        yield name, post(text)
    # Not: deep nesting. How much of it is still JSON depends on the version of Python.
    for name, data in BROKEN_BYTES.items():
        yield name, post(data)


def zipped(data: Any) -> bytes:
    """Return JSON, compressed; the same bytes on every machine with the same zlib."""
    return gzip.compress(json.dumps(data).encode(), mtime=0)


def encodings() -> Iterator[tuple[str, list[Part]]]:
    """Compressed bodies: whole, broken, with a wrong header."""
    gz = "Content-Encoding: gzip"
    good = zipped([item(), item()])
    yield "good", post(zipped(item()), "", gz)
    yield "x-gzip", post(zipped(item()), "", "Content-Encoding: x-gzip")
    yield "in upper case", post(zipped(item()), "", "content-encoding: GZIP")
    yield "good, committed", post(zipped([item(), item(value=None)]), "?ack=committed", gz)
    yield "cut off in the trailer", post(good[:-3], "", gz)
    yield "cut off in the middle", post(good[: len(good) // 2], "", gz)
    yield "cut off in the header", post(good[:5], "", gz)
    yield "empty", post(b"", "", gz)
    yield "not gzip", post(item(), "", gz)
    yield "with a wrong checksum", post(good[:-8] + b"\0\0\0\0" + good[-4:], "", gz)
    yield "with a wrong length", post(good[:-4] + b"\xff\xff\0\0", "", gz)
    yield "with a small length", post(good[:-4] + b"\1\0\0\0", "", gz)
    yield "with an altered byte", post(good[:20] + bytes([good[20] ^ 255]) + good[21:], "", gz)
    yield "with bytes after it", post(good + b"more", "", gz)
    yield "of two members", post(good + good, "", gz)
    yield "of nothing", post(gzip.compress(b"", mtime=0), "", gz)
    yield "of words", post(gzip.compress(b"hello", mtime=0), "", gz)
    yield "twice", post(gzip.compress(good, mtime=0), "", gz)
    yield "named twice", post(good, "", "Content-Encoding: gzip, gzip")
    yield "inflating to the bound", post(_spaced(INFLATED_BYTES_MAX), "", gz)
    yield "inflating beyond it", post(_spaced(INFLATED_BYTES_MAX + 1), "", gz)
    yield "a bomb", post(gzip.compress(bytes(1_000_000), mtime=0), "", gz)
    yield "of commas only", post(gzip.compress(b"[" + b"," * 70_000, mtime=0), "", gz)
    for other in ("deflate", "br", "zstd", "identity", "", "gzip;q=1", "x" * 200):
        yield f"encoding {other:.20}", post(item(), "", f"Content-Encoding: {other}")


def _spaced(size: int) -> bytes:
    body = json.dumps(item()).encode()
    return gzip.compress(body + b" " * (size - len(body)), mtime=0)


def media_types() -> Iterator[tuple[str, list[Part]]]:
    """Media types of the body, known and unknown."""
    for kind in MEDIA_TYPES.split("|"):
        yield kind or "empty", post(item(), kind=kind)
    yield "none", post(item(), kind=None)
    yield "twice", post(item(), "", "Content-Type: text/plain")
    yield "long", post(item(), kind="x/" + "y" * 300)


def limits() -> Iterator[tuple[str, list[Part]]]:
    """Posts at their limits and beyond."""

    def padded(size: int) -> tuple[Part, ...]:
        text = json.dumps(item())
        return text, times(" ", size - len(text))

    yield "a body at its bound", post(padded(BODY_BYTES_MAX))
    yield "a body beyond it", post(padded(BODY_BYTES_MAX + 1))
    yield "a body of 16 KiB", post(padded(16_384))
    yield "a body of 16 KiB and a byte", post(padded(16_385))
    yield "a claimed gigabyte", post(item(), size=1 << 30)
    rows = json.dumps({"device_id": device(), "metric": "m", "ts": 1748779200, "value": 1})
    for count in (POST_ROWS_MAX, POST_ROWS_MAX + 1):
        yield f"{count} readings", post((f"[{rows}", times("," + rows, count - 1), "]"))
    yield "1,000 small items", post(("[1", times(",1", 999), "]"))
    yield "121 items, strict", post(("[1", times(",1", 120), "]"), "?strict=true")
    yield "commas only", post(("[", times(",", 19_000)))


def drawn() -> Iterator[tuple[str, list[Part]]]:
    """Random posts of good and bad parts, by a fixed seed."""
    draw = random.Random(SEED)
    for number in range(DRAWN):
        items = [_drawn_item(draw, number) for _ in range(draw.randint(1, 8))]
        chosen = [f"{name}={draw.choice(of)}" for name, of in ASKED if draw.random() < 0.4]
        body = f"[{','.join(items)}]" if len(items) > 1 else items[0]
        yield f"number {number + 1}", post(body, "?" + "&".join(chosen) if chosen else "")


def _drawn_item(draw: random.Random, number: int) -> str:
    ts, value = str(1_748_779_200 + number), str(draw.random())
    if draw.random() < 0.2:
        ts = draw.choice([*TS_FORMS.values()])
    if draw.random() < 0.3:
        value = draw.choice([*VALUES.values()][:22])
    return raw(ts, value, metric=draw.choice([*NAMES.values()][:6]))


def posts() -> Iterator[Case]:
    """All posts to a service without a fault."""
    groups = {
        "single": singles,
        "array": arrays,
        "values": values_items,
        "query": queries,
        "not JSON": broken,
        "gzip": encodings,
        "media type": media_types,
        "limit": limits,
        "drawn": drawn,
    }
    for group, sends in groups.items():
        yield from working(group, sends())
