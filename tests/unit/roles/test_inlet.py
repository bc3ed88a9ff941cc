"""The inlet of a stream: groups, deadlines, what is tried again, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest

from ingest.model.block import row_offsets
from ingest.model.errors import (
    BrokerAway,
    BrokerFull,
    BrokerOutcomeUnknown,
    BrokerRefused,
    BufferFull,
    NotKept,
)
from ingest.roles import group_queue
from ingest.roles.outlet import decode_message
from ingest.system.clock import monotonic_s
from tests.contract.buffers import spin
from tests.support.brokers import until
from tests.support.journals import make_block, size_of
from tests.support.streams import HELD, STORED, Fate, Joined

AWAY = Fate(stores=False, error=lambda: BrokerAway("gone"))
FULL = Fate(stores=False, error=lambda: BrokerFull("full"))
REFUSED = Fate(stores=False, error=lambda: BrokerRefused("too large"))
LOST = Fate(stores=False, error=lambda: BrokerOutcomeUnknown("no answer"))
ANSWER_LOST = Fate(stores=True, error=lambda: BrokerOutcomeUnknown("no answer"))
BUG = Fate(stores=False, error=lambda: ValueError("a bug"))
FAILURES = {
    "away": (AWAY, "broker_away"),
    "full": (FULL, "buffer_full"),
    "refused": (REFUSED, "broker_away"),
    "lost": (LOST, "outcome_unknown"),
    "answer lost": (ANSWER_LOST, "outcome_unknown"),
    "bug": (BUG, "outcome_unknown"),
}


class Told:
    """Remembers who was told what."""

    def __init__(self) -> None:
        self.waiters: list[Any] = []
        self.errors: list[NotKept | None] = []

    def __call__(self, waiters: Sequence[Any], error: NotKept | None) -> None:
        """Note it."""
        self.waiters += waiters
        self.errors += [error] * len(waiters)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_queue, "AGAIN_S", 0.02)


@pytest.fixture(autouse=True)
async def _nothing_is_left_to_the_loop() -> Any:
    """Nobody leaves an exception that is never retrieved, and no callback fails."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    yield
    await spin()
    gc.collect(0)  # what this test has left
    assert not found


def rows_of(joined: Joined) -> list[int]:
    """Return how many rows each message has that was tried."""
    return [decode_message(payload).rows for _, payload, _ in joined.stream.tried]


def rows_in(tuples: bytes) -> list[bytes]:
    """Return the single rows."""
    return [tuples[begin:end] for begin, end in pairwise(row_offsets(tuples))]


def ids_of(joined: Joined) -> list[str]:
    """Return the ids of all tries."""
    return [message_id for message_id, _, _ in joined.stream.tried]


def is_quiet(joined: Joined) -> bool:
    """Whether the inlet has nothing, and all adds up."""
    stats, memory = joined.inlet.stats(), joined.inlet.memory
    assert joined.imbalance == (0, 0)
    return (stats.rows, stats.blocks_waiting, memory.rows, memory.size_bytes) == (0, 0, 0, 0)


# Groups


async def test_posts_of_a_round_are_one_message_in_order() -> None:
    """However they come in: small posts at once, and one that had to reserve."""
    joined, told = Joined(), Told()
    reservation = await joined.reserve(*size_of(2))
    blocks = [make_block(rows) for rows in (1, 2, 3)]
    rows = b"".join(block.tuples for block in (blocks[1], blocks[0], blocks[2]))
    joined.gateway.received += 6
    joined.gateway.at_receiver += 6
    putting = asyncio.ensure_future(reservation.put(blocks[1]))
    assert joined.take_in(blocks[0], "a", told)
    assert joined.take_in(blocks[2], "b", told)
    assert not joined.stream.tried
    await putting
    assert rows_of(joined) == [6]
    assert joined.stream.rows_stored == rows
    message = decode_message(joined.stream.stored[0])
    assert (message.posts, message.received_us) == (3, blocks[1].received_us)
    assert (told.waiters, told.errors) == (["a", "b"], [None, None])
    assert blocks[1].rows == 2  # the keeper still looks at it
    assert joined.gateway.published == 6
    joined.gateway.at_receiver -= 6
    assert is_quiet(joined)


