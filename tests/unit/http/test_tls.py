"""The data port with TLS: a real port, clients of Python's own TLS, and hostile ones."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import socket
import ssl
import subprocess
import time
from contextlib import suppress
from ctypes.util import find_library
from pathlib import Path
from typing import Any, cast

import pytest
import structlog

from ingest.http.tls import PIECE_BYTES, Certificate, TlsConnection
from ingest.model.errors import StartError
from tests.support.certificates import make_certificate, trusting
from tests.support.receiver import GOOD, Client, Receiver, head, post, running_receiver, until
from tests.support.tls_in_memory import TlsInMemory, hello

GET = head("GET", "/livez")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_posts_come_over_one_connection(
    tls_settings: dict[str, Any], tls_files: tuple[Path, Path], version: ssl.TLSVersion
) -> None:
    """Small and large ones, and several at once; each is kept, each is answered."""
    context = trusting(tls_files[0])
    context.minimum_version = context.maximum_version = version
    async with running_receiver(**tls_settings) as receiver:
        client = await Client.connect(receiver.address, context)
        large = b"[" + b",".join([GOOD] * 4_000) + b"]"  # in many records
        for body, rows in ((GOOD, 1), (large, 4_000)):
            await client.send(post(body))
            reply = await client.reply()
            assert (reply.status, reply.document["accepted"]) == (202, rows)
        await client.send(post(GOOD) * 50)
        for _ in range(50):
            assert (await client.reply()).status == 202
        await client.send(post(GOOD, headers={"Connection": "close"}))
        assert (await client.reply()).status == 202
        assert await client.closed(), "an end that is no error"
        await client.close()
        assert sum(each.rows for each in receiver.inlet.blocks) == 4_052


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_session_of_a_device_is_resumed(
    tls_settings: dict[str, Any], tls_files: tuple[Path, Path], version: ssl.TLSVersion
) -> None:
    """It connects for each post: after the first handshake the others are short. It gets one
    ticket each time, and uses it once."""
    context = trusting(tls_files[0])
    context.minimum_version = context.maximum_version = version

    def posted(port: int, session: ssl.SSLSession | None) -> tuple[bool | None, Any]:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as client,
        ):
            client.sendall(post(GOOD, headers={"Connection": "close"}))
            answer = b"".join(iter(lambda: client.recv(4_096), b""))
            assert answer.startswith(b"HTTP/1.1 202")
            return client.session_reused, client.session

    async with running_receiver(**tls_settings) as receiver:
        certificate = receiver.endpoint.certificate
        assert certificate is not None
        assert certificate.context().num_tickets == 1
        port, session, resumed = int(receiver.address.rpartition(":")[2]), None, []
        for _ in range(4):
            was_resumed, session = await asyncio.to_thread(posted, port, session)
            resumed.append(was_resumed)
    assert resumed == [False, True, True, True]


async def test_client_without_tls_is_told(tls_settings: dict[str, Any]) -> None:
    """It gets a problem in plain HTTP, and the end of the connection."""
    async with running_receiver(**tls_settings) as receiver:
        client = await receiver.connect(post(GOOD))
        reply = await client.reply()
        assert (reply.status, reply.code) == (400, "needs_tls")
        assert "https://" in reply.document["detail"]
        assert await client.closed()


@pytest.mark.parametrize("what", ["random", "cut", "too much", "old version", "plain after hello"])
async def test_broken_handshakes_are_closed(
    tls_settings: dict[str, Any], tls_files: tuple[Path, Path], what: str
) -> None:
    """Nothing is logged, nothing stays, and the next client is served."""
    first = hello(trusting(tls_files[0]))
    sent = {
        "random": b"\x16" + os.urandom(500),
        "cut": first[:40],
        "too much": b"\x16\x03\x01\x40\x00" + bytes(100_000),
        "old version": first[:9] + b"\x03\x01" + first[11:],
        "plain after hello": first + b"GET / HTTP/1.1\r\n\r\n",
    }[what]
    with structlog.testing.capture_logs() as logs:
        async with running_receiver(**tls_settings, body_s_max=0.3) as receiver:
            client = await receiver.connect(sent)
            with suppress(ConnectionError):
                while await client.reader.read(1_000):  # an alert, perhaps
                    pass
            polite = await Client.connect(receiver.address, trusting(tls_files[0]))
            await polite.send(GET)
            assert (await polite.reply()).status == 200
            await polite.close()
    assert [each for each in logs if each["log_level"] in ("error", "critical")] == []


async def test_handshake_may_come_byte_by_byte(
    tls_settings: dict[str, Any], tls_files: tuple[Path, Path]
) -> None:
    """A step that finds too little waits for more."""
    async with running_receiver(**tls_settings) as receiver:
        raw = await receiver.connect()
        client = TlsInMemory(trusting(tls_files[0]), raw)
        await client.shake_hands(by_byte=True)
        client.tls.write(GET)
        await client.send(by_byte=True)
        assert (await client.answers(bool)).startswith(b"HTTP/1.1 200")


async def test_many_tiny_records_are_read_in_steps(
    tls_settings: dict[str, Any], tls_files: tuple[Path, Path]
) -> None:
    """Posts of one byte a record, all sent at once: each is answered, and in order."""
    async with running_receiver(**tls_settings) as receiver:
        raw = await receiver.connect()
        client = TlsInMemory(trusting(tls_files[0]), raw)
        await client.shake_hands()
        for byte in post(GOOD) * 20:
            client.tls.write(bytes([byte]))
        await client.send()
        answers = await client.answers(lambda came: came.count(b"HTTP/1.1 202") == 20)
        assert answers.count(b"HTTP/1.1 202") == 20, f"the connection ended after {answers!r}"
        assert sum(each.rows for each in receiver.inlet.blocks) == 20


async def test_silent_handshakes_do_not_keep_others_out(
    tls_settings: dict[str, Any], tls_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred begin one and say no more: each had its step, and a polite client is served.

    One that goes before its first step waits no longer for its turn, in memory.
    """
    first = hello(trusting(tls_files[0]))
    async with running_receiver(**tls_settings) as receiver:
        silent = await receiver.crowd(100, first)
        for each in silent:
            assert await each.reader.read(65_536), "it got no answer to its hello"
        polite = await Client.connect(receiver.address, trusting(tls_files[0]))
        await polite.send(GET)
        assert (await polite.reply()).status == 200
        assert not any(each.reader.at_eof() for each in silent)
        share = receiver.endpoint._plain_bodies.loop_share
        monkeypatch.setattr(share, "_schedule", lambda: None)  # no step is done from now on
        gone = await receiver.connect(first)
        await until(lambda: any(share._put_off))
        for each in (gone, polite, *silent):
            await each.close()
        await until(lambda: not any(share._put_off))


