"""Posts to one server: its URL, the limits of a post, and what is read of an answer."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ingest.http_client.client import ANSWER_BYTES_MAX, HttpClient, target_of
from ingest.model.errors import ConfigError, NoReply
from tests.support.tcp_ports import free_port

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"


@asynccontextmanager
async def serving(serve: Serve, **more: Any) -> AsyncIterator[str]:
    """Run a server of bytes; give its URL."""
    port = free_port()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", port, **more)
    try:
        yield f"{'https' if more else 'http'}://127.0.0.1:{port}/x?a=%2F"
    finally:
        server.close()


@asynccontextmanager
async def client_of(url: str, answer_s_max: float = 5, **more: Any) -> AsyncIterator[HttpClient]:
    """Give a client."""
    client = HttpClient(
        target_of(url), connections_max=2, connect_s_max=1, answer_s_max=answer_s_max, **more
    )
    try:
        yield client
    finally:
        await client.close()


async def request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read a request: its head and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = [
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length")
    ]
    return head, await reader.readexactly(length)


@pytest.mark.parametrize("size", [0, 10, 3 * 1024**2])
async def test_post_sends_body_and_headers_and_keeps_its_connection(size: int) -> None:
    """No cookie, no compression; the next post uses the same connection."""
    seen: list[tuple[bytes, bytes]] = []
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while True:
            seen.append(await request(reader))
            headers = b"Set-Cookie: a=b\r\nRetry-After: 3\r\nContent-Length: 2\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\nok")

    body = bytes(size)
    async with serving(serve) as url, client_of(url) as client:
        for _ in range(2):
            reply = await client.post(body, {"Content-Type": "application/json", "K": "v"})
            assert reply == (200, "3", b"ok")
    assert len(connections) == 1
    for head, came in seen:
        assert came == body
        assert head.startswith(b"POST /x?a=%2F HTTP/1.1\r\n")
        assert b"\r\nK: v\r\n" in head
        assert b"Cookie" not in head


async def test_huge_answer_is_read_only_in_part() -> None:
    """And the connection is given up. The status counts."""
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request(reader)
        writer.write(b"HTTP/1.1 400 No\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536

    async with serving(serve) as url, client_of(url) as client:
        reply = await client.post(b"[]", {})
        assert (reply.status, len(reply.text)) == (400, ANSWER_BYTES_MAX)
        await asyncio.sleep(0.05)
    assert sent < 16 * 1024**2  # what the kernel's buffers hold


async def test_status_counts_although_the_body_breaks_off() -> None:
    """The server has said what became of the post."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin")

    async with serving(serve) as url, client_of(url) as client:
        assert await client.post(b"[]", {}) == (200, "", b"begin")


async def _hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await request(reader)
    await asyncio.sleep(30)


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"A: b\r\n")
        await asyncio.sleep(0.05)


async def _unread(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


@pytest.mark.parametrize("serve", [_hang, _drip, _unread])
async def test_post_ends_in_time_whatever_the_server_does(serve: Serve) -> None:
    """It does not answer, drips its headers, or does not read."""
    began_s = time.monotonic()
    async with serving(serve) as url, client_of(url, answer_s_max=0.3) as client:
        with pytest.raises(NoReply):
            await client.post(bytes(20 * 1024**2), {})
    assert time.monotonic() - began_s < 2


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 200", b"HTTP/1.1 2x0 OK\r\n\r\n"),
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    ],
)
async def test_what_is_no_http_is_no_reply(answer: bytes) -> None:
    """An error in words; the client can go on."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(answer if not fine else TAKEN)
        await writer.drain()

    fine = False
    async with serving(serve) as url, client_of(url) as client:
        with pytest.raises(NoReply, match=r".{5}"):
            await client.post(b"[]", {})
        fine = True
        assert (await client.post(b"[]", {})).status == 204


async def test_certificate_is_checked(tmp_path: Path) -> None:
    """One that nobody has signed is refused before the body is sent, unless we know it."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1")
    named = ("-subj", "/CN=other", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(  # noqa: ASYNC221  a moment
        ["openssl", "req", "-x509", *words, *named, *files], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    came = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await request(reader))
        writer.write(TAKEN)

    async with serving(serve, ssl=context) as url:
        async with client_of(url) as client:
            with pytest.raises(NoReply, match="certificate"):
                await client.post(b"[]", {})
        assert came == []
        async with client_of(url, ca_file=str(certificate)) as client:
            assert (await client.post(b"[]", {})).status == 204
        wrong_name = url.replace("127.0.0.1", "localhost")
        async with client_of(wrong_name, ca_file=str(certificate)) as client:
            with pytest.raises(NoReply, match="ertificate"):
                await client.post(b"[]", {})
        assert len(came) == 1


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/hook?token=1", "https://a.example"),
        ("https://a.example:8443", "https://a.example:8443"),
        ("http://localhost:9/x", "http://localhost:9"),
        ("http://127.3.2.1/", "http://127.3.2.1"),
        ("http://[::1]:80/", "http://[::1]:80"),
    ],
)
def test_target_shows_its_server_only(url: str, shown: str) -> None:
    """Path and query may be secrets."""
    assert target_of(url) == (url, shown)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "not http://HOST"),
        ("a.example/hook", "not http://HOST"),
        ("ftp://a.example/", "not http://HOST"),
        ("https:///hook", "not http://HOST"),
        ("https://[::1/", "cannot be read"),
        ("https://a.example:99999/", "cannot be read"),
        ("https://user:pw@a.example/", "a user or a password"),
        ("https://a.example/x y", "%XX"),
        ("https://ä.example/", "%XX"),
        ("http://a.example/", "without TLS"),
        ("http://localhost.a.example/", "without TLS"),
        ("http://10.0.0.1/", "without TLS"),
        ("http://[2001:db8::1]/", "without TLS"),
    ],
)
def test_wrong_target_is_refused_in_words(url: str, why: str) -> None:
    """And never with a password in the message."""
    with pytest.raises(ConfigError, match=why) as caught:
        target_of(url)
    assert "pw" not in str(caught.value)


def test_plain_http_can_be_allowed() -> None:
    """For a network that is safe in another way."""
    assert target_of("http://10.0.0.1/", plain_http=True).shown == "http://10.0.0.1"
