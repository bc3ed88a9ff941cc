"""Reads the messages of the dead letters by their places, and deletes those that are done.

Promises: messages come in the order of the stream. Nobody waits for a time-out of its own after the
connection has ended. Deleting what is not there is no error.
Does not: notice messages that are damaged on the broker's disk. The broker leaves them out.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, TypeVar

import msgspec

from ingest.model.errors import BrokerAway, BrokerRefused
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import DEAD_LETTERS, NO_MESSAGE, NOTHING_TO_DELETE, Message
from ingest.roles.nats.stream_state import StreamState, state_of
from ingest.roles.nats.streams import Found, ask, look_at_stream

SILENCE_S_MAX = 5.0  # without a sign of the broker, while something is read
REQUESTS_MAX = 64  # at once
PART_MESSAGES, PART_BYTES = 500, 1024**2
_NO_MORE, _END = "404", "204"
_PLACE, _BEHIND = "Nats-Sequence", "Nats-Num-Pending"

T = TypeVar("T")


class StoredMessage(NamedTuple):
    """A message of a stream: its place there, its subject, its body.

    `behind`: how many messages of the subject that was asked for come after it.
    """

    place: int
    subject: str
    data: bytes
    behind: int = 0


class MessagePlace(NamedTuple):
    """Where a message is. The stream may be made anew; then another one has its place."""

    place: int
    message_id: str


class StreamMessages:
    """The messages of the stream of the dead letters, whoever has consumed them.

    Every method raises BrokerAway, or BrokerRefused.
    """

    def __init__(self, connection: BrokerConnection) -> None:
        self._connection = connection
        self._reading: set[_Reading] = set()
        connection.watch(lambda: None, self._went)

    async def state(self) -> StreamState:
        """Return how much there is."""
        state = await self.find_state()
        if state is None:
            raise BrokerRefused(
                f"the broker has no stream {DEAD_LETTERS}: `ingest stream apply` makes it"
            )
        return state

    async def find_state(self) -> StreamState | None:
        """Return how much there is, None if there is no stream."""
        return state_of(Found(await look_at_stream(self._connection, DEAD_LETTERS), None))

    async def read(
        self,
        place: int,
        subject: str,
        *,
        messages_max: int = PART_MESSAGES,
        bytes_max: int = PART_BYTES,
    ) -> list[StoredMessage]:
        """Return some messages of a subject, which may be a pattern, from a place on.

        There is none behind the last message. Beyond `bytes_max` there is at most one message.
        """
        request = {
            "seq": max(1, place),
            "next_by_subj": subject,
            "batch": messages_max,
            "max_bytes": bytes_max,
        }
        reading = _Reading()
        token = self._connection.call(
            f"$JS.API.DIRECT.GET.{DEAD_LETTERS}", msgspec.json.encode(request), reading.take
        )
        self._reading.add(reading)
        try:
            return await reading.end()
        finally:
            self._reading.discard(reading)
            self._connection.forget(token)

    async def present(self, those: Iterable[MessagePlace]) -> set[MessagePlace]:
        """Return those messages that are there now."""
        there: set[MessagePlace] = set()

        async def look(each: MessagePlace) -> None:
            subject = f"STREAM.MSG.GET.{DEAD_LETTERS}"
            found = await ask(self._connection, subject, {"seq": each.place}, NO_MESSAGE)
            headers = b"" if found is None else b64decode(found["message"].get("hdrs", ""))
            if f"Nats-Msg-Id: {each.message_id}\r\n".encode() in headers:
                there.add(each)

        await for_each(those, look)
        return there

    async def delete(self, places: Iterable[int]) -> None:
        """Delete messages; when this returns they are gone. After an error some of them are."""
        subject = f"STREAM.MSG.DELETE.{DEAD_LETTERS}"

        async def delete(place: int) -> None:
            # Without `no_erase` the broker writes random bytes over it, at five times the cost.
            request = {"seq": place, "no_erase": True}
            await ask(self._connection, subject, request, *NOTHING_TO_DELETE)

        await for_each(places, delete)

    def _went(self) -> None:
        for reading in self._reading:
            reading.fail(f"the connection to the broker has ended: {self._connection.why_away}")


class _Reading:
    """The replies to one request for several messages."""

    def __init__(self) -> None:
        self._found: list[StoredMessage] = []
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sign = asyncio.Event()

    def take(self, message: Message) -> None:
        self._sign.set()
        status = message.status
        if not status:
            at, behind = (int(message.headers[each]) for each in (_PLACE, _BEHIND))
            subject = message.headers["Nats-Subject"]
            self._found.append(StoredMessage(at, subject, message.data, behind))
        elif status in (_NO_MORE, _END):
            if not self._ended.done():
                self._ended.set_result(None)
        elif status == "503":
            self.fail("nobody answers: there is no such stream, or it has no leader")
        else:
            self.fail(f"it cannot be read: {message.headers.get('Description', status)}")

    def fail(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(BrokerAway(why))

    async def end(self) -> list[StoredMessage]:
        """Wait for the last reply, as long as replies come."""
        while not self._ended.done():
            self._sign.clear()
            await asyncio.wait((self._ended,), timeout=SILENCE_S_MAX)
            if not self._ended.done() and not self._sign.is_set():
                raise BrokerAway(f"the broker did not answer within {SILENCE_S_MAX:g} s")
        self._ended.result()
        return self._found


async def for_each(those: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do some work for each, for several at a time. Raises the first error, at the end."""
    left = deque(those)

    async def some() -> None:
        while left:
            await work(left.popleft())

    several = (some() for _ in range(min(len(left), REQUESTS_MAX)))
    outcomes = await asyncio.gather(*several, return_exceptions=True)
    for failed in filter(None, outcomes):
        raise failed