async def test_post_that_comes_as_a_message_ends_shares_the_next_one_with_its_round() -> None:
    """The end of a message publishes nothing before all posts of the round have come."""
    joined = Joined(groups_in_flight=1)
    joined.stream.fates.append(HELD)
    joined.poster.post(make_block(1))
    await spin()
    joined.poster.post(make_block(2))
    joined.stream.answer()  # the inlet hears of it in the next round
    asyncio.get_running_loop().call_soon(lambda: joined.poster.post(make_block(3)))
    await spin()
    assert rows_of(joined) == [1, 5]
    assert is_quiet(joined)


@pytest.mark.parametrize("in_flight", [1, 2, 3])
async def test_next_group_grows_while_others_are_under_way(in_flight: int) -> None:
    """At most `groups_in_flight` are, and each group waits for at most one message before it."""
    joined = Joined(groups_in_flight=in_flight)
    joined.stream.usual = HELD
    for _ in range(in_flight + 4):
        joined.poster.post(make_block(1))
        await spin()
    assert rows_of(joined) == [1] * in_flight
    while joined.stream.held:
        joined.stream.answer()
        await spin()
    assert rows_of(joined) == [*[1] * in_flight, 4]
    assert is_quiet(joined)


@pytest.mark.parametrize(
    "bounds",
    [{"shared_rows_max": 3}, {"group_bytes_max": 3 * len(make_block(1).tuples) + 2}],
    ids=["rows", "bytes"],
)
async def test_bounds_of_a_group_are_exact(bounds: dict[str, int]) -> None:
    """To the last row and byte; a larger post is alone, and nothing is split."""
    joined = Joined(groups_in_flight=1, **bounds)  # type: ignore[arg-type]
    for rows in (1, 1, 1, 1, 2, 1, 4, 1):
        joined.poster.post(make_block(rows))
    await joined.inlet.finish()
    assert rows_of(joined) == [3, 3, 1, 4, 1]
    assert ids_of(joined) == [f"life-{n}" for n in range(1, 6)]
    assert is_quiet(joined)


async def test_kinds_share_no_message() -> None:
    """A durable post must not wait for one that is tried again and again."""
    joined = Joined()
    joined.stream.usual = FULL
    for ack in ("durable", "buffered", "durable", "buffered"):
        joined.poster.post(make_block(1), ack)
    assert joined.inlet.stats().rows == 2
    await spin()
    assert [post.status for post in joined.poster.posts] == [503, 202, 503, 202]
    assert rows_of(joined)[:2] == [2, 2]
    joined.stream.usual = STORED
    await joined.inlet.finish()
    assert joined.gateway.published == 2
    assert is_quiet(joined)


async def test_told_may_take_new_posts_in() -> None:
    """A client that waited for its answer sends the next post; its group is a new one."""
    joined, more = Joined(rows_max=2), [4]

    def told(waiters: Sequence[int], error: NotKept | None) -> None:
        assert error is None
        joined.gateway.at_receiver -= len(waiters)
        for _ in waiters:
            if more[0]:
                more[0] -= 1
                post()

    def post() -> None:
        assert joined.take_in(make_block(1), 0, told)
        joined.gateway.received += 1
        joined.gateway.at_receiver += 1

    post()
    post()
    await joined.inlet.finish()
    assert joined.gateway.published == 6
    assert rows_of(joined) == [2, 2, 2]
    assert is_quiet(joined)


# Failures


@pytest.mark.parametrize("failure", FAILURES)
async def test_durable_posts_are_told_why_and_their_room_is_free(failure: str) -> None:
    """All ways in; the balance counts them as rejected, also if the stream has the message."""
    fate, code = FAILURES[failure]
    joined = Joined(rows_max=4)
    joined.stream.usual = fate
    for invalid in (0, 1, 0):
        joined.poster.post(make_block(1), invalid=invalid)
    await joined.poster.finish()
    await spin()
    tried = joined.gateway.rejected
    assert {post.status for post in joined.poster.posts} == {503}
    assert dict(tried) == {code: 3}
    # The invalid item is in the dead letters, though its post failed.
    assert joined.gateway.dead_lettered["invalid"] == 1
    assert joined.gateway.published == 0
    assert is_quiet(joined)


