"""Traffic is realistic, repeatable and needs little memory; spoilt posts have their kind."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from loadgen.traffic.post import Post
from loadgen.traffic.spoil import LATE_HOURS_MAX
from loadgen.traffic.traffic import (
    BACKLOG_BYTES_AHEAD,
    BROKEN,
    GOOD,
    INVALID,
    MINUTE_US,
    MIXED,
    REPEATABLE_POSTS,
    Recipe,
    Traffic,
)

START_US = 1_760_000_000_000_000
HOUR_US = 3_600_000_000


def _traffic(step_us: int = 100, **recipe: Any) -> Traffic:
    at_us = START_US - step_us

    def now_us() -> int:
        nonlocal at_us
        at_us += step_us
        return at_us

    traffic = Traffic(Recipe(**recipe), "/v1/readings?ack=buffered", "host:1", now_us)
    traffic.prepare(START_US)
    return traffic


def _posts(traffic: Traffic, count: int) -> Iterator[Post]:
    for _ in range(count):
        post = traffic.take()
        assert post is not None
        yield post


def _body(post: Post) -> bytes:
    head, _, body = post.request.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    if b"Content-Encoding: gzip" in head.split(b"\r\n"):
        return gzip.decompress(body)
    return body


def _items(post: Post) -> list[dict[str, Any]]:
    document = json.loads(_body(post))
    return document if isinstance(document, list) else [document]


@pytest.mark.parametrize("mix", [((1, 1.0),), ((100, 1.0),), ((1, 3.0), (7, 1.0), (45, 1.0))])
@pytest.mark.parametrize("devices", [1, 7, 300])
def test_readings_of_a_series_never_share_a_timestamp(
    devices: int, mix: tuple[tuple[int, float], ...]
) -> None:
    """All readings of a series have different timestamps."""
    traffic = _traffic(step_us=20, devices=devices, mix=mix, late=0.2)
    seen = set()
    readings = 0
    for post in _posts(traffic, 600):
        assert post.kind == GOOD
        items = _items(post)
        assert len(items) == post.readings
        readings += len(items)
        seen |= {(each["device_id"], each["metric"], each["ts"]) for each in items}
    assert len(seen) == readings
    assert len({device for device, _, _ in seen}) == devices
    assert traffic.made["late"] == sum(ts < START_US for _, _, ts in seen)


def test_same_seed_and_moments_give_the_same_bytes_and_another_seed_others() -> None:
    """The same seed and moments give the same bytes; another seed gives others."""
    odd: dict[str, Any] = {
        "late": 0.1,
        "future": 0.1,
        "poison": 0.1,
        "broken": 0.1,
        "duplicates": 0.1,
    }
    mix = ((1, 1.0), (5, 1.0))

    def posts(seed: int) -> list[Post]:
        return list(_posts(_traffic(devices=50, seed=seed, mix=mix, **odd), 300))

    assert posts(3) == posts(3)
    assert [each.request for each in posts(3)] != [each.request for each in posts(4)]


def test_moments_and_values_are_those_of_a_living_fleet() -> None:
    """Timestamps follow the clock; each device measures about once a second."""
    traffic = _traffic(step_us=1000, devices=40, mix=((80, 1.0),))
    values = defaultdict(list)
    for number, post in enumerate(_posts(traffic, 4000)):
        items = _items(post)
        assert items[0]["ts"] == START_US + 1000 * number
        for each in items:
            values[each["device_id"], each["metric"]].append(each["value"])
    assert {metric for _, metric in values} == {
        *("temperature", "humidity", "power", "voltage", "door_open", "battery")
    }
    temperatures = [found for (_, metric), found in values.items() if metric == "temperature"]
    assert all(3 <= len(set(found)) <= 5 for found in temperatures), "4 s, a value a second"
    assert all(isinstance(each, bool) for each in values["door-0005", "door_open"])


def test_mix_draws_sizes_by_their_weights() -> None:
    """Sizes are drawn by their weights."""
    sizes = Counter(post.readings for post in _posts(_traffic(mix=((1, 3.0), (50, 1.0))), 4000))
    assert set(sizes) == {1, 50}
    assert 900 < sizes[50] < 1100


def test_shares_are_met_and_kinds_say_what_is_in_a_post() -> None:
    """The shares of odd readings are right, and the kind of a post says the right answer."""
    traffic = _traffic(mix=((1, 1.0), (10, 1.0)), late=0.05, future=0.02, poison=0.04, broken=0.1)
    readings = 0
    for post in _posts(traffic, 6000):
        if post.kind == BROKEN:
            continue
        readings += post.readings
        bad = sum(_is_bad(each) for each in _items(post))
        expected = GOOD if bad == 0 else INVALID if bad == post.readings else MIXED
        assert post.kind == expected
        assert traffic.bad_items.pop(post.number, 0) == (bad if expected == MIXED else 0)
    assert traffic.bad_items == {}
    made = traffic.made
    assert made["broken"] == pytest.approx(600, rel=0.15)
    assert made["late"] == pytest.approx(0.05 * readings, rel=0.25)
    assert made["future"] == pytest.approx(0.02 * readings, rel=0.25)
    assert made["poison"] == pytest.approx(0.04 * readings, rel=0.25)


def _is_bad(item: dict[str, Any]) -> bool:
    """Whether the service refuses the reading, found without the code that made it."""
    return (
        isinstance(item["value"], str)
        or "\0" in item["device_id"]
        or len(item["device_id"]) > 256
        or isinstance(item["ts"], str)
        or item["ts"] > START_US + 24 * HOUR_US
    )


def test_reading_is_spoilt_in_one_way_only() -> None:
    """A reading that is chosen for two faults gets one of them, and one is counted."""
    traffic = _traffic(mix=((200, 1.0),), late=0.5, future=0.5, poison=0.5)
    bad = sum(_is_bad(each) for post in _posts(traffic, 10) for each in _items(post))
    assert traffic.made["future"] + traffic.made["poison"] == bad


def test_late_readings_are_hours_to_a_week_old() -> None:
    """Late readings are hours to a week old, and valid."""
    (ages,) = [
        [(START_US - each["ts"]) / HOUR_US for each in _items(post)]
        for post in _posts(_traffic(mix=((500, 1.0),), late=1.0), 1)
    ]
    assert 0.9 < min(ages) < 10
    assert LATE_HOURS_MAX - 10 < max(ages) <= LATE_HOURS_MAX


def test_poison_comes_in_all_its_ways() -> None:
    """All kinds of `--poison` occur: NUL, a string, the year 9999, a long name."""
    (post,) = _posts(_traffic(mix=((400, 1.0),), poison=1.0), 1)
    assert post.kind == INVALID
    items = _items(post)
    assert all(_is_bad(each) for each in items)
    ways = (
        sum("\0" in each["device_id"] for each in items),
        sum(isinstance(each["value"], str) for each in items),
        sum(each["ts"] == "9999-12-31T23:59:59Z" for each in items),
        sum(len(each["device_id"]) > 300 for each in items),
    )
    assert sum(ways) == 400
    assert min(ways) > 50


@pytest.mark.parametrize("mix", [((1, 1.0),), ((20, 1.0),)])
def test_broken_bodies_cannot_be_read_by_anyone(mix: tuple[tuple[int, float], ...]) -> None:
    """Broken bodies are cut off, not UTF-8, or half a gzip."""
    how = Counter[type[Exception]]()
    for post in _posts(_traffic(mix=mix, broken=1.0), 200):
        assert post.kind == BROKEN
        with pytest.raises((ValueError, EOFError, zlib.error)) as caught:
            json.loads(_body(post).decode())
        how[caught.type] += 1
    assert set(how) == {json.JSONDecodeError, UnicodeDecodeError, EOFError}
    assert min(how.values()) > 30


def test_duplicates_repeat_a_recent_good_post_byte_for_byte() -> None:
    """A duplicate has the bytes of a recent good post."""
    traffic = _traffic(duplicates=0.2, poison=0.3, broken=0.1)
    first_seen: dict[bytes, int] = {}
    repeated = 0
    for post in _posts(traffic, 3000):
        if post.kind == BROKEN:
            continue  # cut off before their timestamps, they may be equal
        if post.request in first_seen:
            repeated += 1
            assert post.kind == GOOD
            assert post.number - first_seen[post.request] < 20 * REPEATABLE_POSTS
        first_seen.setdefault(post.request, post.number)
    assert repeated == traffic.made["duplicates"] == pytest.approx(3000 * 0.9 * 0.2, rel=0.15)


def test_gzip_posts_inflate_to_what_plain_ones_hold() -> None:
    """A gzip post inflates to the plain post."""
    plain, packed = (list(_posts(_traffic(mix=((30, 1.0),), gzip=each), 5)) for each in (0, 1))
    assert [_body(each) for each in plain] == [_body(each) for each in packed]
    assert len(packed[0].request) < len(plain[0].request) / 2


def test_backlog_of_every_device_comes_first_then_live_readings() -> None:
    """Each device first posts its backlog, a reading of each metric a minute; then live ones."""
    traffic = _traffic(devices=12, backlog_minutes=30)
    posts = list(_posts(traffic, 30))
    devices = []
    for post in posts[:12]:
        items = _items(post)
        assert len(items) == post.readings == 60
        (device,) = {each["device_id"] for each in items}
        devices.append(device)
        moments = sorted({each["ts"] for each in items})
        assert {b - a for a, b in pairwise(moments)} == {MINUTE_US}
        assert START_US - 31 * MINUTE_US < moments[0] < moments[-1] < START_US
        assert len({each["metric"] for each in items}) == 2
    assert len(set(devices)) == 12
    assert all(post.readings == 1 and _items(post)[0]["ts"] >= START_US for post in posts[12:])
    assert traffic.made == {"backlog": 12}


def test_backlog_beyond_what_is_made_ahead_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog that is made later has the same content."""
    assert BACKLOG_BYTES_AHEAD > 1e6
    ahead = list(_posts(_traffic(devices=9, backlog_minutes=3, step_us=1), 20))
    monkeypatch.setattr("loadgen.traffic.traffic.BACKLOG_BYTES_AHEAD", 1500)
    assert list(_posts(_traffic(devices=9, backlog_minutes=3, step_us=1), 20)) == ahead


def test_traffic_ends_after_its_posts_or_by_end() -> None:
    """After the end, `take` always returns None."""
    traffic = _traffic(posts_max=3)
    assert [traffic.take() is None for _ in range(5)] == [False, False, False, True, True]
    traffic = _traffic()
    assert traffic.take() is not None
    traffic.end()
    assert traffic.take() is None
