"""A client of the TLS port that sends what TLS allows and no honest client sends."""

from __future__ import annotations

import asyncio
import ctypes
import ssl
from contextlib import suppress
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest

from ingest.http.tls import PIECE_BYTES, TlsConnection
from tests.support.certificates import trusting
from tests.support.receiver import GOOD, Client, Receiver, head, post, running_receiver, until
from tests.support.tls_in_memory import TlsInMemory

GET = head("GET", "/livez")


def connection_of(receiver: Receiver) -> TlsConnection:
    """Return the only connection."""
    (opened,) = receiver.endpoint._port.connections._open
    assert isinstance(opened.transport, TlsConnection)
    return opened.transport


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_bytes_after_the_end_in_tls_are_not_kept(
    tls_settings: dict[str, Any], tls_files: tuple[Path, Path], version: ssl.TLSVersion
) -> None:
    """A post waits, its client says that it sends no more, and sends megabytes: they are dropped.

    The post is answered all the same.
    """
    async with running_receiver(**tls_settings) as receiver:
        receiver.inlet.open.clear()
        raw = await receiver.connect()
        context = trusting(tls_files[0])
        context.minimum_version = context.maximum_version = version
        client = TlsInMemory(context, raw)
        await client.shake_hands()
        client.tls.write(post(GOOD))
        with suppress(ssl.SSLError):
            client.tls.unwrap()
        await client.send()
        await until(lambda: receiver.inlet.waiting)
        for _ in range(50):
            await raw.send(b"\x17\x03\x03\x40\x00" + bytes(100_000))
        connection = connection_of(receiver)
        assert connection._incoming.pending + len(connection._rest) <= PIECE_BYTES
        receiver.inlet.open.set()
        assert (await client.answers()).startswith(b"HTTP/1.1 202")


async def test_hello_without_end_is_not_kept(tls_settings: dict[str, Any]) -> None:
    """Thousands may wait for the first step of their handshake: each may bring a short hello."""
    async with running_receiver(**tls_settings) as receiver:
        client = await receiver.connect()
        record = b"\x16\x03\x01\x40\x00"
        hello = b"\x01\x01\xff\xf0\x03\x03"  # it says that 128 KiB will come
        await client.send(record + hello + bytes(16_384 - len(hello)) + record)
        assert await client.closed()


class NewKeys:
    """A TLS 1.3 client in memory that can ask for new keys: Python's ssl module cannot."""

    def __init__(self) -> None:
        self._ssl, crypto = (ctypes.CDLL(find_library(each)) for each in ("ssl", "crypto"))
        self._crypto = crypto
        for call in (self._ssl.TLS_client_method, self._ssl.SSL_CTX_new, self._ssl.SSL_new):
            call.restype = ctypes.c_void_p
        crypto.BIO_s_mem.restype = crypto.BIO_new.restype = ctypes.c_void_p
        pointer = ctypes.c_void_p
        context = pointer(self._ssl.SSL_CTX_new(pointer(self._ssl.TLS_client_method())))
        self._tls = pointer(self._ssl.SSL_new(context))
        self._in, self._out = (
            pointer(crypto.BIO_new(pointer(crypto.BIO_s_mem()))) for _ in range(2)
        )
        self._ssl.SSL_set_bio(self._tls, self._in, self._out)
        self._ssl.SSL_set_connect_state(self._tls)

    async def shake_hands(self, raw: Client) -> None:
        """Until it is done."""
        while self._ssl.SSL_do_handshake(self._tls) != 1:
            await raw.send(self.sent())
            await self._receive(raw)

    async def _receive(self, raw: Client) -> None:
        data = await raw.reader.read(65_536)
        assert data, "the connection has ended"
        self._crypto.BIO_write(self._in, data, len(data))

    async def read(self, raw: Client) -> bytes:
        """Return the next bytes, decrypted."""
        buffer = ctypes.create_string_buffer(65_536)
        while (size := self._ssl.SSL_read(self._tls, buffer, len(buffer))) <= 0:
            await self._receive(raw)
        return buffer.raw[:size]

    def ask_for_new_keys(self, bytes_min: int) -> bytes:
        """Return so many bytes of nothing else."""
        data = self.sent()
        while len(data) < bytes_min:
            self._ssl.SSL_key_update(self._tls, 0)
            self._ssl.SSL_do_handshake(self._tls)
            data += self.sent()
        return data

    def write(self, data: bytes) -> bytes:
        """Return it encrypted."""
        self._ssl.SSL_write(self._tls, data, len(data))
        return self.sent()

    def sent(self) -> bytes:
        """Return what it wants to send."""
        buffer = ctypes.create_string_buffer(65_536)
        size = self._crypto.BIO_read(self._out, buffer, len(buffer))
        return buffer.raw[: max(size, 0)]


@pytest.mark.skipif(not find_library("ssl"), reason="there is no libssl here")
async def test_new_keys_without_end_are_made_in_steps(tls_settings: dict[str, Any]) -> None:
    """200 KB of them would take 0.1 s in one call; others have their turn meanwhile."""
    async with running_receiver(**tls_settings) as receiver:
        raw = await receiver.connect()
        client = NewKeys()
        await client.shake_hands(raw)
        await raw.send(client.write(GET))
        assert await client.read(raw)
        steps, put_off = 0, connection_of(receiver)._steps.put_off

        def counted(*args: Any, **kwargs: Any) -> None:
            nonlocal steps
            steps += 1
            put_off(*args, **kwargs)

        connection_of(receiver)._steps.put_off = counted  # type: ignore[method-assign]
        await raw.send(client.ask_for_new_keys(200_000) + client.write(GET))
        async with asyncio.timeout(5):
            assert await client.read(raw)
        assert steps >= 10
