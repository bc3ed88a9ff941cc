"""The connection to a NATS server: its protocol, and its ends."""

from __future__ import annotations

import asyncio
from urllib.parse import urlparse

import pytest

from ingest.roles.nats.protocol import ApiFault, Meaning, Message, PubAck, pub_ack
from ingest.roles.nats.session import BrokerTransport


async def opened(ended: list[str]) -> tuple[BrokerTransport, asyncio.StreamWriter, asyncio.Server]:
    """Return a transport, the server's end of its connection, and the server."""
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    transport = BrokerTransport(ended.append)
    port = server.sockets[0].getsockname()[1]
    await transport.connect(urlparse(f"nats://127.0.0.1:{port}"), 1_000, 5)
    return transport, await accepted, server


@pytest.mark.parametrize("by_reset", [True, False])
async def test_end_of_the_connection_is_told_and_raises_nowhere(by_reset: bool) -> None:
    """By a reader or by a writer; afterwards writing does nothing, and reading gives the end."""
    ended: list[str] = []
    transport, peer, server = await opened(ended)
    peer.write(b"INFO\n")
    assert await transport.readline() == b"INFO\n"
    assert not transport.at_eof()
    if by_reset:
        peer.transport.abort()
    else:
        peer.close()
    assert await transport.read(100) == b""
    assert ended
    assert transport.at_eof()
    for _ in range(3):
        transport.write(b"x" * 100_000)
        transport.writelines([b"y"])
        await transport.drain()
        assert await transport.readline() == b""
    transport.close()
    await transport.wait_closed()
    server.close()


async def test_transport_that_is_closed_takes_no_notice_of_what_waits() -> None:
    """A peer that does not read keeps nobody waiting."""
    ended: list[str] = []
    transport, peer, server = await opened(ended)
    transport.write(bytes(20_000_000))
    draining = asyncio.create_task(transport.drain())
    await asyncio.sleep(0.05)
    assert not draining.done()
    async with asyncio.timeout(1):
        transport.close()
        await transport.wait_closed()
        await draining
    transport.write(b"x")
    assert await transport.read(1) == b""
    peer.close()
    server.close()


async def test_line_that_never_ends_is_the_end() -> None:
    """A server that is none of NATS does not fill the memory."""
    ended: list[str] = []
    transport, peer, server = await opened(ended)
    peer.write(b"x" * 100_000)
    assert await transport.readline() == b""
    assert ended
    transport.close()
    peer.close()
    server.close()


def reply(data: bytes, **headers: str) -> Message:
    """Return a reply."""
    return Message("", data, headers)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"stream":"INGEST","seq":4}', PubAck(4, False)),
        (b'{"stream":"INGEST","seq":4,"duplicate": true}', PubAck(4, True)),
        (b'{"error":{"err_code":10077,"description":"maximum bytes exceeded"}}', Meaning.FULL),
        (b'{"error":{"err_code":10077,"description":"no space left on"}}', Meaning.UNSURE),
        (b'{"error":{"err_code":10158,"description":"in process"}}', Meaning.UNSURE),
        (b'{"error":{"err_code":10008,"description":"unavailable"},"seq":0}', Meaning.AGAIN),
        (b'{"error":{"err_code":10060,"description":"stream"}}', Meaning.WRONG),
        (b'{"error":{"err_code":99999}}', Meaning.UNSURE),
        (b'{"error":{},"seq":7}', Meaning.UNSURE),
        (b'{"stream":"INGEST","seq":0}', Meaning.UNSURE),
        (b"{}", Meaning.UNSURE),
        (b"", Meaning.UNSURE),
        (b"+OK", Meaning.UNSURE),
    ],
)
def test_reply_to_a_message_has_one_meaning(data: bytes, expected: PubAck | Meaning) -> None:
    """Only an answer with a place in the stream says that the message is stored."""
    found = pub_ack(reply(data))
    assert (found.meaning if isinstance(found, ApiFault) else found) == expected


def test_nobody_who_answers_has_stored_nothing() -> None:
    """The status 503 of the server."""
    found = pub_ack(reply(b"", Status="503"))
    assert isinstance(found, ApiFault)
    assert found.meaning is Meaning.AGAIN
