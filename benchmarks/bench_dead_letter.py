"""The cost of keeping a dead letter, with fdatasync (compare runs, not machines).

pytest benchmarks/bench_dead_letter.py
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.processes import scratch
from benchmarks.rounds import run_rounds
from ingest.dead_letters.folder.backend import FolderBackend
from ingest.dead_letters.folder.segments import live_letters
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.model.letter import INVALID, Letter

ROUNDS = 100
ITEM = '{"device_id":"sensor-0001","metric":"temperature","ts":%d,"value":"warm"}'
_numbers = itertools.count()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder on the disk."""
    with scratch() as folder:
        yield folder / "dead-letters"


def fresh(count: int) -> list[Letter]:
    """Give letters that no call gave before: a letter that is live is not written again."""
    return [
        Letter(
            reason=INVALID,
            code="wrong_type",
            message="value must be a number",
            received_us=1_760_000_000_000_000,
            original=(ITEM % next(_numbers)).encode(),
            field="value",
            item=item,
        )
        for item in range(count)
    ]


@pytest.mark.parametrize(
    ("posts", "letters"), [(1, 1), (1, 100), (64, 1)], ids=["one", "post-of-100", "64-posts-of-one"]
)
def test_append_until_it_is_on_the_disk(
    benchmark: BenchmarkFixture,
    loop: asyncio.AbstractEventLoop,
    folder: Path,
    posts: int,
    letters: int,
) -> None:
    """Posts that meet share a write and an fdatasync."""
    queue = DeadLetterQueue(
        FolderBackend(folder, segment_bytes=1 << 26, keep_days=7), bytes_max=1 << 30
    )
    loop.run_until_complete(queue.open())

    async def append(group: list[list[Letter]]) -> None:
        await asyncio.gather(*(queue.append(each, sender="10.0.0.1") for each in group))

    rounds = run_rounds(
        benchmark,
        lambda group: loop.run_until_complete(append(group)),
        lambda: [fresh(letters) for _ in range(posts)],
        ROUNDS,
    )
    loop.run_until_complete(queue.close())
    assert sum(1 for _ in live_letters(folder)) == rounds * posts * letters
