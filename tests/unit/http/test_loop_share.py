"""Posts share the rounds of the event loop: in order, a bounded part of each; all are served."""

from __future__ import annotations

import asyncio
from collections import Counter

from ingest.http.loop_share import POST_BYTES, ROUND_BYTES, LoopShare

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


async def test_a_body_larger_than_a_round_gets_one() -> None:
    """The posts after it get the next rounds, in order."""
    order = await served([10 * ROUND_BYTES, SMALL, 10 * ROUND_BYTES, SMALL])
    assert [place for place, _ in order] == [0, 1, 2, 3]
    assert order[0][1] < order[1][1] == order[2][1] < order[3][1]


async def test_cancelled_wait_for_a_round_delays_nobody() -> None:
    """A cancelled wait takes nothing from the share of the others."""
    share = LoopShare()
    assert share.take(ROUND_BYTES)
    waits = [asyncio.create_task(share.wait(10 * ROUND_BYTES)) for _ in range(5)]
    last = asyncio.create_task(share.wait(SMALL))
    await asyncio.sleep(0)
    for each in waits:
        each.cancel()
    async with asyncio.timeout(5):
        await last
    assert share.take(SMALL)


async def test_a_share_that_was_granted_and_not_used_is_forgotten_with_its_round() -> None:
    """A wait that is cancelled as it is granted: the next round has its whole share."""
    share = LoopShare()
    assert share.take(ROUND_BYTES)
    granted = asyncio.create_task(share.wait(ROUND_BYTES))
    await asyncio.sleep(0)  # queued
    await asyncio.sleep(0)  # granted
    granted.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert share.take(ROUND_BYTES)
