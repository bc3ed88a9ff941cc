"""Many processes, one after the other, on one journal: posts, full disks and kills, at random.

Each seed gives one story, and always the same one. Nothing is lost.
"""

from __future__ import annotations

import asyncio
import errno
import random
from pathlib import Path

import pytest

from ingest.model.block import Block
from ingest.model.errors import BufferFull, JournalBroken
from tests.support.journals import FailingCalls, JournalRun, make_block

LIVES, STEPS = 6, 40
FAILURES = (
    {"write": errno.ENOSPC},
    {"write": errno.EIO},
    {"fdatasync": errno.EIO},
    {"fsync": errno.EIO},
)


class Story:
    """What was promised, and what became of it, over all processes."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.acknowledged: dict[bytes, int] = {}
        self.stored: dict[bytes, int] = {}
        self.in_hand: list[list[Block]] = []

    async def run(self) -> None:
        """Run the story, and compare its end with the promises."""
        for number in range(LIVES):
            calls = FailingCalls()
            life = JournalRun(
                self.folder / str(number),
                rows_max=self.random.choice((20, 60)),
                segment_bytes=self.random.choice((300, 2_000, 1 << 20)),
                journal_bytes_max=60_000,
                calls=calls,
            )
            async with life:
                await self._live(life, calls)
                await self._kill(life, self.folder / str(number + 1))
        async with JournalRun(self.folder / str(LIVES)) as last:
            await last.scan()
            for block in await last.drain():
                self._store(block)
            await last.quiet()
            assert last.buffer.journal_stats().damaged == 0
        missing = self.acknowledged.keys() - self.stored.keys()
        assert not missing, f"{len(missing)} of {len(self.acknowledged)} blocks are lost"
        assert max(self.stored.values(), default=1) == 1, "a block came back after it was noted"
        assert self.stored.keys() <= self.acknowledged.keys()

    async def _live(self, life: JournalRun, calls: FailingCalls) -> None:
        self.in_hand.clear()
        scanning = asyncio.create_task(life.scan())
        if self.random.random() < 0.7:
            life.load()
        for _ in range(STEPS):
            step = self.random.choice(
                (self._post, self._post, self._post, self._take, self._settle)
            )
            await step(life)
            assert life.ledger.imbalance == 0
            if self.random.random() < 0.1:
                calls.failing = self.random.choice(FAILURES)
                calls.left = self.random.choice((1, 2, 20))
            elif self.random.random() < 0.3:
                calls.failing = {}
        calls.failing = {}
        await scanning
        kept = sum(
            self.acknowledged[each] for each in self.acknowledged.keys() - self.stored.keys()
        )
        assert life.buffer.stats().rows == kept

    async def _post(self, life: JournalRun) -> None:
        blocks = [
            make_block(self.random.choice((1, 1, 3, 25))) for _ in range(self.random.choice((1, 8)))
        ]
        posts = await asyncio.gather(*map(life.put, blocks), return_exceptions=True)
        for block, post in zip(blocks, posts, strict=True):
            if isinstance(post, Block):
                self.acknowledged[block.tuples] = block.rows
            else:
                assert isinstance(post, JournalBroken | BufferFull), post

    async def _take(self, life: JournalRun) -> None:
        if batch := life.buffer.take(self.random.choice((1, 5, 40))):
            self.in_hand.append(batch)

    async def _settle(self, life: JournalRun) -> None:
        if not self.in_hand:
            return
        batch = self.in_hand.pop(self.random.randrange(len(self.in_hand)))
        cut = self.random.randint(0, len(batch))
        for block in batch[:cut]:
            self._store(block)
        life.settle(batch[:cut])
        if batch[cut:]:
            life.buffer.give_back(batch[cut:])

    def _store(self, block: Block) -> None:
        self.stored[block.tuples] = self.stored.get(block.tuples, 0) + 1

    async def _kill(self, life: JournalRun, copy: Path) -> None:
        """Copy the files as a kill would leave them; then end this process."""
        await life.quiet()
        copy.mkdir()
        for path in life.folder.iterdir():
            if path.name != "lock":
                (copy / path.name).write_bytes(path.read_bytes())
        if self.random.random() < 0.3 and (last := sorted(copy.glob("*.log"))[-1:]):
            with last[0].open("ab") as torn:
                torn.write(b"\xf7JR\n\0\0")


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(each, marks=pytest.mark.slow) for each in range(8, 25))]
)
async def test_story_of_many_processes_loses_and_doubles_nothing(seed: int, tmp_path: Path) -> None:
    """In each process exactly the blocks that were acknowledged and not stored are recovered."""
    await Story(seed, tmp_path).run()
