"""Requests of one connection: one at a time, in order, each answered, and what waits is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import http_parser
from structlog.testing import capture_logs

from ingest.http import connection as connection_module
from ingest.http.bodies import SOCKET_BYTES
from ingest.http.connection import READ_BYTES, Connection
from ingest.http.connections import Connections
from ingest.http.framer import (
    BEHIND,
    BODY,
    LATER,
    LINES_MAX,
    MEMORY,
    PART_BYTES_MAX,
    UNREAD,
    require_parser,
)
from ingest.http.request_and_answer import Answer, Request
from ingest.http.request_and_answer import Reply as Later
from ingest.model.errors import StartError
from tests.support.posts import array
from tests.support.receiver import (
    BAD,
    GOOD,
    Client,
    head,
    post,
    running_receiver,
    until,
)
from tests.support.wire import Wire, connections_of, echo

ANY = BEHIND | BODY | MEMORY | UNREAD | LATER


def one_of(connections: Connections) -> Connection:
    """Return the only connection."""
    (connection,) = connections._open
    return connection


BULKY = {
    "bodies": (post(array(*[GOOD] * 500)), 202),
    "heads": (head("GET", "/livez", {f"X-{n}": "x" * 4_000 for n in range(7)}), 200),
}


@pytest.mark.parametrize("kind", BULKY)
@pytest.mark.parametrize("parts", [1, 30], ids=["one packet after another", "all at once"])
async def test_what_waits_on_a_connection_is_bounded_in_bytes(kind: str, parts: int) -> None:
    """What stands behind a post that has to wait stays in the kernel, and is read in the end."""
    bulky, status = BULKY[kind]
    async with running_receiver() as receiver:
        client = await receiver.waits(post(GOOD))

        async def send() -> None:
            for _ in range(30 // parts):
                await client.send(bulky * parts)

        sending = asyncio.create_task(send())
        connection = one_of(receiver.connections)
        await until(lambda: connection.valve.is_shut(ANY))
        await asyncio.sleep(0.05)
        assert READ_BYTES < len(connection._behind) <= READ_BYTES + SOCKET_BYTES
        receiver.inlet.open.set()
        assert [(await client.reply()).status for _ in range(31)] == [202] + [status] * 30
        await sending
        assert not connection.valve.is_shut(ANY)


async def test_what_follows_a_post_that_waits_waits_too() -> None:
    """One at a time: a request behind it is not answered before it."""
    async with running_receiver() as receiver:
        client = await receiver.waits(post(GOOD))
        await client.send(head("GET", "/livez") + head("GET", "/no", {"Connection": "close"}))
        assert not await client.closed(0.05)
        receiver.inlet.open.set()
        assert [(await client.reply()).status for _ in range(3)] == [202, 200, 404]
        assert await client.closed()


@asynccontextmanager
async def port(answer: Callable[[Request], Later]) -> AsyncIterator[tuple[Connections, Client]]:
    """Run a bare port, and a client of it."""
    connections = connections_of(answer, keepalive_s_max=0.4)
    client = await Client.connect(await connections.listen("127.0.0.1", 0, "--listen"))
    await until(lambda: connections.count)
    try:
        yield connections, client
    finally:
        await client.close()
        await connections.close()


class Gate:
    """A page whose answers wait, in a task or without one, until a test lets them go."""

    def __init__(self, *, in_task: bool) -> None:
        self._in_task = in_task
        self._opened = asyncio.Event()
        self.waiting: list[Request] = []

    def answer(self, request: Request) -> Later:
        """Answer later."""
        self.waiting.append(request)
        return self._wait() if self._in_task else None

    async def _wait(self) -> Answer:
        await self._opened.wait()
        return Answer(200, b"{}")

    def open(self) -> None:
        """Answer all."""
        self._opened.set()
        for request in [] if self._in_task else self.waiting:
            request.sender.reply(Answer(200, b"{}"))


IN_TASK = pytest.mark.parametrize("in_task", [True, False], ids=["a task", "told later"])


@IN_TASK
async def test_close_lets_an_answer_come_to_its_end(in_task: bool) -> None:
    """The port closes; a request in work still gets its answer."""
    gate = Gate(in_task=in_task)
    async with port(gate.answer) as (connections, client):
        await client.send(head("GET", "/"))
        await until(lambda: gate.waiting)
        closing = asyncio.create_task(connections.close())
        await asyncio.sleep(0.02)
        assert not closing.done()
        gate.open()
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await client.closed()
        await closing


@IN_TASK
async def test_close_ends_an_answer_that_does_not_come(in_task: bool) -> None:
    """Its time is bounded, and nothing is left running."""
    gate = Gate(in_task=in_task)
    async with port(gate.answer) as (connections, client):
        await client.send(head("GET", "/"))
        await until(lambda: gate.waiting)
        await connections.close(timeout_s=0.05)
        assert await client.closed()
        assert not connections._suspended
        await until(lambda: connections.count == 0)


@IN_TASK
@pytest.mark.parametrize("is_late", [False, True])
async def test_connection_lost_as_its_answer_comes_is_no_fault(
    in_task: bool, is_late: bool
) -> None:
    """The answer goes to nobody, and what stood behind its request is left alone."""
    gate = Gate(in_task=in_task)
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    with capture_logs() as logs:
        async with port(gate.answer) as (connections, client):
            await client.send(head("GET", "/") * 2)
            await until(lambda: gate.waiting)
            transport = one_of(connections).transport
            assert transport is not None
            transport.abort()
            if is_late:
                await until(lambda: connections.count == 0)
            gate.open()
            await until(lambda: connections.count == 0 and not connections._suspended)
            assert len(gate.waiting) == 1
    assert not faults
    assert not logs


async def fails(_request: Request) -> Answer:
    """Fail after a wait."""
    await asyncio.sleep(0)
    raise ValueError("a bug")


def fails_at_once(_request: Request) -> Answer:
    """Fail."""
    raise ValueError("a bug")


@pytest.mark.parametrize("page", [fails, fails_at_once])
async def test_a_fault_in_the_handler_closes_only_its_connection(
    page: Callable[[Request], Later],
) -> None:
    """What passes through everything ends in the log, not in a client that waits for ever."""
    with capture_logs() as logs:
        async with port(page) as (connections, client):
            Wire(connections())
            await client.send(head("GET", "/") * 2)
            assert await client.closed()
            await until(lambda: connections.count == 1)
    assert [each["event"] for each in logs] == ["request_failed"]


# How a connection ends


async def test_client_that_closes_its_sending_side_gets_its_answers() -> None:
    """Those of requests that were whole, also of one that has to wait; then the end."""
    async with running_receiver() as receiver:
        receiver.inlet.open.clear()
        client = await receiver.connect(post(GOOD) + head("GET", "/livez") + post(BAD))
        client.writer.write_eof()
        await until(lambda: receiver.inlet.waiting)
        assert not await client.closed(0.05)
        receiver.inlet.open.set()
        assert [(await client.reply()).status for _ in range(3)] == [202, 200, 422]
        assert await client.closed()


async def test_refusal_is_seen_by_a_client_that_goes_on_sending() -> None:
    """Its bytes are read and dropped: a reset would take the answer from it."""
    async with running_receiver(body_bytes_max=4_096) as receiver:
        for start, status in ((post(bytes(500_000)), 413), (b"SSH-2.0\r\n" * 50_000, 400)):
            client = await receiver.connect()
            for at in range(0, len(start), 50_000):
                await client.send(start[at : at + 50_000])
                await asyncio.sleep(0.002)
            assert (await client.reply()).status == status
            assert await client.closed()
            await client.send(bytes(50_000))
            await client.close()
            await until(lambda: receiver.connections.count == 0)


async def test_refusal_is_seen_behind_a_body_that_was_held_back() -> None:
    """Reading goes on, though nobody has taken what came of the body."""
    gate = Gate(in_task=True)
    async with port(gate.answer) as (connections, client):
        body = bytes(20_000_000)
        sending = asyncio.create_task(client.send(post(body)[:-1]))
        await until(lambda: gate.waiting and one_of(connections).valve.is_shut(ANY))
        gate.open()
        assert (await client.reply()).headers["connection"] == "close"
        await sending
        assert await client.closed()


async def test_client_that_goes_on_sending_is_cut_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has had time to read its answer."""
    monkeypatch.setattr(connection_module, "LINGER_S", 0.1)
    async with running_receiver(body_bytes_max=4_096) as receiver:
        client = await receiver.connect(post(bytes(5_000))[:-1])
        assert (await client.reply()).status == 413
        assert receiver.connections.count == 1
        await until(lambda: receiver.connections.count == 0, 1)