@pytest.mark.parametrize("fate", [STORED, LOST], ids=["stored", "lost"])
async def test_cancelled_durable_post_is_counted_by_its_outcome(fate: Fate) -> None:
    """The wait goes on until the stream has said it; then the cancellation takes effect."""
    joined, outcome = Joined(), list[str]()
    joined.stream.usual = HELD

    async def put() -> None:
        reservation = await joined.reserve(*size_of(2))
        try:
            await reservation.put(make_block(2))
            outcome.append("kept")
        except NotKept:
            outcome.append("not kept")
        await asyncio.sleep(0)
        outcome.append("not cancelled")

    task = asyncio.create_task(put())
    for _ in range(2):
        await spin()
        task.cancel()
    await spin()
    assert not task.done()
    joined.stream.answer(fate)
    await asyncio.wait([task])
    assert task.cancelled()
    assert outcome == ["kept" if fate is STORED else "not kept"]
    assert joined.gateway.published == 2 * (fate is STORED)


async def test_full_stream_is_tried_with_one_group_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not with all that waits again and again; once it has room, all go at once."""
    joined = Joined(shared_rows_max=1)
    joined.stream.usual = FULL
    for _ in range(40):
        joined.poster.post(make_block(1), "buffered")
    await until(lambda: len(joined.stream.tried) == 40)
    begin_s = monotonic_s()
    await asyncio.sleep(0.2)
    again = len(joined.stream.tried) - 40
    assert 2 <= again <= (monotonic_s() - begin_s) / 0.02 + 1
    joined.stream.usual = STORED
    async with asyncio.timeout(0.7):  # one by one it takes 0.8 s
        await joined.inlet.finish()
    assert len(joined.stream.stored) == 40
    assert is_quiet(joined)


async def test_message_that_is_refused_for_good_stops_no_other() -> None:
    """One that is too large for the broker is tried now and then; the others go on."""
    joined = Joined()
    joined.stream.fate_of["life-1"] = REFUSED
    joined.poster.post(make_block(7), "buffered")
    await spin()
    for _ in range(3):
        for ack in ("durable", "buffered"):
            joined.poster.post(make_block(1), ack)
            await spin()
        tries = ids_of(joined).count("life-1")
        await until(lambda tries=tries: ids_of(joined).count("life-1") > tries)  # type: ignore[misc]
    assert joined.gateway.published == 6
    assert joined.inlet.stats().rows == 7
    assert {post.status for post in joined.poster.posts} == {202}
    joined.stream.fate_of.clear()
    await joined.inlet.finish()
    assert is_quiet(joined)


# Time


async def test_time_that_the_publisher_gets_counts_from_the_receipt() -> None:
    """Of the oldest durable post; a buffered one has the whole time at each try."""
    joined, told = Joined(wait_s_max=10), Told()
    joined.take_in(make_block(1, age_s=2), 0, told)
    joined.take_in(make_block(1, age_s=4), 1, told)  # it had to wait for room
    joined.take_in(make_block(1, age_s=8))
    await spin()
    within_s = [each for _, _, each in joined.stream.tried]
    assert within_s == [pytest.approx(6, abs=0.2), 10]


@pytest.mark.parametrize("before", ["durable", "buffered"])
async def test_no_durable_post_waits_longer_than_its_time_also_behind_others(before: str) -> None:
    """It is told as its time ends that nothing is kept; later it is not published."""
    joined = Joined(shared_rows_max=1, wait_s_max=0.3)
    joined.stream.usual = HELD  # each waits until its own time is over
    began_s = monotonic_s()
    for _ in range(6):
        joined.poster.post(make_block(1), before)
    last = joined.poster.post(make_block(1))
    await until(lambda: last.status)
    assert last.status == 503
    assert 0.15 < monotonic_s() - began_s < 0.55  # behind the others it would be 0.6
    assert joined.gateway.rejected["broker_away"] >= 1
    joined.stream.usual = STORED
    await joined.inlet.finish()
    assert last.rows not in joined.stream.rows_stored
    assert is_quiet(joined)


async def test_post_that_had_to_wait_for_room_makes_its_group_end_in_time() -> None:
    """The time of a group is that of its oldest post, whichever came first into the group."""
    joined, told = Joined(groups_in_flight=1, wait_s_max=1.0), Told()
    joined.stream.usual = HELD
    joined.take_in(make_block(1), 0, told)
    await spin()
    joined.take_in(make_block(1), 1, told)
    joined.take_in(make_block(1, age_s=0.4), 2, told)
    began_s = monotonic_s()
    await until(lambda: told.waiters)
    assert told.waiters == [1, 2]
    assert monotonic_s() - began_s < 0.95  # the time of the youngest is 1.0
    assert all(isinstance(error, BrokerAway) for error in told.errors)
    await joined.close()


async def test_post_with_less_than_half_of_its_time_left_has_a_group_of_its_own() -> None:
    """A client that is slow again and again must not end the posts of others."""
    joined, told = Joined(groups_in_flight=1, wait_s_max=1.0), Told()
    joined.stream.usual = HELD
    joined.take_in(make_block(1), 0, told)
    await spin()
    joined.take_in(make_block(1), 1, told)
    joined.take_in(make_block(1, age_s=0.9), 2, told)
    joined.take_in(make_block(1), 3, told)
    await until(lambda: told.waiters)
    assert told.waiters == [2]
    await until(lambda: len(told.waiters) > 1)
    assert told.waiters in ([2, 1, 3], [2, 0])
    await joined.close()


async def test_old_block_of_a_journal_has_the_whole_time() -> None:
    """It moves into the stream when `ingest up` follows `ingest serve`, hours after its receipt."""
    joined = Joined(wait_s_max=1)
    block = make_block(1, age_s=3_600)
    block.reloaded = True
    await (await joined.reserve(1, len(block.tuples))).put(block)
    (message,) = joined.stream.stored
    assert decode_message(message).received_us == block.received_us
    assert joined.stream.tried[0][2] == pytest.approx(1, abs=0.2)


async def test_post_whose_time_is_over_is_not_put_into_doubt() -> None:
    """With no time left for an answer it is not published at all."""
    joined, told = Joined(wait_s_max=1), Told()
    joined.take_in(make_block(1, age_s=0.95), 0, told)
    await spin()
    assert isinstance(told.errors[0], BrokerAway)
    assert not joined.stream.tried
    assert joined.inlet.memory.rows == 0


async def test_time_that_is_over_after_a_stall_is_noticed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event loop stood still: the group is to be published before its timer is looked at."""
    joined, told = Joined(wait_s_max=10), Told()
    joined.take_in(make_block(1), 0, told)
    monkeypatch.setattr(group_queue, "monotonic_s", lambda: monotonic_s() + 9.95)
    await spin()
    assert isinstance(told.errors[0], BrokerAway)
    assert not joined.stream.tried


