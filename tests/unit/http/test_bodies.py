"""Bodies that arrive slowly, in part or all at once: which get memory, wait, or are refused."""

from __future__ import annotations

import asyncio
import time

import pytest

from ingest.http.bodies import LEAST_BYTES, SMALL_BYTES, Bodies
from tests.support.receiver import (
    GOOD,
    JSON,
    Client,
    Receiver,
    Reply,
    head,
    post,
    running_receiver,
    until,
)
from tests.support.wire import request_of

KIB = 1024
LARGE = GOOD + b" " * (60_000 - len(GOOD))


def declared(size_bytes: int) -> bytes:
    """Return the head of a post with such a body."""
    return head(headers={**JSON, "Content-Length": str(size_bytes)})


def bodies_of(receiver: Receiver) -> Bodies:
    """Return the bodies of a receiver."""
    return receiver.endpoint._plain_bodies._bodies


async def finished(clients: list[Client], rest: bytes) -> list[Reply]:
    """Send the rest of each request; return the answers."""
    for client in clients:
        await client.send(rest)
    return [await client.reply() for client in clients]


@pytest.mark.parametrize(
    "start",
    [
        declared(64 * KIB) + b"[",
        head(headers={**JSON, "Transfer-Encoding": "chunked"}) + b"4e20\r\n" + b" " * 20_000,
    ],
    ids=["one byte of a declared one", "20 kB of a chunked one"],
)
async def test_large_bodies_that_do_not_come_lock_nobody_out(start: bytes) -> None:
    """64 connections with a part of a body: small posts pass, whole or in two, and large ones."""
    async with running_receiver(
        body_bytes_max=64 * KIB, receiver_bytes_max=64 * 64 * KIB, put_wait_s_max=0
    ) as receiver:
        await receiver.crowd(64, start)
        await until(lambda: bodies_of(receiver)._bytes_taken >= 64)
        for _ in range(10):
            assert (await receiver.post(GOOD)).status == 202
            split = await receiver.crowd(1, declared(len(GOOD)) + GOOD[:10])
            assert [each.status for each in await finished(split, GOOD[10:])] == [202]
            large = await receiver.crowd(1, declared(len(LARGE)) + LARGE[:20])
            assert [each.status for each in await finished(large, LARGE[20:])] == [202]


async def test_large_bodies_never_use_the_share_of_small_ones() -> None:
    """Half bodies fill all that large ones may use. A small post passes, a large one waits."""
    async with running_receiver(
        body_bytes_max=64 * KIB, receiver_bytes_max=256 * KIB, body_s_max=1.0
    ) as receiver:
        slow = await receiver.crowd(3, declared(len(LARGE)) + LARGE[:50_000])
        bodies = bodies_of(receiver)
        await until(lambda: len(bodies._queue) == 1)
        waiting = await receiver.crowd(1, declared(len(LARGE)) + LARGE)
        for _ in range(5):
            assert (await receiver.post(GOOD)).status == 202
        assert not await waiting[0].closed(0.05)
        assert bodies._bytes_taken <= 192 * KIB
        assert {(await each.reply()).code for each in slow} == {"body_timeout"}
        assert (await waiting[0].reply()).status == 202
        assert bodies._bytes_taken == bodies._bytes_taken_by_large == 0


async def test_many_half_arrived_bodies_all_become_whole() -> None:
    """They need ten times the memory that there is. None is refused, and none waits for ever."""
    async with running_receiver(
        body_bytes_max=64 * KIB, line_bytes_max=64 * KIB, receiver_bytes_max=1024 * KIB
    ) as receiver:
        bodies = bodies_of(receiver)
        places = 1024 // 256
        half = await receiver.crowd(12 + places, declared(len(LARGE)) + LARGE[:58_000])
        await until(lambda: len(bodies._queue) == places)
        assert bodies._bytes_taken <= (768 - 64) * KIB
        assert {each.status for each in await finished(half, LARGE[58_000:])} == {202}
        assert bodies._bytes_taken == bodies._bytes_taken_by_large == 0


