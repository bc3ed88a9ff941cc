"""Keeps dead letters in the stream INGEST_DLQ of the broker, for a gateway or a writer.

A letter is a message: its body is the line that a file would have, its subject has the reason. It
is live while the message is there.
Promises: when `write` returns, the broker has acknowledged each letter, which it does once its disk
has it. A letter that this process wrote not long ago, and that is still live, is known.
Does not: know letters that other processes, or an earlier one, have written; such a letter may be
there twice, and is listed once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ingest.broker.connection import BrokerConnection
from ingest.broker.messages import MessagePlace, MessagesState, StreamMessages
from ingest.broker.publishing import Publisher
from ingest.broker.roles import DEAD_LETTER_SUBJECT, DEAD_LETTERS
from ingest.dead_letters.queue import LetterTotals, NewLetter
from ingest.dead_letters.stream.replay import StreamReplay
from ingest.dead_letters.stream.store import StreamLetterStore
from ingest.formats.timestamp import text_us
from ingest.model.errors import (
    BrokerAway,
    BrokerFull,
    BrokerRefused,
    DeadLettersBroken,
    DeadLettersFull,
    IngestError,
)
from ingest.model.letter import REASONS

UNDER_WAY_MAX = 128  # messages without an acknowledgement
KNOWN_MAX = 50_000  # letters that are not written again while they are live; 200 bytes each
MESSAGE_BYTES = 160  # what a message takes beside the line: its subject, id and sum


class StreamBackend:
    """Implements LetterBackend. Make it in the running event loop.

    A message has failed after `wait_s_max`.
    """

    name = "the broker"
    groups_max = 1_000  # they share no disk: none of them need wait for another one
    beside_bytes = MESSAGE_BYTES

    def __init__(
        self, connection: BrokerConnection, *, try_s_max: float = 2.0, wait_s_max: float = 10.0
    ) -> None:
        self._messages = StreamMessages(connection, DEAD_LETTERS)
        self.letters = StreamLetterStore(self._messages)
        self.replaying: set[bytes] = set()  # keys of live letters that the replay has in work
        self._connection = connection
        self._publishers = {
            reason: Publisher(
                connection,
                subject=DEAD_LETTER_SUBJECT + reason,
                stream=DEAD_LETTERS,
                try_s_max=try_s_max,
                wait_s_max=wait_s_max,
            )
            for reason in REASONS
        }
        self._free = asyncio.Semaphore(UNDER_WAY_MAX)
        self._places: OrderedDict[bytes, MessagePlace] = OrderedDict()  # of the newest letters
        self._state = MessagesState()
        self._since_bytes = 0  # written after the last look
        self._has_looked = False

    async def open(self) -> None:
        """Do nothing: the broker may be away; see LetterBackend."""

    def kept(self) -> LetterTotals:
        """Return what the stream had at the last look; see LetterBackend.

        Letters that are there twice count twice.
        """
        state = self._state
        oldest_us = text_us(state.first_ts) if state.messages else None
        size_bytes = state.size_bytes + self._since_bytes
        return LetterTotals(
            size_bytes, state.messages, oldest_us if isinstance(oldest_us, int) else None
        )

    async def look(self) -> None:
        """Ask for the size of the stream; see LetterBackend."""
        since_bytes = self._since_bytes
        with suppress(BrokerAway, BrokerRefused):
            self._state = await self._messages.state()
            self._has_looked = True
            self._since_bytes -= since_bytes

    async def live(self, keys: Collection[bytes]) -> set[bytes]:
        """Return those that we have written before and that are still live; see LetterBackend."""
        if not self._has_looked:
            await self.look()
        found = self.replaying.intersection(keys)
        places = {key: self._places[key] for key in keys if key in self._places}
        if places:
            # If that is not known: twice is better than not at all.
            with suppress(BrokerAway, BrokerRefused):
                there = await self._messages.present(places.values())
                found |= {key for key, place in places.items() if place in there}
        return found

    def too_long(self, line_bytes: int) -> str:
        """Refuse what the broker takes as no message; see LetterBackend."""
        size, most = line_bytes + MESSAGE_BYTES, self._connection.payload_bytes_max
        if not most or size <= most:
            return ""
        return f"one dead letter has {size:,} bytes; the broker takes {most:,} (max_payload)"

    async def write(self, letters: Mapping[bytes, NewLetter]) -> None:
        """Publish all letters, in order, several at a time; see LetterBackend."""
        left = iter(letters.items())
        failed: list[IngestError] = []
        workers = min(UNDER_WAY_MAX, len(letters))
        await asyncio.gather(*(self._publish_some(left, failed) for _ in range(workers)))
        self._since_bytes += sum(len(each.line) + MESSAGE_BYTES for each in letters.values())
        if failed and isinstance(failed[0], BrokerFull):
            raise DeadLettersFull(f"the dead letters: {failed[0]}") from failed[0]
        if failed:
            raise DeadLettersBroken(f"the dead letters: {failed[0]}") from failed[0]

    async def _publish_some(
        self, left: Iterator[tuple[bytes, NewLetter]], failed: list[IngestError]
    ) -> None:
        while not failed:
            async with self._free:
                key, letter = next(left, (b"", None))
                if letter is None:
                    return
                try:
                    place = await self._publish(letter)
                except IngestError as error:
                    failed.append(error)
                    return
                self._places[key] = place
                self._places.move_to_end(key)
                if len(self._places) > KNOWN_MAX:
                    self._places.popitem(last=False)

    async def _publish(self, letter: NewLetter) -> MessagePlace:
        """Return the place of the letter's message.

        The broker knows the id of a message for a while, also of one that was deleted meanwhile. So
        a message that it calls a duplicate may not be there.
        """
        own_id = message_id = f"{letter.id}-{letter.reason}"
        while True:
            ack = await self._publishers[letter.reason].publish(message_id, letter.line)
            written = MessagePlace(ack.sequence, message_id)
            if not ack.duplicate or await self._messages.present([written]):
                return written
            message_id = f"{own_id}-{ack.sequence}"

    async def make_room(self) -> None:
        """Do nothing: a letter that is done is gone."""

    async def tidy(self) -> list[Path]:
        """Do nothing: a letter that is done is gone."""
        return []

    def replay_source(self, pause_s: float) -> StreamReplay:
        """Return the letters that the automatic replay takes; see LetterBackend."""
        return StreamReplay(self._connection, self._messages, self.replaying, pause_s=pause_s)

    async def close(self) -> None:
        """Do nothing: the connection has another owner."""
