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
from ingest.model.errors import BufferFull, IngestError, NotKept, Stopping
from ingest.model.ports import Inlet, Outlet
from ingest.system.clock import monotonic_s, sleep_unless
from ingest.system.logs import Occasionally, get_logger

ROWS_MAX = 20_000  # taken at once
QUIET_S_MAX = 30.0  # without a block, although there are some: they cannot be read now
LOOK_S = 0.2
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
        if not await _has_some(outlet, stopping, left):
            break
        blocks = outlet.take(ROWS_MAX)
        errors = await _put(blocks, inlet)
        kept = [block for block in blocks if block not in errors]
        outlet.settle(kept)
        moved(sum(block.rows for block in kept))
        if errors:
            outlet.give_back([block for block in blocks if block in errors])
            why = next(iter(errors.values()))
            if occasionally.due(type(why).__name__) is not None:
                _log.warning("readings_not_moved", why=str(why))
            await sleep_unless(stopping, AGAIN_S)
    return not left()


async def _has_some(outlet: Outlet, stopping: asyncio.Event, left: Callable[[], int]) -> bool:
    """Wait for a block; return whether there is one in time. It ends early if nothing is left."""
    waits = asyncio.create_task(outlet.wait_rows(1))
    stop = asyncio.create_task(stopping.wait())
    until_s = monotonic_s() + QUIET_S_MAX
    try:
        while left() and monotonic_s() < until_s:
            await asyncio.wait((waits, stop), timeout=LOOK_S, return_when="FIRST_COMPLETED")
            if waits.done() or stop.done():
                break
    finally:
        for each in (waits, stop):
            each.cancel()
    return outlet.rows_waiting > 0


async def _put(blocks: list[Block], inlet: Inlet) -> dict[Block, IngestError]:
    """Put all blocks; return those that were not kept, once all others are on the disk."""
    errors: dict[Block, IngestError] = {}
    puts: dict[Block, asyncio.Future[None]] = {}
    for block in blocks:
        block.seal()
        try:
            reservation = await inlet.reserve(block.rows, len(block.tuples))
        except (NotKept, BufferFull, Stopping) as error:
            errors[block] = error
        else:
            puts[block] = asyncio.ensure_future(_awaited(reservation.put(block)))
    for block, put in puts.items():
        try:
            await put
        except NotKept as error:
            errors[block] = error
    return errors


async def _awaited(result: Awaitable[None]) -> None:
    await result
