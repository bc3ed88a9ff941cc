"""The short way for whole requests says and keeps what aiohttp's way does, in the same order."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from ingest.http.bodies import SOCKET_BYTES
from ingest.http.connection import READ_BYTES
from ingest.http.connections import Connections
from ingest.http.request import Request, WholeRequest
from ingest.http.response import JSON, TEXT, Answer, problem
from ingest.model.errors import Refused
from tests.support.posts import array
from tests.support.receiver import (
    BAD,
    GOOD,
    Client,
    Receiver,
    Reply,
    head,
    post,
    running_receiver,
    until,
)

MIXED = array(GOOD, BAD, GOOD)
REQUESTS = {
    "good": post(GOOD),
    "good, queried": post(GOOD, "?ack=buffered&precision=ms"),
    "partly bad": post(MIXED),
    "all bad": post(BAD),
    "no JSON": post(b"{"),
    "empty": post(b""),
    "unknown parameter": post(GOOD, "?no=1"),
    "media type": post(GOOD, headers={"Content-Type": "text/plain"}),
    "encoding": post(GOOD, headers={"Content-Encoding": "zstd"}),
    "too large": post(b" " * 5_000),
    "no such page": head("GET", "/no"),
    "percent": head("GET", "/%6civez"),
    "method": head("PUT", "/v1/readings", {"Content-Length": "0"}),
    "livez": head("GET", "/livez"),
    "livez, head only": head("HEAD", "/livez"),
}


@contextmanager
def ways(receiver: Receiver) -> Iterator[list[type]]:
    """Note by which way each request comes."""
    seen: list[type] = []
    connections = receiver.endpoint._port._connections
    assert connections is not None
    answer = connections.answer

    async def noting(request: Request) -> Answer:
        seen.append(type(request))
        return await answer(request)

    connections.answer = noting
    yield seen


async def waiting(receiver: Receiver, count: int) -> None:
    """Wait until aiohttp's tasks of so many connections wait; Python 3.11 begins them late."""
    connections = receiver.endpoint._port._connections
    assert connections is not None
    await until(
        lambda: connections.count == count and all(each._waiter for each in connections._open)
    )


@pytest.mark.short_way
@pytest.mark.parametrize("name", REQUESTS)
async def test_both_ways_answer_alike(name: str) -> None:
    """Sent at once, and as the last of its connection, which is aiohttp's to answer."""
    whole = REQUESTS[name]
    last = whole.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    async with running_receiver(body_bytes_max=4_096) as receiver:
        with ways(receiver) as seen:
            replies: list[Reply] = []
            for request in (whole, last):
                client = await receiver.connect()
                await waiting(receiver, len(replies) + 1)
                await client.send(request)
                replies.append(await client.reply(head_only=request.startswith(b"HEAD")))
        short, long = replies
        assert (short.status, short.body) == (long.status, long.body)
        assert long.headers.pop("connection") == "close"
        short.headers.pop("date")
        long.headers.pop("date")
        assert short.headers == long.headers
        if name not in ("livez, head only", "encoding"):
            assert [each is WholeRequest for each in seen] == [True, False]


async def test_pipelined_requests_of_both_ways_are_answered_in_order() -> None:
    """Whole, in pieces, compressed, chunked, refused, and one that has to wait."""
    chunked = head(headers={"Transfer-Encoding": "chunked", "Content-Type": "application/json"})
    requests = [
        (post(GOOD), 202),
        (post(gzip.compress(GOOD), headers={"Content-Encoding": "gzip"}), 202),
        (post(b"{"), 400),
        (head("GET", "/livez"), 200),
        (post(MIXED), 202),
        (chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD), 202),
        (head("GET", "/no"), 404),
        (post(GOOD), 202),
    ]
    data = b"".join(request for request, _ in requests) * 20
    for piece in (len(data), 1_000, 37):
        async with running_receiver() as receiver:
            client = await receiver.connect()

            async def send(data: bytes = data, piece: int = piece, client: Client = client) -> None:
                for start in range(0, len(data), piece):
                    await client.send(data[start : start + piece])
                    await asyncio.sleep(0)

            sending = asyncio.create_task(send())
            got = [(await client.reply()).status for _ in range(20 * len(requests))]
            await sending
            assert got == [status for _, status in requests] * 20
            assert len(receiver.inlet.readings) == 20 * 6
            assert receiver.ledger.at_receiver == 0


