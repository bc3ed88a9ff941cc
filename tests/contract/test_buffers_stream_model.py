"""Any sequence of posts, failures, writers and ends around a stream: nothing is lost or doubled.

The real keeper counts the posts. After each step both balances are 0 and no room is used twice; at
the end every reading is where its client was told, and in the table once.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ingest.model.block import Block
from ingest.model.errors import BrokerAway, BrokerFull, BrokerOutcomeUnknown, BrokerRefused
from ingest.roles import group_queue
from ingest.roles.outlet import decode_message
from tests.contract.buffers import spin
from tests.support.journals import make_block
from tests.support.streams import HELD, STORED, Fate, Joined, Post, Poster

ROWS_MAX = 24
UNKNOWN = "outcome_unknown"
FATES = (
    STORED,
    STORED,
    HELD,
    Fate(stores=False, error=lambda: BrokerAway("away")),
    Fate(stores=False, error=lambda: BrokerFull("full")),
    Fate(stores=False, error=lambda: BrokerRefused("refused")),
    Fate(stores=False, error=lambda: BrokerOutcomeUnknown("lost")),
    Fate(stores=True, error=lambda: BrokerOutcomeUnknown("answer lost")),
    Fate(stores=False, error=lambda: ValueError("a bug")),
)
OUTCOMES = [each for each in FATES if not each.held]
numbers = st.integers(0, 11)
some_fates = st.lists(st.sampled_from(FATES), min_size=1, max_size=3)
some_posts = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from(["durable", "buffered"]), st.integers(0, 1)),
    min_size=2,
    max_size=5,
)


class StreamMachine(RuleBasedStateMachine):
    """Drives both halves, the keeper before them and a table behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = uvloop.new_event_loop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.bytes_max = 40 * len(make_block(1).tuples)
        self.posts: dict[bytes, tuple[Post, str]] = {}
        self.gone: list[Post] = []
        self.taken: list[list[Block]] = []
        self.table: Counter[bytes] = Counter()
        self.given_up: list[bytes] = []  # by the gateway, at its end
        self.is_shut = self.is_closed = False
        self.loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        self.joined = Joined(
            rows_max=ROWS_MAX,
            bytes_max=self.bytes_max,
            put_wait_s_max=1_000,
            shared_rows_max=5,
            wait_s_max=1_000,
            request_max=2,
        )
        self.poster = Poster(self.joined.inlet, self.joined.gateway)

    def _idle(self) -> None:
        self.loop.run_until_complete(spin())

    def _run(self, step: Any, idle: bool = True) -> None:
        """Do a step within the loop; `idle`: let everything run that can run then."""

        async def do() -> None:
            step()

        self.loop.run_until_complete(do())
        if idle:
            self._idle()

    @rule(posts=some_posts, fates=some_fates, idle=st.booleans())
    def post(self, posts: list[tuple[int, str, int]], fates: list[Fate], idle: bool) -> None:
        """Some posts come in one round; the next publishes go as `fates` says."""
        self.joined.stream.fates.extend(fates)

        def step() -> None:
            for rows, ack, invalid in posts:
                block = make_block(rows)
                tuples = block.tuples
                self.posts[tuples] = (self.poster.post(block, ack, invalid=invalid), ack)

        self._run(step, idle)

    @rule(are_slow=st.booleans())
    def letters(self, are_slow: bool) -> None:
        """The dead letters are slow: posts with invalid items have their room meanwhile."""
        if are_slow:
            self.poster.letters.open.clear()
        else:
            self._run(self.poster.letters.open.set)

    @rule(at=numbers, fate=st.sampled_from(OUTCOMES), idle=st.booleans())
    def answer(self, at: int, fate: Fate, idle: bool) -> None:
        """A publish that was under way ends."""
        held = self.joined.stream.held
        if held:
            self._run(lambda: self.joined.stream.answer(fate, at % len(held)), idle)
        if idle and held:
            self._run(self.joined.stream.answer)

    @rule()
    def again(self) -> None:
        """The time comes to try a failed group again."""
        queue = self.joined.inlet.queue
        if queue._again is not None:
            queue._again.cancel()
            self._run(queue._try_one)

    @rule()
    def too_late(self) -> None:
        """The time of a post that waits for room is over."""
        waiting = self.joined.inlet.waiting
        self._idle()  # a post may get its room in this round
        if waiting.posts:
            self._run(lambda: waiting._expire(next(iter(waiting.posts))))

    @rule(at=numbers, also_answers=st.booleans())
    def hang_up(self, at: int, also_answers: bool) -> None:
        """A client that waits hangs up, perhaps as its message ends; its handler is cancelled."""
        self._idle()  # a handler that has not begun has counted nothing
        tasks = [each for each in self.poster.tasks if not each.done()]
        if tasks:
            self._run(tasks[at % len(tasks)].cancel, idle=not also_answers)
            if also_answers and self.joined.stream.held:
                self._run(self.joined.stream.answer)

    @rule(rows=st.integers(1, 8))
    def take(self, rows: int) -> None:
        """A writer takes a batch."""
        if blocks := self.joined.take(rows):
            self.taken.append(blocks)

    @rule(at=numbers, stored=st.booleans(), loses=st.booleans())
    def write(self, at: int, stored: bool, loses: bool) -> None:
        """A batch is stored, or given back. The acknowledgement may be lost."""
        if not self.taken:
            return
        blocks = self.taken.pop(at % len(self.taken))
        self.joined.stream.loses_acks = loses
        if stored:
            self._run(lambda: self._store(blocks))
        else:
            self._run(lambda: self.joined.give_back(blocks))
        self.joined.stream.loses_acks = False

    def _store(self, blocks: list[Block]) -> None:
        self.table.update(block.tuples for block in blocks)
        self.joined.settle(blocks)

    @rule(at=numbers)
    def redeliver(self, at: int) -> None:
        """The broker has not heard of a message for a while."""
        out = sorted(self.joined.stream.out)
        if out:
            self._run(lambda: self.joined.stream.deliver(out[at % len(out)]))

    @rule(chance=st.integers(0, 2), takes_leave=st.booleans())
    def end_writer(self, chance: int, takes_leave: bool) -> None:
        """A writer ends, in order or killed, and another one begins."""
        if chance:
            return
        joined = self.joined
        old_stream, counted = joined.stream, joined.writer
        if takes_leave:
            for blocks in self.taken:
                joined.give_back(blocks)
            joined.outlet.shut_inlet()

            async def leave() -> None:
                old_stream.take = None  # its connection ends then
                for _ in range(2):
                    await joined.outlet.keep_rest()

            self.loop.run_until_complete(leave())
            stats = joined.outlet.stats()
            assert (stats.rows, stats.rows_kept, counted.imbalance) == (0, 0, 0)
        self.taken.clear()

        async def begin() -> None:
            fresh = Joined(rows_max=ROWS_MAX, request_max=2)
            joined.outlet, joined.writer = fresh.outlet, fresh.writer
            joined.take, joined.give_back = fresh.outlet.take, fresh.outlet.give_back
            fresh.outlet.pull_from(old_stream)  # type: ignore[arg-type]
            old_stream.take = fresh.outlet.deliver
            old_stream.pending.extend(old_stream.out)
            old_stream.out.clear()
            old_stream.wanted.set()

        self.loop.run_until_complete(begin())
        self._idle()

    @rule(chance=st.integers(0, 15), closes=st.booleans())
    def end_gateway(self, chance: int, closes: bool) -> None:
        """The gateway stops to take posts, and perhaps gives up what is under way."""
        if chance:
            return
        self.is_shut = True
        self._run(self.joined.inlet.shut_inlet, idle=False)
        if closes:
            self._close()

    def _close(self) -> None:
        self.is_closed = True
        self.loop.run_until_complete(self.joined.inlet.close())
        self._set_aside()

    def _set_aside(self) -> None:
        """Take what the gateway has left, as its end does."""
        self._idle()
        joined = self.joined
        while blocks := joined.inlet.take(3):
            joined.gateway.dead_lettered["drained"] += sum(each.rows for each in blocks)
            self.given_up += [each.tuples for each in blocks]
            joined.inlet.settle(blocks)

    @invariant()
    def adds_up(self) -> None:
        """Balances and bounds hold, whatever is under way; and nothing was said to the loop."""
        joined = self.joined
        assert joined.imbalance == (0, 0)
        memory = joined.inlet.memory
        assert 0 <= memory.rows <= ROWS_MAX
        assert 0 <= memory.size_bytes <= self.bytes_max
        assert len(joined.inlet.queue._under_way) <= 2
        assert len(set(joined.stream.ids.values())) == len(joined.stream.stored)
        assert not self.faults
        groups = joined.inlet.queue.groups
        waiting = sum(each.block.rows for each in groups)
        assert memory.rows >= waiting  # the others are reservations
        stats = joined.outlet.stats()
        assert stats.rows_kept == sum(each.rows for each in joined.outlet._deliveries)
        assert stats.rows == stats.rows_kept
        if self.is_closed:
            assert not groups

    def _end(self) -> None:
        """Let the broker work again, and everything come to its end."""
        stream = self.joined.stream
        stream.fates.clear()
        self._run(self.poster.letters.open.set)
        while stream.held:
            self._run(stream.answer)
        for _ in range(100):
            self.again()
            self.too_late()
            self._idle()
        self.loop.run_until_complete(self.poster.finish())
        self._set_aside()  # a post that had its room may have come after the end
        assert not self.joined.inlet.queue.groups
        for blocks in self.taken:
            self._run(lambda blocks=blocks: self._store(blocks))
        while stream.out or stream.pending:
            for place in sorted(
                stream.out.keys() - {place for place, _ in self.joined.outlet._blocks}
            ):
                self._run(lambda place=place: stream.deliver(place))
            self._run(lambda: self._store(self.joined.take(1 << 40)))
        self.adds_up()

    def teardown(self) -> None:
        """Come to the end, and see where each reading is."""
        try:
            self._end()
            memory = self.joined.inlet.memory
            assert (memory.rows, memory.size_bytes) == (0, 0)
            stored = b"".join(decode_message(each).tuples for each in self.joined.stream.stored)
            table, given_up = b"".join(self.table), b"".join(self.given_up)
            assert sorted(self.table) == sorted(
                {decode_message(each).tuples for each in self.joined.stream.stored}
            )
            for tuples, (post, ack) in self.posts.items():
                assert post.status, "each post has an answer"
                count = stored.count(tuples)
                if post.status == 202 and ack == "durable":
                    assert count == 1
                elif post.status == 202:
                    assert count == 1 or (count == 0 and tuples in given_up)
                elif post.code not in {UNKNOWN, "gone"} and post.status == 503 and post.code:
                    assert count == 0, post.code
                assert table.count(tuples) == count
        finally:
            self.loop.run_until_complete(self.joined.inlet.close())
            self.loop.close()


@pytest.mark.parametrize(
    "times", [1, pytest.param(13, marks=[pytest.mark.slow, pytest.mark.timeout(240)])]
)
def test_nothing_is_lost_or_doubled_after_any_steps(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Whatever fails, comes twice, is cancelled, stopped or killed, in any order."""
    monkeypatch.setattr(group_queue, "AGAIN_S", 1_000)  # a rule says when
    run_state_machine_as_test(
        StreamMachine,
        settings=settings(
            max_examples=times * 30,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
