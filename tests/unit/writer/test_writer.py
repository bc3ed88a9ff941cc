"""What a writer does after each verdict, and what posts are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ingest.model.block import Outcome, Refusal
from ingest.model.causes import Verdict, WriteFailed
from ingest.model.errors import DeadLettersBroken, DeadLettersFull
from ingest.model.ledger import TRIGGERS
from ingest.model.reading import DRAINED, EXHAUSTED, REFUSED, Reading
from ingest.system.clock import monotonic_s
from ingest.writer import writer
from ingest.writer.refused_rows import refusal_letters, refusals_by_block, set_aside_rest
from tests.support.fake_sink_scripted import HANG, Script
from tests.support.writing import Writing

Make = Callable[[], Exception]


def kinds(path: Writing) -> list[tuple[str, int]]:
    """Return (kind, rows) of each write of the only writer."""
    return path.sinks[0].inner.writes


async def test_posts_are_answered_once_stored() -> None:
    """One write stores all that waits. Each post is answered, and the room is free again."""
    path = Writing()
    acks = [await path.post(rows) for rows in (1, 5, 30)]
    await path.write_all(1)
    assert [await ack.wait() for ack in acks] == [Outcome()] * 3
    assert kinds(path) == [("copy", 36)]
    assert path.ledger.committed == 36
    assert path.ledger.flushes == {**dict.fromkeys(TRIGGERS, 0), "commit": 1}
    assert sum(path.ledger.commit_s.counts) == 3
    await path.drain()


async def test_pauses_between_tries_grow_and_have_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all writers of all instances would come back at the same moment."""
    pauses_s: list[float] = []

    async def sleep(_: asyncio.Event, pause_s: float) -> None:
        pauses_s.append(pause_s)

    monkeypatch.setattr(writer, "sleep_unless", sleep)
    path = Writing(
        Script(1, Verdict.RETRY, forever=True, writes_only=True), wait_s_max=1e6, retries_max=9
    )
    await path.post(1)
    await path.write_all(1)
    shares = [each / (writer.RETRY_S_MIN * 2**tries) for tries, each in enumerate(pauses_s)]
    assert len(shares) == 9
    assert 0.1 <= min(shares) < max(shares) <= 1
    path.script.heal()
    await path.drain()


async def test_bad_rows_are_named_to_their_own_post_and_the_rest_is_stored() -> None:
    """Readings of other posts never change an answer. A refusal has the row's index in its post."""
    path = Writing()
    acks = [await path.post(3), await path.post(5, bad=(0, 4)), await path.post(2, bad=(1,))]
    await path.write_all(1)
    outcomes = [await ack.wait() for ack in acks]
    assert outcomes == [
        Outcome(),
        Outcome((Refusal(0, "23514", "not that value"), Refusal(4, "23514", "not that value"))),
        Outcome((Refusal(1, "23514", "not that value"),)),
    ]
    assert path.ledger.dead_lettered[REFUSED] == 3
    assert [letter.item for letter in path.letters.letters] == [0, 4, 1]
    assert {letter.code for letter in path.letters.letters} == {"23514"}
    await path.drain()


async def test_large_batch_with_a_bad_row_is_cut_at_block_borders() -> None:
    """Halving finds the small piece. The other rows are stored by plain writes."""
    path = Writing(batch_rows=20, batch_rows_max=100)
    for row in range(10):
        await path.post(10, bad=(3,) if row == 6 else ())
    await path.write_all(1)
    assert kinds(path) == [
        ("copy", 100),
        ("copy", 50),
        ("copy", 50),
        ("copy", 20),
        ("isolating", 20),
        ("copy", 30),
    ]
    assert path.ledger.retries["isolate"] == 3
    await path.drain()


async def test_timed_out_batch_is_halved_and_new_batches_start_small() -> None:
    """A batch that takes too long is written again in halves, on the idempotent path."""
    path = Writing(Script(1, Verdict.RETRY), batch_rows=10, batch_rows_max=80)
    for _ in range(8):
        await path.post(10)
    await path.write_all(1)
    assert kinds(path) == [("idempotent", 40), ("idempotent", 40)]  # after the one that failed
    assert path.cap.rows == 80  # 40 after the trouble, doubled by each clean write
    await path.drain()