async def test_a_long_pipeline_behind_a_body_in_pieces_is_answered_whole() -> None:
    """What the parser put aside meanwhile is not forgotten in there."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        await client.send(post(GOOD)[:-20])
        await until(lambda: receiver.endpoint._keeper.posts_inside)
        await client.send(post(GOOD)[-20:])
        assert (await client.reply()).status == 202
        await client.send(post(GOOD) * 100)
        assert [(await client.reply()).status for _ in range(100)] == [202] * 100


async def test_what_waits_on_a_connection_is_bounded_in_bytes() -> None:
    """Bodies behind one that has to wait stay in the kernel, and are all read in the end."""
    body = array(*[GOOD] * 500)
    async with running_receiver() as receiver:
        receiver.inlet.open.clear()
        client = await receiver.connect()
        await client.send(post(GOOD))
        await until(lambda: receiver.inlet.waiting)
        client.writer.write(post(body) * 30)
        connections = receiver.endpoint._port._connections
        assert connections is not None
        (connection,) = connections._open
        await until(lambda: connection._buffer_paused)
        await asyncio.sleep(0.05)
        read_bytes = sum(content.total_bytes for _, content in connection._messages)
        assert read_bytes < READ_BYTES + 2 * SOCKET_BYTES
        receiver.inlet.open.set()
        assert [(await client.reply()).status for _ in range(31)] == [202] * 31
        assert len(receiver.inlet.readings) == 1 + 30 * 500


@pytest.mark.parametrize("parts", [1, 30], ids=["one packet after another", "all at once"])
async def test_heads_that_wait_on_a_connection_are_bounded_in_bytes(parts: int) -> None:
    """Large heads without bodies, behind a post that has to wait, fill no memory either."""
    large = head("GET", "/livez", {f"X-{number}": "x" * 4_000 for number in range(16)})
    async with running_receiver() as receiver:
        receiver.inlet.open.clear()
        client = await receiver.connect()
        await client.send(post(GOOD))
        await until(lambda: receiver.inlet.waiting)

        async def send() -> None:
            for _ in range(30 // parts):
                await client.send(large * parts)

        sending = asyncio.create_task(send())
        connections = receiver.endpoint._port._connections
        assert connections is not None
        (connection,) = connections._open
        await until(lambda: connection._buffer_paused)
        await asyncio.sleep(0.05)
        assert len(connection._messages) * len(large) < READ_BYTES + 2 * SOCKET_BYTES
        receiver.inlet.open.set()
        assert [(await client.reply()).status for _ in range(31)] == [202] + [200] * 30
        await sending


async def test_what_follows_a_post_that_waits_waits_too() -> None:
    """One at a time: a request behind it is not answered before it."""
    async with running_receiver() as receiver:
        receiver.inlet.open.clear()
        client = await receiver.connect()
        await client.send(post(GOOD))
        await until(lambda: receiver.inlet.waiting)
        await client.send(head("GET", "/livez") + head("GET", "/no", {"Connection": "close"}))
        assert not await client.closed(0.05)
        receiver.inlet.open.set()
        assert [(await client.reply()).status for _ in range(3)] == [202, 200, 404]
        assert await client.closed()


async def test_a_refusal_that_closes_closes() -> None:
    """An answer that closes the connection is the last one: further requests get none."""
    async with running_receiver() as receiver:
        receiver.admission.code = "draining"
        client = await receiver.connect()
        await client.send(post(GOOD) + post(GOOD))
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (503, "close")
        assert await client.closed()


@asynccontextmanager
async def port(
    answer: Callable[[Request], Answer], gate: asyncio.Event | None = None
) -> AsyncIterator[tuple[Connections, Client]]:
    """Run a bare port with the short way, and a client of it."""

    class Lets:
        def enqueue(self, body_bytes: int, begin: Callable[[], None]) -> bool:
            asyncio.get_running_loop().call_soon(begin)
            return True

    async def answered(request: Request) -> Answer:
        if gate is not None:
            await gate.wait()
        return answer(request)

    connections = Connections(
        answered,
        lambda code: problem(Refused(code, "")),
        round_queue=Lets(),
        connections_max=10,
        header_s_max=5,
        keepalive_s_max=0.4,
    )
    client = await Client.connect(await connections.listen("127.0.0.1", 0, "--listen"))
    # Before Python 3.12 aiohttp's task has not begun to wait yet.
    await until(lambda: any(each._waiter for each in connections._open))
    try:
        yield connections, client
    finally:
        await client.close()
        await connections.close()


@pytest.mark.short_way
async def test_close_lets_an_answer_come_to_its_end() -> None:
    """The port closes; a request in work still gets its answer."""
    gate = asyncio.Event()
    async with port(lambda _: Answer(200, b"{}", JSON), gate) as (connections, client):
        await client.send(head("GET", "/"))
        await until(lambda: connections._suspended)
        closing = asyncio.create_task(connections.close())
        await asyncio.sleep(0.02)
        assert not closing.done()
        gate.set()
        assert (await client.reply()).status == 200
        assert await client.closed()
        await closing


@pytest.mark.short_way
async def test_close_ends_an_answer_that_does_not_come() -> None:
    """Its time is bounded, and nothing is left running."""
    async with port(lambda _: Answer(200, b"{}", JSON), asyncio.Event()) as (connections, client):
        await client.send(head("GET", "/"))
        await until(lambda: connections._suspended)
        await connections.close(timeout_s=0.05)
        assert await client.closed()
        assert not connections._suspended
        assert connections.count == 0


async def test_a_busy_connection_is_never_idle_and_an_idle_one_is_closed() -> None:
    """Requests by the short way put the idle limit off, like any other."""
    async with port(lambda _: Answer(200, b"ok", TEXT)) as (connections, client):
        for _ in range(12):
            await client.send(head("GET", "/"))
            assert (await client.reply()).status == 200
            await asyncio.sleep(0.1)
        assert connections.count == 1
        assert await client.closed(3)


@pytest.mark.short_way
async def test_a_fault_in_the_handler_closes_only_its_connection() -> None:
    """What passes through everything ends in the log, not in a client that waits for ever."""

    def broken(_request: Request) -> Answer:
        raise ValueError("a bug")

    async with port(broken) as (connections, client):
        await client.send(head("GET", "/"))
        assert await client.closed()
        await until(lambda: connections.count == 0)


@pytest.mark.short_way
async def test_a_connection_lost_as_its_answer_comes_is_no_fault() -> None:
    """What was behind that answer is left alone; aiohttp's task ends in peace."""
    gate = asyncio.Event()
    async with port(lambda _: Answer(200, b"{}", JSON), gate) as (connections, client):
        await client.send(head("GET", "/") + head("GET", "/", {"Connection": "close"}))
        await until(lambda: connections._suspended)
        (connection,) = connections._open
        task = connection._task_handler
        assert task is not None
        assert connection.transport is not None
        (answering,) = connections._suspended
        gate.set()
        while not answering.done():  # noqa: ASYNC110  it must stay in this round
            await asyncio.sleep(0)
        connection.transport.abort()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None
