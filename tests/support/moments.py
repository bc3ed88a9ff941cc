"""Random moments of devices, and posts of them in all formats: who makes a post knows its facts.

A fact is (ts in Unix microseconds, device_id, metric, value). Names and bodies are written by code
that shares nothing with the service.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

Fact = tuple[int, str, str, float]
DEVICES = ("d1", "d2")
# Measurement, field and the tags behind the device; a measurement alone has the field `value`.
PLAIN = [(name, "value", "") for name in ("temperature", "humidity", "co2", "noise", "power")]
FIELDS = [
    (measurement, field, tags)
    for measurement, tags in (("cpu", "cpu=cpu0"), ("cpu", "cpu=cpu1"), ("cpu", ""))
    for field in ("idle", "user", "steal")
]
FIELDS += [("power", "peak", ""), ("power", "value", "phase=a"), ("power", "peak", "phase=a")]
VALUES = (0.0, -0.0, 1.0, 1.0, 2.5, -3.0, 1e300, 5e-324, 7.0)
SOURCE = '[[source]]\nname = "esp"\ndevice = "id"\ntime = "at"\n'
Field = tuple[str, str, str]


def metric_of(measurement: str, field: str, tags: str) -> str:
    """Return the metric of a field, as docs/use/senders.md names it."""
    stem = measurement if field == "value" else f"{measurement}.{field}"
    return f"{stem},{tags}" if tags else stem


class Moment(NamedTuple):
    """What one device has at one time."""

    ts_us: int
    device_id: str
    values: dict[Field, float]

    def by_metric(self) -> dict[str, float]:
        """Return the values by metric."""
        return {metric_of(*each): value for each, value in self.values.items()}

    def facts(self) -> set[Fact]:
        """Return the facts. PostgreSQL's -0 equals 0, and so does Python's."""
        return {(self.ts_us, self.device_id, *each) for each in self.by_metric().items()}


class Post(NamedTuple):
    """A post: where it goes to, and what it has."""

    path: str
    media_type: str
    body: bytes
    facts: set[Fact]


def a_moment(draw: random.Random, times_us: Sequence[int]) -> Moment:
    """Draw a moment: of the values that belong together all, or some; at times any."""
    fields = draw.choice([PLAIN, PLAIN[:3], FIELDS, [*PLAIN, *FIELDS]])
    some = draw.sample(fields, draw.choice([1, len(fields), draw.randint(1, len(fields))]))
    values = {each: draw.choice(VALUES) for each in some}
    return Moment(draw.choice(times_us), draw.choice(DEVICES), values)


def altered(draw: random.Random, moment: Moment) -> Moment:
    """Return the same moment once more: a part of it, or with another value, or with one more."""
    values = dict(moment.values)
    how = draw.randrange(3)
    if how == 0 and len(values) > 1:
        del values[draw.choice(list(values))]
    elif how == 1:
        values[draw.choice(list(values))] = draw.choice(VALUES)
    else:
        values.setdefault(draw.choice([*PLAIN, *FIELDS]), draw.choice(VALUES))
    return moment._replace(values=values)


def uniform(draw: random.Random, first_us: int, count: int) -> list[Moment]:
    """Return many moments of one shape, as for the fast ways."""
    fields = draw.choice([PLAIN[:3], PLAIN[:4], FIELDS[:3], FIELDS[3:5]])
    return [
        Moment(first_us + at // 2, DEVICES[at % 2], {each: draw.choice(VALUES) for each in fields})
        for at in range(count)
    ]


def a_post(draw: random.Random, moments: Sequence[Moment]) -> Post:
    """Write moments in a format that is drawn."""
    facts = {fact for moment in moments for fact in moment.facts()}
    return draw.choice(WRITERS)(draw, moments)._replace(facts=facts)


def _item(moment: Moment, **one: Any) -> dict[str, Any]:
    return {"device_id": moment.device_id, "ts": moment.ts_us, **one}


def _items(draw: random.Random, moments: Sequence[Moment]) -> list[dict[str, Any]]:
    """Write items with `values`, or with one value each, or some of both."""
    flat_share, items = draw.choice((0.0, 1.0, 0.5)), []
    for moment in moments:
        if draw.random() < flat_share:
            each = moment.by_metric().items()
            items += [_item(moment, metric=metric, value=value) for metric, value in each]
        else:
            items.append(_item(moment, values=moment.by_metric()))
    return items


def _json(draw: random.Random, moments: Sequence[Moment]) -> Post:
    items = _items(draw, moments)
    is_alone = len(items) == 1 and draw.random() < 0.7
    return _readings("application/json", json.dumps(items[0] if is_alone else items).encode())


def _ndjson(draw: random.Random, moments: Sequence[Moment]) -> Post:
    texts = map(json.dumps, _items(draw, moments))
    return _readings("application/x-ndjson", "\n".join(texts).encode())


def _msgpack(draw: random.Random, moments: Sequence[Moment]) -> Post:
    return _readings("application/msgpack", msgspec.msgpack.encode(_items(draw, moments)))


def _senml(draw: random.Random, moments: Sequence[Moment]) -> Post:
    records = [
        (
            f'{{"n":"{moment.device_id}/{metric}","v":{value!r},'
            f'"bt":{moment.ts_us // 1_000_000},"t":0.{moment.ts_us % 1_000_000:06}}}'
        )
        for moment in moments
        for metric, value in moment.by_metric().items()
    ]
    return _readings("application/senml+json", f"[{','.join(records)}]".encode())


def _readings(media_type: str, body: bytes) -> Post:
    return Post("/v1/readings?precision=us", media_type, body, set())


def _lines(draw: random.Random, moments: Sequence[Moment]) -> Post:
    """Write line protocol. At times the fields of a moment are in two lines, one after another."""
    in_two, lines = draw.choice((0.0, 0.0, 0.6)), list[str]()
    for moment in moments:
        keys: dict[tuple[str, str], list[str]] = {}
        for (measurement, field, tags), value in moment.values.items():
            keys.setdefault((measurement, tags), []).append(f"{field}={value!r}")
        for (measurement, tags), fields in keys.items():
            key = f"{measurement},host={moment.device_id}" + (f",{tags}" if tags else "")
            cut = draw.randrange(len(fields)) if draw.random() < in_two else 0
            lines += _line(key, fields[:cut], moment.ts_us) + _line(key, fields[cut:], moment.ts_us)
    return Post("/write?precision=u", "text/plain", "\n".join(lines).encode(), set())


def _line(key: str, fields: Iterable[str], ts_us: int) -> list[str]:
    """Return a line with these fields, or none."""
    text = ",".join(fields)
    return [f"{key} {text} {ts_us}"] if text else []


def _mapped(_: random.Random, moments: Sequence[Moment]) -> Post:
    documents = [
        {"id": moment.device_id, "at": moment.ts_us, **moment.by_metric()} for moment in moments
    ]
    return Post("/v1/in/esp", "application/json", json.dumps(documents).encode(), set())


WRITERS = (_json, _json, _ndjson, _msgpack, _senml, _lines, _lines, _mapped)
