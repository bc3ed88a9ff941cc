"""Dead letters in the stream INGEST_DLQ of the broker, for gateways, writers and commands.

A letter is a message: its body is the line that a file would have, its subject has the reason. It
is live while the message is there, so there are no marks and there is no lock.
Promises: when `write` returns, the broker has acknowledged each letter, which it does once its disk
has it. A letter that this process wrote not long ago, and that is still live, is known.
Does not: know letters that other processes, or an earlier one, have written; such a letter may be
there twice, and is listed once. Two replays may write it at the same time: it is one row, because
of the table's key.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from ingest.dead_letters.auto_replay import REPLAYED, fits_a_row
from ingest.dead_letters.format import key_of
from ingest.dead_letters.queue import LetterTotals, NewLetter
from ingest.dead_letters.store import (
    PART_BYTES,
    PART_LETTERS,
    Extent,
    LiveLetter,
    Parts,
    Selection,
    Sieve,
    Tally,
)
from ingest.formats.timestamp import text_us
from ingest.model.errors import (
    BrokerAway,
    BrokerFull,
    BrokerRefused,
    DeadLettersBroken,
    DeadLettersFull,
    IngestError,
)
from ingest.model.reading import REASONS
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.messages import MessagePlace, StoredMessage, StreamMessages, for_each
from ingest.roles.nats.protocol import (
    DEAD_LETTER_SUBJECT,
    DEAD_LETTERS,
    REPLAY,
    REPLAYED_SUBJECTS,
    Message,
    delivered_as,
)
from ingest.roles.nats.publishing import Publisher
from ingest.roles.nats.stream_state import StreamState
from ingest.roles.nats.streams import ACK_WAIT_S
from ingest.system.words import counted

SECTION_PLACES = 1_000  # of the newest section; each older one has twice as many, up to:
SECTION_PLACES_MAX = 64_000
ALL_REASONS = f"{DEAD_LETTER_SUBJECT}*"
_STREAM = Path(DEAD_LETTERS)
PULL_S = 1.0  # how long a request for the one message stays with the broker
LATE_S = 1.0
_DONE, _WORKING, _NEVER = b"+ACK", b"+WPI", b"+TERM"
UNDER_WAY_MAX = 128  # messages without an acknowledgement
KNOWN_MAX = 50_000  # letters that are not written again while they are live; 200 bytes each
MESSAGE_BYTES = 160  # what a message takes beside the line: its subject, id and sum


class StreamLetter(LiveLetter):
    """A letter of a stream: `path` is the stream's name, `offset` the place of its message."""

    @property
    def found_at(self) -> tuple[str, str]:
        """What has the letter, and where, for a person."""
        return "stream", f"{self.path}, message {self.offset}"


