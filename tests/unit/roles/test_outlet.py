"""The outlet of a writer: messages become blocks, and what is no block is told."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.buffers.frames import HEAD_BYTES, MARK, frame_of
from ingest.model.block import Block, encode_reading, row_offsets, rows_fault
from ingest.model.reading import NAME_BYTES_MAX, Reading
from ingest.roles.nats.pulling import Delivery
from ingest.roles.outlet import NotOurs, decode_message, encode_message
from tests.contract.buffers import contents, spin
from tests.support.journals import block_of, make_block
from tests.support.streams import Joined


def publish(joined: Joined, *rows: int) -> list[Block]:
    """Put one message for each number of rows into the stream."""
    blocks = [make_block(each) for each in rows]
    for number, block in enumerate(blocks, len(joined.stream.ids)):
        block.seal()
        joined.stream.publish(f"other-{number}", encode_message(block))
    return blocks


def said(joined: Joined, word: str) -> list[int]:
    """Return the places of which this was said, in order."""
    return [place for each, place in joined.stream.said if each == word]


async def test_message_is_a_block_and_done_once_it_is_settled() -> None:
    """Until then the stream has it; what was in the frame is in the block."""
    joined = Joined()
    (sent,) = publish(joined, 3)
    assert joined.writer.delivered == 3
    (block,) = joined.take(100)
    assert contents([block]) == contents([sent])
    assert (block.received_us, block.newest_ts_us) == (sent.received_us, sent.newest_ts_us)
    assert block.received_s == pytest.approx(sent.received_s, abs=0.05, rel=0)
    assert not block.doubtful
    assert joined.stats().rows_kept == 3
    assert not joined.stream.said
    joined.give_back([block])
    assert joined.take(100) == [block]
    joined.settle([block])
    assert said(joined, "done") == [1]
    assert (joined.stats().rows, joined.stats().rows_kept) == (0, 0)
    assert joined.imbalance == (0, 0)


@pytest.mark.parametrize("taken", [False, True])
async def test_message_that_comes_again_while_it_is_here_is_kept_once(taken: bool) -> None:
    """The newest delivery is acknowledged; another writer may have stored it meanwhile."""
    joined = Joined()
    publish(joined, 3)
    blocks = joined.take(100) if taken else []
    joined.stream.deliver(1)
    assert joined.stats().rows == joined.writer.delivered == 3
    (kept,) = joined.outlet._deliveries.values()
    assert len(kept.data) == HEAD_BYTES, "the block has its own copy of the rows"
    (block,) = blocks or joined.take(100)
    assert block.doubtful
    joined.settle([block])
    assert joined.stream.done_places == [1]
    assert joined.stream.out == {}
    assert not joined.outlet._deliveries
    assert joined.imbalance == (0, 0)


async def test_another_message_at_the_same_place_is_kept_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stream was deleted and made anew while a message of the old one waits here."""
    joined, done = Joined(), list[str]()

    def note(deliveries: Iterable[Delivery]) -> None:
        done.extend(each.ack_subject for each in deliveries)

    monkeypatch.setattr(joined.stream, "done", note)
    for rows, ack_subject in ((3, "old"), (4, "new")):
        block = make_block(rows)
        block.seal()
        joined.outlet.deliver(Delivery(encode_message(block), 5, 1, ack_subject))
    assert joined.rows_waiting == 7
    joined.settle(joined.take(10))
    assert done == ["old", "new"]


@pytest.mark.parametrize("bound", ["rows_max", "bytes_max"])
async def test_more_is_wanted_until_memory_is_full_and_again_below_it(bound: str) -> None:
    """Exactly at the bound of rows or bytes; one request more may come."""
    size = 1 if bound == "rows_max" else len(make_block(1).tuples)
    joined = Joined(request_max=2, **{bound: 30 * size})  # type: ignore[arg-type]
    publish(joined, 24, *[1] * 5)
    assert joined.stream.wanted.is_set()
    publish(joined, *[1] * 5)
    assert not joined.stream.wanted.is_set()
    assert len(joined.stream.pending) >= 2  # all beyond the request that was open
    first = joined.take(1)
    joined.settle(joined.take(joined.stats().rows - 30))
    assert not joined.stream.wanted.is_set()
    joined.settle(first)
    for _ in range(10):
        joined.settle(joined.take(100))
    assert joined.stream.wanted.is_set()
    assert joined.writer.committed == 34
    assert joined.imbalance == (0, 0)


