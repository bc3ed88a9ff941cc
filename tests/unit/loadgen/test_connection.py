"""Answers are read from pieces of any size; other bytes get an error with a name."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.driver.connection import (
    ANSWER_BYTES_MAX,
    HEAD_BYTES_MAX,
    Answer,
    Answers,
    BadAnswer,
    Connection,
)
from tests.support.peer import Peer, hangs_up, reply, resets, says

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

GOOD = {
    "plain": (reply(202, b"{}"), Answer(202, b"{}", False, None)),
    "empty": (reply(200, b""), Answer(200, b"", False, None)),
    "no words": (b"HTTP/1.1 202\r\nContent-Length: 1\r\n\r\nx", Answer(202, b"x", False, None)),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", Answer(204, b"", False, None)),
    "names in any case": (
        b"HTTP/1.1 503 x\r\ncontent-LENGTH:2\r\nRETRY-after:\t7 \r\n\r\nno",
        Answer(503, b"no", False, 7),
    ),
    "closes": (reply(503, b"bye", Connection="keep-alive, Close"), Answer(503, b"bye", True, None)),
    "a date to come back": (
        reply(503, b"", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),
        Answer(503, b"", False, None),
    ),
    "nonsense to come back": (reply(503, b"", Retry_After="-1"), Answer(503, b"", False, None)),
    "very long to come back": (
        reply(503, b"", Retry_After="9" * 5000),
        Answer(503, b"", False, None),
    ),
    "the same length twice": (
        reply(202, b"ab", content_length="2"),
        Answer(202, b"ab", False, None),
    ),
    "an empty line in the body": (
        reply(202, b"a\r\n\r\nHTTP/1.1 "),
        Answer(202, b"a\r\n\r\nHTTP/1.1 ", False, None),
    ),
    "chunked": (
        CHUNKED + b"3\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\n",
        Answer(200, b"abc0123456789", False, None),
    ),
    "chunked, with all that it may have": (
        CHUNKED + b"2;name=value\r\n\r\n\r\n1 \r\nx\r\n000\r\nTrailer: t\r\nOther: o\r\n\r\n",
        Answer(200, b"\r\nx", False, None),
    ),
    "chunked and empty": (CHUNKED + b"0\r\n\r\n", Answer(200, b"", False, None)),
    "as long as allowed": (
        reply(200, bytes(ANSWER_BYTES_MAX)),
        Answer(200, bytes(ANSWER_BYTES_MAX), False, None),
    ),
}

BAD = {
    "HTTP/1.0": (b"HTTP/1.0 202 Accepted\r\nContent-Length: 0\r\n\r\n", "in HTTP/1.0"),
    "HTTP/2": (b"HTTP/2 202\r\n\r\n", "not HTTP/1.1"),
    "TLS": (b"\x15\x03\x01\x00\x02\x02", "not HTTP/1.1"),
    "SSH": (b"SSH-2.0-OpenSSH\r\n", "not HTTP/1.1"),
    "an empty line first": (b"\r\nHTTP/1.1 202 x\r\n\r\n", "not HTTP/1.1"),
    "status of four digits": (b"HTTP/1.1 2020 x\r\n\r\n", "not HTTP/1.1"),
    "no status": (b"HTTP/1.1 \r\n\r\n", "not HTTP/1.1"),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n", "interim"),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", "interim"),
    "no length": (b"HTTP/1.1 202 x\r\n\r\nbody", "length cannot be told"),
    "two lengths": (reply(202, b"ab", content_length="3"), "length cannot be told"),
    "length and chunks": (reply(202, b"", Transfer_Encoding="chunked"), "length cannot be told"),
    "gzip, chunked": (
        b"HTTP/1.1 202 x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "length cannot be told",
    ),
    "negative length": (b"HTTP/1.1 202 x\r\nContent-Length: -1\r\n\r\n", "length cannot be told"),
    "length in words": (b"HTTP/1.1 202 x\r\nContent-Length: ten\r\n\r\n", "length cannot be told"),
    "length of many digits": (
        b"HTTP/1.1 202 x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        "length cannot be told",
    ),
    "too long": (
        b"HTTP/1.1 202 x\r\nContent-Length: %d\r\n\r\n" % (ANSWER_BYTES_MAX + 1),
        "more than 1 MiB",
    ),
    "too long in chunks": (
        CHUNKED + b"%x\r\n" % ANSWER_BYTES_MAX + bytes(ANSWER_BYTES_MAX) + b"\r\n1\r\n",
        "more than 1 MiB",
    ),
    "a field without a colon": (b"HTTP/1.1 202 x\r\nnonsense\r\n\r\n", "head cannot be read"),
    "a folded field": (b"HTTP/1.1 202 x\r\nA: b\r\n c\r\n\r\n", "head cannot be read"),
    "a space before the colon": (
        b"HTTP/1.1 202 x\r\nContent-Length : 0\r\n\r\n",
        "head cannot be read",
    ),
    "a head without an end": (
        b"HTTP/1.1 202 x\r\n" + b"A: b\r\n" * (HEAD_BYTES_MAX // 6),
        "head does not end",
    ),
    "more than was said": (reply(202, b"ab") + b"c", "more bytes"),
    "another answer": (reply() + reply(), "more bytes"),
    "more after the chunks": (CHUNKED + b"0\r\n\r\nx", "more bytes"),
    "chunk without a length": (CHUNKED + b"\r\n", "chunks that cannot be read"),
    "chunk with a wrong length": (CHUNKED + b"2\r\nabc\r\n", "chunks that cannot be read"),
    "chunk of negative length": (CHUNKED + b"-1\r\n", "chunks that cannot be read"),
    "chunk line without an end": (CHUNKED + b"1;" + b"x" * 300, "chunks that cannot be read"),
}


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """Cut bytes at these places."""
    edges = sorted({0, len(data), *(each % (len(data) + 1) for each in at)})
    return [data[begin:end] for begin, end in pairwise(edges)]


def feed_all(answers: Answers, pieces: list[bytes]) -> None:
    """Feed pieces that make no answer."""
    for piece in pieces:
        assert answers.feed(piece) is None


@pytest.mark.parametrize("name", GOOD)
@given(at=st.lists(st.integers(0, 10**7), max_size=6))
def test_answer_is_read_out_of_any_pieces(name: str, at: list[int]) -> None:
    """An answer is read from any pieces, and so is the next one on the connection."""
    data, expected = GOOD[name]
    answers = Answers()
    for _ in range(2):
        *first, last = cut(data, at)
        for piece in first:
            assert answers.feed(piece) is None
            assert answers.begun
        assert answers.feed(last) == expected
        assert not answers.begun


@pytest.mark.parametrize("name", BAD)
@given(at=st.lists(st.integers(0, 10**7), max_size=3))
def test_what_is_no_answer_is_named_in_any_pieces(name: str, at: list[int]) -> None:
    """Bytes that are no answer raise BadAnswer, in any pieces.

    Bytes after an answer may come later: then the answer counts, without them.
    """
    data, why = BAD[name]
    pieces = cut(data, [] if why == "more bytes" else at)
    with pytest.raises(BadAnswer, match=why):
        feed_all(Answers(), pieces)


@dataclass
class Owner:
    """Notes the calls of a connection."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def answered(self, connection: Connection, answer: Answer) -> None:
        """Note it."""
        self.calls.append(("answered", answer.status, answer.body, connection.open))
        self.news.set()

    def broken(self, connection: Connection, why: str) -> None:
        """Note it."""
        self.calls.append(("broken", why, connection.open))
        self.news.set()

    def closed(self, connection: Connection) -> None:
        """Note it."""
        self.calls.append(("closed", connection.open))
        self.news.set()

    async def next(self) -> tuple[object, ...]:
        """Return the next call."""
        async with asyncio.timeout(5):
            await self.news.wait()
        self.news.clear()
        (one,) = self.calls
        self.calls.clear()
        return one


