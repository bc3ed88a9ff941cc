"""A block: its rows, its posts, and its acknowledgement."""

from __future__ import annotations

import asyncio
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.model.block import (
    PG_EPOCH_US,
    ROW_BYTES_MIN,
    RUN_ROWS_MAX,
    Ack,
    Block,
    Outcome,
    Refusal,
    decode_rows,
    encode_reading,
    encode_rows,
    names_between,
    row_offsets,
)
from ingest.model.reading import Reading


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


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)
READINGS = st.builds(
    Reading,
    st.integers(-(2**62), 2**62),
    NAMES,
    NAMES,
    st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.lists(READINGS, max_size=20))
def test_decode_rows_of_encoded_readings_returns_them_bit_exact(readings: list[Reading]) -> None:
    """decode_rows is the inverse of encode_reading, sign of zero included."""
    again = list(decode_rows(b"".join(map(encode_reading, readings))))
    assert again == readings
    assert [struct.pack("d", each.value) for each in again] == [
        struct.pack("d", each.value) for each in readings
    ]


@given(st.lists(READINGS, max_size=20))
def test_row_offsets_cut_a_block_into_its_rows(readings: list[Reading]) -> None:
    """Between two neighbouring offsets stands exactly one row."""
    tuples = b"".join(map(encode_reading, readings))
    offsets = row_offsets(tuples)
    assert len(offsets) == len(readings) + 1
    rows = [tuples[a:b] for a, b in pairwise(offsets)]
    assert rows == [encode_reading(each) for each in readings]


def test_row_has_the_layout_of_binary_copy() -> None:
    """Column count, then each column behind its size, all big-endian, time since 2000."""
    row = encode_reading(Reading(PG_EPOCH_US + 1, "dev", "°", 1.5))
    assert row == (
        struct.pack(">hiq", 4, 8, 1)
        + struct.pack(">i", 3)
        + b"dev"
        + struct.pack(">i", 2)
        + "°".encode()
        + struct.pack(">id", 8, 1.5)
    )
    assert len(row) == ROW_BYTES_MIN + 5


def test_rows_encoded_together_are_those_encoded_alone() -> None:
    """With names of one size and of many, in the order given."""
    for devices in (["aa", "bb", "cc"], ["a", "bb", "ccc", "bb"], ["aa"] * (2 * RUN_ROWS_MAX + 7)):
        readings = [
            Reading(PG_EPOCH_US + n, device, "m", n / 3) for n, device in enumerate(devices)
        ]
        together = encode_rows(
            [each.ts_us - PG_EPOCH_US for each in readings],
            [names_between(each.device_id, each.metric) for each in readings],
            [each.value for each in readings],
        )
        assert together == b"".join(map(encode_reading, readings))
        assert list(decode_rows(together)) == readings


async def test_ack_tells_all_who_wait_before_and_after() -> None:
    """The outcome is there for good, the same for everybody."""
    ack = Ack()
    early = [asyncio.create_task(ack.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not ack.resolved
    outcome = Outcome((Refusal(2, "23514", "check"),))
    ack.resolve(outcome)
    assert ack.resolved
    assert [await each for each in early] == [outcome] * 3
    assert await ack.wait() is outcome


async def test_ack_resolved_twice_fails_loudly() -> None:
    """Two outcomes for one block would mean that it was counted twice."""
    ack = Ack()
    ack.resolve(Outcome())
    with pytest.raises(AssertionError):
        ack.resolve(Outcome(set_aside=True))
    assert await ack.wait() == Outcome()


async def test_ack_survives_a_client_that_hangs_up() -> None:
    """Cancelling a wait changes nothing for the block, the writer or others that wait."""
    ack = Ack()
    gone, stays = (asyncio.create_task(ack.wait()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert not ack.resolved
    ack.resolve(Outcome(set_aside=True))
    assert await stays == Outcome(set_aside=True)
