"""One turn at a time; the senders of those that wait take turns; a cancelled one gives it on."""

from __future__ import annotations

import asyncio

from ingest.buffers.memory import MemoryBuffer
from ingest.receiver.pages.mapped import turn, turns_of_large_bodies


async def take(turns: MemoryBuffer, sender: str, order: list[str]) -> None:
    """Take a turn, which lasts a round of the event loop, and note it."""
    async with turn(turns, sender, 1_000):
        order.append(sender)
        await asyncio.sleep(0)


async def test_senders_take_turns() -> None:
    """Who has many posts gets no more than who has one."""
    turns, order = turns_of_large_bodies(), list[str]()
    async with asyncio.TaskGroup() as tasks:
        for sender in [*"hhhhhhhh", "a", "b", "a"]:
            tasks.create_task(take(turns, sender, order))
    assert order[:4] == ["h", "h", "a", "b"]  # the second one is the first that waits
    assert sorted(order) == sorted("hhhhhhhhaba")


async def test_cancelled_one_gives_its_turn_on() -> None:
    """At each moment of its wait, and in the round in which it got the turn."""
    for rounds in range(8):
        turns, order = turns_of_large_bodies(), list[str]()
        tasks = [asyncio.create_task(take(turns, each, order)) for each in "abcd"]
        for _ in range(rounds):
            await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert "a" in order
        assert "d" in order
        async with asyncio.timeout(1):
            await take(turns, "later", order)
