"""The port under clients that open much and say little; connections by network."""

from __future__ import annotations

import asyncio
import random
import resource
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import pytest
import structlog

from ingest.http.bodies import SOCKET_BYTES
from ingest.http.connection import READ_BYTES
from ingest.http.connections import Connections, Crowds
from ingest.http.framer import UNREAD
from ingest.http.request_and_answer import TEXT, Answer, Request
from ingest.system.process_setup import raise_open_files_limit
from tests.support.receiver import Client, Receiver, head, post, running_receiver, until
from tests.support.wire import connections_of

GET = head("GET", "/livez")
HALF = b"POST /v1/readings HTTP/1.1\r\nHost: door\r\nContent-"


async def half_open(address: str, count: int) -> list[socket.socket]:
    """Open connections that send half a head; plain sockets, since thousands are wanted."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    opened = []
    for _ in range(count):
        each = socket.socket()
        each.setblocking(False)
        await loop.sock_connect(each, (host, int(port)))
        each.send(HALF)
        opened.append(each)
    return opened


def is_open(each: socket.socket) -> bool:
    """Whether the server has not closed its end."""
    try:
        return each.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


async def test_half_open_crowd_does_not_hinder_a_client() -> None:
    """3,000 half heads against a limit of 500: the newest are kept, a busy client never closed."""
    async with running_receiver(connections_max=500) as receiver:
        client = await receiver.connect()
        served = 0
        longest_s = 0.0
        crowd_is_in = False

        async def work() -> None:
            nonlocal served, longest_s
            while not crowd_is_in:
                before_s = time.perf_counter()
                await client.send(GET)
                assert (await client.reply()).status == 200
                longest_s = max(longest_s, time.perf_counter() - before_s)
                served += 1

        working = asyncio.create_task(work())
        crowd = await half_open(receiver.address, 3_000)
        await until(lambda: receiver.connections.count <= 500 and not is_open(crowd[2_400]))
        crowd_is_in = True
        await working
        assert served > 10
        assert longest_s < 1.0
        assert not any(is_open(each) for each in crowd[:2_500])
        assert all(is_open(each) for each in crowd[-400:])
        for each in crowd:
            each.close()


async def connected(receiver: Receiver, source: str, count: int, said: bytes) -> list[Client]:
    """Open connections from an address of the loopback; each sends the same bytes."""
    host, _, port = receiver.address.rpartition(":")
    clients = []
    for _ in range(count):
        streams = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
        clients.append(Client(*streams))
        await clients[-1].send(said)
        if said == GET:
            assert (await clients[-1].reply()).status == 200
    receiver._clients += clients
    await asyncio.sleep(0.01)  # what was sent is here
    return clients


BODY = b'{"device_id":"d","metric":"m","value":1}'
HALF_POST = post(BODY)[:-10]
HOLDER, HONEST = "127.0.0.2", "127.0.0.1"


class Crowd(NamedTuple):
    """Connections that come at once from an address, what each sends, and how many are closed.

    Those are its oldest ones.
    """

    source: str
    connections: int
    said: bytes
    closed: int


# Of each: how many connections there may be, what comes in order, and from when one is slow.
LIMITS: dict[str, tuple[int, list[Crowd], float]] = {
    "the new one if everybody is busy": (
        2,
        [Crowd(HONEST, 2, post(BODY), 0), Crowd(HONEST, 1, b"", 1)],
        60.0,
    ),
    "half-open ones before idle ones, and idle ones before new ones": (
        3,
        [Crowd(HONEST, 2, GET, 1), Crowd(HONEST, 1, HALF, 1), Crowd(HONEST, 2, GET, 0)],
        60.0,
    ),
    "half bodies of the address with most of them, and neither idle ones nor a slow one alone": (
        6,
        [
            Crowd(HONEST, 1, GET, 0),
            Crowd(HONEST, 1, HALF_POST, 0),
            Crowd(HOLDER, 4, HALF_POST, 2),
            Crowd(HONEST, 2, GET, 0),
        ],
        60.0,
    ),
    "idle ones, and not who has just come and needs a moment to send its head": (
        5,
        [Crowd(HOLDER, 5, GET, 2), Crowd(HONEST, 2, b"", 0)],
        60.0,
    ),
    "slow ones before the idle ones of a fleet behind one address": (
        6,
        [Crowd(HONEST, 5, GET, 0), Crowd(HOLDER, 1, HALF_POST, 1), Crowd(HONEST, 1, GET, 0)],
        0.0,
    ),
    "the idle ones behind many in work": (
        63,
        [
            Crowd(HONEST, 20, GET, 2),
            Crowd(HOLDER, 40, post(BODY), 0),
            Crowd(HOLDER, 3, GET, 3),
            Crowd(HONEST, 5, GET, 0),
        ],
        60.0,
    ),
}


@pytest.mark.parametrize("name", LIMITS)
async def test_limit_closes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not closed is answered."""
    most, crowds, slow_s = LIMITS[name]
    monkeypatch.setattr("ingest.http.connections.SLOW_S", slow_s)
    async with running_receiver(connections_max=most) as receiver:
        receiver.inlet.open.clear()
        clients = [await connected(receiver, *crowd[:3]) for crowd in crowds]
        for crowd, its in zip(crowds, clients, strict=True):
            is_open = [not await client.closed(0.01) for client in its]
            assert is_open == [False] * crowd.closed + [True] * (crowd.connections - crowd.closed)
            for client in its[crowd.closed :] if crowd.said in (GET, b"") else []:
                await client.send(GET)
                assert (await client.reply()).status == 200
        closed = sum(crowd.closed for crowd in crowds)
        assert receiver.ledger.connections_closed["connections_full"] == closed
        receiver.inlet.open.set()
        busy = [
            each
            for c, its in zip(crowds, clients, strict=True)
            if c.said == post(BODY)
            for each in its
        ]
        assert {(await each.reply()).status for each in busy} <= {202}


