"""The dead-letter queue of a gateway or a writer: appends letters to a stream of the broker.

A letter is a message: its body is the line that a file would have, its subject has the reason. It
is live while the message is there.
Promises: when `append` returns, the broker has acknowledged each letter, which it does once its
disk has it. An append that has begun is finished even if its caller is cancelled. A letter that
this process appended not long ago, and that is still live, is not appended again.
Does not: find letters that other processes, or an earlier one, have appended; such a letter may be
there twice, and is listed once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from ingest.broker.connection import BrokerConnection
from ingest.broker.messages import MessagesState, StreamMessages
from ingest.broker.publishing import Publisher
from ingest.broker.roles import DEAD_LETTER_SUBJECT, DEAD_LETTERS
from ingest.dead_letters.format import encode_line
from ingest.dead_letters.identity import DEFAULT_RULES, letter_id
from ingest.dead_letters.in_work import InWork
from ingest.dead_letters.live import key_of
from ingest.dead_letters.queue import take_exception
from ingest.dead_letters.room import Room
from ingest.dead_letters.stream.store import StreamLetterStore
from ingest.formats.post import Rules
from ingest.formats.timestamp import text_us
from ingest.model.errors import (
    BrokerAway,
    BrokerFull,
    BrokerRefused,
    DeadLettersBroken,
    DeadLettersFull,
    IngestError,
)
from ingest.model.ledger import DeadLetterStats
from ingest.model.letter import DRAINED, REASONS, Letter
from ingest.system.clock import monotonic_s, unix_us

UNDER_WAY_MAX = 128  # messages without an acknowledgement
KNOWN_MAX = 50_000  # letters that are not appended again while they are live; 200 bytes each
MESSAGE_BYTES = 160  # what a message takes beside the line: its subject, id and sum
ENCODED_LETTERS_MAX, ENCODED_BYTES_MAX = 100, 64 * 1024  # in the event loop; more: in a thread
LOOK_S = 1.0  # between two looks at the size of the stream


class _Line(NamedTuple):
    """A letter as a message."""

    reason: str
    message_id: str
    data: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.data) + MESSAGE_BYTES


class StreamDeadLetters:
    """Implements ports.DeadLetters with the stream INGEST_DLQ. Make it in the running event loop.

    `bytes_max` is the size of the whole stream. `auto_replay`: some letters leave it by themselves.
    `rules` say which time of an invalid item is usable. A message has failed after `wait_s_max`.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        *,
        bytes_max: int,
        auto_replay: bool = True,
        rules: Rules = DEFAULT_RULES,
        try_s_max: float = 2.0,
        wait_s_max: float = 10.0,
    ) -> None:
        self.messages = StreamMessages(connection, DEAD_LETTERS)
        self.letters = StreamLetterStore(self.messages)
        self.replaying: set[bytes] = set()  # keys of live letters that the replay has in work
        self._connection = connection
        self._rules = rules
        self._room = Room(bytes_max, auto_replay=auto_replay)
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
        self._deciding = asyncio.Lock()  # in the order in which the appends came
        self._free = asyncio.Semaphore(UNDER_WAY_MAX)
        self._appends: set[asyncio.Task[None]] = set()
        self._in_work = InWork("the broker")
        self._places: OrderedDict[bytes, int] = OrderedDict()  # of the newest letters
        self._state = MessagesState()
        self._pending_bytes = 0  # being appended
        self._since_bytes = 0  # appended after the last look
        self._looked_s = float("-inf")
        self._has_looked = False
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    async def append(self, letters: Sequence[Letter], *, sender: str | None = None) -> None:
        """Return when the broker has acknowledged all letters. A live letter is not added again.

        Raises DeadLettersFull or DeadLettersBroken; then no letter is promised to be there. If
        letters of senders come faster than the broker takes them, raises BufferFull. Cancelling the
        wait does not stop the append.
        """
        if not letters:
            return
        self._refuse_closed()
        size = self._in_work.add(letters, sender)
        task = asyncio.create_task(self._append(letters, sender, size))
        self._appends.add(task)
        task.add_done_callback(lambda _: self._append_done(task, size))
        await asyncio.shield(task)

    def _append_done(self, task: asyncio.Task[None], size: int) -> None:
        self._in_work.end(size)
        self._appends.discard(task)
        take_exception(task)

    async def _append(self, letters: Sequence[Letter], sender: str | None, size: int) -> None:
        if len(letters) > ENCODED_LETTERS_MAX or size > ENCODED_BYTES_MAX:
            lines = await asyncio.to_thread(self._encode, letters)
        else:
            lines = self._encode(letters)
        async with self._deciding:
            taken_bytes = await self._take_room(letters, sender, lines)
        try:
            await self._publish_all(lines)
        finally:
            self._pending_bytes -= taken_bytes
            self._since_bytes += taken_bytes

    async def _take_room(
        self, letters: Sequence[Letter], sender: str | None, lines: dict[bytes, _Line]
    ) -> int:
        """Leave out what is live; return the bytes of the others. Raises DeadLettersFull."""
        await self._leave_out_live(lines)
        if not lines:
            return 0
        if not self._has_looked:
            await self._look()
        self._look_if_old()
        size = sum(each.size_bytes for each in lines.values())
        if not all(letter.reason == DRAINED for letter in letters):
            self._refuse_without_room(letters, sender, size, lines.values())
        self._room.use(sender, size)
        self._pending_bytes += size
        return size

    def _encode(self, letters: Sequence[Letter]) -> dict[bytes, _Line]:
        """Return the letters by key, each once. Blocks."""
        failed_us = unix_us()
        lines: dict[bytes, _Line] = {}
        for letter in letters:
            id_ = letter_id(letter, self._rules)
            key = key_of(id_, letter.reason)
            if key not in lines and key not in self.replaying:
                data = encode_line(letter, id_=id_, failed_us=failed_us)
                lines[key] = _Line(letter.reason, f"{id_}-{letter.reason}", data)
        return lines

    async def _leave_out_live(self, lines: dict[bytes, _Line]) -> None:
        """Remove the letters that we have appended before and that are still live."""
        places = {key: self._places[key] for key in lines if key in self._places}
        if not places:
            return
        try:
            there = await self.messages.present(places.values())
        except (BrokerAway, BrokerRefused):
            return  # not known; twice is better than not at all
        for key, place in places.items():
            if place in there:
                del lines[key]

    def _refuse_without_room(
        self, letters: Sequence[Letter], sender: str | None, size: int, lines: Collection[_Line]
    ) -> None:
        """Raise DeadLettersFull if there is no room."""
        largest = max(each.size_bytes for each in lines)
        most = self._connection.payload_bytes_max
        if most and largest > most:
            raise DeadLettersFull(
                f"one dead letter has {largest:,} bytes; the broker takes {most:,} (max_payload)"
            )
        refusal = self._room.refusal(letters, sender, size, taken=self._taken_bytes, returning=0)
        if refusal is not None:
            raise refusal

    @property
    def _taken_bytes(self) -> int:
        return self._state.size_bytes + self._since_bytes + self._pending_bytes

    async def _publish_all(self, lines: dict[bytes, _Line]) -> None:
        """Publish all lines, in order, several at a time.

        Raises DeadLettersFull or DeadLettersBroken, for the first error.
        """
        left = iter(lines.items())
        failed: list[IngestError] = []
        workers = min(UNDER_WAY_MAX, len(lines))
        await asyncio.gather(*(self._publish_some(left, failed) for _ in range(workers)))
        if failed and isinstance(failed[0], BrokerFull):
            raise DeadLettersFull(f"the dead letters: {failed[0]}") from failed[0]
        if failed:
            raise DeadLettersBroken(f"the dead letters: {failed[0]}") from failed[0]

    async def _publish_some(
        self, left: Iterator[tuple[bytes, _Line]], failed: list[IngestError]
    ) -> None:
        while not failed:
            async with self._free:
                key, line = next(left, (b"", None))
                if line is None:
                    return
                try:
                    place = await self._publish(line)
                except IngestError as error:
                    failed.append(error)
                    return
                self._places[key] = place
                self._places.move_to_end(key)
                if len(self._places) > KNOWN_MAX:
                    self._places.popitem(last=False)

    async def _publish(self, line: _Line) -> int:
        """Return the place of the letter's message.

        The broker knows the id of a message for a while, also of one that was deleted meanwhile. So
        a message that it calls a duplicate may not be there.
        """
        message_id = line.message_id
        while True:
            ack = await self._publishers[line.reason].publish(message_id, line.data)
            if not ack.duplicate or await self.messages.present([ack.sequence]):
                return ack.sequence
            message_id = f"{line.message_id}-{ack.sequence}"

    async def _look(self) -> None:
        """Ask for the size of the stream; if that is not possible, the last one counts."""
        self._looked_s = monotonic_s()
        since_bytes = self._since_bytes
        try:
            self._state = await self.messages.state()
        except (BrokerAway, BrokerRefused):
            return
        self._has_looked = True
        self._since_bytes -= since_bytes

    def _look_if_old(self) -> None:
        idle = self._looking is None or self._looking.done()
        if idle and not self._closed and monotonic_s() - self._looked_s > LOOK_S:
            self._looking = asyncio.create_task(self._look())

    def stats(self) -> DeadLetterStats:
        """Return the figures of the last look at the stream; look again if that is old.

        Letters that are there twice count twice. Never blocks.
        """
        self._look_if_old()
        state = self._state
        oldest_us = text_us(state.first_ts) if state.messages else None
        age_s = max(0.0, (unix_us() - oldest_us) / 1e6) if isinstance(oldest_us, int) else 0.0
        full = self._room.is_full_for_invalid(self._taken_bytes)
        return DeadLetterStats(
            state.size_bytes, state.messages, age_s, full, self._room.share_used_by
        )

    async def close(self) -> None:
        """Wait for appends that have begun. A second call does nothing."""
        self._closed = True
        while self._appends:
            await asyncio.wait(set(self._appends))
        if self._looking is not None:
            await asyncio.wait([self._looking])

    def _refuse_closed(self) -> None:
        if self._closed:
            raise DeadLettersBroken("the dead letters are closed")
