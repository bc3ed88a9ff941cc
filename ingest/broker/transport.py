"""The socket of one connection to the broker, for the client library.

Promises: the end of the connection is told at once, whoever meets it first. After that, writing
does nothing and reading gives the end. The library's own transport raises errors in places where
the library does not expect them; its clean-up then stops half way. Closing never waits: a frozen
server would not read what is left to send. If TLS is wanted, nothing is sent without it: the
library would log in without TLS at a server that says that it has none.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from urllib.parse import ParseResult

from nats.aio.transport import Transport

_CLOSED = "the server has closed the connection"


class BrokerTransport(Transport):
    """`ended` is called with the reason, perhaps more than once. `tls`: send nothing without it."""

    def __init__(self, ended: Callable[[str], None], *, tls: bool = False) -> None:
        self._ended = ended
        self._lacks_tls = tls
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._is_over = False

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect. Raises OSError."""
        async with asyncio.timeout(connect_timeout):
            self._reader, self._writer = await asyncio.open_connection(
                uri.hostname, uri.port, limit=buffer_size
            )

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,
        connect_timeout: int,
    ) -> None:
        """Go on with TLS. Raises OSError."""
        assert self._writer is not None, "connected before"
        name = uri if isinstance(uri, str) else uri.hostname
        async with asyncio.timeout(connect_timeout):
            await self._writer.start_tls(ssl_context, server_hostname=name)
        self._lacks_tls = False

    def write(self, payload: bytes) -> None:
        """Send bytes, or nothing after the end. Raises OSError without the TLS that is wanted."""
        self.writelines([payload])

    def writelines(self, payload: list[bytes]) -> None:
        """Send bytes, or nothing after the end. Raises OSError without the TLS that is wanted."""
        if self._lacks_tls:
            raise OSError("the URL says tls://, and the server offers no TLS; nothing was sent")
        if self._is_over or self._writer is None:
            return
        try:
            self._writer.writelines(payload)
        except (OSError, RuntimeError) as error:  # RuntimeError: closed a moment ago
            self._end(str(error))

    async def drain(self) -> None:
        """Wait until the socket takes more bytes, or the connection has ended."""
        if self._is_over or self._writer is None:
            return
        try:
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            self._end(str(error))

    async def read(self, buffer_size: int) -> bytes:
        """Return what has come, or nothing at the end."""
        return await self._read(lambda reader: reader.read(buffer_size))

    async def readline(self) -> bytes:
        """Return one line, or less at the end."""
        return await self._read(lambda reader: reader.readline())

    async def _read(
        self, read: Callable[[asyncio.StreamReader], Coroutine[None, None, bytes]]
    ) -> bytes:
        if self._is_over or self._reader is None:
            return b""
        try:
            data = await read(self._reader)
        except (OSError, ValueError) as error:  # ValueError: a line that is too long
            self._end(str(error))
            return b""
        if not data:
            self._end(_CLOSED)
        return data

    def at_eof(self) -> bool:
        """Whether nothing more comes."""
        return self._is_over or self._reader is None or self._reader.at_eof()

    def close(self) -> None:
        """Close at once; what was not sent is lost."""
        self._is_over = True
        if self._writer is not None:
            self._writer.transport.abort()

    async def wait_closed(self) -> None:
        """Let the event loop close the socket."""
        await asyncio.sleep(0)

    def __bool__(self) -> bool:
        """Whether it is there: the library makes one of its own if not."""
        return True

    def _end(self, why: str) -> None:
        self._is_over = True
        self._ended(why)
