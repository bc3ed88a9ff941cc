"""Any stream of requests, in any pieces, is answered as its requests are alone, one by one.

Heads that have come before are known to the port, and skip the parser. That must change nothing.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import NamedTuple

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.http.request_and_answer import HEAD_END, KnownHeads
from ingest.model.block import decode_rows
from ingest.model.reading import Reading
from tests.support.posts import array
from tests.support.receiver import JSON, Receiver, head, post, running_receiver
from tests.support.wire import Sightings, Wire

PLAYS = 3  # of a stream on one port: a head is known when it comes for the third time
SMALL = 9_000  # the largest body that is taken


def reading(number: int, value: str = "") -> bytes:
    """Return a reading; all have the same size, so that their posts have the same head."""
    text = '{"device_id":"d%02d","metric":"m","ts":1750000000000,"value":%s}'
    return (text % (number, value or "1.5")).encode()


def chunked(body: bytes, size: int, end: bytes = b"0\r\n\r\n", coding: str = "") -> bytes:
    """Return a post in chunks."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    coded = {"Content-Encoding": coding} if coding else {}
    return head(headers={**JSON, "Transfer-Encoding": "chunked", **coded}) + chunks + end


def typed(number: int, **headers: str) -> bytes:
    """Return a post with further headers; `_` stands for a hyphen."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return post(reading(number), headers=named)


GZIP = {"Content-Encoding": "gzip"}
LINES = b"\r\n\r\n".join([b"", reading(7), b"0\r\n\r\n0", b""])
Make = Callable[[int], bytes]
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket"}

# By kind; the number is that of the device.
REQUESTS: dict[str, Make] = {
    "post": lambda n: post(reading(n)),
    "buffered": lambda n: post(reading(n), "?ack=buffered"),
    "array": lambda n: post(array(*[reading(n)] * 40)),
    "partly bad": lambda n: post(array(reading(n), reading(n, '"x"'))),
    "all bad": lambda n: post(reading(n, '"x"')),
    "not JSON": lambda n: post(b"{%02d" % n),
    "empty": lambda _: post(b""),
    "lines": lambda _: post(LINES),
    "gzip": lambda n: post(gzip.compress(reading(n), mtime=0), headers=GZIP),
    "chunks": lambda n: chunked(reading(n), 1 + n),
    "chunks with trailers": lambda n: chunked(
        reading(n), 30, b"0;a=b\r\nX-A: 0\r\nContent-Encoding: zstd\r\n\r\n"
    ),
    "chunk of lines": lambda n: chunked(LINES, 1 + n),
    "chunks of gzip": lambda n: chunked(gzip.compress(reading(n), mtime=0), 9, coding="gzip"),
    "livez": lambda _: head("GET", "/livez"),
    "livez, head only": lambda _: head("HEAD", "/livez"),
    "blank lines": lambda n: b"\r\n\r\n\r\n" + post(reading(n)),
    "blank line": lambda n: b"\r\n" + post(reading(n)),
    "no such page": lambda _: head("GET", "/no"),
    "large head": lambda n: typed(n, X="x" * 3_000),
    "expects": lambda n: typed(n, Expect="100-continue"),
    "HTTP/1.0, kept": lambda n: typed(n, Connection="keep-alive").replace(b"1.1", b"1.0", 1),
    "HTTP/1.0": lambda n: typed(n).replace(b"1.1", b"1.0", 1),
    "closing": lambda n: typed(n, Connection="close"),
    "token": lambda n: typed(n, Authorization=f"Bearer {n}"),
    "strange token": lambda n: typed(n, Authorization=f"Bearer {n}\t{n}"),
    "two tokens": lambda n: typed(n, Authorization=f"Bearer {n}", authorization=f"Token {n}"),
    "upgrade": lambda _: head("GET", "/livez", UPGRADE),
    "upgrade of a post": lambda n: post(reading(n), headers=UPGRADE),
    "upgrade in other letters": lambda n: post(
        reading(n), headers={"CONNECTION": "uPgRaDe", "UPGRADE": "h2c"}
    ),
    "connect": lambda _: head("CONNECT", "a:1"),
}
# They are refused by their head alone. If the body is not here then, the connection ends.
REFUSED_EARLY: dict[str, Make] = {
    "unknown parameter": lambda n: post(reading(n), "?no=1"),
    "media type": lambda n: typed(n, Content_Type="text/plain"),
    "encoding": lambda n: typed(n, Content_Encoding="zstd"),
    "two encodings": lambda n: typed(n, Content_Encoding="gzip\r\nContent-Encoding: gzip"),
    "expects more": lambda n: typed(n, Expect="200-ok"),
    "post to no page": lambda n: post(reading(n)).replace(b"/v1/readings", b"/v2/readings", 1),
    "put": lambda n: post(reading(n)).replace(b"POST", b"PUT", 1),
    "too large": lambda _: post(b" " * (SMALL + 1)),
    "bad chunk": lambda n: chunked(reading(n), 20, b"z\r\n\r\n"),
    "size in words": lambda n: chunked(reading(n), 20, b" 5\r\nabcde\r\n0\r\n\r\n"),
}
# Nothing is answered behind them.
ENDS = {
    "nothing": b"",
    "half a head": head("GET", "/livez")[:-7],
    "half a line": b"POST /v1/rea",
    "blank": b"\r\n",
    "half a body": post(reading(1))[:-9],
    "size too large": typed(1, Content_Length="999"),
    "half a chunk": chunked(reading(1), 30)[:-20],
    "not HTTP": b"SSH-2.0-client\r\n\r\n" + post(reading(1)),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(30),
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "size and chunks": typed(1, Transfer_Encoding="chunked") + b"0\r\n\r\n" + post(reading(2)),
    "two sizes": typed(1, content_length="5") + post(reading(2)),
    "other coding": typed(1, Transfer_Encoding="identity"),
    "signed size": typed(1, Content_Length="+62"),
    "bare line feeds": post(reading(1)).replace(b"\r\n", b"\n"),
    "space before colon": typed(1, Content_Length="62").replace(b"Length:", b"Length :"),
    "head too large": typed(1, X="x" * 9_000) + post(reading(2)),
}
ALL = {**REQUESTS, **REFUSED_EARLY}


class Element(NamedTuple):
    """A request of a stream, or its end."""

    kind: str
    data: bytes


class Outcome(NamedTuple):
    """What a connection has answered, and what was kept of its posts."""

    answers: list[tuple[int, object]]  # each with its status, and the code of a problem or its body
    has_ended: bool
    kept: list[Reading]
    written: bytes = b""


def requests(kinds: Sequence[str]) -> st.SearchStrategy[Element]:
    """Draw a request."""
    return st.builds(
        lambda kind, number: Element(kind, ALL[kind](number)),
        st.sampled_from(kinds),
        st.integers(0, 12),
    )


# Mostly posts that become known, and some of all other kinds between them.
STREAMS = st.builds(
    lambda elements, end: [*elements, Element(end, ENDS[end])],
    st.lists(
        requests(["post", "post", "buffered", "livez", "array"]) | requests(list(ALL)), max_size=9
    ),
    st.sampled_from(["nothing", "nothing", *ENDS]),
)
ROUNDS = st.lists(st.sampled_from([0, 0, 1, 2, 12]), min_size=1, max_size=6)
CUTS = st.lists(st.floats(0, 1), max_size=30)


def pieces_of(data: bytes, cuts: Sequence[float]) -> list[bytes]:
    """Cut at fractions of the length."""
    places = sorted({0, len(data), *(round(each * len(data)) for each in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


class Played:
    """A receiver whose connections are in memory."""

    def __init__(self, receiver: Receiver) -> None:
        self.connections = receiver.connections
        self.seen = Sightings(receiver.connections)
        self._blocks = receiver.inlet.blocks

    async def play(
        self, pieces: Sequence[bytes], rounds: Sequence[int] = (), *, in_peace: bool = True
    ) -> Outcome:
        """Send pieces on a new connection, and close the sending side."""
        before = len(self._blocks)
        wire = Wire(self.connections())
        await wire.send(*pieces, rounds=rounds)
        if in_peace:
            await wire.settled()
        has_ended = wire.has_ended
        wire.finish()
        await wire.settled()
        assert wire.is_closing(), "it waits for nothing any more"
        kept = [each for block in self._blocks[before:] for each in decode_rows(block.tuples)]
        written = re.sub(rb"Date: [^\r]*\r\n", b"", wire.written)
        return Outcome(list(answers(written)), has_ended, kept, written)


def answers(written: bytes) -> Iterator[tuple[int, object]]:
    """Take what was written apart. The answers to HEAD have no body, so sizes do not help."""
    written = written.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    for each in re.split(rb"HTTP/1\.1 (?=\d{3} [A-Z])", written)[1:]:
        told, _, body = each.partition(HEAD_END)
        is_problem = b"problem+json" in told and body
        yield int(told[:3]), json.loads(body)["code"] if is_problem else body


@contextmanager
def played() -> Iterator[tuple[Played, asyncio.Runner]]:
    """Run a receiver in a loop of its own: Hypothesis cannot call coroutines.

    It inflates nothing in a thread, since the rounds of the loop do not wait for one.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        patch.setattr("ingest.http.bodies.LIGHT_PACKED_BYTES", 1 << 30)
        running = running_receiver(body_bytes_max=SMALL)
        receiver = runner.run(running.__aenter__())
        yield Played(receiver), runner
        runner.run(running.__aexit__(None, None, None))