@pytest.mark.parametrize("retries_max", [0, 1, 4])
async def test_batch_that_always_fails_is_dead_lettered_after_its_retries(retries_max: int) -> None:
    """After one write and `retries_max` retries it is dead-lettered; the post learns that."""
    script = Script(1, Verdict.RETRY, sqlstate="57014", doubtful=True, forever=True)
    path = Writing(script, retries_max=retries_max)
    ack = await path.post(10)
    await path.write_all(1)
    assert await ack.wait() == Outcome(set_aside=True)
    assert script.calls == retries_max + 1
    assert path.ledger.dead_lettered[EXHAUSTED] == 10
    assert path.ledger.retries["retry"] == retries_max + 1
    assert [each.item for each in path.letters.letters] == list(range(10))
    assert {(each.code, each.attempts) for each in path.letters.letters} == {
        ("57014", retries_max + 1)
    }
    assert path.database_state.is_open
    await path.drain()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lambda: DeadLettersFull("full"), "dead_letters_full"),
        (lambda: DeadLettersBroken("disk"), "dead_letters_broken"),
    ],
)
@pytest.mark.parametrize("exhausted", [True, False])
async def test_writes_pause_while_nothing_can_be_dead_lettered(
    error: Make, reason: str, exhausted: bool
) -> None:
    """Rows that can be neither stored nor dead-lettered stay. Nothing is committed without them."""
    at = 1 if exhausted else 0
    script = Script(at, Verdict.RETRY, doubtful=True, forever=True, writes_only=True)
    path = Writing(script)
    path.letters.fault, path.letters.failing = error, 10
    ack = await path.post(10, bad=() if exhausted else (2,))
    path.start(2)
    await path.until(lambda: path.letters.failing < 7)
    assert path.database_state.hold_reason == reason
    assert not ack.resolved
    assert (path.letters.letters, path.ledger.held, path.table) == ([], 10, {})
    await path.until(path.resolved)  # the operator made room
    assert path.database_state.is_open
    await path.drain()


@pytest.mark.parametrize("retries_max", [1, 8])
async def test_unknown_code_is_tried_a_few_times_and_then_held(
    retries_max: int,
) -> None:
    """After five writes it pauses writes. Its rows are never dead-lettered."""
    script = Script(1, Verdict.UNKNOWN, sqlstate="ZZ123", forever=True, writes_only=True)
    path = Writing(script, retries_max=retries_max, wait_s_max=120)
    await path.post(10)
    path.start(2)
    await path.until(lambda: path.database_state.hold_reason is not None)
    assert (script.calls, path.database_state.hold_reason) == (5, script.failure().reason)
    assert path.ledger.retries["retry"] == 4
    assert path.ledger.retries["hold"] == 1
    assert path.ledger.held == 10
    path.database_state.nudge()
    await path.until(lambda: path.ledger.retries["hold"] == 2)
    assert script.calls == 6, "on hold one try a probe"
    script.heal()
    path.database_state.nudge()
    await path.until(path.resolved)
    await path.drain()
    assert path.letters.letters == []


async def test_hold_is_probed_with_one_batch_by_one_writer() -> None:
    """Each probe is one connection check and one batch. The rest stays in the buffer."""
    script = Script(1, Verdict.HOLD, sqlstate="42P01", forever=True, writes_only=True)
    path = Writing(script, batch_rows_max=20, wait_s_max=0.01)
    for _ in range(10):
        await path.post(20)
    path.start(2)
    await path.until(lambda: path.database_state.hold_reason is not None)
    in_hand: list[int] = []

    def look() -> None:
        stats = path.buffer.stats()
        in_hand.append(stats.rows - stats.rows_waiting)

    script.hooks = dict.fromkeys(range(script.calls + 3, script.calls + 20), look)
    await path.until(lambda: len(in_hand) > 5)
    assert set(in_hand) == {20}
    assert path.ledger.held == 200
    script.hooks = {}
    script.heal()
    await path.until(path.resolved)
    await path.drain()


async def test_hold_ends_though_readings_lie_where_nobody_can_read_them() -> None:
    """Readings that cannot be read back from the disk do not keep writes paused."""
    path = Writing(wait_s_max=0.01)
    stats = path.buffer.stats
    path.buffer.stats = lambda: stats()._replace(rows=50)  # type: ignore[method-assign]
    path.database_state.failed(WriteFailed(Verdict.HOLD, "no such table", sqlstate="42P01"))
    path.start(2)
    await path.until(lambda: path.database_state.is_open)
    await path.drain()


async def test_server_that_lets_in_and_refuses_to_write_meets_slower_and_slower_probes() -> None:
    """With a full disk a connection proves nothing. So the pause grows, and the state is away."""
    script = Script(1, Verdict.WAIT, sqlstate="53100", forever=True, writes_only=True)
    path = Writing(script, wait_s_max=0.5)
    await path.post(5)
    states: list[str] = []
    script.hooks = dict.fromkeys(range(1, 200), lambda: states.append(path.database_state.state))
    path.start(2)
    await path.until(lambda: len(states) > 4)
    assert set(states[1:]) == {"wait"}
    assert path.database_state.pause_s() >= 0.05, "a tenth of wait_s_max: as long as it gets"
    assert path.ledger.held == 5
    script.heal()
    path.database_state.nudge()
    await path.until(path.resolved)
    await path.drain()


