"""Connections in memory, for tests that choose in which pieces the bytes come; heads and requests.

A `Wire` is the transport of one connection, and its client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from ingest.http.clients import Client
from ingest.http.connection import READ_BYTES
from ingest.http.connections import Connections
from ingest.http.framer import Framer, Valve
from ingest.http.request_and_answer import Answer, Head, Reply, Request, problem
from ingest.http.rounds import PlainBodies
from ingest.model.errors import Refused

READ_BYTES_MAX = 256 * 1024  # of one read of a socket
ROUNDS_QUIET = 12  # after so many rounds without anything new, nothing more comes
ROUNDS_PAUSED = 500


class Wire(asyncio.Transport):
    """The transport of one connection, and its client, which reads everything at once.

    As with a socket, bytes that come while reading is paused are delivered together later.
    """

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.written = b""
        self.has_ended = False  # the server sends no more
        self.is_paused = False
        self._protocol = protocol
        self._inbox = b""
        self._no_more = False
        self._closing = False
        protocol.connection_made(self)

    # What a client does

    async def send(self, *pieces: bytes, rounds: Sequence[int] = ()) -> None:
        """Send pieces. After each, let the server run for some rounds of the loop."""
        for number, piece in enumerate(pieces):
            self._inbox += piece
            self._deliver()
            for _ in range(rounds[number % len(rounds)] if rounds else 0):
                await asyncio.sleep(0)

    async def settled(self) -> bytes:
        """Let the server run until it has nothing to do; return what it has written so far."""
        before, quiet, paused = -1, 0, 0
        while quiet < ROUNDS_QUIET or self._inbox:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self.written) == before else 0
            before = len(self.written)
            if self.is_paused and paused < ROUNDS_PAUSED:  # a body is parsed in many rounds
                quiet, paused = 0, paused + 1
            if self._closing:
                self._inbox = b""
        return self.written

    async def answered(self, *pieces: bytes) -> list[bytes]:
        """Send pieces, and wait after each; return the bodies of the answers, without problems."""
        before = len(self.written)
        for piece in pieces:
            await self.send(piece)
            await self.settled()
        answers = self.written[before:].split(b"HTTP/1.1 200 OK\r\n")
        return [each.partition(b"\r\n\r\n")[2] for each in answers[1:]]

    def finish(self) -> None:
        """Close the client's sending side."""
        self._no_more = True
        self._deliver()

    def _deliver(self) -> None:
        while self._inbox and not (self.is_paused or self._closing):
            data, self._inbox = self._inbox[:READ_BYTES_MAX], self._inbox[READ_BYTES_MAX:]
            self._protocol.data_received(data)
        if self._no_more and not (self._inbox or self.is_paused or self._closing):
            self._no_more = False
            if not self._protocol.eof_received():
                self.close()

    # What the protocol calls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Nothing is known about the client."""
        return default

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self._closing

    def close(self) -> None:
        """Close. The protocol is told in the next round."""
        if not self._closing:
            self._closing = self.has_ended = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        """Close: nothing waits to be sent."""
        self.close()

    def pause_reading(self) -> None:
        """Deliver nothing for now."""
        self.is_paused = True

    def resume_reading(self) -> None:
        """Deliver in the next round."""
        self.is_paused = False
        asyncio.get_running_loop().call_soon(self._deliver)

    def write(self, data: Any) -> None:
        """Take an answer."""
        assert not self.has_ended, "nothing may follow the last answer"
        self.written += data

    def can_write_eof(self) -> bool:
        """It can."""
        return True

    def write_eof(self) -> None:
        """Close the server's sending side."""
        self.has_ended = True

    def get_write_buffer_size(self) -> int:
        """Nothing waits: the client reads."""
        return 0


class Sightings:
    """Notes the requests that a port begins, and which of them had a head that was known.

    Such a request has the same object as its head as one before it.
    """

    def __init__(self, connections: Connections) -> None:
        self.known: list[bool] = []
        self._heads: list[Head] = []
        self._answer = connections.answer
        connections.answer = self._note

    @property
    def taken(self) -> int:
        """How many requests had a known head."""
        return sum(self.known)

    def _note(self, request: Request) -> Reply:
        known = any(request.head is each for each in self._heads)
        self.known.append(known)
        if not known:
            self._heads.append(request.head)
        return self._answer(request)


def connections_of(answer: Callable[[Request], Reply], **limits: float) -> Connections:
    """Return the connections of a bare port that remembers heads."""
    given: dict[str, Any] = {"connections_max": 100, "header_s_max": 5, "keepalive_s_max": 5}
    return Connections(
        answer,
        lambda code: problem(Refused(code, "")),
        plain_bodies=PlainBodies(
            body_bytes_max=1 << 20, body_s_max=5, all_bytes_max=1 << 26, inflated_bytes_max=1 << 22
        ),
        **{**given, **limits},
    )


async def echo(request: Request) -> Answer:
    """Answer with the body of the request, or with its path."""
    if request.content is not None:
        return Answer(200, await request.content.read())
    return Answer(200, request.body or request.head.raw_path.encode())


def head_of(data: bytes) -> Head:
    """Return what the parser makes of a head."""
    framer = Framer(Valve(), asyncio.get_running_loop(), READ_BYTES)
    framer.feed(data, 0)
    assert framer.head is not None, "it is whole"
    return framer.head


def request_of(data: bytes, body: bytes = b"") -> Request:
    """Return a request that has arrived whole, of a client that is gone."""
    sender: Any = SimpleNamespace(valve=Valve(), reply=lambda _: None, proxies=None)
    return Request(head_of(data), Client("", ""), sender, body)
