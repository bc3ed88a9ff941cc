"""A block of several posts: its rows, and what is known of each post."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.model.block import Block


def block_of(
    rows: int, *, items: list[int] | None = None, number: int = 1, newest_ts_us: int = 0
) -> Block:
    """Give the block of a post; each row is two bytes."""
    return Block(
        b"".join(b"%d%d" % (number % 10, row % 10) for row in range(rows)),
        rows,
        received_s=float(number),
        received_us=number * 1_000,
        newest_ts_us=newest_ts_us,
        items=items,
        sender=f"10.0.0.{number}",
    )


def test_item_of_a_row_is_its_place_in_the_post() -> None:
    """The other items were invalid; a place may also be unknown, as that of a replayed letter."""
    assert block_of(2, items=[1, 4]).origins([1, 0]) == [(1_000, 4), (1_000, 1)]
    block = block_of(1)
    block.items = [None]
    assert block.origins([0]) == [(1_000, None)]


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.booleans(), st.integers(-5, 5)), min_size=1, max_size=9
    )
)
def test_each_row_of_any_posts_is_known_by_its_post(posts: list[tuple[int, bool, int]]) -> None:
    """Rows, items, times and senders of each post, as if it had a block of its own."""
    blocks = [
        block_of(
            rows,
            items=[2 * row + 1 for row in range(rows)] if has_items else None,
            number=number,
            newest_ts_us=newest_ts_us,
        )
        for number, (rows, has_items, newest_ts_us) in enumerate(posts, 1)
    ]
    tuples = b"".join(block.tuples for block in blocks)
    alone = [origin for block in blocks for origin in block.origins(range(block.rows))]
    parts = [(each.rows, each.received_us, each.items, each.sender) for each in blocks]
    newest_ts_us = max(block.newest_ts_us for block in blocks)
    shared, *others = blocks
    for other in others:
        shared.add(other)
    assert not shared.sealed
    shared.seal()
    shared.seal()
    assert (shared.tuples, shared.rows) == (tuples, len(alone))
    assert shared.posts == len(posts)
    assert shared.parts == (parts if others else None)
    assert (shared.received_s, shared.received_us) == (1.0, 1_000)
    assert shared.newest_ts_us == newest_ts_us
    every = range(shared.rows)
    assert shared.origins(every) == alone
    assert shared.origins(every[::-1]) == alone[::-1]
    assert shared.origins([]) == []


@pytest.mark.parametrize(("posts", "items"), [(1, [0, 1, 2]), (2, [None] * 3), (3, [None] * 3)])
def test_items_of_several_posts_are_unknown_after_a_reload(
    posts: int, items: list[int | None]
) -> None:
    """The frame has only the number of its posts, and the first one's time of receipt."""
    block = block_of(3)
    block.posts = posts
    block.reloaded = True
    assert block.origins([0, 1, 2]) == [(1_000, item) for item in items]
