"""A client of TLS whose bytes pass through the test, which may cut, delay or add to them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress

from tests.support.receiver import Client


class TlsInMemory:
    """One connection of a client, over a raw one. `tls` makes records, `send` sends them."""

    def __init__(self, context: ssl.SSLContext, raw: Client) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._raw = raw
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    async def send(self, *, by_byte: bool = False) -> None:
        """Send what `tls` has made."""
        data = self._outgoing.read()
        for part in (data[at : at + 1] for at in range(len(data))) if by_byte else (data,):
            await self._raw.send(part)
            await asyncio.sleep(0)

    async def shake_hands(self, *, by_byte: bool = False) -> None:
        """Until it is done."""
        while True:
            try:
                self.tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                await self.send(by_byte=by_byte)
                self._incoming.write(await self._raw.reader.read(65_536))

    async def answers(self, enough: Callable[[bytes], bool] = lambda _: False) -> bytes:
        """Return what came, decrypted, once it is enough or the connection has ended."""
        came = b""
        while not enough(came) and (data := await self._raw.reader.read(65_536)):
            self._incoming.write(data)
            with suppress(ssl.SSLError):  # no whole record, or the end in TLS
                while part := self.tls.read():
                    came += part
        return came


def hello(context: ssl.SSLContext) -> bytes:
    """Return what a client sends first."""
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()
