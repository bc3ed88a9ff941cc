"""Posts that wait for their commit: by the stream to a writer, and the outcome back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ingest.model.block import Ack, Outcome, Refusal
from ingest.model.errors import BrokerAway, BrokerFull, CommitRefused, NotKept
from ingest.roles import group_queue
from ingest.roles.group_queue import Commits
from ingest.roles.nats.protocol import Message, outcomes_for
from ingest.roles.outlet import encode_outcome
from tests.contract.buffers import contents, spin
from tests.support.journals import make_block
from tests.support.streams import Fate, Joined


class Writer:
    """Answers the question of a gateway, or does not."""

    def __init__(self) -> None:
        self.up = True
        self.asked = 0
        self.pause_s = 0.0
        self.answer: bytes | None = b""

    async def request(self, subject: str, payload: bytes, within_s: float) -> Message:
        """Answer in a later round."""
        assert (subject, payload, within_s) == ("ingest.commit", b"", group_queue.ANSWER_S_MAX)
        self.asked += 1
        await asyncio.sleep(self.pause_s)
        if self.answer is None or not self.up:
            raise BrokerAway("nobody answers")
        return Message("", self.answer, {})


class Both:
    """A gateway and a writer, with a stream between them."""

    def __init__(self, outcome_s_max: float = 5.0, **more: Any) -> None:
        self.writer = Writer()
        self.commits = Commits(self.writer, outcome_s_max=outcome_s_max)  # type: ignore[arg-type]
        self.loses = False
        self.joined = Joined(commits=self.commits, outcome=self._outcome, **more)

    def _outcome(self, message_id: str, ack: Ack) -> None:
        assert ack.outcome is not None
        if not self.loses:
            self.commits.heard(Message("", encode_outcome(message_id, ack.outcome), {}))

    async def put(self, rows: int = 2, *, waits: bool = True) -> Ack:
        """Put a block as the keeper does; return its ack."""
        block, ack = make_block(rows), Ack()
        block.ack = ack if waits else None
        self.joined.gateway.received += rows
        try:
            reservation = await self.joined.reserve(rows, len(block.tuples), awaited=waits)
            await reservation.put(block)
        except NotKept as error:
            self.joined.gateway.rejected[error.code] += rows
            raise
        return ack

    @property
    def is_free(self) -> bool:
        """Whether no room is in use in the gateway."""
        memory = self.joined.inlet.memory
        return (memory.rows, memory.size_bytes) == (0, 0)


async def test_committed_posts_are_in_the_stream_and_each_gets_its_own_outcome() -> None:
    """Posts of one message; one of them waits for nothing. A second outcome changes nothing."""
    both = Both()
    await both.commits.require_writer()
    acks = await asyncio.gather(both.put(2), both.put(3, waits=False), both.put(4), both.put(1))
    assert both.writer.asked == 1
    assert both.is_free, "the stream has them"
    (block,) = both.joined.take(100)
    assert block.rows == 10
    assert block.ack is not None
    block.ack.resolve(Outcome(tuple(Refusal(row, "23514", "a rule") for row in (1, 3, 6))))
    both.joined.settle([block])
    first, durable, second, third = (ack.outcome for ack in acks)
    assert durable is None
    assert first == Outcome((Refusal(1, "23514", "a rule"),))
    assert (second, third) == (Outcome((Refusal(1, "23514", "a rule"),)), Outcome())
    assert both.joined.imbalance == (0, 0)
    both.joined.stream.deliver(1)
    (again,) = both.joined.take(100)
    assert again.ack is not None
    again.ack.resolve(Outcome())
    for said in (b"", b'["life-1"]'):
        both.commits.heard(Message("", said, {}))  # it is no outcome


async def test_message_that_nobody_waits_for_has_no_mark() -> None:
    """As those of earlier versions: its block has no ack."""
    both = Both()
    await both.put(waits=False)
    (block,) = both.joined.take(100)
    assert (block.ack, both.joined.stream.awaited, both.writer.asked) == (None, set(), 0)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"database_on_hold", "database_on_hold"),
        (b"database_away", "database_away"),
        (b"a code of a later version", "database_away"),
        (b"\xff", "database_away"),
        (None, "database_away"),
    ],
)
async def test_committed_post_is_refused_if_no_writer_stores_now(
    answer: bytes | None, code: str
) -> None:
    """Nothing is kept, and it is asked once for all posts of a moment."""
    both = Both()
    both.writer.answer = answer
    for outcome in await asyncio.gather(*(both.put() for _ in range(9)), return_exceptions=True):
        assert isinstance(outcome, CommitRefused)
        assert outcome.code == code
    assert (both.writer.asked, both.joined.stream.tried) == (1, [])
    assert both.is_free
    assert both.joined.gateway.imbalance == 0


async def test_committed_post_without_a_broker_is_refused_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is said in its own words. Later it is asked again."""
    monkeypatch.setattr(group_queue, "KNOWN_S", 0.02)
    both = Both()
    both.writer.up = False
    with pytest.raises(CommitRefused) as caught:
        await both.put()
    assert caught.value.code == "broker_away"
    both.writer.up = True
    await asyncio.sleep(0.03)
    assert (await both.put()).outcome is None
    assert both.writer.asked == 2


async def test_post_of_several_blocks_gets_its_room_once_a_writer_has_answered() -> None:
    """Its caller asks again and again."""
    both = Both()
    assert both.joined.reserve_all([(2, 50), (1, 30)], awaited=True) is None
    await spin()
    assert len(both.joined.reserve_all([(2, 50), (1, 30)], awaited=True) or ()) == 2
    assert both.writer.asked == 1


async def test_committed_post_that_the_stream_does_not_take_is_refused() -> None:
    """As a durable one."""
    both = Both()
    both.joined.stream.fates.append(Fate(stores=False, error=lambda: BrokerFull("full")))
    with pytest.raises(BrokerFull):
        await both.put()
    assert both.is_free
    assert both.joined.gateway.imbalance == 0


async def test_outcome_that_gets_lost_is_forgotten() -> None:
    """Its gateway was away from the broker. The keeper answers that the outcome is not known."""
    both = Both(outcome_s_max=0.05)
    both.loses = True
    ack = await both.put()
    (block,) = both.joined.take(100)
    assert len(contents([block])) == 1
    assert block.ack is not None
    block.ack.resolve(Outcome())
    await asyncio.sleep(0.1)
    assert (both.commits._expected, ack.outcome) == ({}, None)


async def test_committed_post_that_is_cancelled_while_a_writer_is_asked_leaves_no_room() -> None:
    """It was in no message yet."""
    both = Both()
    both.writer.pause_s = 60
    task = asyncio.create_task(both.put())
    await spin()
    task.cancel()
    await asyncio.wait([task])
    await spin()
    assert task.cancelled()
    assert (both.is_free, both.joined.stream.tried) == (True, [])


def test_id_of_a_message_leads_to_no_other_subject() -> None:
    """A writer may publish more than a gateway may."""
    assert outcomes_for("5f0a-17") == "_INBOX.gateway.outcomes-5f0a"
    for hostile in ("", "17", "-17", "a.b-1", "a b-1", "a>-1", "*-1", "$JS.API.STREAM.PURGE.X-1"):
        assert not outcomes_for(hostile)
