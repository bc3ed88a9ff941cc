"""The automatic replay of a stream's dead letters: any writer may do it, and one of them does.

The consumer `replay` gives one message at a time to all writers together. Who has that message is
the one who replays: it searches all letters that can be replayed, as auto_replay.py does with
files. It deletes the messages of a block once the outcome of the block is known. At the end it
deletes the one message, if its letter was stored, or gives it back for later.
If the process is killed in between, another writer gets the message after a while. Some letters
are then sent twice, and the table's key makes the second time harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from ingest.broker.connection import BrokerConnection
from ingest.broker.envelope import Message
from ingest.broker.messages import StreamMessages
from ingest.broker.roles import DEAD_LETTERS, REPLAY, REPLAYED_SUBJECTS
from ingest.broker.streams import ACK_WAIT_S
from ingest.dead_letters.auto_replay import (
    BLOCK_ROWS_MAX,
    FAILURES_MAX,
    PAUSE_S_MAX,
    REPLAYED,
    UNLOCKED_S_MIN,
    finished,
)
from ingest.dead_letters.format import BadLine
from ingest.dead_letters.live import key_of
from ingest.dead_letters.reader import LiveLetter, Sieve, Tally
from ingest.dead_letters.sending import BlockSender, fits_a_row
from ingest.dead_letters.stream.store import letters_of
from ingest.model.errors import BrokerAway, BrokerRefused, BufferFull, Stopping
from ingest.system.backoff import backoff_s
from ingest.system.clock import monotonic_s, sleep_unless
from ingest.system.logs import get_logger

PULL_S = 1.0  # how long a request for the one message stays with the broker
LATE_S = 1.0
_PLACE_PART = -4  # of a reply subject: ..place.delivery.time.pending
_DONE, _WORKING, _NEVER = b"+ACK", b"+WPI", b"+TERM"

_log = get_logger()


class StreamReplayer:
    """The replay of one writer. `run` ends soon after `stopping` is set; it is never cancelled.

    It sends at most `rows_per_s`, and searches for letters every `pause_s`. While a block is being
    written, `replaying` has the keys of its letters: they are live, and are not appended again.
    `ack_wait_s` is that of the consumer.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        messages: StreamMessages,
        replaying: set[bytes],
        sender: BlockSender,
        *,
        post_rows_max: int,
        rows_per_s: int,
        pause_s: float,
        ack_wait_s: float = ACK_WAIT_S,
    ) -> None:
        self._connection = connection
        self._messages = messages
        self._replaying = replaying
        self._sender = sender
        self._rows_per_s = rows_per_s
        self._pause_s = pause_s
        self._ack_wait_s = ack_wait_s
        self._rows_max = min(BLOCK_ROWS_MAX, post_rows_max, rows_per_s)
        self._given: asyncio.Future[Message] | None = None
        connection.deliver_to(self._deliver, stream=DEAD_LETTERS)

    async def run(self, stopping: asyncio.Event) -> None:
        """Search for letters every `pause_s`, less often while they keep failing."""
        failures = 0
        pause_s = 0.0
        while not await sleep_unless(stopping, pause_s):
            went_well = True
            try:
                message = await self._take() if self._sender.may_send() else None
                if message is not None:
                    went_well = await self._replay_with(message, stopping)
            except (BrokerAway, BrokerRefused) as error:
                went_well = False
                _log.warning("replay_failed", why=str(error))
            pause_s = self._pause_s
            failures = 0 if went_well else failures + 1
            if failures:
                pause_s += backoff_s(failures, first_s=pause_s, cap_s=PAUSE_S_MAX)

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
        if token is None:
            raise BrokerAway(f"the broker is out of reach: {self._connection.why_away}")
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

    async def _replay_with(self, message: Message, stopping: asyncio.Event) -> bool:
        """Replay all letters while we have the one message; return False if some failed again."""
        own = _OwnMessage(int(message.reply_to.split(".")[_PLACE_PART]))
        keeping = asyncio.create_task(self._keep(message))
        try:
            return await self._replay_all(own, stopping)
        except (BufferFull, Stopping):
            return True  # no space now: live readings come first
        finally:
            keeping.cancel()
            if own.stored:
                await self._messages.delete([own.place])
                self._connection.send(message.reply_to, _DONE)
            elif not _can_be_replayed(message):
                # It stays for a replay by hand, and is in nobody's way.
                self._connection.send(message.reply_to, _NEVER)
            else:
                self._give_back(message, self._pause_s)

    async def _keep(self, message: Message) -> None:
        """Say that we still have the one message, until this is cancelled."""
        while True:
            await asyncio.sleep(self._ack_wait_s / 3)
            self._connection.send(message.reply_to, _WORKING)

    async def _replay_all(self, own: _OwnMessage, stopping: asyncio.Event) -> bool:
        """Replay all letters there are; return False if some of them failed again."""
        failed = failed_in_a_row = 0
        for subject in REPLAYED_SUBJECTS:
            place = 1
            while not stopping.is_set():
                began_s = monotonic_s()
                if not self._sender.may_send():
                    return not failed  # live readings come first
                stored = await self._messages.read(place, subject, messages_max=self._rows_max)
                if not stored:
                    break
                place = stored[-1].place + 1
                letters = letters_of(stored, Sieve(REPLAYED), Tally())
                well = await self._replay_some(letters, own, stopping)
                if well is None:
                    return not failed
                failed += not well
                failed_in_a_row = 0 if well else failed_in_a_row + 1
                if failed_in_a_row >= FAILURES_MAX:
                    return False
                spare_s = began_s + len(stored) / self._rows_per_s - monotonic_s()
                await sleep_unless(stopping, max(spare_s, UNLOCKED_S_MIN))
        return not failed

    async def _replay_some(
        self, letters: Sequence[LiveLetter], own: _OwnMessage, stopping: asyncio.Event
    ) -> bool | None:
        """Replay a block; return False if it failed again, None if its outcome is not known."""
        good = [each for each in letters if fits_a_row(each.letter)]
        if len(good) < len(letters):
            _log.warning("dead_letters_not_readings", lines=len(letters) - len(good))
        if not good:
            return True
        self._replaying.clear()  # of a block that had no outcome in time; it has one now
        self._replaying.update(key_of(each.id, each.letter.reason) for each in good)
        outcome = await self._sender.send(good, stopping)
        if outcome is None:
            return None  # its letters stay in `replaying` until the next block
        self._replaying.clear()
        places = {each.offset for each in finished(good, outcome)}
        well = len(places) == len(good)
        if places:
            own.stored |= own.place in places
            # Last: once it is gone, the consumer gives the next message to somebody else.
            await self._messages.delete(places - {own.place})
        _log.info("replayed", rows=len(places), set_aside_again=not well)
        return well


class _OwnMessage:
    """The one message: its place, and whether its letter was stored meanwhile."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.stored = False


def _can_be_replayed(message: Message) -> bool:
    try:
        found = Sieve(REPLAYED).wanted(message.data)
    except BadLine:
        return False
    return found is not None and fits_a_row(found.letter)
