"""What the automatic replay takes from a stream: any writer may do it, and one of them does.

The consumer `replay` gives one message at a time to all writers together. Who has that message is
the one who replays: it searches all letters that can be replayed. It deletes the messages of a
block once the outcome of the block is known. At the end it deletes the one message, if its letter
was stored, or gives it back for later.
If the process is killed in between, another writer gets the message after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from ingest.broker.connection import BrokerConnection
from ingest.broker.envelope import Message
from ingest.broker.messages import StreamMessages
from ingest.broker.roles import DEAD_LETTERS, REPLAY, REPLAYED_SUBJECTS
from ingest.broker.streams import ACK_WAIT_S
from ingest.dead_letters.auto_replay import REPLAYED, fits_a_row
from ingest.dead_letters.format import key_of
from ingest.dead_letters.store import LiveLetter, Sieve
from ingest.dead_letters.stream.store import letters_of

PULL_S = 1.0  # how long a request for the one message stays with the broker
LATE_S = 1.0
_PLACE_PART = -4  # of a reply subject: ..place.delivery.time.pending
_DONE, _WORKING, _NEVER = b"+ACK", b"+WPI", b"+TERM"


class StreamReplay:
    """Implements ReplaySource. A message that is given back comes again after `pause_s`.

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
        self._own_place = int(message.reply_to.split(".")[_PLACE_PART])
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
