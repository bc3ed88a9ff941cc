"""Posts and their bodies share the rounds of the event loop: in order, a bounded part of each."""

from __future__ import annotations

import asyncio
import gzip
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator
from functools import partial
from itertools import pairwise
from time import thread_time as thread_s

import pytest

from ingest.http import rounds as loop_share
from ingest.http.bodies import LIGHT_INFLATED_BYTES, SMALL_BYTES, Bodies
from ingest.http.rounds import (
    BEGIN_BYTES,
    INFLATED_MAX,
    LONG_S,
    POST_BYTES,
    ROUND_BYTES,
    STEPS_S,
    LoopShare,
    PlainBodies,
)
from ingest.model.errors import Refused
from ingest.system.process_setup import SWITCH_S
from tests.support.posts import array
from tests.support.receiver import BAD, GOOD, post, running_receiver, until

Steps = Generator[None, None, str]

SMALL = 100


class Watch:
    """Counts the rounds of the loop."""

    def __init__(self) -> None:
        self.round = 0
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._next)

    def _next(self) -> None:
        self.round += 1
        self._handle = self._loop.call_soon(self._next)

    def stop(self) -> None:
        """End it: a loop that always has something to do never sleeps."""
        self._handle.cancel()


async def served(sizes: list[int]) -> list[tuple[int, int]]:
    """Let posts of these sizes come together; return (place, round) in the order of service."""
    share, watch = LoopShare(), Watch()
    order: list[tuple[int, int]] = []

    async def post(place: int, size: int) -> None:
        await share.wait(size)
        order.append((place, watch.round))

    await asyncio.gather(*(post(place, size) for place, size in enumerate(sizes)))
    watch.stop()
    return order


async def test_few_posts_are_served_in_the_round_in_which_they_came() -> None:
    """No post waits while the share is enough for all."""
    order = await served([SMALL] * 20)
    assert len({number for _, number in order}) == 1


