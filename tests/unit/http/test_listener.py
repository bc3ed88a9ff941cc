"""Connections that come together are all accepted, a bounded number in each round."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, cast

import pytest
import uvloop

from ingest.app import receiving
from ingest.http import connections as retiring
from ingest.http.connection import NOBODY
from ingest.http.listener import ACCEPTS_A_ROUND, Listener, open_slots
from tests.support.receiver import GOOD, post, running_receiver
from tests.support.wire import connections_of, echo


class Greeter(asyncio.Protocol):
    """Says one byte."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say it, and close."""
        cast(asyncio.Transport, transport).write(b"!")
        transport.close()


def crowd(port: int, count: int) -> list[socket.socket]:
    """Connect; the kernel alone does it."""
    return [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(count)]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_crowd_is_accepted_several_in_a_round(run: object) -> None:
    """With one a round, many new connections wait long; with all, the open ones wait."""
    taken: list[int] = []
    rounds = 0

    def protocol() -> Greeter:
        taken.append(rounds)
        return Greeter()

    async def let_in() -> list[socket.socket]:
        nonlocal rounds
        listener = Listener(protocol)
        _, port = await listener.open("127.0.0.1", 0)
        clients = crowd(port, 100)
        while len(taken) < 100:
            rounds += 1
            await asyncio.sleep(0)
            assert rounds < 1_000
        await listener.close()
        await asyncio.sleep(0.01)
        return clients

    clients = run(let_in())  # type: ignore[operator]
    assert [client.recv(2) for client in clients] == [b"!"] * 100
    assert max(taken.count(each) for each in set(taken)) <= 2 * ACCEPTS_A_ROUND
    assert len(set(taken)) < 40
    for client in clients:
        client.close()


async def test_localhost_is_all_of_its_addresses_and_a_port_in_use_is_an_error() -> None:
    """What is bound is let go of when another of the addresses is not to be had."""
    first = Listener(Greeter)
    _, port = await first.open("127.0.0.1", 0)
    second = Listener(Greeter)
    with pytest.raises(OSError, match="in use"):
        await second.open("127.0.0.1", port)
    await second.close()
    await first.close()
    again = Listener(Greeter)
    name, same = await again.open("localhost", port)
    assert name in ("127.0.0.1", "::1")
    assert same == port
    await again.close()
    await again.close()


async def test_an_accept_that_fails_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without free files the connection waits in the backlog, and the loop does not spin."""
    listener = Listener(Greeter)
    _, port = await listener.open("127.0.0.1", 0)
    (listening,) = listener._sockets
    asked = 0

    class Poor:
        """The listening socket of a process without files."""

        def accept(self) -> None:
            nonlocal asked
            asked += 1
            raise OSError(24, "Too many open files")

        def fileno(self) -> int:
            return listening.fileno()

    poor = Poor()
    listener._loop.remove_reader(listening)
    listener._sockets[0] = poor  # type: ignore[call-overload]
    listener._resume(poor)  # type: ignore[arg-type]
    (client,) = crowd(port, 1)
    await asyncio.sleep(0.25)
    assert 1 <= asked <= 4
    listener._loop.remove_reader(listening)
    listener._sockets[0] = listening
    listener._resume(listening)
    client.setblocking(False)
    assert await asyncio.get_running_loop().sock_recv(client, 1) == b"!"
    client.close()
    await listener.close()


async def test_slots_of_one_port_share_its_connections() -> None:
    """Each socket gets some of the new connections; each keeps its own queue."""
    slots = await open_slots("127.0.0.1", 0, 3)
    ports = {each.getsockname()[1] for each in slots}
    assert len(ports) == 1
    clients = crowd(ports.pop(), 90)
    taken = []
    for each in slots:
        taken.append(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted, _ = each.accept()
                accepted.close()
                taken[-1] += 1
    assert sum(taken) == 90
    assert min(taken) > 5
    for each in (*slots, *clients):
        each.close()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("others", [1, 2])
async def test_slots_are_refused_where_another_service_listens(count: int, others: int) -> None:
    """Also beside slots of the same user: two services would each get half of the posts."""
    there = await open_slots("127.0.0.1", 0, others)
    port = there[0].getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        await open_slots("127.0.0.1", port, count)
    for each in there:
        each.close()
    for each in await open_slots("127.0.0.1", port, count):
        each.close()


async def test_slots_of_an_address_that_is_not_there() -> None:
    """An unknown host is an error; `localhost` is the first of its addresses that exists."""
    with pytest.raises(OSError, match=r"\S"):
        await open_slots("192.0.2.1", 0, 2)
    (one,) = await open_slots("localhost", 0, 1)
    assert one.getsockname()[0] in ("127.0.0.1", "::1")
    one.close()


async def test_slots_say_which_other_addresses_of_the_host_they_do_not_have(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`serve` listens on all of them. Those that this machine does not have are not told."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0))
        for host in ("127.0.0.1", "127.0.0.2", "192.0.2.1")
    ]

    async def getaddrinfo(*_: object, **__: object) -> object:
        return found

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    (one,) = await open_slots("two", 0, 1)
    one.close()
    (line,) = [each for each in capfd.readouterr().out.splitlines() if "one_address" in each]
    assert "127.0.0.2" in line
    assert "192.0.2.1" not in line


async def test_address_beyond_the_loopback_is_the_one_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name of a machine may mean 127.0.1.1 and its address: then the port is not private."""
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")

    async def two(*_given: object, **_options: object) -> list[object]:
        return [(*kind, ("127.0.0.1", 0)), (*kind, ("0.0.0.0", 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", two)
    listener = Listener(Greeter)
    assert (await listener.open("machine", 0))[0] == "0.0.0.0"
    await listener.close()


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
