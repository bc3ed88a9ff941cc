"""Heads that come again: which are remembered, for how long, and which requests skip the parser."""

from __future__ import annotations

import pytest
from aiohttp.http_exceptions import LineTooLong

from ingest.http.connection import TRIES
from ingest.http.request_and_answer import (
    KNOWN_BYTES_MAX,
    KNOWN_MAX,
    SEEN_MAX,
    Answer,
    KnownHeads,
    Request,
    code_of,
)
from tests.support.receiver import head, post, until
from tests.support.wire import Sightings, Wire, connections_of, echo, head_of

BODY = b"0123456789"
POST = post(BODY)
HEAD = POST[: -len(BODY)]
CHUNKS = head(headers={"Transfer-Encoding": "chunked"})


def numbered(number: int) -> bytes:
    """Return a head that no other number has."""
    return head("POST", f"/v1/readings?n={number}", {"Content-Length": "10"})


async def learned(text: bytes, times: int = 2) -> KnownHeads:
    """Return known heads after the parser took this one so often."""
    known = KnownHeads()
    for _ in range(times):
        known.parsed(text, head_of(text))
    return known


async def test_head_is_known_when_it_has_come_twice_and_only_by_its_very_bytes() -> None:
    """The same in other letters, in another order or with another size is another head."""
    text = head(headers={"Content-Length": "10", "X-A": "1"})
    assert (await learned(text, times=1)).find(text) is None
    known = await learned(text)
    found = known.find(text)
    assert found is not None
    assert (found.method, found.raw_path, found.body_bytes) == ("POST", "/v1/readings", 10)
    for other in (
        text.replace(b"Length", b"length"),
        text.replace(b": 10", b":  10"),
        text.replace(b": 10", b": 11"),
        text.replace(b"X-A: 1\r\n", b"").replace(b"Host", b"X-A: 1\r\nHost"),
        text + b"\r\n",
        text[:-2],
        b"",
    ):
        assert known.find(other) is None


@pytest.mark.parametrize(
    "text",
    [
        head("HEAD", "/livez"),
        post(BODY, headers={"Connection": "keep-alive"}).replace(b"1.1", b"1.0", 1)[: -len(BODY)],
        CHUNKS,
        head(headers={"Content-Length": "10", "Expect": "100-continue"}),
        head(headers={"Content-Length": "10", "Content-Encoding": "gzip"}),
        head("GET", "/livez", {"Connection": "Upgrade", "Upgrade": "websocket"}),
        head("GET", "/livez", {"X": "x" * KNOWN_BYTES_MAX}),
    ],
    ids=["HEAD", "HTTP/1.0", "chunked", "expects", "compressed", "upgrade", "large"],
)
async def test_head_that_needs_care_is_never_known(text: bytes) -> None:
    """The parser takes it each time."""
    assert (await learned(text, times=5)).find(text) is None


def of_token(token: str, more: str = "", name: str = "Authorization") -> bytes:
    """Return the head of a post with a token."""
    text = head(headers={"Content-Length": "10", "X-A": "1", name: "?", "X-B": "2"})
    return text.replace(b"?", token.encode()).replace(b"X-B", more.encode() + b"X-B")


@pytest.mark.parametrize("name", ["Authorization", "authorization"])
async def test_head_is_known_apart_from_its_authorization(name: str) -> None:
    """After two, with one token or with two; it is as the parser would read it."""
    known = KnownHeads()
    for token in ("Bearer a", "Basic b"):
        text = of_token(token, name=name)
        assert known.find(text) is None
        known.parsed(text, head_of(text))
    for token in ("Bearer c", "c", "", " c ", "Bearer a", "Bearer c"):
        text = of_token(token, name=name)
        found, parsed = known.find(text), head_of(text)
        assert found is not None
        assert found.common is not None, "so whoever sends none has no share of another's plan"
        assert list(found.headers.items()) == list(parsed.headers.items())
        for each in ("method", "raw_path", "version", "keeps_open", "body_bytes", "is_plain"):
            assert getattr(found, each) == getattr(parsed, each)
    assert known.find(of_token("Bearer c", name=name).replace(b"X-A: 1", b"X-A: 2")) is None


@pytest.mark.parametrize(
    "token",
    ["a\tb", "é", "a\nX-C: 3", "a\rb", "a\0b", "a\x7f", "x" * KNOWN_BYTES_MAX],
    ids=["tab", "no ASCII", "line feed", "return", "zero", "delete", "large"],
)
async def test_strange_authorization_is_left_to_the_parser(token: str) -> None:
    """It may refuse it, or read it otherwise."""
    known = KnownHeads()
    for each in ("Bearer a", "Bearer b", "Bearer c"):
        known.parsed(of_token(each), head_of(of_token(each)))
    assert known.find(of_token("Bearer d")) is not None
    assert known.find(of_token(token)) is None


async def test_head_with_two_authorizations_is_known_as_a_whole_only() -> None:
    """Which of them counts is not said here."""
    known = KnownHeads()
    texts = [of_token(each, "AUTHORIZATION: x\r\n") for each in ("x", "x", "y", "z", "z")]
    for text in texts:
        known.parsed(text, head_of(text))
    assert [known.find(each) is not None for each in texts] == [True, True, False, True, True]