async def test_handshakes_end_while_others_wait_for_their_first_step(
    tls_settings: dict[str, Any], tls_files: tuple[Path, Path]
) -> None:
    """A fleet that comes back at once, with more handshakes than can be begun in the time of one.

    If all were begun before the first of them ends, none would ever end.
    """
    async with running_receiver(**tls_settings) as receiver:
        context = trusting(tls_files[0])
        fleet = [TlsInMemory(context, await receiver.connect()) for _ in range(100)]
        await until(lambda: receiver.connections.count == 100)

        async def finish(client: TlsInMemory) -> None:
            await client.shake_hands()
            await client.send()

        async with asyncio.TaskGroup() as finishing:
            for each in fleet:
                finishing.create_task(finish(each))
            opened = [cast(TlsConnection, each.transport) for each in receiver.connections._open]
            await until(lambda: any(each._is_established for each in opened))
            begun = sum(each._object is not None for each in opened)
        assert begun < 50


async def test_connection_without_a_handshake_is_closed_in_time(
    tls_settings: dict[str, Any],
) -> None:
    """The time for a head includes the handshake."""
    async with running_receiver(**tls_settings, body_s_max=0.2) as receiver:
        client = await receiver.connect()
        assert await client.closed()


async def test_certificate_is_read_again(tmp_path: Path) -> None:
    """A new pair is for new connections; open ones go on; a broken one changes nothing."""
    cert_file, key_file = make_certificate(tmp_path)
    old = trusting(cert_file)
    async with running_receiver(
        tls_cert_file=str(cert_file), tls_key_file=str(key_file), body_s_max=0.4
    ) as receiver:
        before = await Client.connect(receiver.address, old)
        certificate = receiver.endpoint.certificate
        assert certificate is not None
        first = certificate.context()
        new_cert, new_key = make_certificate(tmp_path, "next")
        new_cert.rename(cert_file)  # for a moment the pair is no pair
        new_key.rename(key_file)
        await until(lambda: certificate.context() is not first)
        after = await Client.connect(receiver.address, trusting(cert_file))
        for client in (before, after):
            await client.send(GET)
            assert (await client.reply()).status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            await Client.connect(receiver.address, old)
        second = certificate.context()
        with structlog.testing.capture_logs() as logs:
            key_file.write_text("no key")
            await until(lambda: [each["event"] for each in logs] == ["certificate_unusable"])
        assert str(key_file) in logs[0]["error"]
        assert certificate.context() is second
        await before.close()
        await after.close()


