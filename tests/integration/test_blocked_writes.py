"""A table that somebody has locked: the writers find out who, and go on by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import asyncpg
import pytest

from ingest.app.writing import WritingHalf
from ingest.buffers.memory import MemoryBuffer
from ingest.config.settings import Settings
from ingest.model.causes import WRITES_FAIL
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from tests.support.blocks import block_of, make_reading
from tests.support.fake_letters import FakeLetters

SETTINGS = Settings(database_unsafe=True, lock_s_max=0.4, retry_s_max=0.05, retries_max=1000)


async def test_who_blocks_the_writes_is_told(
    operator: asyncpg.Connection, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its process, its name, and the first word of its last command, but no value of it."""
    monkeypatch.setattr("ingest.app.backlog.WAITS_S_MIN", 0.3)
    buffer = MemoryBuffer(rows_max=1_000, bytes_max=1 << 20, put_wait_s_max=1)
    halted, ledger, tasks = asyncio.Event(), Ledger(), list[asyncio.Task[None]]()
    ledger.gauges = Gauges(buffer.stats, DeadLetterStats, lambda: True, lambda: None)
    half = WritingHalf(SETTINGS, outlet=buffer, ledger=ledger, halted=halted)
    assert await half.open(
        lambda: shared_url,
        halted,
        posts_taken=lambda: True,
        on_away=lambda _why: None,
        on_checked=lambda _url: None,
    )

    def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    await operator.execute("set application_name = 'a-migration'")
    transaction = operator.transaction()
    await transaction.start()
    await operator.execute("lock table readings; update readings set value = 12345")
    half.start(FakeLetters(), spawn)
    try:
        block = block_of([make_reading()])
        (await buffer.reserve(1, len(block.tuples))).put(block)
        async with asyncio.timeout(20):
            while "; " not in half.backlog.trouble().details:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        cause, words, details = half.backlog.trouble()
        assert cause == WRITES_FAIL
        assert "1 readings wait" in words
        error, _, blocker = details.partition("; ")
        assert error.startswith("55P03: ")
        process = f"process {operator.get_server_pid()} of the database locks the table"
        assert blocker.startswith(
            f"{process}, a-migration, idle in transaction, in a transaction for 00:00:"
        )
        assert blocker.endswith("last command lock"), "and nothing of its values"
        await transaction.rollback()
        async with asyncio.timeout(20):
            while ledger.committed < 1 or half.backlog.trouble().cause:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        buffer.shut_inlet()
        halted.set()
        await half.finish()
        await asyncio.gather(*tasks)