async def test_writer_that_retries_gives_its_batch_back_when_another_finds_the_server_gone() -> (
    None
):
    """While the state is not open, only the prober writes."""
    script = Script(1, Verdict.RETRY)
    path = Writing(script, wait_s_max=6000)
    await path.post(10)
    path.start(1)
    await path.until(lambda: path.ledger.retries["retry"] == 1)
    assert path.database_state.failure
    path.database_state.failed(WriteFailed(Verdict.WAIT, "gone"))
    await path.until(lambda: path.buffer.rows_waiting == 10)
    assert script.calls == 1
    path.database_state.nudge()
    await path.until(path.resolved)
    assert not path.database_state.failure, "a write went through"
    await path.drain()


async def test_answer_to_an_earlier_write_does_not_open_the_state() -> None:
    """A write that began before another writer found the server gone does not open the state."""
    path = Writing(Script(1, Verdict.RETRY), wait_s_max=6000)
    path.script.hooks[1] = lambda: path.database_state.failed(WriteFailed(Verdict.WAIT, "gone"))
    await path.post(10)
    path.start(1)
    await path.until(lambda: path.script.calls == 1 and path.buffer.rows_waiting == 10)
    assert path.database_state.state == "wait"
    path.database_state.nudge()
    await path.until(path.resolved)
    await path.drain()


async def test_breaker_trips_before_more_than_200_rows_are_set_aside() -> None:
    """If a wrong constraint refuses a fleet, few rows are dead-lettered, and all others wait."""
    path = Writing(batch_rows=20, batch_rows_max=1000)
    for _ in range(50):
        await path.post(20, bad=tuple(range(0, 20, 2)))
    path.start(2)
    await path.until(lambda: path.database_state.hold_reason is not None)
    assert path.database_state.hold_reason == "breaker"
    await path.until(lambda: path.ledger.retries["hold"] > 2)
    assert path.ledger.dead_lettered[REFUSED] <= 200
    path.breaker.release(received_until_s=monotonic_s())
    path.database_state.nudge()
    await path.until(path.resolved)
    assert path.ledger.dead_lettered[REFUSED] == 500
    await path.drain()


async def test_release_with_dead_letters_is_for_all_that_is_held_however_many_batches() -> None:
    """It covers all batches that wait, and not only the one of the probe.

    Good posts that come meanwhile do not use it up.
    """
    path = Writing(batch_rows=20, batch_rows_max=100)
    for _ in range(30):
        await path.post(100, bad=tuple(range(100)))
    path.start(2)
    await path.until(lambda: path.database_state.hold_reason == "breaker")
    path.breaker.release(received_until_s=monotonic_s())
    holds = path.ledger.retries["hold"]
    path.database_state.nudge()
    for _ in range(200):
        await path.post(50)
        await asyncio.sleep(0)
    await path.until(path.resolved)
    assert path.ledger.dead_lettered[REFUSED] == 3_000
    assert path.ledger.retries["hold"] - holds < 3  # of probes that were under way
    await path.drain()


async def test_row_refused_even_row_by_row_is_held_not_dropped() -> None:
    """If the sink cannot name the row, no row is known to be bad, and none is dead-lettered."""
    path = Writing(Script(1, Verdict.ISOLATE, sqlstate="23514", forever=True, writes_only=True))
    await path.post(3)
    path.start(1)
    await path.until(lambda: path.script.fired > 5)
    assert path.database_state.hold_reason == path.script.failure().reason
    assert (path.letters.appends, path.ledger.held) == (0, 3)
    path.script.heal()
    await path.until(path.resolved)
    await path.drain()


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


async def test_halted_writer_ends_within_a_write_however_long_its_pauses() -> None:
    """Neither a retry's pause nor a probe's pause delays the stop."""
    for verdict in (Verdict.WAIT, Verdict.HOLD, Verdict.RETRY):
        path = Writing(
            Script(1, verdict, forever=True),
            wait_s_max=6000,
        )
        await path.post(10)
        path.start(2)
        await path.settled()
        assert path.script.fired > 0
        async with asyncio.timeout(1):
            await path.halt()
        assert len(path.left()) == 1


async def test_client_that_no_longer_waits_changes_nothing() -> None:
    """If a client with `?ack=committed` hangs up, its block is stored like any other."""
    path = Writing(Script(1, where=HANG))
    ack = await path.post(4)
    path.start(1)
    waiter = asyncio.create_task(ack.wait())
    await path.until(lambda: path.script.fired == 1)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    path.sinks[0].abort()
    await path.until(path.resolved)
    assert len(path.table) == 4
    await path.drain()