def test_files_that_could_not_be_read_for_a_moment_are_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor was free when they had changed; that changes no time and no size."""
    files = make_certificate(tmp_path)
    certificate = Certificate(*files)
    first = certificate.context()
    for new, old in zip(make_certificate(tmp_path, "next"), files, strict=True):
        new.rename(old)
    with monkeypatch.context() as patched:

        def fails(*_: object, **__: object) -> None:
            raise OSError(24, "Too many open files")

        patched.setattr("ingest.http.tls._context_of", fails)
        certificate.read_if_changed()
    assert certificate.context() is first
    certificate.read_if_changed()
    assert certificate.context() is not first


def test_end_of_the_validity_is_known(tls_files: tuple[Path, Path], tmp_path: Path) -> None:
    """So that an alert comes before it."""
    assert 29 * 86_400 < Certificate(*tls_files).ends_s - time.time() <= 30 * 86_400


def test_certificate_that_no_client_takes_is_read_all_the_same(tmp_path: Path) -> None:
    """Its end is not known. An error here would end the watch over slow connections, too."""
    cert_file, key_file = make_certificate(tmp_path)
    certificate = Certificate(cert_file, key_file)
    first = certificate.context()
    for_clients = ("-addext", "extendedKeyUsage=clientAuth")
    new_cert, new_key = make_certificate(tmp_path, "next", more=for_clients)
    new_cert.rename(cert_file)
    new_key.rename(key_file)
    with structlog.testing.capture_logs() as logs:
        certificate.read_if_changed()
    assert [(each["event"], each["valid_until_s"]) for each in logs] == [("certificate_read", None)]
    assert certificate.context() is not first
    assert math.isnan(certificate.ends_s)


@pytest.mark.parametrize("what", ["missing", "swapped", "not its key", "empty", "password"])
def test_files_that_cannot_be_used_end_the_start(tmp_path: Path, what: str) -> None:
    """The error names both files, or the one that cannot be read."""
    cert_file, key_file = make_certificate(tmp_path)
    if what == "missing":
        key_file.unlink()
    elif what == "swapped":
        cert_file, key_file = key_file, cert_file
    elif what == "not its key":
        _, key_file = make_certificate(tmp_path, "another")
    elif what == "empty":
        cert_file.write_text("")
    else:
        locked = tmp_path / "locked.key"
        made = f"openssl ec -in {key_file} -aes128 -passout pass:x -out {locked}".split()
        subprocess.run(made, check=True, capture_output=True)
        key_file = locked
    with pytest.raises(StartError) as raised:
        Certificate(cert_file, key_file)
    assert str(key_file) in str(raised.value)


def connection_of(receiver: Receiver) -> TlsConnection:
    """Return the only connection."""
    (opened,) = receiver.endpoint.port.connections._open
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
