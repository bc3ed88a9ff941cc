"""The connection to the broker, which comes back by itself.

Promises: `send` and `call` never wait. Whoever called and has no reply is told at once when the
connection ends, and again when there is a new one, so that nobody waits for a time-out of its own.
Does not: send anything a second time. Only the caller knows what may be sent twice.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ingest.model.errors import BrokerAway, StartError
from ingest.roles.nats.protocol import PULL, Address, Message, inbox_of
from ingest.system import clock
from ingest.system.logs import Occasionally, get_logger
from ingest.system.waiting import backoff_s

if TYPE_CHECKING:
    from ingest.roles.nats.session import Session

AGAIN_S_MIN, AGAIN_S_MAX = 0.05, 1.0
WARNING_S = 60.0

_log = get_logger("broker")

OnReply = Callable[[Message], None]


class BrokerConnection:
    """A connection for one role. `where` is asked before each try, since passwords change.

    Raises StartError if the NATS library is not installed: it comes with an extra. Blocks 0.1 s the
    first time.
    """

    def __init__(self, where: Callable[[], Address], role: str) -> None:
        try:
            from ingest.roles.nats.session import Session  # noqa: PLC0415
        except ImportError as error:
            raise StartError(
                f"the broker needs the extra `roles` ({error}): install iot-ingest[roles]"
            ) from error
        self._session_type = Session
        self._why_away = "not connected yet"
        self._where = where
        self._role = role
        self._session: Session | None = None
        self._replies: dict[int, OnReply] = {}
        self._hears: dict[str, tuple[OnReply, str]] = {}  # with their queue groups
        self._on_delivery_of: dict[str, OnReply] = {}  # by stream
        self._last_token = 0
        self._watchers: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self.tried = asyncio.Event()  # the first try to connect has ended; `up` says how
        self._occasionally = Occasionally(WARNING_S)

    @property
    def up(self) -> bool:
        """Whether there is a connection, as far as we know."""
        return self._session is not None and not self._session.ended.is_set()

    @property
    def why_away(self) -> str:
        """Why there is no connection, in words for people."""
        ended = self._session is not None and self._session.why_ended
        return ended or self._why_away

    @property
    def payload_bytes_max(self) -> int:
        """The largest message that the broker takes; 0 while there is no connection."""
        return self._session.payload_bytes_max if self._session is not None else 0

    def watch(self, came: Callable[[], None], went: Callable[[], None]) -> None:
        """Call `came` after each connect, and `went` after each end of a connection."""
        self._watchers.append((came, went))

    def deliver_to(self, on_delivery: OnReply, stream: str) -> None:
        """Give all messages that are pulled from this stream to this function."""
        self._on_delivery_of[stream] = on_delivery

    def hear(self, subject: str, on_message: OnReply, *, group: str = "") -> None:
        """Give all messages of a subject to this function, from the next connect on.

        Of a group only one member gets each message. What is sent while we are not connected is
        missed.
        """
        self._hears[subject] = on_message, group

    def send(self, subject: str, payload: bytes = b"") -> bool:
        """Send a message that nobody answers. Return False, and send nothing, if we are away."""
        if self._session is None or not self.up:
            return False
        self._session.put(subject, payload)
        return True

    def call(
        self,
        subject: str,
        payload: bytes,
        on_reply: OnReply,
        *,
        headers: Mapping[str, str] | None = None,
        pulls: bool = False,
    ) -> int:
        """Send a message; return the token of its replies. Raises BrokerAway: nothing was sent.

        `on_reply` gets all replies, until the token is forgotten or the connection ends. If it
        `pulls` messages, these go elsewhere: they do not say which call they belong to.
        """
        if self._session is None or not self.up:
            raise BrokerAway(f"the broker is out of reach: {self.why_away}")
        self._last_token += 1
        token = self._last_token
        self._replies[token] = on_reply
        reply_to = f"{self._session.inbox}.{PULL if pulls else ''}{token}"
        self._session.put(subject, payload, reply_to, headers)
        return token

    def forget(self, token: int) -> None:
        """Take no more replies to a call. Repeatable."""
        self._replies.pop(token, None)

    async def request(self, subject: str, payload: bytes, within_s: float) -> Message:
        """Return the first reply. Raises BrokerAway if there is none, or nobody who answers."""
        replied: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def take(message: Message) -> None:
            if not replied.done():
                replied.set_result(message)

        token = self.call(subject, payload, take)
        session = self._session
        assert session is not None, "it has taken the call"
        ended = asyncio.ensure_future(session.ended.wait())
        try:
            await asyncio.wait((replied, ended), timeout=within_s, return_when="FIRST_COMPLETED")
        finally:
            ended.cancel()
            self.forget(token)
        if not replied.done() and session.ended.is_set():
            raise BrokerAway(f"the connection to the broker has ended: {session.why_ended}")
        if not replied.done():
            raise BrokerAway(f"the broker did not answer {subject} within {within_s:g} s")
        message = replied.result()
        if message.status == "503":
            raise BrokerAway(f"nobody answers {subject}: JetStream is off, or has no leader")
        return message

    async def run(self, stopping: asyncio.Event) -> None:
        """Keep a connection until the event is set; then send what waits, and close."""
        failures = 0
        while not stopping.is_set():
            session = await self._connect()
            self.tried.set()
            if session is None:
                pause_s = backoff_s(failures, first_s=AGAIN_S_MIN, cap_s=AGAIN_S_MAX)
                failures += 1
                await clock.sleep_unless(stopping, pause_s)
                continue
            failures = 0
            self._came(session)
            try:
                await session.serve(stopping)
            finally:
                self._went(session, stopping)
        await asyncio.gather(*self._closing)

    def _came(self, session: Session) -> None:
        self._session = session
        _log.info("broker_connected", server=session.server)
        for came, _ in self._watchers:
            came()

    def _went(self, session: Session, stopping: asyncio.Event) -> None:
        self._session = None
        self._why_away = session.why_ended or "closed"
        self._replies.clear()
        if not stopping.is_set():
            _log.warning("broker_away", server=session.server, why=self._why_away)
        for _, went in self._watchers:
            went()
        task = asyncio.create_task(session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _connect(self) -> Session | None:
        """Try each server once; return the first session, or None."""
        address = self._where()
        for server in random.sample(address.servers, len(address.servers)):
            inbox = inbox_of(self._role, os.urandom(8).hex())
            session = self._session_type(server, inbox, self._take, self._hears)
            try:
                await session.open(address, self._role)
            except BrokerAway as error:
                self._why_away = f"{server}: {error}"
                if self._occasionally.due(self.why_away) is not None:
                    _log.warning("broker_not_reached", server=server, why=str(error))
                await session.close()
            else:
                return session
        return None

    def _take(self, token: str, message: Message) -> None:
        on_reply = self._replies.get(int(token)) if token else self._taker(message)
        if on_reply is not None:
            on_reply(message)

    def _taker(self, message: Message) -> OnReply | None:
        for stream, on_delivery in self._on_delivery_of.items():
            if f".{stream}." in message.reply_to:
                return on_delivery
        return None


@asynccontextmanager
async def connected(address: Address, role: str) -> AsyncIterator[BrokerConnection]:
    """Yield a connection for a command. Raises BrokerAway if the first try fails."""
    connection = BrokerConnection(lambda: address, role)
    stopping = asyncio.Event()
    task = asyncio.create_task(connection.run(stopping))
    try:
        await connection.tried.wait()
        if not connection.up:
            raise BrokerAway(f"cannot connect to the broker: {connection.why_away}")
        yield connection
    finally:
        stopping.set()
        await task
