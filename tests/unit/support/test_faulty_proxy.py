"""The faulty proxy makes the faults that other tests need."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.support.faulty_proxy import Direction, FaultyProxy


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write(b"bye")
    except OSError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[FaultyProxy]:
    """Yield a proxy to a server that echoes, and sends `bye` after the client's end."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with FaultyProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()


async def _open(proxy: FaultyProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, wait_s: float = 5
) -> bytes:
    writer.write(data)
    async with asyncio.timeout(wait_s):
        return await reader.readexactly(len(data))


async def test_proxy_refuses_new_connections_until_it_accepts_again(proxy: FaultyProxy) -> None:
    """`refuse` keeps open connections; `accept` listens again on the same port."""
    port = proxy.port
    reader, writer = await _open(proxy)
    await _ask(reader, writer, b"x")
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await _open(proxy)
    assert await _ask(reader, writer, b"still") == b"still"
    await proxy.accept()
    assert proxy.port == port
    _, second = await _open(proxy)
    writer.close()
    second.close()


@pytest.mark.parametrize("directions", [(), ("to_server",), ("to_client",)])
async def test_proxy_stalled_holds_bytes_and_delivers_them_after_resume(
    proxy: FaultyProxy, directions: tuple[Direction, ...]
) -> None:
    """A stall loses no byte and gives no error."""
    reader, writer = await _open(proxy)
    await _ask(reader, writer, b"x")
    proxy.stall(*directions)
    with pytest.raises(TimeoutError):
        await _ask(reader, writer, b"late", 0.1)
    assert proxy.bytes_forwarded["to_server"] == (5 if directions == ("to_client",) else 1)
    proxy.resume()
    assert await reader.readexactly(4) == b"late"
    writer.close()


async def test_proxy_losing_replies_lets_the_request_through_then_cuts(proxy: FaultyProxy) -> None:
    """The server gets the request, the client gets no reply."""
    reader, writer = await _open(proxy)
    await _ask(reader, writer, b"x")
    over = proxy.lose_replies(until=b"COMMIT")
    writer.write(b"BEGIN;")
    writer.write(b"COMMIT;")
    async with asyncio.timeout(5):
        await over.wait()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert proxy.bytes_forwarded == {"to_server": 14, "to_client": 1}
    assert proxy.bytes_lost == 13
    reader, writer = await _open(proxy)
    assert await _ask(reader, writer, b"whole") == b"whole"
    writer.close()


@pytest.mark.parametrize("count", [1, 3, 7])
async def test_proxy_cut_after_some_bytes_delivers_these_and_no_more(
    proxy: FaultyProxy, count: int
) -> None:
    """Exactly these bytes arrive, then all is reset; the next connection works."""
    reader, writer = await _open(proxy)
    await _ask(reader, writer, b"x")
    before = proxy.bytes_forwarded["to_server"]
    proxy.cut_after("to_server", count)
    writer.write(b"a" * 10)
    with contextlib.suppress(ConnectionError):
        await reader.read()
    assert proxy.bytes_forwarded["to_server"] == before
    writer.close()
    reader, writer = await _open(proxy)
    assert await _ask(reader, writer, b"whole") == b"whole"
    writer.close()