async def wired(peer: Peer) -> tuple[Owner, Connection]:
    """Connect to the peer."""
    owner = Owner()
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: Connection(owner, {}), "127.0.0.1", peer.port
    )
    return owner, connection


REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n1"


@pytest.mark.parametrize(
    ("script", "call"),
    [
        (hangs_up, ("broken", "the connection was closed without an answer", False)),
        (resets, ("broken", "the connection was reset", False)),
        (says(reply()[:-1], then_hangs_up=True), ("broken", "the answer was cut off", False)),
        (says(reply()[:20], then_hangs_up=True), ("broken", "the answer was cut off", False)),
        (says(CHUNKED + b"9\r\n", then_hangs_up=True), ("broken", "the answer was cut off", False)),
        (says(b"hello"), ("broken", "an answer that is not HTTP/1.1", False)),
        (says(reply(Connection="close")), ("answered", 202, b'{"accepted":1}', False)),
    ],
)
async def test_end_of_a_connection_is_told_once_and_named(
    script: object, call: tuple[object, ...]
) -> None:
    """The end of a connection is one call for its request; the connection is then not open."""
    async with Peer(usual=script) as peer:  # type: ignore[arg-type]
        owner, connection = await wired(peer)
        connection.send(REQUEST)
        assert await owner.next() == call
        connection.drop("again")  # no further call
    assert owner.calls == []
