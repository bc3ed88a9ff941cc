"""The ack is resolved once, and a wait for it cannot change it."""

from __future__ import annotations

import asyncio

import pytest

from ingest.model.block import Ack, Outcome, Refusal


async def test_ack_tells_all_who_wait_before_and_after() -> None:
    """The outcome is there for good, the same for everybody."""
    ack = Ack()
    early = [asyncio.create_task(ack.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not ack.resolved
    outcome = Outcome((Refusal(2, "23514", "check"),))
    ack.resolve(outcome)
    assert ack.resolved
    assert [await each for each in early] == [outcome] * 3
    assert await ack.wait() is outcome


async def test_ack_resolved_twice_fails_loudly() -> None:
    """Two outcomes for one block would mean that it was counted twice."""
    ack = Ack()
    ack.resolve(Outcome())
    with pytest.raises(AssertionError):
        ack.resolve(Outcome(set_aside=True))
    assert await ack.wait() == Outcome()


async def test_ack_survives_a_client_that_hangs_up() -> None:
    """Cancelling a wait changes nothing for the block, the writer or others that wait."""
    ack = Ack()
    gone, stays = (asyncio.create_task(ack.wait()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert not ack.resolved
    ack.resolve(Outcome(set_aside=True))
    assert await stays == Outcome(set_aside=True)
