"""One turn at a time; the senders of those that wait take turns; a cancelled one gives it on."""

from __future__ import annotations

import asyncio

from ingest.receiver.pages.mapped import OneByOne


async def take(one_by_one: OneByOne, sender: str, order: list[str]) -> None:
    """Take a turn, which lasts a round of the event loop, and note it."""
    async with one_by_one.turn(sender, 1_000):
        order.append(sender)
        await asyncio.sleep(0)


async def test_senders_take_turns() -> None:
    """Who has many posts gets no more than who has one."""
    one_by_one, order = OneByOne(), list[str]()
    async with asyncio.TaskGroup() as tasks:
        for sender in [*"hhhhhhhh", "a", "b", "a"]:
            tasks.create_task(take(one_by_one, sender, order))
    assert order[:4] == ["h", "h", "a", "b"]  # the second one is the first that waits
    assert sorted(order) == sorted("hhhhhhhhaba")


async def test_cancelled_one_gives_its_turn_on() -> None:
    """At each moment of its wait, and in the round in which it got the turn."""
    for rounds in range(8):
        one_by_one, order = OneByOne(), list[str]()
        tasks = [asyncio.create_task(take(one_by_one, each, order)) for each in "abcd"]
        for _ in range(rounds):
            await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert "a" in order
        assert "d" in order
        async with asyncio.timeout(1):
            await take(one_by_one, "later", order)
