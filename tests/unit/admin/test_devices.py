"""The registry of devices: exact up to its bound, and it says when it is not exact."""

from __future__ import annotations

import pytest

from ingest.admin.dashboard import devices as dashboard_devices
from ingest.admin.dashboard.devices import Devices
from ingest.formats.json_post import decode
from ingest.formats.post import Post, Rules
from ingest.formats.series import CACHES_KEPT_MAX, SERIES, SERIES_CACHED_MAX

RULES = Rules(post_rows_max=100_000, ts_min_us=0, ts_ahead_us_max=10**12)
NOW_US = 1_800_000_000_000_000


def post(*items: str) -> None:
    """Let a body pass the door's decoder."""
    decode(f"[{','.join(items)}]".encode(), Post(None, False, NOW_US, 0.0, RULES))


def item(device: str, metric: str = "m") -> str:
    """Return one item of a post."""
    return f'{{"device_id":"{device}","metric":"{metric}","value":1}}'


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """Empty the cache of series, which other tests fill."""
    SERIES.take()


async def test_every_device_that_posts_is_seen_however_it_posts() -> None:
    """A device with a valid item in any form is seen; a device with only invalid items is not."""
    devices = Devices()
    post(item("alone"))
    post(item("a"), item("b"), item("a", "n"))
    post('{"device_id":"spread","values":{"x":1,"y":2}}')
    post(item("good"), '{"device_id":"bad","metric":"m","value":"warm"}')
    await devices.look()
    assert (devices.count, devices.exact) == (5, True)
    report = await devices.report(60)
    assert {each["device_id"] for each in report["newest"]} == {"alone", "a", "b", "spread", "good"}
    assert report["silent_count"] == 0


async def test_a_device_that_posts_again_is_seen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that posts after each look has a new last_seen each time."""
    devices = Devices()
    clock = [NOW_US]
    monkeypatch.setattr(dashboard_devices, "unix_us", lambda: clock[0])
    for device in ("steady", "gone"):
        post(item(device))
    await devices.look()
    for _ in range(5):
        clock[0] += 30_000_000
        post(item("steady"))
        await devices.look()
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
        devices.seen(f"d{number}", NOW_US + number * 1_000_000)
    monkeypatch.setattr(dashboard_devices, "unix_us", lambda: NOW_US + 1_000_000_000)
    report = await devices.report(850)
    assert report["silent_count"] == 150
    assert [each["device_id"] for each in report["silent"]][:2] == ["d0", "d1"]
    assert [each["device_id"] for each in report["newest"]][:2] == ["d199", "d198"]
    assert len(report["silent"]) == len(report["newest"]) == dashboard_devices.LISTED_MAX


async def test_beyond_the_bound_the_count_is_near_and_says_that_it_is_not_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At 100 times DEVICES_MAX the count is wrong by less than a percent, in the same memory."""
    monkeypatch.setattr(dashboard_devices, "DEVICES_MAX", 1_000)
    devices = Devices()
    for number in range(999):
        devices.seen(f"d{number}", NOW_US)
    assert (devices.count, devices.exact) == (999, True)
    for number in range(999, 100_000):
        devices.seen(f"d{number}", NOW_US)
        devices.seen(f"d{number}", NOW_US)
    assert not devices.exact
    assert devices.count == pytest.approx(100_000, rel=0.01)
    assert len(devices._place) == 1_000
    assert not (await devices.report(60))["exact"]


async def test_more_series_at_once_than_are_noted_is_said() -> None:
    """If series were dropped before a look, the report says that it is not exact."""
    devices = Devices()
    for number in range((CACHES_KEPT_MAX + 2) * SERIES_CACHED_MAX):
        SERIES.names("m", f"d{number}")
    await devices.look()
    assert devices.missed
    assert not devices.exact
    assert devices.count > CACHES_KEPT_MAX * SERIES_CACHED_MAX * 0.9


async def test_look_is_due_at_once_for_few_and_later_for_many() -> None:
    """The more series there are, the rarer are the looks, because each costs cache misses."""
    count = [0]
    devices = Devices(met=lambda: count[0], take=lambda: ([], True))
    assert devices.is_due()
    count[0] = 10_000
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
