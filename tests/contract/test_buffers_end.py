"""What every buffer promises to the service: its begin, and what becomes of blocks at the end."""

from __future__ import annotations

from tests.contract.buffers import PLENTY, MakeBuffer, empty, put_rows


async def test_rest_is_kept_or_goes_on_waiting(make: MakeBuffer) -> None:
    """At the end of a drain each row is in one place, even if `keep_rest` is called again."""
    buffer = make(100, PLENTY, 0)
    await put_rows(buffer, 1, 2, 3)
    buffer.settle(buffer.take(1))
    buffer.shut_inlet()
    for _ in range(2):
        await buffer.keep_rest()
        stats = buffer.stats()
        assert (stats.rows_waiting, stats.rows_kept) in ((5, 0), (0, 5))
    rows = buffer.rows_waiting
    taken = buffer.take(100)
    assert sum(block.rows for block in taken) == rows
    buffer.settle(taken)


async def test_empty_buffer_keeps_nothing_and_is_closed_twice(make: MakeBuffer) -> None:
    """The end of a service that never had a reading, and a second signal."""
    buffer = make(100, PLENTY, 0)
    buffer.shut_inlet()
    await buffer.keep_rest()
    assert empty(buffer)
    assert buffer.stats().rows_kept == 0
    for _ in range(2):
        await buffer.close()


async def test_acknowledgements_offered_are_those_that_the_buffer_can_keep(
    make: MakeBuffer,
) -> None:
    """`buffered` always; the first one is the best. A buffer just opened is not broken."""
    buffer = make(100, PLENTY, 0)
    assert buffer.levels[-1] == "buffered"
    assert ("durable" in buffer.levels) == (buffer.levels[0] == "durable")
    assert not buffer.broken
    assert buffer.journal_stats().damaged == 0
