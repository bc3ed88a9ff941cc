"""A block of several posts at the writer: each of them is counted, and suffers only for itself."""

from __future__ import annotations

import pytest

from ingest.model.block import Refusal
from ingest.model.causes import Verdict
from ingest.model.reading import DRAINED, EXHAUSTED, Reading
from ingest.writer.refused_rows import refusal_letters, refusals_by_block, set_aside_rest
from tests.support.fake_sink_scripted import Script
from tests.support.writing import Writing

THREE = ((3, (0, 2)), (1, ()), (2, (1,)))  # posts: rows, and which of them are bad


def three_posts(path: Writing) -> list[tuple[int, int, Reading]]:
    """Post them into one block; return time of receipt, item and reading of each row."""
    rows = []
    for number, (count, bad) in enumerate(THREE, 1):
        received_us = number * 1_000_000
        readings = path.post_small(count, bad=bad, received_us=received_us)
        rows += [(received_us, item, reading) for item, reading in enumerate(readings)]
    assert path.buffer.queue.blocks[-1].posts == 3
    return rows


async def test_latency_and_lag_count_once_for_each_post() -> None:
    """From the oldest receipt, and from the newest timestamp; blocks of one post as before."""
    path = Writing()
    three_posts(path)
    await path.post(5)
    path.post_small(1)
    path.start(1)
    await path.until(lambda: path.buffer.stats().rows == 0)
    assert sum(path.ledger.commit_s.counts) == sum(path.ledger.lag_s.counts) == 5
    await path.drain()


async def test_block_that_fails_too_often_is_set_aside_as_its_posts() -> None:
    """As a whole: its posts are replayed by themselves, each with its own time of receipt."""
    path = Writing(Script(1, Verdict.RETRY, forever=True), retries_max=1)
    rows = three_posts(path)
    path.start(1)
    await path.until(lambda: path.buffer.stats().rows == 0)
    found = [(each.received_us, each.item, each.reading) for each in path.letters.letters]
    assert found == rows
    assert {(each.reason, each.attempts) for each in path.letters.letters} == {(EXHAUSTED, 2)}
    await path.drain()


async def test_rest_of_a_drain_is_set_aside_as_its_posts() -> None:
    """Also what nobody has taken until then."""
    path = Writing()
    rows = three_posts(path)
    path.buffer.shut_inlet()
    await set_aside_rest(path.buffer, path.letters, path.ledger)
    found = [(each.received_us, each.item, each.reading) for each in path.letters.letters]
    assert found == rows
    assert {each.reason for each in path.letters.letters} == {DRAINED}
    assert path.ledger.imbalance == 0


async def test_item_of_a_row_that_was_read_back_is_not_told() -> None:
    """The frame has only how many posts there were, and when the first of them came."""
    path = Writing()
    rows = three_posts(path)
    (block,) = path.buffer.take(100)
    block.parts, block.reloaded = None, True
    bad = [Refusal(row, "23514", "check") for row in (0, 3)]
    found = refusal_letters([block], refusals_by_block([block], bad))
    assert [(each.received_us, each.item) for each in found] == [(1_000_000, None)] * 2
    assert [each.reading for each in found] == [rows[0][2], rows[3][2]]


@pytest.mark.parametrize("cut", [False, True])
async def test_rows_of_a_batch_are_those_of_their_blocks(cut: bool) -> None:
    """Blocks of one and of several posts lie behind each other in one write."""
    path = Writing()
    first = await path.post(2, bad=(1,))
    rows = three_posts(path)
    last = await path.post(3, bad=(0,))
    path.cap.rows = 4 if cut else 100
    path.start(1)
    await path.until(lambda: path.buffer.stats().rows == 0)
    assert [(await ack.wait()).refusals[0].row for ack in (first, last)] == [1, 0]
    small = [each for each in path.letters.letters if each.reading in path.small]
    assert [(each.received_us, each.item, each.reading) for each in small] == [
        rows[0],
        rows[2],
        rows[5],
    ]
    assert len(path.letters.letters) == 5
    await path.drain()