def joined(parts: Sequence[Outcome]) -> Outcome:
    """Return what a connection says that answers one request after the other."""
    told, kept = [], []
    for part in parts:
        told += part.answers
        kept += part.kept
        if part.has_ended:
            return Outcome(told, True, kept)
    return Outcome(told, False, kept)


def may_end_after(stream: Sequence[Element], pieces: Sequence[bytes]) -> Iterator[int]:
    """Yield how many requests are answered if one is refused before its body has come."""
    at, cuts = 0, set(accumulate(map(len, pieces)))
    for number, (kind, data) in enumerate(stream, 1):
        if kind in REFUSED_EARLY:
            body_at = at + data.index(HEAD_END) + len(HEAD_END)
            if not cuts.isdisjoint(range(body_at, at + len(data))):
                yield number
        at += len(data)


@pytest.mark.known_heads
def test_any_stream_in_any_pieces_is_answered_as_its_requests_alone() -> None:
    """The first time, when heads are seen again, and when they are known."""
    alone: dict[Element, Outcome] = {}
    with played() as (port, runner):

        def check(stream: list[Element], cuts: list[float], rounds: list[int]) -> None:
            port.connections.known_heads = None
            for each in stream:
                if each not in alone:
                    alone[each] = runner.run(port.play([each.data]))
            data = b"".join(each.data for each in stream)
            expected = joined([alone[each] for each in stream])
            assert runner.run(port.play([data]))[:3] == expected[:3]
            pieces = pieces_of(data, cuts)
            ends = [
                joined([alone[each] for each in stream[:count]])._replace(has_ended=True)
                for count in may_end_after(stream, pieces)
            ]
            port.connections.known_heads = KnownHeads()
            for _ in range(PLAYS):
                got = runner.run(port.play(pieces, rounds))
                assert got[:3] in [each[:3] for each in (expected, *ends)]
                assert runner.run(port.play([data]))[:3] == expected[:3]

        common = [Element(kind, ALL[kind](1)) for kind in ("post", "chunks", "livez")]
        streams = [[*common, Element(kind, ALL[kind](2)), *common] for kind in ALL]
        streams += [[*common, Element(kind, ENDS[kind])] for kind in ENDS]
        for stream in streams:
            for pieces in (1, 4, 30):
                check(stream, [each / pieces for each in range(pieces)], [1])
        settings(max_examples=100)(given(STREAMS, CUTS, ROUNDS)(check))()
        assert port.seen.taken > 100
    statuses = {status for each in alone.values() for status, _ in each.answers}
    assert statuses == {200, 202, 400, 404, 405, 413, 415, 422, 431}


