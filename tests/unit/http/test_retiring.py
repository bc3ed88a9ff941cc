"""Long-lived connections end now and then, evenly over the time, and only with an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ingest.app import receiving
from ingest.http import connections as retiring
from ingest.http.connection import NOBODY
from tests.support.receiver import GOOD, post, running_receiver
from tests.support.wire import connections_of, echo


class Handler:
    """A connection, as far as it is retired."""

    retires = False
    client = NOBODY


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give the time as a list with one number, which the test sets."""
    at = [0.0]
    monkeypatch.setattr(retiring, "monotonic_s", lambda: at[0])
    return at


@pytest.mark.parametrize("count", [1, 7, 1_000])
async def test_crowd_of_one_moment_is_spread_over_the_time(now_s: list[float], count: int) -> None:
    """None is retired before half of the age, all are after three halves, a few at a time."""
    connections = connections_of(echo, connections_max=1_000, connection_s_max=100.0)
    handlers: list[Any] = [Handler() for _ in range(count)]
    for each in handlers:
        connections.connection_made(each, each)
    most = before = 0
    for second in range(1, 152):
        now_s[0] = float(second)
        connections._retire_oldest(1.0)
        retired = sum(each.retires for each in handlers)
        most, before = max(most, retired - before), retired
        if second < 50:
            assert retired == 0
    assert before == count
    assert most <= -(-count // 100)


async def test_retired_connection_has_its_time_again(now_s: list[float]) -> None:
    """A connection that nobody uses is not looked at in each period; one that is gone never."""
    connections = connections_of(echo, connection_s_max=100.0)
    one: Any = Handler()
    gone: Any = Handler()
    for each in (one, gone):
        connections.connection_made(each, each)
    connections.connection_lost(gone)
    connections.connection_lost(gone)
    now_s[0] = 60.0
    connections._retire_oldest(1.0)
    assert one.retires
    one.retires = False
    now_s[0] = 100.0
    connections._retire_oldest(1.0)
    assert not one.retires
    now_s[0] = 111.0
    connections._retire_oldest(1.0)
    assert one.retires
    assert not gone.retires


@pytest.mark.parametrize("gateways", [1, 2])
async def test_busy_connection_ends_only_beside_another_gateway(
    gateways: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer before is without `close`, and with one gateway no connection has to end."""
    monkeypatch.setattr(receiving, "CONNECTION_S", 0.6)
    ended = 0
    async with running_receiver(gateways=gateways, keepalive_s_max=0.4) as receiver:
        client = await receiver.connect()
        for _ in range(60):
            await client.send(post(GOOD))
            reply = await client.reply()
            assert reply.status == 202
            if reply.headers.get("connection") == "close":
                ended += 1
                assert await client.closed()
                client = await receiver.connect()
            await asyncio.sleep(0.01)
    assert ended == 0 if gateways == 1 else ended >= 1
