"""The receiver with the real memory buffer: posts wait for room or are refused, in balance."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ingest.buffers.memory import MemoryBuffer
from tests.support.receiver import BAD, GOOD, Client, OverFakes, post, until
from tests.support.ways import both_ways


class Rig(OverFakes):
    """A receiver with a buffer of ten readings."""

    def __init__(self, put_wait_s_max: float) -> None:
        self.buffer = MemoryBuffer(rows_max=10, bytes_max=100_000, put_wait_s_max=put_wait_s_max)
        super().__init__(self.buffer)
        self.gauge(self.buffer.stats)

    def store(self, rows_max: int) -> None:
        """Play the writer: take blocks and have them committed."""
        blocks = self.buffer.take(rows_max)
        self.ledger.committed += sum(block.rows for block in blocks)
        self.buffer.settle(blocks)


@asynccontextmanager
async def running(put_wait_s_max: float) -> AsyncIterator[Rig]:
    """Run a receiver; the balance check is 0 at the end."""
    rig = Rig(put_wait_s_max)
    rig.address = await rig.endpoint.start("127.0.0.1", 0)
    yield rig
    await rig.endpoint.close()
    assert rig.ledger.at_receiver == 0
    assert rig.ledger.imbalance == 0


@both_ways
async def test_balance_holds_among_impatient_clients() -> None:
    """Clients of all kinds, a slow writer, some break off: every reading is somewhere, once."""
    async with running(0.05) as rig:
        chance = random.Random(7)
        stopped = False

        async def write() -> None:
            while not stopped:
                await asyncio.sleep(0.005)
                rig.store(4)
                assert rig.ledger.imbalance == 0

        async def visit() -> None:
            client = await Client.connect(rig.address)
            for _ in range(10):
                items = [GOOD] * chance.randint(1, 8) + [BAD] * chance.randint(0, 2)
                await client.send(post(b"[" + b",".join(items) + b"]"))
                if chance.random() < 0.1:
                    break
                assert (await client.reply()).status in {202, 503}
            await client.close()

        writing = asyncio.create_task(write())
        await asyncio.gather(*(visit() for _ in range(30)))
        await until(lambda: rig.ledger.at_receiver == 0)
        stopped = True
        await writing
        assert rig.ledger.committed > 0
        assert rig.ledger.rejected["buffer_full"] > 0
        assert rig.ledger.dead_lettered["invalid"] > 0
