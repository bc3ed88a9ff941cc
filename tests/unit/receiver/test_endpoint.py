"""POST /v1/readings as a client sees it: answers, codes, encodings; the hand-over of its socket."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from ingest.config.settings import Settings
from ingest.model.errors import BufferFull, ConfigError, Refused, StartError
from ingest.receiver.endpoint import Endpoint
from ingest.receiver.posts import in_time
from ingest.system.clock import monotonic_s
from tests.support.receiver import BAD, GOOD, Client, Receiver, head, post, running_receiver, until
from tests.support.ways import both_ways, reserves


@both_ways
async def test_post_without_ts_gets_the_time_of_receipt() -> None:
    """The time of receipt is set once, and the block has it."""
    async with running_receiver() as receiver:
        assert (await receiver.post(b'{"device_id":"d","metric":"m","value":1}')).status == 202
        (block,) = receiver.inlet.blocks
        assert receiver.inlet.readings[0].ts_us == block.received_us


@reserves
async def test_post_without_room_is_503_with_retry_after() -> None:
    """BufferFull becomes 503 buffer_full; its readings are rejected, not dead-lettered."""
    async with running_receiver() as receiver:
        receiver.inlet.error = BufferFull(3.0)
        waits = set()
        for _ in range(30):
            reply = await receiver.post(b"[" + GOOD + b"," + BAD + b"]")
            assert (reply.status, reply.code) == (503, "buffer_full")
            waits.add(int(reply.headers["retry-after"]))
        assert min(waits) >= 1
        assert len(waits) > 1  # jittered
        assert dict(receiver.ledger.rejected) == {"buffer_full": 60}
        assert not receiver.dead_letters.letters


@reserves
async def test_post_met_by_a_bug_is_500_once_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """A fault of ours: 500 without its details, the ledger balanced, one log line at most."""
    async with running_receiver() as receiver:
        receiver.inlet.error = RuntimeError("secret connection string")
        for _ in range(5):
            reply = await receiver.post(GOOD)
            assert (reply.status, reply.code) == (500, "internal")
            assert b"secret" not in reply.body
        assert dict(receiver.ledger.rejected) == {"internal": 5}
        assert receiver.ledger.requests["/v1/readings", 500] == 5
    assert capsys.readouterr().out.count("request_failed") == 1


async def test_start_on_a_busy_port_says_which_and_what_to_do() -> None:
    """The error names the port and the flag."""
    async with running_receiver() as receiver:
        second = Receiver(Settings())
        port = int(receiver.address.rpartition(":")[2])
        with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port} .*--listen HOST:PORT"):
            await second.endpoint.start("127.0.0.1", port)
        await second.close()


async def test_start_on_an_unknown_host_is_a_start_error() -> None:
    """A name that does not resolve is a StartError, and not an error of the resolver."""
    receiver = Receiver(Settings())
    with pytest.raises(StartError, match=r"no\.such\.host\.invalid"):
        await receiver.endpoint.start("no.such.host.invalid", 0)
    await receiver.close()


async def test_start_beyond_loopback_warns(capsys: pytest.CaptureFixture[str]) -> None:
    """A port open to the network is logged; the loopback is not."""
    for host, warned in (("0.0.0.0", 1), ("127.0.0.1", 0)):
        receiver = Receiver(Settings(access="open"))
        await receiver.endpoint.start(host, 0)
        await receiver.close()
        out = capsys.readouterr().out
        assert out.count("open_to_the_network") == out.count("unless access is open") == warned


async def test_start_on_ipv6_gives_an_address_in_brackets() -> None:
    """The address returned is fit for a URL."""
    if not Path("/proc/net/if_inet6").exists():
        return  # a machine without IPv6
    receiver = Receiver(Settings())
    address = await receiver.endpoint.start("::1", 0)
    await receiver.close()
    assert address.startswith("[::1]:")


def make_endpoint(**settings: Any) -> Endpoint:
    """Make a receiver that is not started."""
    return Receiver(Settings(**settings)).endpoint


async def test_ack_default_that_the_buffer_cannot_give_is_a_config_error() -> None:
    """A default acknowledgement that the service cannot give is an error at start."""
    with pytest.raises(ConfigError, match="ack_default: durable"):
        make_endpoint(ack_default="durable")


@both_ways
async def test_ack_default_committed_is_used() -> None:
    """A post that does not ask gets the default."""
    async with running_receiver(ack_default="committed", ack_wait_s_max=0.05) as receiver:
        assert (await receiver.post(GOOD)).code == "outcome_unknown"
        assert (await receiver.post(GOOD, "?ack=buffered")).document["ack"] == "buffered"


@reserves
async def test_finish_waits_for_posts_inside_and_only_for_them() -> None:
    """Draining: posts in work get answers, new ones get 503, finish returns with the last."""
    async with running_receiver() as receiver:
        client = await receiver.waits(post(GOOD))
        receiver.admission.code = "draining"
        finish = asyncio.create_task(receiver.endpoint.finish(5))
        assert (await receiver.post(GOOD)).code == "draining"
        assert not finish.done()
        receiver.inlet.open.set()
        await finish
        assert (await client.reply()).status == 202


@reserves
async def test_finish_gives_up_in_time() -> None:
    """A post that never ends does not delay the stop for longer than asked."""
    async with running_receiver() as receiver:
        client = await receiver.waits(post(GOOD))
        await receiver.endpoint.finish(0.05)
        receiver.inlet.open.set()
        assert json.loads((await client.reply()).body)["accepted"] == 1


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


async def test_what_takes_too_long_is_refused_and_may_be_sent_again() -> None:
    """Also if the answer was due before it began."""
    for left_s in (0.01, -1.0):
        with pytest.raises(Refused) as raised:
            async with in_time(monotonic_s() + left_s):
                await asyncio.sleep(10)
        assert (raised.value.code, raised.value.retry_after_s) == ("buffer_full", 2.0)


async def test_other_time_outs_and_a_cancelled_post_are_not_taken_for_this_one() -> None:
    """A sender must not be told that the service reads others if that is not so."""
    with pytest.raises(TimeoutError):
        async with in_time(monotonic_s() + 60):
            raise TimeoutError
    with pytest.raises(asyncio.CancelledError):
        async with in_time(monotonic_s() + 60):
            raise asyncio.CancelledError
