"""The outlet of a writer knows messages of the same place from each other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ingest.broker.pulling import Delivery
from ingest.buffers.stream.messages import encode_message
from ingest.buffers.stream.outlet import StreamOutlet
from ingest.model.ledger import Ledger
from tests.support.blocks import make_block


class Pulls:
    """Notes what is said of deliveries."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.said: list[tuple[str, str]] = []

    def done(self, deliveries: Iterable[Delivery]) -> None:
        """Note it."""
        self.said += (("done", each.ack_subject) for each in deliveries)

    def working(self, deliveries: Iterable[Delivery]) -> None:
        """Note it."""
        self.said += (("working", each.ack_subject) for each in deliveries)

    def give_back(self, deliveries: Iterable[Delivery], after_s: float = 0.0) -> None:
        """Note it."""
        self.said += (("back", each.ack_subject) for each in deliveries)


def make_message(rows: int) -> bytes:
    """Return the bytes of a message."""
    block = make_block(rows)
    block.seal()
    return encode_message(block)


def make_outlet() -> tuple[StreamOutlet, Pulls]:
    """Return an outlet with room, and what it pulls from."""
    outlet = StreamOutlet(
        Ledger(),
        lambda _, why: None,
        lambda _, ack: None,
        rows_max=1_000,
        bytes_max=10**6,
        put_wait_s_max=1,
    )
    pulls = Pulls()
    outlet.pull_from(pulls)  # type: ignore[arg-type]
    return outlet, pulls


async def test_another_message_at_the_same_place_is_kept_too() -> None:
    """The stream was deleted and made anew while a message of the old one waits here."""
    outlet, pulls = make_outlet()
    outlet.deliver(Delivery(make_message(3), 5, 1, "old"))
    outlet.deliver(Delivery(make_message(4), 5, 1, "new"))
    assert outlet.rows_waiting == 7
    outlet.settle(outlet.take(10))
    assert pulls.said == [("done", "old"), ("done", "new")]