async def test_a_crowd_is_served_in_order_and_a_part_in_each_round() -> None:
    """Other work runs between them: a round serves at most its share and one post."""
    order = await served([SMALL] * 1_000)
    assert [place for place, _ in order] == list(range(1_000))
    in_a_round = Counter(number for _, number in order)
    most = -(-ROUND_BYTES // (SMALL + POST_BYTES))
    assert max(in_a_round.values()) == most
    assert len(in_a_round) == -(-1_000 // most)


async def test_a_large_body_takes_the_share_of_its_beginning_only() -> None:
    """It goes on in steps, so a few of them begin in a round; the others wait in order."""
    in_a_round = -(-ROUND_BYTES // (BEGIN_BYTES + POST_BYTES))
    order = await served([10 * ROUND_BYTES] * (2 * in_a_round))
    assert [place for place, _ in order] == list(range(2 * in_a_round))
    assert Counter(number for _, number in order).most_common(2)[0][1] == in_a_round


def note(done: list[str], name: str) -> bool:
    """Begin a post."""
    done.append(name)
    return True


def steps_of(count: int, done: list[str], name: str, *, step_s: float = 0.0) -> Steps:
    """Return work in steps; each writes its name into `done`."""
    for _ in range(count):
        until_s = thread_s() + step_s
        while thread_s() < until_s:
            pass
        done.append(name)
        yield
    return name


async def test_small_posts_begin_before_the_next_step_of_a_large_one() -> None:
    """A large post has one step a round while a step takes all of the round's time for steps."""
    share, done = LoopShare(), list[str]()
    large = asyncio.create_task(share.finish(steps_of(5, done, "large", step_s=2 * STEPS_S)))
    await asyncio.sleep(0)
    for number in range(4):
        share.enqueue(SMALL, partial(note, done, f"small {number}"))
        await asyncio.sleep(0)
    assert await large == "large"
    assert done[:2] == ["small 0", "large"]
    assert [each for each in done if each != "large"] == [f"small {number}" for number in range(4)]
    places = [place for place, each in enumerate(done) if each == "large"]
    assert len(places) == 5
    assert all(after - before <= 2 for before, after in pairwise(places[:4]))


async def test_first_steps_of_many_posts_are_not_done_at_once() -> None:
    """Sixteen posts with bad items, begun in one round, held the loop for 15 ms."""
    share, done = LoopShare(), list[str]()
    posts = [
        asyncio.create_task(share.finish(steps_of(1, done, "post", step_s=STEPS_S)))
        for _ in range(16)
    ]
    most = before = 0
    while len(done) < len(posts):
        await asyncio.sleep(0)
        most, before = max(most, len(done) - before), len(done)
    await asyncio.gather(*posts)
    assert most == 1


async def test_posts_in_steps_take_turns() -> None:
    """A post of many steps delays one of few steps by a step a turn, not by all of its own."""
    share, done = LoopShare(), list[str]()
    long = asyncio.create_task(share.finish(steps_of(1_000, done, "long", step_s=STEPS_S / 10)))
    await asyncio.sleep(0)
    short = share.finish(steps_of(10, done, "short"))
    assert await short == "short"
    assert done.count("long") < 100
    assert await long == "long"


async def test_senders_with_posts_in_steps_take_turns() -> None:
    """Fifty posts of one sender get no more than one of another."""
    share, done = LoopShare(), list[str]()
    step_s = STEPS_S / 5
    many = [
        asyncio.create_task(share.finish(steps_of(6, done, "many", step_s=step_s), "m"))
        for _ in range(30)
    ]
    await asyncio.sleep(0)
    assert await share.finish(steps_of(10, done, "one", step_s=step_s), "o") == "one"
    assert done.count("many") <= 30
    assert set(await asyncio.gather(*many)) == {"many"}


async def test_cancelled_post_does_no_more_steps() -> None:
    """Its client is gone: what it has read is thrown away, and the next post goes on."""
    share, done = LoopShare(), list[str]()
    gone = asyncio.create_task(share.finish(steps_of(10**9, done, "gone")))
    await asyncio.sleep(0.005)
    gone.cancel()
    await asyncio.sleep(0)
    steps = done.count("gone")
    assert await share.finish(steps_of(100, done, "next")) == "next"
    assert done.count("gone") <= steps + 1


async def test_threads_get_the_interpreter_soon_if_the_steps_of_a_post_take_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The journal's thread waits for it after each call; so do the small posts of its group."""
    share, usual_s = LoopShare(), sys.getswitchinterval()

    async def intervals(large: Steps, *, is_gone: bool = False) -> list[float]:
        post = asyncio.create_task(share.finish(large))
        found = list[float]()
        while not post.done():
            await asyncio.sleep(0)
            found.append(sys.getswitchinterval())
            if is_gone and found[-1] != usual_s:
                post.cancel()
        assert sys.getswitchinterval() == usual_s
        return found

    for is_gone in (False, True):
        found = await intervals(steps_of(20, [], "long", step_s=LONG_S / 5), is_gone=is_gone)
        assert min(found) == pytest.approx(SWITCH_S)
    monkeypatch.setattr(loop_share, "LONG_S", 60)  # or a busy machine makes them long
    assert set(await intervals(steps_of(20, [], "short"))) == {usual_s}


async def test_cancelled_wait_for_a_round_delays_nobody() -> None:
    """A cancelled wait takes nothing from the share of the others."""
    share = LoopShare()
    while share._bytes_left > 0:
        await share.wait(ROUND_BYTES)
    waits = [asyncio.create_task(share.wait(10 * ROUND_BYTES)) for _ in range(5)]
    last = asyncio.create_task(share.wait(SMALL))
    await asyncio.sleep(0)
    for each in waits:
        each.cancel()
    async with asyncio.timeout(5):
        await last
    assert share._bytes_left > 0


async def test_steps_put_off_share_the_time_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and whatever each puts off again: one at least in each round."""
    monkeypatch.setattr("ingest.http.rounds.PUT_OFF_S", 0.0)
    share, watch = LoopShare(), Watch()
    done: list[tuple[int, int]] = []

    def step(number: int, left: int) -> None:
        done.append((watch.round, number))
        if left:
            share.put_off(partial(step, number, left - 1), "n")

    for number in range(3):
        share.put_off(partial(step, number, 1), "n")
    while len(done) < 6:  # noqa: ASYNC110  the rounds are counted
        await asyncio.sleep(0)
    watch.stop()
    assert [number for _, number in done] == [0, 1, 2, 0, 1, 2]
    rounds = [at for at, _ in done]
    assert rounds == list(range(rounds[0], rounds[0] + 6))


async def test_networks_with_steps_put_off_take_turns() -> None:
    """A hundred steps of one network delay those of another by one each; a forgotten one by none.

    Those of one network keep their order, and one that is put off twice is done once.
    """
    share, done = LoopShare(), list[str]()
    many = [partial(note, done, f"many {number}") for number in range(100)]
    for each in (*many, many[50]):
        share.put_off(each, "m")
    for number in range(3):
        share.put_off(partial(note, done, f"one {number}"), "o")
    share.forget(many[1], "m")
    while len(done) < 102:  # noqa: ASYNC110  the rounds are counted
        await asyncio.sleep(0)
    rest = [f"many {number}" for number in range(4, 100)]
    assert done == ["many 0", "one 0", "many 2", "one 1", "many 3", "one 2", *rest]


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
