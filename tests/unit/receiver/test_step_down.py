"""The hand-over of a socket: no client is reset or refused, whatever its connection does."""

from __future__ import annotations

import asyncio
import socket

from tests.support.receiver import GOOD, Client, Receiver, head, post, running_receiver, until

SOON_S, LONG_S = 0.1, 5.0


def stepping(receiver: Receiver, *, idle_s: float = LONG_S) -> asyncio.Task[None]:
    """Begin the hand-over."""
    return asyncio.create_task(receiver.endpoint.step_down(idle_s=idle_s, timeout_s=LONG_S))


async def within(work: asyncio.Task[None], timeout_s: float) -> None:
    """Wait for a task that must end in time."""
    async with asyncio.timeout(timeout_s):
        await work


async def posted(client: Client) -> tuple[int, bool]:
    """Post; return the status, and whether the connection ends."""
    await client.send(post(GOOD))
    reply = await client.reply()
    return reply.status, reply.headers.get("connection") == "close"


async def test_request_in_work_and_body_on_its_way_are_finished() -> None:
    """A post that waits for space, and one whose body is half here, get their 202."""
    async with running_receiver() as receiver:
        waits, half = await receiver.connect(), await receiver.connect()
        receiver.inlet.open.clear()
        await waits.send(post(GOOD))
        await until(lambda: receiver.inlet.waiting == 1)
        whole = post(GOOD)
        await half.send(whole[:-10])
        await asyncio.sleep(0.05)
        down = stepping(receiver, idle_s=SOON_S)
        await asyncio.sleep(2 * SOON_S)
        assert not down.done()
        receiver.inlet.open.set()
        await half.send(whole[-10:])
        for each in (waits, half):
            reply = await each.reply()
            assert (reply.status, reply.headers["connection"]) == (202, "close")
            assert await each.closed()
            await each.close()
        await within(down, 2)


async def test_connection_accepted_before_has_its_first_request_answered() -> None:
    """A client that has connected, and sends its request only after the hand-over began."""
    async with running_receiver() as receiver:
        early = await receiver.connect()
        await until(lambda: receiver.connections.count == 1)
        down = stepping(receiver, idle_s=SOON_S)
        await asyncio.sleep(2 * SOON_S)
        assert await posted(early) == (202, True)
        await early.close()
        await within(down, 2)


async def test_request_that_crosses_the_last_answer_is_no_reset() -> None:
    """The client has sent more before it reads the answer: it gets it whole, and then the end."""
    async with running_receiver() as receiver:
        loop = asyncio.get_running_loop()
        host, _, port = receiver.address.rpartition(":")
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, (host, int(port)))
            await loop.sock_sendall(client, post(GOOD)[:20])
            await until(lambda: receiver.connections.count == 1)
            down = stepping(receiver)
            await asyncio.sleep(0.05)
            await loop.sock_sendall(client, post(GOOD)[20:])
            await until(lambda: len(receiver.inlet.blocks) == 1)
            await asyncio.sleep(0.02)
            for _ in range(2):  # after a reset the second one would fail
                await loop.sock_sendall(client, head("GET", "/livez"))
                await asyncio.sleep(0.02)
            assert (await loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 202")
            assert await loop.sock_recv(client, 4096) == b""
        await within(down, 2)


async def test_hand_over_is_bounded_by_its_time() -> None:
    """A client that never ends does not keep the process; what it has is closed by `close`."""
    async with running_receiver(keepalive_s_max=60) as receiver:
        client = await receiver.waits(post(GOOD))
        async with asyncio.timeout(2):
            await receiver.endpoint.step_down(idle_s=SOON_S, timeout_s=2 * SOON_S)
        receiver.inlet.open.set()
        assert (await client.reply()).status == 202


async def test_hand_over_refuses_nothing_and_probes_are_answered() -> None:
    """Nothing says `draining`: the service goes on, only this process does not."""
    async with running_receiver() as receiver:
        probe = await receiver.connect(head("GET", "/livez"))
        assert (await probe.reply()).status == 200
        down = stepping(receiver)
        await asyncio.sleep(0.05)
        await probe.send(head("GET", "/livez"))
        reply = await probe.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        await probe.close()
        await within(down, 2)


async def test_idle_connection_ends_after_its_time() -> None:
    """Not before: its client may be sending a request. It ends without a reset."""
    async with running_receiver() as receiver:
        idle = await receiver.connect()
        assert await posted(idle) == (202, False)
        down = stepping(receiver, idle_s=0.3)
        assert not await idle.closed(0.2)
        assert await idle.reader.read() == b""
        await idle.close()
        await within(down, 2)


async def test_stop_before_the_port_listens_leaves_nothing() -> None:
    """A start may be ended while the database is being made: that is no fault of the stop."""
    async with running_receiver() as receiver:
        await receiver.endpoint.close()
        await within(stepping(receiver), 1)