# Room


async def test_room_comes_free_when_the_stream_has_the_message() -> None:
    """Not before; then the post that waits longest gets it, in the same round."""
    joined = Joined(rows_max=4, put_wait_s_max=5)
    joined.stream.usual = HELD
    joined.take_in(make_block(4))
    await spin()
    assert not joined.take_in(make_block(1))
    waits = [asyncio.create_task(joined.reserve(2, 2)) for _ in range(3)]
    await spin()
    assert joined.inlet.stats().posts_waiting == 3
    joined.stream.answer()
    await spin()
    assert [each.done() for each in waits] == [True, True, False]
    for each in waits:
        (await each).release()
    assert joined.inlet.memory.rows == 0


async def test_refused_posts_come_back_later_as_the_outage_lasts() -> None:
    """Retry-After grows with the age of the oldest post that is not in the stream."""
    hints = []
    for age_s in (0, 8, 20, 3600):
        joined = Joined(rows_max=1)
        joined.stream.usual = HELD
        joined.take_in(make_block(1, age_s=age_s))
        await spin()
        with pytest.raises(BufferFull) as caught:
            await joined.reserve(1, 1)
        hints.append(caught.value.retry_after_s)
        assert 0 < joined.inlet.stuck_s < 1  # of this, only the wait for the broker counts
        await joined.close()
        assert joined.inlet.stuck_s == 0
    assert hints == sorted(hints)
    assert 1 <= hints[0] < hints[1] < hints[2] < hints[3] <= 60