async def test_room_of_a_replay_that_was_released_lets_messages_come_again() -> None:
    """Nobody tells the outlet of that, so it looks now and then."""
    joined = Joined(rows_max=4, request_max=1)
    reservation = await joined.outlet.reserve(4, 1)
    publish(joined, 1, 1)
    joined.settle(joined.take(100))
    assert not joined.stream.wanted.is_set()
    reservation.release()
    stopping = asyncio.Event()
    running = asyncio.create_task(joined.outlet.run(stopping, 0.01))
    await asyncio.sleep(0.03)
    assert joined.stats().rows == 1
    stopping.set()
    await running


async def test_broker_is_told_that_messages_are_still_here() -> None:
    """All of them, taken or not, until they are settled; not blocks without a message."""
    joined = Joined()
    publish(joined, 1, 2)
    assert joined.outlet.take_in(make_block(5))
    taken = joined.take(1)
    stopping = asyncio.Event()
    running = asyncio.create_task(joined.outlet.run(stopping, 0.01))
    await asyncio.sleep(0.025)
    assert set(said(joined, "working")) == {1, 2}
    joined.settle([*taken, *joined.take(100)])
    joined.stream.said.clear()
    await asyncio.sleep(0.025)
    assert not said(joined, "working")
    stopping.set()
    await running


@pytest.mark.parametrize("data", [b"", b"not ours", b"\xf7JR\n" + bytes(60)])
async def test_foreign_message_goes_to_its_callback_and_nowhere_else(data: bytes) -> None:
    """It is no block, it is not acknowledged, and the next message comes."""
    joined = Joined()
    delivery = Delivery(data, 7, 1, "ack.7")
    joined.outlet.deliver(delivery)
    assert [each for each, _ in joined.foreign] == [delivery]
    assert all(why for _, why in joined.foreign)
    publish(joined, 2)
    assert joined.writer.delivered == joined.stats().rows == joined.stats().rows_kept == 2
    assert not joined.stream.said
    assert joined.imbalance == (0, 0)


async def test_rest_goes_back_to_the_stream_and_only_that() -> None:
    """Not what a writer has, and not blocks without a message; another writer gets it."""
    joined = Joined()
    sent = publish(joined, 1, 2, 3)
    (taken,) = joined.take(1)
    joined.writer.replayed = 5
    assert joined.outlet.take_in(make_block(5))
    joined.shut_inlet()
    for _ in range(2):
        await joined.keep_rest()
    assert said(joined, "later") == [2, 3]
    assert joined.writer.returned == 5
    stats = joined.stats()
    assert (stats.rows, stats.rows_waiting, stats.rows_kept, stats.rows_taken) == (6, 5, 1, 1)
    assert joined.imbalance == (0, 0)
    joined.settle([taken])
    assert said(joined, "done") == [1]
    other = Joined()
    other.stream = joined.stream
    joined.stream.take = other.outlet.deliver
    joined.stream.wanted.set()
    assert contents(other.take(100)) == contents(sent[1:])
    assert all(block.doubtful for block in other.outlet._deliveries)


async def test_message_that_comes_after_the_end_is_given_back_at_once() -> None:
    """A request that was open may bring some. Nobody here would ever store them."""
    joined = Joined(request_max=3)
    publish(joined, 1)
    joined.shut_inlet()
    publish(joined, 2)
    assert joined.stats().rows == 3  # writers still take what comes before the end
    await joined.keep_rest()
    publish(joined, 3)
    await spin()
    assert 3 in {*said(joined, "later"), *joined.stream.pending}
    joined.outlet.deliver(Delivery(joined.stream.stored[2], 3, 1, "ack.3"))
    assert said(joined, "later")[-1] == 3
    assert joined.stats().rows == 0
    assert joined.writer.delivered == joined.writer.returned == 3
    assert joined.imbalance == (0, 0)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
readings = st.builds(
    Reading, st.integers(0, 1 << 50), names, names, st.floats(allow_nan=False, allow_infinity=False)
)
alike = st.builds(
    Reading, st.integers(0, 1 << 50), st.just("device-1"), st.just("metric"), st.floats(0, 9)
)


def message(tuples: bytes, rows: int, **more: int) -> bytes:
    """Return a frame whose CRC is right, with any content."""
    values = {"sequence": 1, "received_us": 0, "newest_ts_us": 0, "posts": 0, **more}
    head = struct.pack(">IQIqqI", len(tuples), values["sequence"], rows, *list(values.values())[1:])
    return MARK + struct.pack(">I", crc32(tuples, crc32(head, 0))) + head + tuples


