"""One connection to the broker, from its login to its end, by the NATS library.

The library logs in and parses. It does not reconnect here: requests that were under way would wait
for their time-outs, and an error that it does not expect would end it for ever, without a word.
Nor does it use a transport of its own: that one raises errors in places where the library does not
expect them, and its clean-up then stops half way.
Promises: the end of the connection is told at once, whoever meets it first. After that, writing
does nothing and reading gives the end. Closing never waits: a frozen server would not read what is
left to send. If TLS is wanted, nothing is sent without it: the library would log in without TLS at
a server that says that it has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from urllib.parse import ParseResult, urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import Transport
from nats.errors import Error as NatsError

from ingest.model.errors import BrokerAway
from ingest.roles.nats.protocol import PULL, Address, Message
from ingest.system.logs import get_logger
from ingest.system.loopback import has_foreign_owner

CONNECT_S_MAX = 2.0  # for one server
PING_S = 1.0  # between the end of one ping and the next
PONG_S_MAX = 2.0  # a frozen server is left after this
CLOSE_S_MAX = 1.0
_NEVER_S = 1_000_000  # the library's own pings, which we replace
_CLOSED = "the server has closed the connection"
_NO_HEADERS: Mapping[str, str] = {}

_log = get_logger("broker")


class _Ended(Exception):
    """The library has met an error; raised in its callback, it ends the library's own retries."""