async def test_ever_new_heads_drive_out_no_head_in_use_and_fill_no_memory() -> None:
    """The heads in use stay. One that is not used goes, and is learned anew."""
    used, unused = numbered(-1), numbered(-2)
    known = await learned(used)
    for _ in range(2):
        known.parsed(unused, head_of(unused))
    some = head_of(used)
    for number in range(10 * KNOWN_MAX):
        if number % (KNOWN_MAX // 2) == 0:
            assert known.find(used) is not None
        for _ in range(2):
            known.parsed(numbered(number), some)
        assert len(known._known) + len(known._older) <= 2 * KNOWN_MAX
    assert known.find(unused) is None
    for number in range(3 * SEEN_MAX):
        known.parsed(numbered(-number - 3), some)
        assert len(known._seen) <= SEEN_MAX
    assert known.find(used) is not None


# On connections


@pytest.mark.known_heads
async def test_known_head_skips_the_parser_on_each_connection_of_the_port() -> None:
    """The third request on has it; and the first one of another connection."""
    connections = connections_of(echo)
    seen = Sightings(connections)
    wire = Wire(connections())
    assert await wire.answered(POST, POST, POST, POST) == [BODY] * 4
    assert seen.known == [False, False, True, True]
    assert await Wire(connections()).answered(POST) == [BODY]
    assert seen.taken == 3


@pytest.mark.known_heads
async def test_known_head_of_a_last_request_ends_its_connection() -> None:
    """Devices open one for each post. What they send behind it is not answered."""
    connections = connections_of(echo)
    seen = Sightings(connections)
    last = post(BODY, headers={"Connection": "close"})
    for sent in (last, last, last, last + POST):
        wire = Wire(connections())
        assert await wire.answered(sent) == [BODY]
        assert wire.is_closing()
    assert seen.known == [False, False, True, True]


async def kept(request: Request) -> Answer:
    """Answer as a page does that takes the post."""
    request.head.plan = "a plan"
    return await echo(request)


@pytest.mark.known_heads
async def test_body_that_comes_behind_a_known_head_skips_the_parser_too() -> None:
    """In the next bytes, and perhaps with the next request. In more pieces it is parsed."""
    connections = connections_of(kept)
    seen = Sightings(connections)
    wire = Wire(connections())
    assert await wire.answered(POST, POST, HEAD, BODY) == [BODY] * 3
    assert seen.known == [False, False, True]
    assert await wire.answered(HEAD + BODY[:1], BODY[1:] + POST + HEAD, BODY) == [BODY] * 3
    assert seen.taken == 4
    assert await wire.answered(HEAD, BODY[:4], BODY[4:]) == [BODY]
    assert seen.taken == 4
    assert not connections._unfinished.largest()[1]


@pytest.mark.known_heads
async def test_head_of_a_token_counts_once_if_its_body_comes_behind_it() -> None:
    """Else each head of such a fleet would be remembered, and would drive out those in use.

    What they have in common is known after two, though no body comes with its head.
    """
    connections = connections_of(kept)
    for token in ("Bearer a", "Bearer b", "Bearer c", "Bearer d"):
        await Wire(connections()).answered(of_token(token), BODY)
    assert connections.known_heads is not None
    found = connections.known_heads.find(of_token("Bearer e"))
    assert found is not None
    assert [*connections.known_heads._known.values()] == [found.common]


@pytest.mark.known_heads
async def test_body_that_does_not_come_behind_a_known_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is awaited for a time, then as any other body. The client may also be gone."""
    monkeypatch.setattr("ingest.http.connection.BODY_S", 0.2)
    connections = connections_of(kept)
    seen = Sightings(connections)
    slow, gone, ended = Wire(connections()), Wire(connections()), Wire(connections())
    assert await slow.answered(POST, POST) == [BODY] * 2
    for each in (slow, gone, ended):
        await each.send(HEAD)
    assert len(connections._unfinished.largest()[1]) == 3
    ended.finish()
    gone.close()
    await until(lambda: seen.known == [False, False, False])
    assert await slow.answered(BODY) == [BODY]
    assert ended.is_closing()
    assert not connections._unfinished.largest()[1]


@pytest.mark.known_heads
async def test_connection_whose_heads_are_new_each_time_is_given_up() -> None:
    """They are neither looked for nor remembered any more. Others have what is known."""
    connections = connections_of(echo)
    seen = Sightings(connections)
    fine, given_up = Wire(connections()), Wire(connections())
    await fine.answered(POST, POST)
    for round_ in range(3):  # a known head in time begins the count anew
        at = round_ * TRIES
        await given_up.answered(*(numbered(at + n) + BODY for n in range(TRIES - 1)), POST)
    assert seen.taken == 3
    await given_up.answered(*(numbered(1_000 + number) + BODY for number in range(TRIES)))
    other = post(b"x" * 11)
    assert await given_up.answered(POST, other, other, other) == [BODY, *[b"x" * 11] * 3]
    assert seen.taken == 3
    assert await fine.answered(other, other, POST) == [b"x" * 11, b"x" * 11, BODY]
    assert seen.taken == 4


async def test_what_a_port_does_not_queue_is_parsed_each_time() -> None:
    """The admin port remembers no heads: its requests are few."""
    connections = connections_of(echo)
    connections.plain_bodies = connections.known_heads = None
    seen = Sightings(connections)
    assert await Wire(connections()).answered(*[POST] * 5) == [BODY] * 5
    assert seen.known == [False] * 5


def test_code_of_a_fault_tells_large_heads_from_bad_ones() -> None:
    """The parser says which it was only in words."""
    large = LineTooLong(b"x", 1)
    faults = (large, ValueError("Too many headers received"), ValueError("bad"))
    assert [code_of(each) for each in faults] == [
        "headers_too_large",
        "headers_too_large",
        "bad_request",
    ]
