"""The cost of gathering a batch, and of the circuit breaker (compare runs, not machines).

pytest benchmarks/bench_batch.py
"""

from __future__ import annotations

import asyncio

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ingest.buffers.memory import MemoryBuffer
from ingest.model.ack import Refusal
from ingest.model.block import Block
from ingest.model.ports import BadRow
from ingest.model.reading import Reading
from ingest.model.rows import encode_reading
from ingest.model.verdict import WriteFailed
from ingest.writer.batch import BatchCap, Gatherer, halves
from ingest.writer.breaker import CircuitBreaker


def blocks_of(rows: int, count: int) -> list[Block]:
    """Make blocks of so many rows each, of 50 devices."""
    row = [encode_reading(Reading(0, f"device-{at}", "temperature", 21.5)) for at in range(50)]
    return [
        Block(row[at % 50] * rows, rows, received_s=0.0, received_us=0, newest_ts_us=0)
        for at in range(count)
    ]


@pytest.mark.parametrize("rows", [1, 100])
def test_gather_under_backlog(
    benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, rows: int
) -> None:
    """Batches of 5,000 rows that wait already."""
    buffer = MemoryBuffer(rows_max=5_000, bytes_max=1 << 30, put_wait_s_max=1)
    gatherer = Gatherer(buffer, BatchCap(100, 5_000, write_s_max=10), linger_s=0.02)
    blocks = blocks_of(rows, 5_000 // rows)

    async def fill() -> None:
        for block in blocks:
            (await buffer.reserve(rows, len(block.tuples))).put(block)

    async def gather() -> None:
        batch = await gatherer.gather()
        assert batch is not None
        buffer.give_back(batch.blocks)

    loop.run_until_complete(fill())
    benchmark(lambda: loop.run_until_complete(gather()))
    assert buffer.rows_waiting == 5_000


def test_halves_of_single_readings(benchmark: BenchmarkFixture) -> None:
    """The worst batch to cut: 5,000 blocks."""
    first, second = benchmark(halves, blocks_of(1, 5_000))
    assert len(first) == len(second)


def test_breaker_remembers_a_clean_write(benchmark: BenchmarkFixture) -> None:
    """The cost of the circuit breaker for every good write: 5,000 rows in 5,000 posts."""
    breaker = CircuitBreaker(window_rows=1_000, rows_max=200)
    benchmark(breaker.written, list(blocks_of(1, 5_000)))


def test_breaker_judges_a_noisy_client(benchmark: BenchmarkFixture) -> None:
    """The highest cost of a decision: of 20,000 posts of one row 6,000 are refused.

    They come from one address of eleven, so the breaker looks at every window and lets them pass.
    """
    blocks = list(blocks_of(1, 20_000))
    for at, block in enumerate(blocks):
        block.sender = "noisy" if at % 10 < 3 else f"10.0.0.{at % 10}"
    refusal = [Refusal(0, "23514", "check")]
    refused = {at: refusal for at, block in enumerate(blocks) if block.sender == "noisy"}
    breaker = CircuitBreaker(window_rows=1_000, rows_max=200)
    last = BadRow(0, "23514", "check")
    with pytest.raises(WriteFailed):  # it does decide: as many of all addresses are too many
        breaker.judge(blocks, dict.fromkeys(range(0, 20_000, 3), refusal), last)
    benchmark(breaker.judge, blocks, refused, last)
