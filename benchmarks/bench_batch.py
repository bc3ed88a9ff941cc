"""The cost of gathering a batch, and of the circuit breaker (compare runs, not machines).

pytest benchmarks/bench_batch.py
"""

from __future__ import annotations

import asyncio

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ingest.buffers.memory import MemoryBuffer
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
    """The cost of the circuit breaker for every good write."""
    breaker = CircuitBreaker(window_rows=1_000, rows_max=200)
    tuples = [block.tuples for block in blocks_of(100, 50)]
    benchmark(breaker.written, tuples, 5_000)


def test_breaker_judges_a_noisy_device(benchmark: BenchmarkFixture) -> None:
    """The highest cost of a decision: 1,500 of 5,000 rows are bad, all of one device in 36.

    Each window has more bad rows than are allowed, so the breaker checks every one of them. It lets
    them pass, because they are of one device only.
    """
    devices = ["noisy" if at % 10 < 3 else f"device-{at % 50}" for at in range(5_000)]
    rows = [encode_reading(Reading(at, name, "m", 21.5)) for at, name in enumerate(devices)]
    tuples = [b"".join(rows[at : at + 100]) for at in range(0, 5_000, 100)]
    bad = [BadRow(at, "23514", "check") for at, name in enumerate(devices) if name == "noisy"]
    breaker = CircuitBreaker(window_rows=1_000, rows_max=200)
    of_all = [BadRow(at, "23514", "check") for at in range(0, 5_000, 3)]
    with pytest.raises(WriteFailed):  # it does decide: as many bad rows of all devices are too many
        breaker.judge(tuples, 5_000, of_all, received_s=0.0)
    benchmark(breaker.judge, tuples, 5_000, bad, received_s=0.0)
