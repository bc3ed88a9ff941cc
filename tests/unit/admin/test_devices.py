"""The registry of devices: exact up to its bound, and it says when it is not exact."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from ingest.admin.dashboard import devices as dashboard_devices
from ingest.admin.dashboard.devices import Devices
from ingest.formats import messagepack, senml
from ingest.formats.block_builder import TOLD_AT_ONCE, SeriesCache
from ingest.formats.json import body as json_body
from ingest.formats.lines import body as lines_body
from ingest.formats.lines.keys import Naming
from ingest.formats.post import Post, Rules, finished

RULES = Rules(post_rows_max=100_000, ts_min_us=0, ts_ahead_us_max=10**12)
NOW_US = 1_800_000_000_000_000


def post(*items: str) -> None:
    """Let a body pass the door's decoder."""
    json_body.decode(f"[{','.join(items)}]".encode(), Post(None, False, NOW_US, 0.0, RULES))


def item(device: str, metric: str = "m") -> str:
    """Return one item of a post."""
    return f'{{"device_id":"{device}","metric":"{metric}","value":1}}'


def _lines(body: bytes, post: Post) -> object:
    line_post = lines_body.LinePost(post, Naming(("host",)), 1_000, 1 << 20)
    return lines_body.begin(body, line_post)


def _packed(body: bytes, post: Post) -> object:
    return messagepack.begin(msgspec.msgpack.encode(msgspec.json.decode(body)), post)


async def test_every_device_that_posts_is_seen_however_it_posts() -> None:
    """A device with a valid item in any form is seen; a device with only invalid items is not."""
    devices = Devices()
    devices.look()  # other tests have posted
    devices = Devices()
    post(item("alone"))
    post(item("a"), item("b"), item("a", "n"))
    post('{"device_id":"spread","values":{"x":1,"y":2}}')
    post(item("good"), '{"device_id":"bad","metric":"m","value":"warm"}')
    devices.look()
    assert (devices.count, devices.exact) == (5, True)
    report = await devices.report(60)
    assert {each["device_id"] for each in report["newest"]} == {"alone", "a", "b", "spread", "good"}
    assert report["silent_count"] == 0


NOT_ALLOWED: list[tuple[Callable[[bytes, Post], object], str]] = [
    (json_body.begin, '{"device_id":"other","metric":"m","value":1}'),
    (json_body.begin, '[{"device_id":"other","metric":"m","value":1}]'),
    (json_body.begin, f"[{item('mine')},{item('other')}]"),
    (json_body.begin, '{"device_id":"other","values":{"m":1}}'),
    (json_body.begin, f'[{item("mine")},{{"device_id":"other","values":{{"m":1}}}}]'),
    (json_body.begin_lines, f"{item('mine')}\n{item('other')}"),
    (senml.begin, '[{"n":"other/m","v":1},{"n":"mine/m","v":1}]'),
    (_packed, f"[{item('mine')},{item('other')}]"),
    (_lines, "m,host=other v=1"),
    (_lines, "m,host=mine v=1\nm,host=other v=1"),
    (_lines, 'm,host=mine v=1\nm,host=other v=1,s="x"'),
]


@pytest.mark.parametrize(("read", "body"), NOT_ALLOWED)
async def test_a_device_that_the_token_may_not_speak_for_is_not_seen(
    read: Callable[[bytes, Post], object], body: str
) -> None:
    """In any format; so nobody fills the list with names of others."""
    Devices().look()
    devices = Devices()
    sender = Post(None, False, NOW_US, 0.0, RULES, lambda device_id: device_id == "mine")
    finished(read(body.encode(), sender))
    devices.look()
    assert devices.described("other") is None
    assert (devices.described("mine") is not None) is ("mine" in body)


async def test_a_device_that_posts_again_is_seen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that posts after each look has a new last_seen each time."""
    devices = Devices()
    clock = [NOW_US]
    monkeypatch.setattr(dashboard_devices, "unix_us", lambda: clock[0])
    for device in ("steady", "gone"):
        post(item(device))
    devices.look()
    for _ in range(5):
        clock[0] += 30_000_000
        post(item("steady"))
        devices.look()
    report = await devices.report(60)
    assert [each["device_id"] for each in report["silent"]] == ["gone"]
    assert report["silent_count"] == 1
    steady = devices.described("steady")
    assert steady is not None
    assert steady["first_seen"] < steady["last_seen"]
    assert devices.described("never") is None


async def test_silent_ones_are_listed_longest_first_and_newest_ones_last_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lists are bounded; the count has no bound."""
    devices = Devices()
    for number in range(200):
        devices.seen([f"d{number}"], NOW_US + number * 1_000_000)
    monkeypatch.setattr(dashboard_devices, "unix_us", lambda: NOW_US + 1_000_000_000)
    report = await devices.report(850)
    assert report["silent_count"] == 150
    assert [each["device_id"] for each in report["silent"]][:2] == ["d0", "d1"]
    assert [each["device_id"] for each in report["newest"]][:2] == ["d199", "d198"]
    assert len(report["silent"]) == len(report["newest"]) == dashboard_devices.EACH_LIST_MAX


async def test_beyond_the_bound_the_count_says_how_many_there_are_at_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to DEVICES_MAX it is exact. At 100 times that it is two percent less, in the same memory,
    and those that are followed are still followed."""
    monkeypatch.setattr(dashboard_devices, "DEVICES_MAX", 1_000)
    devices = Devices(SeriesCache())
    names = [f"d{number}" for number in range(100_000)]
    devices.seen(names[:1_000], NOW_US)
    assert (devices.count, devices.exact) == (1_000, True)
    for _ in range(2):
        devices.seen(names, NOW_US + 1_000_000)
    assert not devices.exact
    assert 98_000 < devices.count <= 100_000
    assert len(devices._place) == 1_000
    monkeypatch.setattr(dashboard_devices, "unix_us", lambda: NOW_US + 2_500_000)
    report = await devices.report(2)
    assert (report["exact"], report["silent_count"]) == (False, 0)


async def test_no_device_is_missed_between_two_looks() -> None:
    """However many post: they are told in parts, and more than once if they post more than once."""
    series = SeriesCache()
    devices = Devices(series)
    for number in range(50_000):
        series.names("m", f"d{number}")
        assert number - TOLD_AT_ONCE < len(devices._place) <= number + 1
    series.names("n", "d0")
    devices.look()
    assert (devices.count, devices.exact) == (50_000, True)


async def test_look_is_due_at_once_for_few_and_later_for_many() -> None:
    """The more names there are, the rarer are the looks, because each costs cache misses."""
    series = SeriesCache()
    devices = Devices(series)
    assert devices.is_due()
    series.found = 10_000
    assert not devices.is_due()


async def test_rejected_are_counted_per_device_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many names of rejected devices do not fill the memory; the report says that it is partial."""
    monkeypatch.setattr(dashboard_devices, "DEVICES_MAX", 20)
    devices = Devices()
    devices.rejected(["a", "b", "a"])
    report = await devices.report(60)
    assert report["rejected"] == [
        {"device_id": "a", "rejected": 2},
        {"device_id": "b", "rejected": 1},
    ]
    assert not report["rejected_sampled"]
    devices.rejected(["c", "a"])
    assert (await devices.report(60))["rejected"][0]["rejected"] == 3
    assert devices.rejected_sampled