@given(st.lists(readings, min_size=1, max_size=20) | st.lists(alike, min_size=1, max_size=20))
def test_block_comes_back_as_it_was(found: list[Reading]) -> None:
    """Rows with names of the same size or of different ones; the head too."""
    block = block_of(found)
    block.sequence, block.posts = 9, 3
    came = decode_message(encode_message(block))
    assert (came.tuples, came.rows, came.posts) == (block.tuples, len(found), 3)
    assert (came.received_us, came.newest_ts_us) == (block.received_us, block.newest_ts_us)
    assert came.sealed


@given(st.data())
def test_any_changed_or_missing_byte_is_found(data: st.DataObject) -> None:
    """By the CRC; a message that is longer or shorter is none either."""
    whole = encode_message(make_block(2))
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    for each in (bytes(changed), whole[:at], whole + b"\0", whole[at + 1 :]):
        with pytest.raises(NotOurs):
            decode_message(each)


@given(st.lists(readings, min_size=1, max_size=6), st.data())
def test_rows_are_checked_also_if_the_crc_is_right(
    found: list[Reading], data: st.DataObject
) -> None:
    """What a program other than ours wrote: PostgreSQL would refuse the whole batch."""
    tuples = b"".join(map(encode_reading, found))
    assert rows_fault(tuples, len(found)) == ""
    offsets = row_offsets(tuples)
    start = data.draw(st.sampled_from(offsets[:-1]))
    device = struct.unpack_from(">i", tuples, start + 14)[0]
    layout = [*range(6), *range(14, 18), *range(18 + device, 22 + device)]
    end = offsets[offsets.index(start) + 1] - start
    at = start + data.draw(st.sampled_from([*layout, *range(end - 12, end - 8)]))
    changed = bytearray(tuples)
    changed[at] ^= data.draw(st.integers(1, 255))
    assert rows_fault(bytes(changed), len(found))
    for wrong in (len(found) + 1, len(found) - 1, 0):
        assert rows_fault(tuples, wrong)
    for cut in (tuples[:-1], tuples + b"\0", tuples[1:]):
        assert rows_fault(cut, len(found))
        with pytest.raises(NotOurs):
            decode_message(message(cut, len(found)))


@given(st.binary(max_size=200), st.integers(0, (1 << 32) - 1))
def test_any_bytes_are_told_from_rows_without_an_error(tuples: bytes, rows: int) -> None:
    """It ends, and fails in no other way."""
    assert rows_fault(tuples, rows)
    assert rows_fault(b"\x00\x04\x00\x00\x00\x08" + tuples, rows % 5)
    with pytest.raises(NotOurs):
        decode_message(message(tuples, rows))
    assert frame_of(tuples, 0) is None


def rows(device_bytes: int, metric_bytes: int) -> bytes:
    """Return two rows with names of these sizes."""
    row = b"".join(
        (
            struct.pack(">hiqi", 4, 8, 0, device_bytes),
            b"d" * device_bytes,
            struct.pack(">i", metric_bytes),
            b"m" * metric_bytes,
            struct.pack(">id", 8, 1.0),
        )
    )
    return row * 2


@pytest.mark.parametrize("mixed", [False, True])
def test_bounds_of_names_are_exact(mixed: bool) -> None:
    """An empty name, or one that is too long, is none of ours."""
    other = rows(3, 4) if mixed else b""  # then the slow way is taken
    count = 4 if mixed else 2
    most = NAME_BYTES_MAX
    for sizes, is_good in (
        *(((1, 1), True), ((most, most), True), ((0, 1), False), ((1, 0), False)),
        *(((most + 1, 1), False), ((1, most + 1), False)),
    ):
        assert (rows_fault(rows(*sizes) + other, count) == "") is is_good, sizes


def test_size_below_zero_does_not_go_round_in_circles() -> None:
    """A size of -18 would lead back to the begin of the row."""
    for size in (-1, -18, -22, -(1 << 31)):
        row = struct.pack(">hiqi", 4, 8, 0, size) + bytes(40)
        for count in (1, 2, 1_000_000):
            assert rows_fault(row, count)


def test_frame_of_a_journal_is_no_message() -> None:
    """Its CRC begins with the salt of its file."""
    block = make_block(1)
    block.sequence = 1
    whole = encode_message(block)
    assert frame_of(whole, 1) is None
    assert frame_of(whole, 0) is not None
    assert len(whole) == HEAD_BYTES + len(block.tuples)


def test_strange_times_make_no_error() -> None:
    """A clock that is wrong by years, in either direction."""
    tuples = make_block(1).tuples
    for received_us in (-(1 << 63), 0, (1 << 63) - 1):
        block: Block = decode_message(message(tuples, 1, received_us=received_us))
        assert block.received_us == received_us