async def test_head_has_not_more_time_than_a_slow_body() -> None:
    """Who only says half a head takes up a connection for ten seconds at most."""
    async with running_receiver(body_s_max=600) as receiver:
        assert receiver.connections.header_s_max == 10


@pytest.mark.parametrize("said", [b"", HALF, b"\r\n"])
async def test_head_that_does_not_come_closes(said: bytes) -> None:
    """Silence, or half a head, ends after body_s_max."""
    async with running_receiver(body_s_max=0.2) as receiver:
        client = await receiver.connect(said)
        before_s = time.monotonic()
        assert await client.closed(2)
        assert 0.1 < time.monotonic() - before_s < 1


@pytest.mark.parametrize("used_before", [False, True])
async def test_head_byte_by_byte_closes_in_time(used_before: bool) -> None:
    """Each byte does not buy time; not on a kept connection either."""
    async with running_receiver(body_s_max=0.3, keepalive_s_max=30) as receiver:
        client = await receiver.connect()
        if used_before:
            await client.send(GET)
            assert (await client.reply()).status == 200
            await asyncio.sleep(0.4)  # idle longer than a head may take: still open
        before_s = time.monotonic()

        async def trickle() -> None:
            for byte in HALF * 10:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        assert await client.closed(3)
        assert 0.2 < time.monotonic() - before_s < 1
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)


async def test_idle_connection_closes_after_keepalive() -> None:
    """A client may rest for keepalive_s_max between requests, counted anew each time."""
    async with running_receiver(keepalive_s_max=0.3) as receiver:
        client = await receiver.connect()
        for _ in range(3):
            await client.send(GET)
            assert (await client.reply()).status == 200
            await asyncio.sleep(0.15)
        before_s = time.monotonic()
        assert await client.closed(2)
        assert time.monotonic() - before_s < 1


@asynccontextmanager
async def listening(
    body: bytes, keepalive_s_max: float, *, close: bool = False
) -> AsyncIterator[tuple[Connections, Client, list[Request]]]:
    """Run a bare port that answers everything with `body`, and a client that does not read.

    With `close` it closes the connection then, as after a fault of its own.
    """
    requests: list[Request] = []

    def answer(request: Request) -> Answer:
        requests.append(request)
        return Answer(200, body, TEXT, close=close)

    connections = connections_of(answer, header_s_max=1, keepalive_s_max=keepalive_s_max)
    client = await Client.connect(await connections.listen("127.0.0.1", 0, "--listen"))
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport can
    await until(lambda: connections.count == 1)
    yield connections, client, requests
    client.writer.transport.abort()
    await connections.close()


async def test_client_that_does_not_read_is_let_go() -> None:
    """A client that does not read its answers is closed as early as an idle one."""
    async with listening(bytes(8_000_000), keepalive_s_max=0.3) as (connections, client, requests):
        await client.send(GET * 3)
        await until(lambda: connections.count == 0, 3)
        assert len(requests) == 1, "no further request is begun for it"


async def test_answer_that_closes_and_is_not_read_keeps_no_descriptor() -> None:
    """What is to be closed once all is sent is cut as late as the others are."""
    answer = bytes(8_000_000)
    async with listening(answer, 0.3, close=True) as (connections, client, _):
        await client.send(GET)
        await until(lambda: connections.count == 0, 3)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            with suppress(ConnectionError):
                assert len(await client.reader.read()) < len(answer)


