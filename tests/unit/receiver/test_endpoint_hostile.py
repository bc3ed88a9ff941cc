"""Requests that no honest client sends, and bodies that come slowly, late, broken or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from itertools import pairwise

import pytest

from ingest.http.rounds import ROUND_BYTES
from tests.support.posts import array
from tests.support.receiver import GOOD, JSON, head, post, running_receiver, until
from tests.support.ways import both_ways

SIZE = {**JSON, "Content-Length": str(len(GOOD))}
CHUNKED = {**JSON, "Transfer-Encoding": "chunked"}
QUIET = {"request_failed", "Traceback", "Error handling"}


async def test_fault_before_any_page_does_not_blame_the_request() -> None:
    """Aiohttp's own 500 is not the client's doing."""
    async with running_receiver() as receiver:
        site = receiver.endpoint.port
        assert json.loads(site._malformed("internal").body)["detail"] == (
            "the service has a fault; its log has the details"
        )
        assert b"the request is not valid" in site._malformed("bad_request").body


@pytest.mark.parametrize("used_before", [False, True])
async def test_head_without_an_end_is_431_before_it_is_large(used_before: bool) -> None:
    """Each line is short enough: a thousand such connections must not fill the memory."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        if used_before:
            await client.send(head(method="GET", target="/livez"))
            assert (await client.reply()).status == 200
        await client.send(b"POST /v1/readings HTTP/1.1\r\nHost: x\r\n")
        for number in range(10):
            await client.send(b"X-%d: %b\r\n" % (number, b"x" * 4_000))
            await asyncio.sleep(0.01)
        reply = await client.reply(2)
        assert (reply.status, reply.code) == (431, "headers_too_large")
        assert "32 KiB before its end" in reply.document["detail"]
        assert await client.closed(2)


async def test_endless_head_of_a_client_that_does_not_read_leaves_no_connection() -> None:
    """Its answer can never be sent, so a polite close would never end."""
    loop = asyncio.get_running_loop()
    async with running_receiver(body_s_max=0.5, keepalive_s_max=0.5) as receiver:
        host, _, port = receiver.address.rpartition(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.setblocking(False)
            await loop.sock_connect(client, (host, int(port)))
            await until(lambda: receiver.connections.count == 1)
            (handler,) = receiver.connections._open
            transport = handler.transport
            assert transport is not None
            with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
            while not transport.get_write_buffer_size():  # one by one: none may wait for its round
                await loop.sock_sendall(client, head(method="GET", target="/no"))
                await asyncio.sleep(0.002)
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\n")
            while not transport.is_closing():
                await loop.sock_sendall(client, b"X: %b\r\n" % (b"x" * 4_000))
                await asyncio.sleep(0.001)
            await until(lambda: receiver.connections.count == 0)
            await until(lambda: not transport.get_write_buffer_size())


async def test_head_that_comes_in_many_pieces_is_taken() -> None:
    """What is bounded is the head of one request, not what a connection sends in its life."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        for _ in range(3):
            whole = head(headers={**SIZE, **{f"X-{n}": "x" * 1_000 for n in range(20)}}) + GOOD
            for at in range(0, len(whole), 1_500):
                await client.send(whole[at : at + 1_500])
                await asyncio.sleep(0.002)
            assert (await client.reply()).status == 202


# Bodies


async def test_body_that_trickles_is_408() -> None:
    """The deadline is for the whole body, not for each byte."""
    async with running_receiver(body_s_max=0.2) as receiver:
        client = await receiver.connect(head(headers=SIZE))
        before_s = time.monotonic()

        async def trickle() -> None:
            for byte in GOOD:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        assert (await client.reply(3)).code == "body_timeout"
        assert time.monotonic() - before_s < 1
        trickling.cancel()


async def test_client_gone_in_the_middle_of_its_body_leaves_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Fifty clients break off: nothing kept, nothing logged, and no fault of ours is counted."""
    async with running_receiver() as receiver:
        await receiver.send(b"SSH-2.0-client\r\n\r\n")
        for cut in range(1, 51):
            client = await receiver.connect(post(GOOD)[:-cut])
            await client.close()
        await asyncio.sleep(0.05)
        assert receiver.endpoint._keeping.in_work == 0
        assert receiver.ledger.received == 0
        assert not receiver.inlet.blocks
        assert {status for _, status in receiver.ledger.requests} == {400}
    out, err = capfd.readouterr()
    assert not any(word in out + err for word in QUIET)


async def test_bad_chunk_behind_a_post_in_work_ends_only_its_own_request() -> None:
    """A pipelined body that breaks off while it waits: the first post gets its answer."""
    async with running_receiver(body_s_max=30) as receiver:
        client = await receiver.waits(post(GOOD))
        await client.send(head(headers=CHUNKED) + b"5\r\n[1,2,\r\n")
        await asyncio.sleep(0.02)
        await client.send(b"nonsense\r\n")
        await asyncio.sleep(0.02)
        receiver.inlet.open.set()
        assert (await client.reply(2)).status == 202
        assert (await client.reply(2)).code == "bad_request"
        assert await client.closed()


@both_ways
async def test_a_crowd_of_posts_leaves_the_loop_to_others_between() -> None:
    """A writer needs several rounds of the loop for a batch: no round serves all posts."""
    body = array(*[GOOD] * 150)
    async with running_receiver() as receiver:
        clients = [await receiver.connect() for _ in range(100)]
        for client in clients:
            client.writer.write(
                post(body)
            )  # it is sent at once; the receiver reads it when we wait
        kept = [0]
        while len(receiver.inlet.blocks) < len(clients):
            await asyncio.sleep(0)
            kept.append(len(receiver.inlet.blocks))
        most = max(after - before for before, after in pairwise(kept))
        assert most <= -(-ROUND_BYTES // len(body))