@pytest.mark.known_heads
def test_any_bytes_are_answered_alike_with_and_without_known_heads() -> None:
    """Byte by byte the same answers, also to what nearly is HTTP."""
    with played() as (port, runner):

        @settings(max_examples=100)
        @given(STREAMS, st.data(), CUTS, ROUNDS)
        def holds(
            stream: list[Element], drawn: st.DataObject, cuts: list[float], rounds: list[int]
        ) -> None:
            data = bytearray(b"".join(each.data for each in stream))
            good = bytes(data)
            data += b"\r\n"
            for _ in range(drawn.draw(st.integers(0, 3))):
                place = drawn.draw(st.integers(0, len(data)))
                data[place : place + drawn.draw(st.integers(0, 2))] = drawn.draw(
                    st.sampled_from([b"", b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"0", b"9"])
                )
            pieces = pieces_of(bytes(data), cuts)
            port.connections.known_heads = None
            expected = runner.run(port.play(pieces, rounds))
            port.connections.known_heads = KnownHeads()
            for _ in range(PLAYS):
                runner.run(port.play([good]))
                assert runner.run(port.play(pieces, rounds)) == expected

        holds()
        assert port.seen.taken > 100


@pytest.mark.known_heads
def test_client_that_closes_its_sending_side_early_gets_all_its_answers() -> None:
    """Each request that is whole is answered, though the end comes at once behind it."""
    with played() as (port, runner):

        @settings(max_examples=100)
        @given(STREAMS, CUTS, ROUNDS)
        def holds(stream: list[Element], cuts: list[float], rounds: list[int]) -> None:
            data = b"".join(each.data for each in stream)
            pieces = pieces_of(data, cuts)
            port.connections.known_heads = KnownHeads()
            for _ in range(PLAYS):
                expected = runner.run(port.play(pieces, rounds))
                got = runner.run(port.play(pieces, rounds, in_peace=False))
                assert got.kept == expected.kept
                whole = min(len(expected.answers), len(got.answers))
                assert got.answers[:whole] == expected.answers[:whole]
                if stream[-1].kind == "nothing":
                    assert got.answers == expected.answers
                else:  # the rest of a request never comes
                    assert got.answers[whole:] in ([], [(400, "bad_request")])
                    assert len(expected.answers) - whole <= 1

        holds()
        assert port.seen.taken > 100