class Session:
    """One connection. `take` gets the token of a reply, or nothing for a pulled message.

    `hears` are further subjects, who gets their messages, and the queue group that shares them.
    """

    def __init__(
        self,
        server: str,
        inbox: str,
        take: Callable[[str, Message], None],
        hears: Mapping[str, tuple[Callable[[Message], None], str]],
    ) -> None:
        self.server = server
        self.inbox = inbox
        self.ended = asyncio.Event()
        self.why_ended = ""
        self._take = take
        self._hears = hears
        self._client = Client()
        # The library makes a transport of its own only if it has none.
        self._client._transport = BrokerTransport(self.end, tls=server.startswith("tls://"))
        self._is_open = False
        self._outgoing: deque[tuple[str, bytes, str, dict[str, str] | None]] = deque()
        self._has_outgoing = asyncio.Event()

    @property
    def payload_bytes_max(self) -> int:
        """The largest message that the server takes."""
        return self._client.max_payload

    async def open(self, address: Address, role: str) -> None:
        """Connect and log in. Raises BrokerAway; then close it."""
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                await self._open(address, role)
        except TimeoutError as error:
            raise BrokerAway(f"no answer within {CONNECT_S_MAX:g} s") from error
        except (_Ended, OSError, NatsError) as error:
            raise BrokerAway(_words(error)) from error

    async def _open(self, address: Address, role: str) -> None:

        def password() -> str:
            # The library asks for it once the server has greeted, before it sends anything.
            if address.ours and has_foreign_owner(urlsplit(self.server).port or 0):
                raise PermissionError("another user's program has the port of our broker")
            return address.password

        tls = None
        if self.server.startswith("tls://"):
            tls = ssl.create_default_context(cafile=address.ca_file or None)
        await self._client.connect(
            servers=[self.server],
            name=f"iot-ingest {role}",
            user=address.user or None,
            password=password if address.user else None,
            tls=tls,
            allow_reconnect=False,
            connect_timeout=max(1, int(CONNECT_S_MAX)),
            ping_interval=_NEVER_S,
            error_cb=self._failed,
            disconnected_cb=self._closed,
            closed_cb=self._closed,
        )
        for each in (f"{self.inbox}.*", f"{self.inbox}.{PULL}*"):
            # Without bounds: beyond them the library would drop what we have asked for.
            await self._client.subscribe(
                each, cb=self._received, pending_msgs_limit=0, pending_bytes_limit=0
            )
        for subject, (on_message, group) in self._hears.items():
            await self._client.subscribe(subject, group, cb=_to(on_message))
        await self._client.flush()
        self._is_open = True

    def put(
        self,
        subject: str,
        payload: bytes,
        reply_to: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a message in one of the next rounds of the event loop."""
        self._outgoing.append((subject, payload, reply_to, dict(headers) if headers else None))
        self._has_outgoing.set()

    async def serve(self, stopping: asyncio.Event) -> None:
        """Send what is put, until the connection ends or the event is set."""
        tasks = [
            asyncio.create_task(each)
            for each in (self._send_all(), self._ping(), self.ended.wait(), stopping.wait())
        ]
        try:
            await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
            if not self.ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_S_MAX):
                        while self._outgoing and not self.ended.is_set():  # noqa: ASYNC110
                            await asyncio.sleep(0.001)
        finally:
            self.end("closed")  # before: on Python 3.11 a ping can miss that it is cancelled
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close the socket."""
        self.end("closed")
        with contextlib.suppress(_Ended, OSError, NatsError):
            async with asyncio.timeout(CLOSE_S_MAX):
                await self._client.close()

    def end(self, why: str) -> None:
        """Note that the connection must not be used any more. The first reason counts."""
        self.why_ended = self.why_ended or why
        self.ended.set()

    async def _send_all(self) -> None:
        # The library hides a cancellation while it waits for the socket, so the end is looked at.
        try:
            while not self.ended.is_set():
                await self._has_outgoing.wait()
                self._has_outgoing.clear()
                while self._outgoing and not self.ended.is_set():
                    await self._client.publish(*self._outgoing.popleft())
        except Exception as error:  # whatever it is: this connection must not be used any more
            self.end(_words(error))

    async def _ping(self) -> None:
        try:
            while not self.ended.is_set():
                await asyncio.sleep(PING_S)
                async with asyncio.timeout(PONG_S_MAX):
                    await self._client.rtt(timeout=int(PONG_S_MAX) + 1)
        except TimeoutError:
            self.end(f"the server has not answered a ping for {PONG_S_MAX:g} s")
        except Exception as error:  # as above
            self.end(_words(error))

    async def _received(self, msg: Msg) -> None:
        # A message that was pulled keeps the subject that it was stored with.
        token = msg.subject.rpartition(".")[2] if msg.subject.startswith(self.inbox) else ""
        self._take(token, Message(msg.reply, msg.data, msg.headers or _NO_HEADERS))

    async def _failed(self, error: Exception) -> None:
        if not self._is_open:
            raise _Ended(_words(error)) from error
        if "permissions violation" in str(error):
            # The server refuses one message and keeps the connection. Nobody will answer.
            _log.error("broker_forbids", why=_words(error))
        elif isinstance(error, OSError | NatsError):
            self.end(_words(error))
        else:  # a bug of ours, in a callback
            _log.error("broker_callback_failed", exc_info=error)
            self.end(_words(error))

    async def _closed(self) -> None:
        self.end(_CLOSED)


def _to(on_message: Callable[[Message], None]) -> Callable[[Msg], Awaitable[None]]:
    async def received(msg: Msg) -> None:
        on_message(Message(msg.reply, msg.data, msg.headers or _NO_HEADERS))

    return received


def _words(error: Exception) -> str:
    """Return an error of the library in words: it begins them with its name."""
    text = str(error).removeprefix("nats: ").strip("'") or type(error).__name__
    if "authorization violation" in text.lower():
        return "the user or the password is wrong"
    return text


class BrokerTransport(Transport):
    """`ended` is called with the reason, perhaps more than once. `tls`: send nothing without it."""

    def __init__(self, ended: Callable[[str], None], *, tls: bool = False) -> None:
        self._ended = ended
        self._lacks_tls = tls
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._is_over = False

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect. Raises OSError."""
        async with asyncio.timeout(connect_timeout):
            self._reader, self._writer = await asyncio.open_connection(
                uri.hostname, uri.port, limit=buffer_size
            )

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,
        connect_timeout: int,
    ) -> None:
        """Go on with TLS. Raises OSError."""
        assert self._writer is not None, "connected before"
        name = uri if isinstance(uri, str) else uri.hostname
        async with asyncio.timeout(connect_timeout):
            await self._writer.start_tls(ssl_context, server_hostname=name)
        self._lacks_tls = False

    def write(self, payload: bytes) -> None:
        """Send bytes, or nothing after the end. Raises OSError without the TLS that is wanted."""
        self.writelines([payload])

    def writelines(self, payload: list[bytes]) -> None:
        """Send bytes, or nothing after the end. Raises OSError without the TLS that is wanted."""
        if self._lacks_tls:
            raise OSError("the URL says tls://, and the server offers no TLS; nothing was sent")
        if self._is_over or self._writer is None:
            return
        try:
            self._writer.writelines(payload)
        except (OSError, RuntimeError) as error:  # RuntimeError: closed a moment ago
            self._end(str(error))

    async def drain(self) -> None:
        """Wait until the socket takes more bytes, or the connection has ended."""
        if self._is_over or self._writer is None:
            return
        try:
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            self._end(str(error))

    async def read(self, buffer_size: int) -> bytes:
        """Return what has come, or nothing at the end."""
        return await self._read(lambda reader: reader.read(buffer_size))

    async def readline(self) -> bytes:
        """Return one line, or less at the end."""
        return await self._read(lambda reader: reader.readline())

    async def _read(
        self, read: Callable[[asyncio.StreamReader], Coroutine[None, None, bytes]]
    ) -> bytes:
        if self._is_over or self._reader is None:
            return b""
        try:
            data = await read(self._reader)
        except (OSError, ValueError) as error:  # ValueError: a line that is too long
            self._end(str(error))
            return b""
        if not data:
            self._end(_CLOSED)
        return data

    def at_eof(self) -> bool:
        """Whether nothing more comes."""
        return self._is_over or self._reader is None or self._reader.at_eof()

    def close(self) -> None:
        """Close at once; what was not sent is lost."""
        self._is_over = True
        if self._writer is not None:
            self._writer.transport.abort()

    async def wait_closed(self) -> None:
        """Let the event loop close the socket."""
        await asyncio.sleep(0)

    def __bool__(self) -> bool:
        """Whether it is there: the library makes one of its own if not."""
        return True

    def _end(self, why: str) -> None:
        self._is_over = True
        self._ended(why)
