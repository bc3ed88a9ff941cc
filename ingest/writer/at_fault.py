"""Finds out whose fault a failure of class 42 is: that of some rows, or an operator's.

A row's policy (row-level security) and a trigger that finds no table for a row fail with the same
SQLSTATEs as a missing privilege or a broken trigger. If the table takes other rows at the same
time, it is the fault of the rows that it refuses.
So some are tried, and a row like one that the table has: all rows of a batch may come from one
sender. Only a few are, so a broken table costs little.
Does not: try them, or judge how many rows may be refused; the circuit breaker does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from ingest.model.block import Block
from ingest.model.rows import row_offsets

SAMPLES_MAX = 16  # rows of different posts, and as many of the largest post

_T = TypeVar("_T")


def sample_rows(blocks: Sequence[Block]) -> list[bytes]:
    """Return a few encoded rows: of posts spread over all of them, and of the largest post."""
    largest = max(blocks, key=lambda block: block.rows)
    rows = [block.tuples[: row_offsets(block.tuples)[1]] for block in _spread(blocks)]
    ends = _spread(list(pairwise(row_offsets(largest.tuples)))[1:])
    return rows + [largest.tuples[start:end] for start, end in ends]


def _spread(items: Sequence[_T]) -> list[_T]:
    """Return at most SAMPLES_MAX of the items, the first and the last among them."""
    last = len(items) - 1
    if last < SAMPLES_MAX:
        return list(items)
    return [items[last * step // (SAMPLES_MAX - 1)] for step in range(SAMPLES_MAX)]
