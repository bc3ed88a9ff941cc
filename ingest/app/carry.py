"""Moves readings from one buffer into another: of a journal into a stream, and back.

`ingest serve` keeps readings in its journal, `ingest up` in its broker. Who changes from one to the
other takes them along, while posts already come in.
Promises: a block leaves one place when the other one has it on the disk. After a kill in between it
is in both, and the table's key absorbs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ingest.model.block import Block
from ingest.model.errors import BufferFull, NotKept, Stopping
from ingest.model.ports import Inlet, Outlet
from ingest.system.clock import sleep_unless
from ingest.system.logs import Occasionally, get_logger

ROWS_MAX = 20_000  # taken at once
QUIET_S_MAX = 30.0  # without a block, although there are some: they cannot be read now
AGAIN_S = 1.0
WARNING_S = 60.0

_log = get_logger("carry")


async def carry(
    outlet: Outlet,
    inlet: Inlet,
    stopping: asyncio.Event,
    *,
    left: Callable[[], int],
    moved: Callable[[int], None],
) -> bool:
    """Move all blocks; return whether nothing is left. It ends early once `stopping` is set.

    `left` returns how many rows the first buffer has. `moved` is told how many were moved.
    """
    occasionally = Occasionally(WARNING_S)
    while left() and not stopping.is_set():
        if not await _has_some(outlet, stopping):
            return False
        blocks = outlet.take(ROWS_MAX)
        rows = sum(block.rows for block in blocks)
        try:
            await _put(blocks, inlet)
        except (NotKept, BufferFull, Stopping) as error:
            outlet.give_back(blocks)
            if occasionally.due(type(error).__name__) is not None:
                _log.warning("readings_not_moved", why=str(error))
            await sleep_unless(stopping, AGAIN_S)
        else:
            outlet.settle(blocks)
            moved(rows)
    return not left()


async def _has_some(outlet: Outlet, stopping: asyncio.Event) -> bool:
    """Wait for a block; return whether there is one in time."""
    waits = asyncio.create_task(outlet.wait_rows(1))
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait((waits, stop), timeout=QUIET_S_MAX, return_when="FIRST_COMPLETED")
    for each in (waits, stop):
        each.cancel()
    return outlet.rows_waiting > 0


async def _put(blocks: list[Block], inlet: Inlet) -> None:
    """Put all blocks; return once they are on the disk. If one fails, all count as not moved."""
    puts = []
    try:
        for block in blocks:
            block.seal()
            reservation = await inlet.reserve(block.rows, len(block.tuples))
            puts.append(asyncio.ensure_future(_awaited(reservation.put(block))))
    finally:
        results = await asyncio.gather(*puts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _awaited(result: Awaitable[None]) -> None:
    await result
