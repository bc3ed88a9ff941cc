"""Traffic is realistic, repeatable and needs little memory; spoilt posts have their kind."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from loadgen.traffic.post import Post
from loadgen.traffic.traffic import (
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


@pytest.mark.parametrize("form", [{}, {"gzip": True}, {"format": "lines"}, {"broken": 1.0}])
def test_so_many_posts_end_their_connection(form: dict[str, Any]) -> None:
    """In each format; no other post does."""
    for share in (0.0, 0.3, 1.0):
        posts = _posts(_traffic(new_connections=share, **form), 1_000)
        ending = sum(b"\r\nConnection: close\r\n" in post.request for post in posts)
        assert ending / 1_000 == pytest.approx(share, abs=0.05 if share == 0.3 else 0)


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
