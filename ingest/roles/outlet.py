"""The outlet of a writer: messages of the stream become blocks, and are done once they are stored.

    pull -> message -> block -> (writer) -> settle -> done
                                        '-> give_back: another try here
    keep_rest -> another writer gets them

A message is one block, as a frame of the journal. Its headers may say more of it: its id, and that
somebody waits for its outcome. What a reader does not know it ignores.
It takes messages while its memory is within its bounds; one pull request more may come. The stream
keeps a message until it is done. So nothing that is here is lost with the process.
A block without a message comes from the automatic replay, which uses this buffer as an inlet.
Does not: know what a skipped message means, or what becomes of a message that is no block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from ingest.buffers.frames import HEAD_BYTES, encode_head, frame_of
from ingest.buffers.memory import MemoryBuffer
from ingest.model.block import Ack, Block, Outcome, Refusal
from ingest.model.ledger import Ledger, Metric, Metrics
from ingest.model.moments import readings_fault
from ingest.model.ports import BufferStats
from ingest.roles.nats.pulling import Delivery, Puller
from ingest.system.clock import monotonic_s, sleep_unless, unix_us

SALT = 0  # a message is no part of a file, so no frame can be mistaken for another
# The id of a message, the refused rows, and whether all of it was set aside.
_outcomes = msgspec.json.Decoder(tuple[str, tuple[Refusal, ...], bool])
# Until then our pull request has ended with our connection. Without the pause a message would come
# back by it, again and again, and then wait until the broker gives it up.
GIVEN_BACK_S = 0.5


class NotOurs(Exception):
    """A message that is no block. The text says what is wrong with it."""


def encode_message(block: Block) -> bytes:
    """Return the message of a sealed block."""
    return encode_head(block, SALT) + block.tuples


def decode_message(data: bytes) -> Block:
    """Return the block of a message. Raises NotOurs.

    The CRC shows that the bytes are those that a gateway wrote. The layout of the rows is checked
    too, because PostgreSQL refuses a whole batch for one byte, and does not say which.
    """
    frame = frame_of(data, SALT)
    if frame is None:
        raise NotOurs("it is no frame, or its check sum is wrong")
    if fault := readings_fault(frame.tuples, frame.rows):
        raise NotOurs(fault)
    age_s = max(0.0, (unix_us() - frame.received_us) / 1e6)
    block = Block(
        frame.tuples,
        frame.rows,
        received_s=monotonic_s() - age_s,
        received_us=frame.received_us,
        newest_ts_us=frame.newest_ts_us,
    )
    block.posts = frame.posts
    block.sealed = True
    return block


def encode_outcome(message_id: str, outcome: Outcome) -> bytes:
    """Return what a writer tells the gateway of a message that somebody waits for."""
    return msgspec.json.encode((message_id, outcome.refusals, outcome.set_aside))


def decode_outcome(data: bytes) -> tuple[str, Outcome]:
    """Return the id of the message, and its outcome. Raises NotOurs."""
    try:
        message_id, refusals, set_aside = _outcomes.decode(data)
    except msgspec.DecodeError as error:
        raise NotOurs(str(error)) from error
    return message_id, Outcome(refusals, set_aside)


class StreamOutlet(MemoryBuffer):
    """The buffer of a writer: implements ports.Outlet, and ports.Inlet for replayed blocks.

    `foreign` gets each message that is no block, and why; `outcome` the id and the resolved ack of
    each one whose outcome somebody waits for.
    """

    def __init__(
        self,
        ledger: Ledger,
        foreign: Callable[[Delivery, str], None],
        outcome: Callable[[str, Ack], None],
        *,
        rows_max: int,
        bytes_max: int,
        put_wait_s_max: float,
    ) -> None:
        super().__init__(rows_max=rows_max, bytes_max=bytes_max, put_wait_s_max=put_wait_s_max)
        self._ledger = ledger
        self._foreign = foreign
        self._outcome = outcome
        self.redeliveries = 0  # messages that had been delivered before
        self._puller: Puller | None = None
        self._deliveries: dict[Block, Delivery] = {}
        # By place and head: in a stream that was made anew another message has the same place.
        self._blocks: dict[tuple[int, bytes], Block] = {}
        self._rows_of_messages = 0
        self._is_leaving = False

    def pull_from(self, puller: Puller) -> None:
        """Begin to take messages. The puller gives them to `deliver`."""
        self._puller = puller
        self._want()

    # Messages come in

    def deliver(self, delivery: Delivery) -> None:
        """Take a message. One that is here already has come a second time: it is kept once."""
        if self._is_leaving:
            self._say_later((delivery,))
            return
        self.redeliveries += delivery.tries > 1
        head = delivery.data[:HEAD_BYTES]
        if (block := self._blocks.get((delivery.place, head))) is not None:
            # The broker listens to the newest one. Between the two another writer may have had it.
            self._deliveries[block] = delivery._replace(data=head)
            block.doubtful = True
            return
        try:
            block = decode_message(delivery.data)
        except NotOurs as why:
            self._foreign(delivery, str(why))
            return
        block.doubtful = delivery.tries > 1
        if message_id := delivery.awaited:
            ack = block.ack = Ack()
            ack.when_resolved(partial(self._outcome, message_id, ack))
        self._deliveries[block] = delivery._replace(data=head)  # the block has its own copy
        self._blocks[delivery.place, head] = block
        self._rows_of_messages += block.rows
        self._ledger.delivered += block.rows
        self.append(block)
        self._want()

    def _want(self) -> None:
        """Let the puller ask for more while there is room."""
        if self._puller is None:
            return
        if self.memory.used < 1 and not self.shut:
            self._puller.wanted.set()
        else:
            self._puller.wanted.clear()

    async def run(self, stopping: asyncio.Event, every_s: float) -> None:
        """Say every so often that the messages are still here, until the event is set."""
        while not await sleep_unless(stopping, every_s):
            if self._puller is not None and self._deliveries:
                self._puller.working(list(self._deliveries.values()))
            self._want()  # a reservation may have been released, which tells nobody

    # The outlet

    def settle(self, blocks: Sequence[Block]) -> None:
        """The blocks are stored or dead-lettered: their messages are done."""
        super().settle(blocks)
        deliveries = self._forget(blocks)
        if self._puller is not None and deliveries:
            self._puller.done(deliveries)
        self._want()

    def _forget(self, blocks: Iterable[Block]) -> list[Delivery]:
        found = [self._deliveries.pop(block) for block in blocks if block in self._deliveries]
        for each in found:
            block = self._blocks.pop((each.place, each.data))
            self._rows_of_messages -= block.rows
        return found

    def stats(self) -> BufferStats:
        """Return what is here; rows of messages are kept by the stream if this process ends."""
        return super().stats()._replace(rows_kept=self._rows_of_messages)

    # End

    def shut_inlet(self) -> None:
        """Ask for no more messages; writers take what is left."""
        super().shut_inlet()
        self._want()

    async def keep_rest(self) -> None:
        """Give the waiting messages back to the stream: another writer gets them. Repeatable.

        From now on a message that comes is given back at once.
        """
        self._is_leaving = True
        waiting = self.take(1 << 62)
        returned = [block for block in waiting if block in self._deliveries]
        self.give_back([block for block in waiting if block not in self._deliveries])
        super().settle(returned)
        self._ledger.returned += sum(block.rows for block in returned)
        self._say_later(self._forget(returned))

    def _say_later(self, deliveries: Sequence[Delivery]) -> None:
        if self._puller is not None and deliveries:
            self._puller.give_back(deliveries, GIVEN_BACK_S)


METRICS: Metrics[StreamOutlet] = (
    Metric(
        "redeliveries_total",
        "Messages delivered before.",
        lambda it: it.redeliveries,
    ),
)