# Chunked bodies are looked through for their end


async def test_many_small_chunks_do_not_hold_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parser gets them in parts, and the loop has its turn between some of them."""
    monkeypatch.setattr("ingest.http.framer.PARSE_S_MAX", 0.0)
    monkeypatch.setattr("ingest.http.rounds.PUT_OFF_S", 0.0)
    connections = connections_of(echo)
    wire = Wire(connections())
    chunks = b"8\r\nxxxxxxxx\r\n" * 20_000
    start = head(headers={"Transfer-Encoding": "chunked"})
    await wire.send(start + chunks + b"0\r\n\r\n" + post(b"behind"))
    parts = 0
    while wire.is_paused:
        parts += 1
        await asyncio.sleep(0)
    assert parts >= len(chunks) // PART_BYTES_MAX // 2
    written = await wire.settled()
    assert written.count(b"HTTP/1.1 200 OK") == 2
    assert b"x" * 160_000 in written
    assert written.endswith(b"behind")
    assert not wire.has_ended


@pytest.mark.parametrize(
    ("chunks", "is_taken"),
    [
        (b"1\r\nx\r\n" * 3_000, True),  # a small device that sends each byte alone
        (b"1\r\nx\r\n" * 5_000, False),
        (b"1;" + b"e" * 20_000 + b"\r\nx\r\n", False),
        (b"1\r\nx\r\n" + b"3e8\r\n" + b"y" * 1_000 + b"\r\n", True),
    ],
)
async def test_body_that_is_mostly_chunk_sizes_is_refused(chunks: bytes, is_taken: bool) -> None:
    """20 connections with 240 kB of them each stopped all answers for half a second."""
    wire = Wire(connections_of(echo)())
    await wire.send(head(headers={"Transfer-Encoding": "chunked"}) + chunks + b"0\r\n\r\n")
    written = await wire.settled()
    assert written.startswith(b"HTTP/1.1 200 OK") == is_taken
    assert wire.has_ended == (not is_taken)


@pytest.mark.parametrize("lines", [LINES_MAX, LINES_MAX + 1, 20_000])
@pytest.mark.parametrize("size", [60_000, 12], ids=["large chunks", "small chunks"])
@pytest.mark.parametrize("behind", [b"", post(b"behind"), b"\0"])
async def test_body_of_many_empty_lines_is_the_last_of_its_connection(
    lines: int, size: int, behind: bytes
) -> None:
    """It is taken whole. To look for its end at each line would cost too much."""
    body = b"x\r\n\r\nx" * (lines - 1)  # one more is the end
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    for cut in (0, 1_000, -9):
        wire = Wire(connections_of(echo)())
        data = head(headers={"Transfer-Encoding": "chunked"}) + chunks + b"0\r\n\r\n" + behind
        await wire.send(data[:cut], data[cut:], rounds=[2])
        head_, _, answered = (await wire.settled()).partition(b"\r\n\r\n")
        assert answered.startswith(body)
        if lines > LINES_MAX:
            assert answered == body
            assert b"Connection: close" in head_
        elif behind:
            assert answered != body
        assert wire.has_ended == (lines > LINES_MAX or behind == b"\0")


def test_installed_one_has_its_parser_in_c() -> None:
    """Nothing is said about it."""
    require_parser()


async def test_parser_in_python_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version that cannot be used, and what to do."""
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with pytest.raises(StartError, match=r"aiohttp 3\..* lacks its parser in C; install a wheel"):
        async with running_receiver():
            pass