class StreamLetterStore:
    """Implements LetterStore."""

    def __init__(self, messages: StreamMessages) -> None:
        self._messages = messages

    async def oldest(self, where: Selection, tally: Tally) -> Parts:
        """Yield the live letters; see LetterStore.

        The broker leaves out messages that are damaged on its disk, without a word. It counts them,
        so that their number is known if all were read and none came meanwhile.
        """
        before, read = await self._messages.state(), tally.messages
        async for part in letters_between(self._messages, where, tally):
            yield part
        if _subject_of(where) != ALL_REASONS:
            return
        after, read = await self._messages.state(), tally.messages - read
        if after.last == before.last and after.messages > read:
            missing = counted(after.messages - read, "message")
            tally.unreadable.append(f"{missing} of {DEAD_LETTERS}, damaged on the broker's disk")

    async def newest(
        self, where: Selection, tally: Tally, bytes_max: int | None = None
    ) -> AsyncIterator[tuple[Parts, bool]]:
        """Yield sections of places, the newest first; see LetterStore."""
        state = await self._messages.state()
        if not state.messages:
            return
        first, last = state.first, state.last
        if bytes_max is not None:
            mean_bytes = max(1, state.size_bytes // state.messages)
            start = await self._start_of_last(max(1, bytes_max // mean_bytes), first, last)
            yield (
                letters_between(self._messages, where, tally, start=start, end=last),
                start > first,
            )
            return
        places = SECTION_PLACES
        while last >= first:
            start = max(first, last - places + 1)
            yield letters_between(self._messages, where, tally, start=start, end=last), False
            last, places = start - 1, min(2 * places, SECTION_PLACES_MAX)

    async def _start_of_last(self, count: int, first: int, last: int) -> int:
        """Return the place from which there are at most `count` messages, between two places."""
        while first < last:
            middle = (first + last) // 2
            found = await self._messages.read(middle, ALL_REASONS, messages_max=1)
            if found and found[0].behind >= count:
                first = found[0].place + 1
            else:
                last = middle
        return first

    @asynccontextmanager
    async def held(self, wait_s_max: float | None = None) -> AsyncIterator[None]:
        """Do nothing: deleting is never wrong twice; see LetterStore."""
        yield

    async def mark_done(self, letters: Sequence[LiveLetter], how: str) -> None:
        """Delete the messages; see LetterStore."""
        await self._messages.delete(each.offset for each in letters)

    async def extent(self) -> Extent:
        """Return the size of the stream."""
        state = await self._messages.state()
        return Extent(0, state.size_bytes, DEAD_LETTERS, empty=not state.messages)


async def letters_between(
    messages: StreamMessages,
    where: Selection,
    tally: Tally,
    *,
    start: int = 1,
    end: int | None = None,
) -> Parts:
    """Yield the wanted letters of some places in parts, oldest first."""
    sieve = Sieve(where, tally)
    subject = _subject_of(where)
    place = start
    while end is None or place <= end:
        most = PART_LETTERS if end is None else min(PART_LETTERS, end - place + 1)
        stored = await messages.read(place, subject, messages_max=most, bytes_max=PART_BYTES)
        if not stored:
            return
        place = stored[-1].place + 1
        if end is not None:
            stored = [each for each in stored if each.place <= end]
        yield await asyncio.to_thread(letters_of, stored, sieve)


def _subject_of(where: Selection) -> str:
    if where.reasons is not None and len(where.reasons) == 1:
        return DEAD_LETTER_SUBJECT + where.reasons[0]
    return ALL_REASONS


def letters_of(stored: Sequence[StoredMessage], sieve: Sieve) -> list[LiveLetter]:
    """Return the wanted letters of some messages."""
    found: list[LiveLetter] = []
    sieve.tally.messages += len(stored)
    for message in stored:
        line = sieve.wanted(message.data)
        if line is not None:
            at = message.place
            found.append(StreamLetter(_STREAM, at, at + 1, *line, message.data))
    return found


class StreamReplay:
    """What the automatic replay takes; implements ReplaySource.

    The consumer `replay` gives one message at a time to all writers together. Who has that message
    is the one who replays: it searches all letters that can be replayed. It deletes the messages of
    a block once the outcome of the block is known. At the end it deletes the one message, if its
    letter was stored, or gives it back: then it comes again after `pause_s`. If the process is
    killed in between, another writer gets the message after a while.
    While a block is being written, `replaying` has the keys of its letters: they are live, and are
    not appended again.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        messages: StreamMessages,
        replaying: set[bytes],
        *,
        pause_s: float,
    ) -> None:
        self._connection = connection
        self._messages = messages
        self._replaying = replaying
        self._pause_s = pause_s
        self._given: asyncio.Future[Message] | None = None
        self._own_place = 0  # of the one message
        self._own_is_stored = False
        self._subjects: list[str] = []  # left of this search
        self._place = 1  # where to read on
        connection.deliver_to(self._deliver, DEAD_LETTERS)

    @asynccontextmanager
    async def search(self) -> AsyncIterator[bool]:
        """Have the one message while the block runs; see ReplaySource."""
        message = await self._take()
        if message is None:
            yield False
            return
        self._own_place = delivered_as(message.reply_to)[1]
        self._own_is_stored = False
        self._subjects, self._place = list(REPLAYED_SUBJECTS), 1
        keeping = asyncio.create_task(self._keep(message))
        try:
            yield True
        finally:
            keeping.cancel()
            if self._own_is_stored:
                await self._messages.delete([self._own_place])
                self._connection.send(message.reply_to, _DONE)
            elif not _can_be_replayed(message):
                # It stays for a replay by hand, and is in nobody's way.
                self._connection.send(message.reply_to, _NEVER)
            else:
                self._give_back(message, self._pause_s)

    async def _take(self) -> Message | None:
        """Return the one message, None if there is none or somebody else has it."""
        given = self._given = asyncio.get_running_loop().create_future()
        request = {"batch": 1, "expires": int(PULL_S * 1e9)}

        def ended(_status: Message) -> None:
            given.cancel()

        token = self._connection.call(
            f"$JS.API.CONSUMER.MSG.NEXT.{DEAD_LETTERS}.{REPLAY}",
            msgspec.json.encode(request),
            ended,
            pulls=True,
        )
        try:
            await asyncio.wait((given,), timeout=PULL_S + LATE_S)
            return given.result() if given.done() and not given.cancelled() else None
        finally:
            self._given = None
            self._connection.forget(token)

    def _deliver(self, message: Message) -> None:
        if self._given is not None and not self._given.done():
            self._given.set_result(message)
        else:  # it is late: we do not wait for it any more
            self._give_back(message, 0.0)

    def _give_back(self, message: Message, pause_s: float) -> None:
        delay = msgspec.json.encode({"delay": int(pause_s * 1e9)})
        self._connection.send(message.reply_to, b"-NAK " + delay if pause_s else b"-NAK")

    async def _keep(self, message: Message) -> None:
        """Say that we still have the one message, until this is cancelled."""
        while True:
            await asyncio.sleep(ACK_WAIT_S / 3)
            self._connection.send(message.reply_to, _WORKING)

    @asynccontextmanager
    async def block(self, rows_max: int) -> AsyncIterator[list[LiveLetter] | None]:
        """Give the letters of some messages; see ReplaySource."""
        self._replaying.clear()  # of a block that had no outcome in time; it has one now
        letters = await self._letters(rows_max)
        self._replaying.update(key_of(each.id, each.letter.reason) for each in letters or ())
        yield letters

    async def _letters(self, rows_max: int) -> list[LiveLetter] | None:
        while self._subjects:
            subject = self._subjects[0]
            stored = await self._messages.read(self._place, subject, messages_max=rows_max)
            if not stored:
                del self._subjects[0]
                self._place = 1
                continue
            self._place = stored[-1].place + 1
            if letters := letters_of(stored, Sieve(REPLAYED)):
                return letters
        return None

    async def sent(self, stored: Sequence[LiveLetter], *, well: bool) -> None:
        """Delete messages; see ReplaySource."""
        self._replaying.clear()
        places = {each.offset for each in stored}
        self._own_is_stored |= self._own_place in places
        # Last: once it is gone, the consumer gives the next message to somebody else.
        await self._messages.delete(places - {self._own_place})


def _can_be_replayed(message: Message) -> bool:
    found = Sieve(REPLAYED).wanted(message.data)
    return found is not None and fits_a_row(found.letter)


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
        self._messages = StreamMessages(connection)
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
        self._state: StreamState | None = None  # at the last look
        self._since_bytes = 0  # written after the last look

    async def open(self) -> None:
        """Do nothing: the broker may be away; see LetterBackend."""

    def kept(self) -> LetterTotals:
        """Return what the stream had at the last look; see LetterBackend.

        Letters that are there twice count twice.
        """
        state = self._state
        if state is None:
            return LetterTotals(self._since_bytes, 0, None)
        oldest_us = text_us(state.oldest) if state.messages else None
        return LetterTotals(
            state.size_bytes + self._since_bytes,
            state.messages,
            oldest_us if isinstance(oldest_us, int) else None,
        )

    async def look(self) -> None:
        """Ask for the size of the stream; see LetterBackend."""
        since_bytes = self._since_bytes
        with suppress(BrokerAway, BrokerRefused):
            self._state = await self._messages.state()
            self._since_bytes -= since_bytes

    async def live(self, keys: Collection[bytes]) -> set[bytes]:
        """Return those that we have written before and that are still live; see LetterBackend."""
        if self._state is None:
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
        try:
            await for_each(letters.items(), self._keep)
        except IngestError as error:
            kind = DeadLettersFull if isinstance(error, BrokerFull) else DeadLettersBroken
            raise kind(f"the dead letters: {error}") from error
        finally:
            self._since_bytes += sum(len(each.line) + MESSAGE_BYTES for each in letters.values())

    async def _keep(self, new: tuple[bytes, NewLetter]) -> None:
        key, letter = new
        async with self._free:
            self._places[key] = await self._publish(letter)
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
