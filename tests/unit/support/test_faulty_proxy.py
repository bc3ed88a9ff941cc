"""The faulty proxy makes the faults that other tests need."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

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


async def test_proxy_left_alone_forwards_everything_and_both_ends(proxy: FaultyProxy) -> None:
    """A proxy without a fault forwards all bytes, and a half-close."""
    reader, writer = await _open(proxy)
    data = bytes(range(256)) * 4096
    assert await _ask(reader, writer, data) == data
    writer.write_eof()
    assert await reader.read() == b"bye"
    assert proxy.bytes_forwarded == {"to_server": len(data), "to_client": len(data) + 3}
    writer.close()


async def test_proxy_cut_resets_open_connections_and_takes_new_ones(proxy: FaultyProxy) -> None:
    """A cut resets open connections; new ones work at once."""
    reader, writer = await _open(proxy)
    await _ask(reader, writer, b"x")
    await proxy.cut()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert proxy.connections_open == 0
    reader, writer = await _open(proxy)
    assert await _ask(reader, writer, b"again") == b"again"
    writer.close()


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


async def test_proxy_losing_replies_by_size_cuts_after_that_many(proxy: FaultyProxy) -> None:
    """Replies can be lost up to a number of bytes."""
    reader, writer = await _open(proxy)
    over = proxy.lose_replies(3)
    writer.write(b"abc")
    async with asyncio.timeout(5):
        await over.wait()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_proxy_keeping_replies_again_delivers_later_ones(proxy: FaultyProxy) -> None:
    """Without a bound replies are lost until `keep_replies`."""
    reader, writer = await _open(proxy)
    proxy.lose_replies()
    with pytest.raises(TimeoutError):
        await _ask(reader, writer, b"lost", 0.2)
    proxy.keep_replies()
    assert await _ask(reader, writer, b"kept") == b"kept"
    writer.close()


async def test_proxy_slowed_keeps_to_the_rate(proxy: FaultyProxy) -> None:
    """A slow proxy takes size / rate seconds; `slow(None)` ends that."""
    loop = asyncio.get_running_loop()
    reader, writer = await _open(proxy)
    proxy.slow(20_000)
    began_s = loop.time()
    await _ask(reader, writer, bytes(10_000), 10)
    assert 0.4 < loop.time() - began_s < 5
    proxy.slow(None)
    began_s = loop.time()
    await _ask(reader, writer, bytes(100_000), 10)
    assert loop.time() - began_s < 3
    writer.close()


async def test_proxy_to_a_unix_socket_forwards_and_cuts(tmp_path: Path) -> None:
    """A proxy to a unix socket forwards and cuts, too."""
    path = str(tmp_path / "s")
    server = await asyncio.start_unix_server(_echo, path)
    async with FaultyProxy.to_unix(path) as proxy:
        reader, writer = await _open(proxy)
        assert await _ask(reader, writer, b"x") == b"x"
        await proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    server.close()


async def test_proxy_whose_server_is_away_resets_the_client(tmp_path: Path) -> None:
    """Without a server the client's connection is reset."""
    async with FaultyProxy.to_unix(str(tmp_path / "nobody")) as proxy:
        reader, writer = await _open(proxy)
        with pytest.raises(ConnectionResetError):
            await reader.read()
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


async def test_proxy_counts_bytes_over_several_writes_before_it_cuts(proxy: FaultyProxy) -> None:
    """Bytes of several writes are counted together; a cancelled cut does not happen."""
    reader, writer = await _open(proxy)
    proxy.cut_after("to_server", 8)
    assert await _ask(reader, writer, b"12345") == b"12345"
    proxy.keep_whole()
    assert await _ask(reader, writer, b"67890") == b"67890"
    proxy.cut_after("to_server", 8)
    assert await _ask(reader, writer, b"12345") == b"12345"
    writer.write(b"67890")
    with contextlib.suppress(ConnectionError):
        assert len(await reader.read()) <= 3
    writer.close()


async def test_proxy_loses_replies_only_after_what_the_client_sends(proxy: FaultyProxy) -> None:
    """Replies are forwarded until the client has sent the mark."""
    reader, writer = await _open(proxy)
    over = proxy.lose_replies(1, after=(b"COMMIT",))
    assert await _ask(reader, writer, b"BEGIN") == b"BEGIN"
    writer.write(b"COMMIT")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    await over.wait()
    assert proxy.bytes_lost == 6
    writer.close()


async def test_proxy_delays_each_chunk_in_both_directions(proxy: FaultyProxy) -> None:
    """Each chunk is delayed by one pause, and no byte is lost."""
    pauses: list[float] = []

    def pause_s() -> float:
        pauses.append(0.001)
        return pauses[-1]

    proxy.delay(pause_s)
    reader, writer = await _open(proxy)
    assert await _ask(reader, writer, b"slow") == b"slow"
    assert len(pauses) >= 2
    writer.close()
