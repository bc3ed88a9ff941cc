"""The queue of blocks: one by itself, and two that share their writers."""

from __future__ import annotations

import pytest

from ingest.buffers.queue import BlockQueue
from ingest.buffers.waiting import WaitingWriters
from ingest.model.block import Block
from tests.support.blocks import make_block


def queue_of(*rows: int) -> tuple[BlockQueue, WaitingWriters, list[Block]]:
    """Make a queue of blocks, received one second after the other."""
    writers = WaitingWriters()
    queue = BlockQueue(writers)
    blocks = [make_block(each) for each in rows]
    for received_s, block in enumerate(blocks):
        block.received_s = float(received_s)
        queue.append(block)
    return queue, writers, blocks


def test_rows_count_until_they_are_settled_and_wait_until_they_are_taken() -> None:
    """Blocks that a writer has taken still count. `settle` returns how much room comes free."""
    queue, writers, blocks = queue_of(1, 2, 3)
    taken = queue.take(3)
    assert taken == blocks[:2]
    assert (queue.rows, writers.rows) == (6, 3)
    assert queue.settle(taken) == (3, sum(len(block.tuples) for block in taken))
    assert (queue.rows, writers.rows) == (3, 3)
    assert queue.settle(()) == (0, 0)


def test_batches_given_back_in_any_order_end_in_the_order_of_receipt() -> None:
    """Two writers fail, the younger batch first: the oldest block is the first one again."""
    queue, writers, blocks = queue_of(1, 1, 1, 1, 1)
    first, second = queue.take(2), queue.take(2)
    queue.give_back(second)
    queue.give_back(first)
    assert writers.rows == queue.rows == 5
    assert queue.take(5) == blocks


def test_oldest_is_known_wherever_it_is() -> None:
    """It is the time of the oldest block that waits, or that a writer has taken."""
    queue, _, _ = queue_of(1, 1, 1)
    assert (queue.oldest_s(), queue.first_received_s()) == (0.0, 0.0)
    taken = queue.take(2)
    assert (queue.oldest_s(), queue.first_received_s()) == (0.0, 2.0)
    queue.settle(taken[:1])
    assert queue.oldest_s() == 1.0
    queue.give_back(taken[1:])
    assert (queue.oldest_s(), queue.first_received_s()) == (1.0, 1.0)
    queue.settle(queue.take(3))
    assert (queue.oldest_s(), queue.first_received_s()) == (None, None)


def test_block_settled_twice_fails_loudly() -> None:
    """This is a fault of ours: the room would come free twice."""
    queue, _, _ = queue_of(1)
    taken = queue.take(1)
    queue.settle(taken)
    with pytest.raises(KeyError):
        queue.settle(taken)


def test_queues_of_one_buffer_share_what_writers_may_take() -> None:
    """A writer waits for rows of any queue. Each queue counts its own rows."""
    queue, writers, _ = queue_of(2)
    other = BlockQueue(writers)
    other.append(make_block(3))
    assert (writers.rows, queue.rows, other.rows) == (5, 2, 3)
    other.settle(other.take(10))
    assert (writers.rows, queue.rows, other.rows) == (2, 2, 0)
