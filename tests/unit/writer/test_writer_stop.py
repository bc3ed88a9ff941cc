"""When a writer ends, and that it does not depend on clients that still wait."""

from __future__ import annotations

import asyncio

from ingest.model.causes import Verdict
from tests.support.fake_sink_scripted import HANG, Script
from tests.support.writing import Writing


async def test_halted_writer_ends_within_a_write_however_long_its_pauses() -> None:
    """Neither a retry's pause nor a probe's pause delays the stop."""
    for verdict in (Verdict.WAIT, Verdict.HOLD, Verdict.RETRY):
        path = Writing(
            Script(1, verdict, forever=True),
            wait_s_max=6000,
        )
        await path.post(10)
        path.start(2)
        await path.settled()
        assert path.script.fired > 0
        async with asyncio.timeout(1):
            await path.halt()
        assert len(path.left()) == 1


async def test_client_that_no_longer_waits_changes_nothing() -> None:
    """If a client with `?ack=committed` hangs up, its block is stored like any other."""
    path = Writing(Script(1, where=HANG))
    ack = await path.post(4)
    path.start(1)
    waiter = asyncio.create_task(ack.wait())
    await path.until(lambda: path.script.fired == 1)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    path.sinks[0].abort()
    await path.until(path.resolved)
    assert len(path.table) == 4
    await path.drain()