async def test_large_body_that_trickles_is_ended_early_and_a_small_one_is_not() -> None:
    """The least rate holds for large bodies; a small one has all of body_s_max."""
    async with running_receiver(body_s_max=2.4) as receiver:
        (large,) = await receiver.crowd(1, declared(SMALL_BYTES + 1))
        (small,) = await receiver.crowd(1, declared(len(GOOD)))
        (quick,) = await receiver.crowd(1, declared(4 * LEAST_BYTES + 1))
        before_s = time.monotonic()

        async def trickle() -> None:
            for byte in GOOD:
                await asyncio.gather(large.send(bytes([byte])), small.send(bytes([byte])))
                await asyncio.sleep(0.005)

        async def send_in_time() -> None:
            body = GOOD + b" " * (4 * LEAST_BYTES + 1 - len(GOOD))
            for start in range(0, len(body), LEAST_BYTES):
                await quick.send(body[start : start + LEAST_BYTES])
                await asyncio.sleep(0.1)

        sending = asyncio.gather(trickle(), send_in_time())
        reply = await large.reply()
        assert 0.45 < time.monotonic() - before_s < 1.8
        assert reply.code == "body_timeout"
        assert f"{LEAST_BYTES} bytes in 0.6 s" in reply.document["detail"]
        assert [(await each.reply()).status for each in (small, quick)] == [202, 202]
        await sending


async def test_large_body_that_waits_too_long_is_503() -> None:
    """The wait for memory is bounded too, and is our lack, not the fault of a slow client."""
    half_mib = 512 * KIB
    async with running_receiver(
        body_bytes_max=half_mib, receiver_bytes_max=half_mib, body_s_max=0.2
    ) as receiver:
        bodies = bodies_of(receiver)
        assert bodies.count_in(half_mib)
        waiting = await receiver.crowd(2, declared(half_mib) + GOOD)
        await until(lambda: len(bodies._queue) == 2)
        (late,) = await receiver.crowd(1, declared(half_mib) + GOOD)
        assert (await late.reply(0.1)).code == "buffer_full"  # the queue is full: at once
        assert {(await each.reply()).code for each in waiting} == {"buffer_full"}
        bodies.count_out(half_mib)
        assert bodies._bytes_taken == 0
        assert not bodies._queue


async def test_waiting_client_gone_leaves_the_queue() -> None:
    """A client that disconnects while it waits for memory leaves it to the others."""
    async with running_receiver(
        body_bytes_max=64 * KIB, receiver_bytes_max=64 * KIB, body_s_max=5
    ) as receiver:
        bodies = bodies_of(receiver)
        holder = await receiver.crowd(1, declared(len(LARGE)) + LARGE[:20_000])
        await until(lambda: bodies._bytes_taken)
        (waiting,) = await receiver.crowd(1, declared(len(LARGE)) + LARGE[:20_000])
        await until(lambda: bodies._queue)
        await waiting.close()
        assert [each.status for each in await finished(holder, LARGE[20_000:])] == [202]
        await until(lambda: bodies._bytes_taken == 0)
        assert (await receiver.post(LARGE)).status == 202


async def test_bytes_granted_to_a_cancelled_handler_are_given_on() -> None:
    """A handler that is cancelled as it is granted its bytes does not keep them."""
    bodies = Bodies(body_bytes_max=64 * KIB, body_s_max=10, all_bytes_max=64 * KIB)
    request = request_of(declared(len(LARGE)), LARGE)

    async def receive() -> None:
        async with bodies.received(request):
            pass

    assert bodies.count_in(60_000)
    waiting = asyncio.create_task(receive())
    await asyncio.sleep(0)
    bodies.count_out(60_000)
    while bodies._queue:  # noqa: ASYNC110  a longer pause would let it go on
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert bodies._bytes_taken == bodies._bytes_taken_by_large == 0
    assert not bodies._incomplete


async def test_small_posts_go_before_large_ones_when_memory_is_free_again() -> None:
    """Two wait for memory; the small one, which came later, is first."""
    async with running_receiver(body_bytes_max=64 * KIB, receiver_bytes_max=64 * KIB) as receiver:
        bodies = bodies_of(receiver)
        assert bodies.count_in(64 * KIB)
        (large,) = await receiver.crowd(1, post(LARGE))
        await until(lambda: len(bodies._queue) == 1)
        (small,) = await receiver.crowd(1, post(GOOD))
        await until(lambda: len(bodies._queue) == 2)
        order = [place.is_for_large for place in sorted(bodies._queue, key=lambda each: each.rank)]
        assert order == [False, True]
        bodies.count_out(64 * KIB)
        assert [(await each.reply()).status for each in (large, small)] == [202, 202]
