"""A server on a real port that answers posts as a test says: with bytes, or with misbehaviour.

Promises: keeps every request that came whole, in order. Does not: check a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

Script = Callable[["PeerConnection"], Awaitable[bool | None]]

_LINGER_NONE = struct.pack("ii", 1, 0)  # close() then sends RST instead of FIN


def reply(status: int = 202, body: bytes = b'{"accepted":1}', **headers: str) -> bytes:
    """Return the bytes of an answer; `Retry_After="1"` is a header."""
    lines = [f"HTTP/1.1 {status} Some words", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class PeerConnection:
    """One connection of the peer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def say(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    def hang_up(self) -> None:
        """Close the connection in order (FIN)."""
        self._writer.close()

    def reset(self) -> None:
        """Close the connection with a reset."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._writer.transport.abort()


def says(data: bytes, *, then_hangs_up: bool = False) -> Script:
    """Return a script that sends these bytes."""

    async def answer(connection: PeerConnection) -> bool:
        await connection.say(data)
        if then_hangs_up:
            connection.hang_up()
        return not then_hangs_up

    return answer


async def hangs_up(connection: PeerConnection) -> bool:
    """Close without an answer."""
    connection.hang_up()
    return False


async def resets(connection: PeerConnection) -> bool:
    """Reset without an answer."""
    connection.reset()
    return False


async def is_silent(connection: PeerConnection) -> bool:
    """Give no answer, and leave the connection open."""
    return True


class Peer:
    """`async with Peer() as peer:`. Each request takes the next of `scripts`, then `usual`."""

    def __init__(self, *scripts: Script, usual: Script | None = None) -> None:
        self.scripts = list(scripts)
        self.usual = usual or says(reply())
        self.requests: list[bytes] = []
        self.connections_total = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen (again, on the same port)."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more and close all connections."""
        assert self._server is not None, "start it first"
        self._server.close()
        for writer in list(self._open):
            writer.close()
        await self._server.wait_closed()
        await self.emptied()

    async def emptied(self) -> None:
        """Wait until no connection is open."""
        async with asyncio.timeout(5):
            while self._open:  # noqa: ASYNC110  each ends by itself
                await asyncio.sleep(0.001)

    def refuse(self) -> None:
        """Listen no more; open connections stay."""
        assert self._server is not None, "start it first"
        self._server.close()

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of all requests."""
        return [each.partition(b"\r\n\r\n")[2] for each in self.requests]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_total += 1
        self._open.add(writer)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._serve_one(reader, PeerConnection(writer)):
                    pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, connection: PeerConnection) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length))
        self.requests.append(head + body)
        script = self.scripts.pop(0) if self.scripts else self.usual
        return await script(connection) is not False
