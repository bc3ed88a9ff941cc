"""Posts that wait for their commit: a request to a writer, its answer, and its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ingest.broker.envelope import Message
from ingest.buffers.stream import commits
from ingest.buffers.stream.commit_desk import CommitDesk
from ingest.buffers.stream.commits import CommitRequests
from ingest.model.ack import Ack, Outcome, Refusal
from ingest.model.errors import BrokerAway, BrokerOutcomeUnknown, CommitRefused, NotKept
from tests.contract.buffers import contents, spin
from tests.support.blocks import make_block
from tests.support.streams import Joined


def message(data: bytes, status: str = "") -> Message:
    """Return a message without headers."""
    return Message("reply", data, {"Status": status} if status else {})


class Wire:
    """Carries requests to a desk and replies back, in the next round; or loses them."""

    def __init__(self) -> None:
        self.up = True
        self.loses: set[str] = set()  # "request", "reply"
        self.nobody = False
        self.desk: CommitDesk | None = None
        self._replies: dict[int, Callable[[Message], None]] = {}

    def call(self, subject: str, payload: bytes, on_reply: Callable[[Message], None]) -> int | None:
        """Send a request to the desk."""
        assert subject
        if not self.up:
            return None
        self._replies[1] = on_reply
        loop = asyncio.get_running_loop()
        if self.nobody:
            loop.call_soon(on_reply, message(b"", "503"))
        elif "request" not in self.loses and self.desk is not None:
            loop.call_soon(self.desk.take, message(payload))
        return 1

    def forget(self, token: int | None) -> None:
        """Take no more replies."""
        self._replies.pop(token or 0, None)

    def send(self, subject: str, payload: bytes) -> bool:
        """Send a reply."""
        assert subject == "reply"
        if "reply" not in self.loses and 1 in self._replies:
            asyncio.get_running_loop().call_soon(self._replies[1], message(payload))
        return True

    @property
    def waits(self) -> bool:
        """Whether somebody still listens to replies."""
        return bool(self._replies)


class Both:
    """A gateway and a writer with a wire between them."""

    def __init__(self, outcome_s_max: float = 5.0, **more: Any) -> None:
        self.wire = Wire()
        self.joined = Joined(**more)
        self.joined.inlet._commits = CommitRequests(
            self.wire, self.joined.gateway, outcome_s_max=outcome_s_max
        )
        self.refusal = ""
        self.wire.desk = CommitDesk(self.joined.outlet, self.wire.send, lambda: self.refusal)

    async def put(self, rows: int = 2) -> Ack:
        """Put a block as the keeper does; return its ack."""
        block = make_block(rows)
        ack = block.ack = Ack()
        reservation = await self.joined.reserve(rows, len(block.tuples), awaited=True)
        self.joined.gateway.received += rows
        try:
            await reservation.put(block)
        except NotKept as error:
            self.joined.gateway.readings_rejected(error.code, rows)
            raise
        return ack

    @property
    def is_free(self) -> bool:
        """Whether no room is in use in the gateway, and nobody listens."""
        memory = self.joined.inlet.memory
        return (memory.rows, memory.size_bytes, self.wire.waits) == (0, 0, False)


async def test_committed_post_goes_to_a_writer_and_its_outcome_comes_back() -> None:
    """Not by the stream. Its room in the gateway is free with the outcome; both balances hold."""
    both = Both()
    ack = await both.put()
    assert not both.joined.stream.tried
    assert not both.is_free
    (block,) = both.joined.take(100)
    assert block.ack is not None
    refusal = Refusal(0, "23514", "a rule")
    block.ack.resolve(Outcome((refusal,)))
    both.joined.settle([block])
    await spin()
    assert ack.outcome == Outcome((refusal,))
    assert both.is_free
    assert both.joined.imbalance == (0, 0)


async def test_committed_post_is_refused_with_the_code_of_the_writer() -> None:
    """Nothing is kept, at neither side."""
    both = Both(rows_max=4)
    both.refusal = "database_on_hold"
    with pytest.raises(CommitRefused) as caught:
        await both.put()
    assert caught.value.code == "database_on_hold"
    both.refusal = ""
    assert both.joined.outlet.take_in(make_block(4))
    with pytest.raises(CommitRefused) as caught:
        await both.put()
    assert caught.value.code == "buffer_full"
    both.wire.nobody = True
    with pytest.raises(CommitRefused) as caught:
        await both.put()
    assert caught.value.code == "database_away"
    both.wire.up = False
    with pytest.raises(BrokerAway):
        await both.put()
    assert both.is_free
    assert both.joined.gateway.imbalance == 0


@pytest.mark.parametrize("lost", ["request", "reply"])
async def test_committed_post_without_an_answer_is_unknown(
    lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer may have it. Its room is free then."""
    monkeypatch.setattr(commits, "ANSWER_S_MAX", 0.05)
    both = Both()
    both.wire.loses = {lost}
    with pytest.raises(BrokerOutcomeUnknown):
        await both.put()
    assert both.is_free
    assert len(both.joined.take(100)) == (lost == "reply")


async def test_committed_post_whose_outcome_does_not_come_frees_its_room() -> None:
    """Its writer has died. The keeper answers that the outcome is not known."""
    both = Both(outcome_s_max=0.05)
    ack = await both.put()
    assert len(contents(both.joined.take(100))) == 1
    await asyncio.sleep(0.1)
    assert both.is_free
    assert ack.outcome is None


async def test_committed_post_that_is_cancelled_leaves_no_room_behind() -> None:
    """Before the answer and after it; the writer stores what it has."""
    both = Both()
    both.wire.loses = {"reply"}
    task = asyncio.create_task(both.put())
    await spin()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert both.is_free
    (block,) = both.joined.take(100)
    both.joined.settle([block])
    assert both.joined.writer.imbalance == 0