@pytest.mark.parametrize("sent", [GET, post(bytes(10_000))], ids=["heads", "bodies"])
async def test_pipelining_without_end_is_bounded(sent: bytes) -> None:
    """A client that only sends is stopped by its own unread answers, not by our memory."""
    async with listening(bytes(100_000), keepalive_s_max=5) as (connections, client, requests):
        sending = asyncio.create_task(client.send(sent * (50_000_000 // len(sent))))
        await asyncio.sleep(0.5)
        assert not sending.done()
        assert len(requests) < 1_000
        (connection,) = connections._open
        assert len(connection._behind) <= READ_BYTES + SOCKET_BYTES
        sending.cancel()
        client.writer.transport.abort()
        await until(lambda: connections.count == 0)


async def test_client_that_reads_late_gets_all_its_answers_in_order() -> None:
    """What was held back goes on as it reads."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport can
        kinds = [(GET, 200), (post(b"{"), 400), (head("GET", "/no"), 404)] * 10_000
        await until(lambda: receiver.connections.count)
        (connection,) = receiver.connections._open
        pipelined = b"".join(data for data, _ in kinds)
        sending = asyncio.create_task(client.send(pipelined))
        await until(lambda: connection.valve.is_shut(UNREAD), 20)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert [(await client.reply()).status for _ in kinds] == [status for _, status in kinds]
        await sending


async def test_close_ends_idle_and_half_open_connections_quickly() -> None:
    """Closing the port does not wait for connections without a request in work. Repeatable."""
    async with running_receiver() as receiver:
        idle = await receiver.connect(GET)
        await idle.reply()
        half = await receiver.connect(HALF)
        await asyncio.sleep(0.02)
        before_s = time.monotonic()
        await receiver.endpoint.close()
        assert time.monotonic() - before_s < 0.8
        assert await idle.closed(1)
        assert await half.closed(1)
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await receiver.connect()


async def test_close_does_not_wait_for_a_client_that_does_not_read() -> None:
    """An answer stuck on its way is given up at the end."""
    async with listening(bytes(8_000_000), keepalive_s_max=30) as (connections, client, requests):
        await client.send(GET)
        await until(lambda: requests)
        before_s = time.monotonic()
        await connections.close(0.1)
        assert time.monotonic() - before_s < 2
        await until(lambda: connections.count == 0)


def test_raise_open_files_limit_reaches_the_hard_one() -> None:
    """The soft limit is a default, not a wish."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        assert raise_open_files_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_more_connections_than_open_files_are_not_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit stays below what the process may open, or eviction would never come to act.

    It is logged once, and only when nearly all of them are open: most services never come near.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    monkeypatch.setattr("ingest.http.connections.NEARLY_ALL", 3 / (500 - 384))
    try:
        with structlog.testing.capture_logs() as lines:
            async with running_receiver(connections_max=20_000, body_s_max=0.1) as receiver:
                assert receiver.connections._most == 500 - 384
                await receiver.connect()
                await asyncio.sleep(0.03)
                assert not [line for line in lines if line["event"] == "fewer_connections"]
                for _ in range(3):
                    await receiver.connect()
                await until(lambda: any(line["event"] == "fewer_connections" for line in lines))
        told = next(line for line in lines if line["event"] == "fewer_connections")
        assert (told["most"], told["wanted"]) == (500 - 384, 20_000)
        assert (told["open_files_max"], told["open_files_needed"]) == (500, 20_000 + 384)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_sweep_goes_on_after_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged; the next time, the silent client is closed. Else none ever was again."""
    faults = iter([True, True])
    once = Connections._sweep_once

    def faulty(connections: Connections, period_s: float) -> bool:
        if next(faults, False):
            raise ValueError("a bug")
        return once(connections, period_s)

    monkeypatch.setattr(Connections, "_sweep_once", faulty)
    with structlog.testing.capture_logs() as lines:
        async with running_receiver(body_s_max=0.1) as receiver:
            client = await receiver.connect()
            assert await client.closed()
    told = [line for line in lines if line["event"] == "sweep_failed"]
    assert len(told) == 1
    assert told[0]["exc_info"]


def test_largest_is_the_largest_after_any_steps() -> None:
    """Compared with a count by hand, over thousands of random steps; not after each of them."""
    chance = random.Random(1)
    crowds = Crowds[int]()
    there: dict[int, str] = {}
    numbers = [1] * 60 + [2] * 40 + [3] * 20 + list(range(4, 200))
    for step in range(5_000):
        member = chance.randrange(400)
        network = there.get(member) or f"10.0.0.{chance.choice(numbers)}"
        if member not in there and chance.random() < (0.9 if step % 1_000 < 600 else 0.3):
            crowds.add(network, member, float(step))
            there[member] = network
        else:
            crowds.remove(network, member)
            there.pop(member, None)
        if chance.random() < 0.7:
            continue
        name, members = crowds.largest()
        sizes = {each: list(there.values()).count(each) for each in there.values()}
        assert len(members) == max(sizes.values(), default=0)
        assert set(members) == {each for each, of in there.items() if of == name}
        if members:
            moved = next(iter(members))
            crowds.to_the_end(name, moved)
            assert [*members].index(moved) == len(members) - 1