# The end


async def test_close_tells_every_durable_post_and_leaves_the_buffered_ones() -> None:
    """Tried: not known. Not tried: not kept. What was promised is left, and counts as held."""
    joined = Joined(groups_in_flight=2)
    joined.stream.usual = HELD
    rows = b""
    for ack in ("durable", "buffered", "durable", "buffered", "buffered", "durable"):
        block = make_block(2)
        rows += block.tuples if ack == "buffered" else b""
        joined.poster.post(block, ack, invalid=ack == "durable")
        await spin()
    assert rows_of(joined) == [2, 2]
    finishing = asyncio.create_task(joined.inlet.finish())
    for _ in range(2):
        await joined.close()
    await joined.poster.finish()
    await finishing
    assert [post.code or post.status for post in joined.poster.posts] == [
        *("outcome_unknown", 202, "broker_away", 202, 202, "broker_away"),
    ]
    assert joined.gateway.imbalance == 0
    assert (joined.inlet.stats().rows, joined.inlet.memory.rows) == (6, 0)
    taken = [*joined.inlet.take(1), *joined.inlet.take(100)]
    assert [block.rows for block in taken] == [4, 2]  # two posts share the first one
    assert sorted(rows_in(rows)) == sorted(rows_in(b"".join(each.tuples for each in taken)))
    assert joined.inlet.stats().rows == 6
    joined.inlet.settle(taken)
    joined.gateway.dead_lettered["drained"] += 6
    assert is_quiet(joined)


async def test_close_while_groups_wait_for_their_next_try() -> None:
    """All of them are left, and none is published any more."""
    joined = Joined(shared_rows_max=1)
    joined.stream.usual = FULL
    for _ in range(5):
        joined.take_in(make_block(1))
    await until(lambda: len(joined.stream.tried) >= 6)
    await joined.close()
    tries = len(joined.stream.tried)
    await asyncio.sleep(0.06)
    assert len(joined.stream.tried) == tries
    assert len(joined.inlet.take(100)) == 5


async def test_post_that_had_its_room_before_the_close_is_told_at_once() -> None:
    """Its handler may have waited for the dead letters. It must not wait for ever."""
    joined = Joined()
    durable, buffered = [await joined.reserve(*size_of(1)) for _ in range(2)]
    await joined.close()
    await buffered.put(make_block(1), durable=False)
    async with asyncio.timeout(1):
        with pytest.raises(BrokerAway):
            await durable.put(make_block(1))
    assert not joined.stream.tried
    assert [block.rows for block in joined.inlet.take(100)] == [1]


async def test_finish_waits_for_all_and_can_be_cancelled() -> None:
    """Also for groups that are tried again."""
    joined = Joined()
    joined.stream.fates += [AWAY, HELD]
    joined.take_in(make_block(1))
    finishing = [asyncio.create_task(joined.inlet.finish()) for _ in range(2)]
    await until(lambda: joined.stream.held)
    finishing[0].cancel()
    await spin()
    assert [each.done() for each in finishing] == [True, False]
    joined.stream.answer()
    await finishing[1]


# Memory


@pytest.fixture
def _collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("fate", [STORED, FULL, LOST], ids=["stored", "full", "lost"])
@pytest.mark.usefixtures("_collector_off")
async def test_posts_leave_nothing_to_the_garbage_collector(fate: Fate) -> None:
    """Neither kept ones nor refused ones, on any way in; and nobody's request stays."""
    joined, told = Joined(rows_max=1_000), Told()
    joined.stream.usual = fate

    async def put() -> None:
        block = make_block(1)
        reservation = await joined.reserve(1, len(block.tuples))
        with contextlib.suppress(NotKept):
            await reservation.put(block)

    async def some(count: int) -> None:
        for number in range(count):
            assert joined.take_in(make_block(1), number, told)
            await put()
        told.waiters.clear()
        told.errors.clear()
        joined.stream.tried.clear()

    await some(10)
    gc.collect()
    await some(200)
    found = gc.collect()
    assert found < 100, f"{found} objects"
    assert joined.inlet.memory.rows == 0
    assert not joined.inlet.queue.groups
    assert joined.inlet._durable is None
