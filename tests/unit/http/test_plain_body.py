"""The bytes of all bodies in memory are bounded, also of many bodies and of compressed ones."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Callable, Generator

import pytest

from ingest.http.bodies import LIGHT_INFLATED_BYTES, SMALL_BYTES, Bodies
from ingest.http.rounds import INFLATED_MAX, LoopShare, PlainBodies
from ingest.model.errors import Refused
from tests.support.posts import array
from tests.support.receiver import BAD, GOOD, post, running_receiver, until


class Stopped(LoopShare):
    """A loop without a free share in any round, until `go`."""

    def __init__(self, bodies: Bodies) -> None:
        super().__init__(bodies.count_out)
        self._begins: list[tuple[Callable[[], object], int]] = []
        self._open = False

    @property
    def waiting(self) -> int:
        """How many are queued."""
        return len(self._begins)

    async def wait(self, body_bytes: int) -> None:
        """Nothing is left."""
        self._bytes_left = int(self._open)
        await super().wait(body_bytes)

    def enqueue(
        self, body_bytes: int, begin: Callable[[], object], *, counted_bytes: int = 0
    ) -> None:
        """Wait for `go`."""
        self._begins.append((begin, counted_bytes))

    def go(self) -> None:
        """Let all go on."""
        self._open = True
        for begin, counted_bytes in self._begins:
            self._begun(counted_bytes)
            begin()


async def test_bodies_that_wait_for_their_round_count_and_what_is_too_much_is_503() -> None:
    """Small bodies count too: ten are in memory, one waits for room, four are refused."""
    body = GOOD + b" " * (SMALL_BYTES - len(GOOD))
    async with running_receiver(
        receiver_bytes_max=10 * SMALL_BYTES, body_bytes_max=SMALL_BYTES
    ) as receiver:
        share = receiver.endpoint._plain_bodies.loop_share = Stopped(
            receiver.endpoint._plain_bodies._bodies
        )
        clients = await receiver.crowd(15, post(body))
        await until(lambda: share.waiting == 10)
        refused = [asyncio.create_task(client.reply()) for client in clients]
        await until(lambda: sum(each.done() for each in refused) == 4)
        assert receiver.endpoint._plain_bodies._bodies._bytes_taken == 10 * SMALL_BYTES
        share.go()
        replies = await asyncio.gather(*refused)
        assert sorted(each.status for each in replies) == [202] * 11 + [503] * 4
        assert {each.code for each in replies if each.status == 503} == {"buffer_full"}
        assert receiver.endpoint._plain_bodies._bodies._bytes_taken == 0


async def test_room_of_a_post_that_goes_on_in_steps_is_not_given_away() -> None:
    """Its room was given to a body that waited, and the admitted post got 503."""
    body = array(GOOD, *[BAD] * 70)
    size = len(body)
    async with running_receiver(receiver_bytes_max=2 * size, body_bytes_max=size) as receiver:
        share = receiver.endpoint._plain_bodies.loop_share = Stopped(
            receiver.endpoint._plain_bodies._bodies
        )
        clients = [await receiver.connect() for _ in range(3)]
        for client in clients:
            await client.send(post(body))
            await asyncio.sleep(0.02)
        assert share.waiting == 2
        share.go()
        assert [(await client.reply()).status for client in clients] == [202] * 3
        assert receiver.endpoint._plain_bodies._bodies._bytes_taken == 0


async def test_few_inflated_bodies_wait_for_the_loop_at_once() -> None:
    """Threads inflate faster than the loop decodes: 1,000 such posts made 1.6 GB of bodies."""
    items = -(-LIGHT_INFLATED_BYTES // len(GOOD)) + 100
    body = gzip.compress(array(*[GOOD] * items), 1)
    async with running_receiver(post_rows_max=items, batch_rows_max=items) as receiver:
        share = receiver.endpoint._plain_bodies.loop_share = Stopped(
            receiver.endpoint._plain_bodies._bodies
        )
        clients = await receiver.crowd(
            3 * INFLATED_MAX, post(body, headers={"Content-Encoding": "gzip"})
        )
        await until(lambda: share.waiting == INFLATED_MAX)
        await asyncio.sleep(0.05)
        assert share.waiting == INFLATED_MAX
        share.go()
        assert {(await client.reply()).status for client in clients} == {202}


async def test_body_that_is_decoded_in_steps_counts_until_its_end() -> None:
    """Also if its client goes away meanwhile; a body for which there is no room is 503."""
    bodies = PlainBodies(
        body_bytes_max=1_000, body_s_max=1, all_bytes_max=1_000, inflated_bytes_max=1_000
    )
    go = asyncio.Event()

    def steps() -> Generator[None, None, str]:
        while not go.is_set():
            yield
        return "done"

    first, second = (asyncio.create_task(bodies.finish(steps(), 500)) for _ in range(2))
    await asyncio.sleep(0.01)
    with pytest.raises(Refused) as caught:
        await bodies.finish(steps(), 1)
    assert caught.value.code == "buffer_full"
    second.cancel()
    await asyncio.wait([second])
    third = asyncio.create_task(bodies.finish(steps(), 500))
    await asyncio.sleep(0.01)
    go.set()
    assert tuple(await asyncio.gather(first, third)) == ("done", "done")
    assert bodies.enqueue(1_000, lambda: None)
    bodies.close()


async def test_light_gzip_body_costs_no_thread() -> None:
    """The common post is decompressed on the event loop."""
    async with running_receiver() as receiver:
        reply = await receiver.post(gzip.compress(GOOD), headers={"Content-Encoding": "gzip"})
        assert reply.status == 202
        assert not any(thread.name.startswith("inflate") for thread in threading.enumerate())


async def test_post_of_a_client_that_disconnected_is_decoded_too() -> None:
    """Its bytes are given back then; its post is whole, and is kept."""
    async with running_receiver() as receiver:
        share = receiver.endpoint._plain_bodies.loop_share = Stopped(
            receiver.endpoint._plain_bodies._bodies
        )
        client = await receiver.connect(post(GOOD))
        await until(lambda: share.waiting)
        await client.close()
        assert receiver.endpoint._plain_bodies._bodies._bytes_taken == len(GOOD)
        share.go()
        await receiver.blocks(1)
        assert receiver.endpoint._plain_bodies._bodies._bytes_taken == 0
