"""Who may post: where a token or a certificate's name is found, and what a wrong one gets."""

from __future__ import annotations

import asyncio
import hmac
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import structlog

from ingest.access import token_lines as entries_module
from ingest.access import tokens as tokens_module
from ingest.access.token_lines import TokenEntry, certificate_key, end_line, entry_line
from ingest.access.tokens import Tokens
from ingest.admin.guard import Guard
from ingest.app.metrics_and_causes import own_metrics
from ingest.config.settings import Settings
from ingest.model.block import decode_rows
from ingest.model.errors import StartError
from ingest.model.ledger import POSTS
from ingest.receiver.access import certificate_name
from ingest.receiver.endpoint import Endpoint
from ingest.system.clock import unix_us
from tests.support.receiver import (
    GOOD,
    OTHER,
    SECRET,
    Client,
    Receiver,
    Reply,
    end,
    head,
    in_force,
    line,
    post,
    put,
    running_receiver,
)
from tests.unit.receiver.rows import request

BEARER = {"Authorization": f"Bearer {SECRET}"}


async def test_known_head_is_refused_once_its_token_ends() -> None:
    """The head of a device is always the same, and is not read again; its token may end."""
    tokens = in_force(line(), line(OTHER))
    async with running_receiver(tokens) as receiver:
        client = await receiver.connect()

        async def posted() -> int:
            await client.send(post(GOOD, headers=BEARER))
            return (await client.reply()).status

        assert [await posted() for _ in range(5)] == [202] * 5
        put(tokens, line(), end())
        assert [await posted() for _ in range(3)] == [401] * 3
        put(tokens, line(), line(OTHER))
        assert await posted() == 202
        put(tokens, line(devices=("other",)))
        assert await posted() == 403, "another scope counts too"


@pytest.mark.known_heads
async def test_tokens_whose_heads_are_alike_are_each_judged_by_themselves() -> None:
    """All but the token is known then: not whose it is, whether it lives, and what it may send."""
    scopes: dict[str, dict[str, Any]] = {
        "fine": {},
        "alike": {},
        "of its device": {"device": "d1"},
        "of others": {"devices": ("d2",)},
        "of a source": {"sources": ("plant",)},
        "of a format": {"formats": ("senml",)},
        "of the admin port": {"admin": "read"},
    }
    lines = [line(name, str(at), **scope) for at, (name, scope) in enumerate(scopes.items())]
    tokens = in_force(*lines, line("ended"), end("ended"))
    expected = dict.fromkeys(scopes, 403) | {"ended": 401, "nobody's": 401, "": 401}
    expected |= dict.fromkeys(("fine", "alike", "of its device"), 202)
    async with running_receiver(tokens) as receiver:
        client = await receiver.connect()
        for scheme in ("Bearer", "Token"):
            got = {}
            for name in [*expected] * 3:
                await client.send(post(GOOD, headers={"Authorization": f"{scheme} {name}"}))
                got[name] = (await client.reply()).status
            assert got == expected
        # What all have in common is known as the head with an empty Authorization. Who sends just
        # that has no token.
        for empty in ("", " "):
            await client.send(post(GOOD, headers={"Authorization": empty}))
            assert (await client.reply()).status == 401
        put(tokens, *lines[1:])
        await client.send(post(GOOD, headers={"Authorization": "Token fine"}))
        assert (await client.reply()).status == 401
        senders = {name: counts[POSTS] for name, counts in receiver.ledger.senders.items()}
        assert senders == {"token 0": 6, "token 1": 6, "token 2": 6, "token 3": 6}


@pytest.mark.known_heads
@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/v1/readings", "application/senml+json", b'[{"n":"t","v":1}]'),
        ("/write", "text/plain", b"climate t=1"),
    ],
    ids=["senml", "lines"],
)
async def test_device_of_a_token_is_its_own_where_heads_are_alike(
    path: str, kind: str, body: bytes
) -> None:
    """Readings without a device are of the device of the token that came with them."""
    devices = [f"d{number}" for number in range(5)]
    tokens = in_force(*(line(each, each, device=each) for each in devices), line("none"))
    async with running_receiver(tokens) as receiver:
        client = await receiver.connect()
        for each in ["none", *devices, "none", *devices]:
            headers = {"Content-Type": kind, "Content-Length": str(len(body))}
            headers["Authorization"] = f"Bearer {each}"
            await client.send(head("POST", path, headers) + body)
            await client.reply()
        kept = [row for block in receiver.inlet.blocks for row in decode_rows(block.tuples)]
    assert [each.device_id for each in kept] == devices * 2


async def test_token_expires_between_two_posts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expiry counts for known heads too."""
    now_us = unix_us()
    tokens = in_force(line(ends_us=now_us + 10**9))
    async with running_receiver(tokens) as receiver:
        client = await receiver.connect()
        for at, status in enumerate((202, 202, 202, 401)):
            if at == 3:
                monkeypatch.setattr("ingest.access.tokens.unix_us", lambda: now_us + 10**9)
                tokens.expire()
            await client.send(post(GOOD, headers=BEARER))
            assert (await client.reply()).status == status


# What a token may send


# Pages of browsers


# The start


async def test_start_beyond_the_loopback_needs_tokens_or_a_word() -> None:
    """`auto` never lets the network in by itself, and never refuses a whole fleet silently."""

    async def started(tokens: Tokens | None, access: str) -> Endpoint:
        receiver = Receiver(Settings(access=access), tokens)
        try:
            await receiver.endpoint.start("0.0.0.0", 0)
        finally:
            await receiver.close()
        return receiver.endpoint

    with pytest.raises(StartError, match="--access open"):
        await started(None, "auto")
    assert (await started(in_force(line()), "auto")).needs_token
    assert not (await started(None, "open")).needs_token
    assert (await started(None, "token")).needs_token


async def test_loopback_behind_a_proxy_needs_tokens_or_a_word() -> None:
    """All that the proxy brings comes from the loopback, and may be of the whole network."""
    receiver = Receiver(Settings(trusted_proxies="127.0.0.1"))
    with pytest.raises(StartError, match="trusted proxy"):
        await receiver.endpoint.start("127.0.0.1", 0)
    await receiver.close()


HEADER = "X-Client-Certificate"
PROXY, STRANGER = "127.0.0.1", "127.0.0.2"
SETTINGS = {"trusted_proxies": PROXY, "client_certificate_header": HEADER}
ENTRY = TokenEntry("boiler", certificate_key("boiler-7"), device="d1")
BOILER = entry_line(ENTRY)
OF_OTHER = GOOD.replace(b"d1", b"d2")


async def connected(receiver: Receiver, address: str) -> Client:
    """Connect from an address of the loopback."""
    host, _, port = receiver.address.rpartition(":")
    return Client(*await asyncio.open_connection(host, int(port), local_addr=(address, 0)))


async def send(receiver: Receiver, data: bytes, address: str = PROXY) -> Reply:
    """Send bytes from an address; return the answer."""
    client = await connected(receiver, address)
    await client.send(data)
    reply = await client.reply(head_only=data.startswith(b"HEAD"))
    await client.close()
    return reply


def told(name: str, body: bytes = GOOD, **more: str) -> bytes:
    """Return a post of a proxy that tells this name."""
    return post(body, headers={HEADER: name, **more})


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("boiler-7", "boiler-7"),
        (" boiler 7 ", "boiler 7"),
        ("CN=boiler-7", "boiler-7"),
        ("cn=boiler-7,OU=heating,O=a=b,C=DE", "boiler-7"),
        ("O=x, CN=boiler-7", "boiler-7"),
        # Not clear, or no CN.
        ("CN=boiler-7,CN=boiler-8", ""),
        ("CN=boiler-7+OU=x", ""),
        (r"O=x\,CN=boiler-7", ""),
        (r"CN=other\,CN=boiler-7", ""),
        ('O="x,CN=boiler-7"', ""),
        ("O=x;CN=boiler-7", ""),
        ("/O=x/CN=boiler-7", ""),
        ("/O=x/CN=other,CN=boiler-7", ""),  # one name with a comma, as HAProxy's ssl_c_s_dn has it
        ("O=x,other,CN=boiler-7", ""),
        ("1.2.840.3=x,CN=boiler-7", "boiler-7"),
        ("OU=CN=boiler-7", ""),
        ("O=x", ""),
        ("CN=", ""),
        ("", ""),
    ],
)
def test_name_is_that_of_the_subject(value: str, name: str) -> None:
    """A name alone, or a subject with one CN that every program reads in the same way."""
    assert certificate_name(value) == name


async def test_certificate_gives_the_scope_of_its_entry() -> None:
    """Its device only; another name, no name, two names and a wrong token are refused."""
    names = ("boiler", "boiler-8", "CN=x,CN=boiler-7", "certificate:boiler-7", "", SECRET)
    twice = told("boiler-7").replace(b"Host", HEADER.encode() + b": boiler-7\r\nHost")
    async with running_receiver(in_force(line(), BOILER), **SETTINGS) as receiver:
        for sent, status in (
            *((told(name), 202) for name in ("boiler-7", "CN=boiler-7,O=x")),
            (told("boiler-7", OF_OTHER), 403),
            *((told(name), 401) for name in names),
            (twice, 401),
            # A token counts before a certificate.
            (told("boiler-7", OF_OTHER, **{"X-API-Key": SECRET}), 202),
            (told("boiler-7", OF_OTHER, **{"X-API-Key": OTHER}), 401),
        ):
            assert (await send(receiver, sent)).status == status, sent
        senders = [each.sender for each in receiver.inlet.blocks]
        assert senders == [*["token boiler"] * 2, "token garden"]


async def test_head_of_a_proxy_is_nothing_from_anybody_else(tmp_path: Path) -> None:
    """On each page, also where the port knows the same bytes already, and before the proxy came."""
    file = tmp_path / "sources.toml"
    file.write_text('[[source]]\nname = "esp"\ndevice = "id"\n')
    name, settings = {HEADER: "CN=boiler-7"}, {**SETTINGS, "sources_file": str(file)}
    async with running_receiver(in_force(line(), BOILER), **settings) as receiver:
        for data, status in (
            (told(name[HEADER]), 202),
            (request("/write", b"m,device=d1 value=1", name), 204),
            (request("/v1/in/esp", b'{"id":"d1","temp":21.4}', name), 200),
            (head("HEAD", "/v1/in/esp", name), 200),
        ):
            spoof = data.replace(b"Host", b"X-Forwarded-For: 127.0.0.1\r\nHost")
            for _ in range(3):  # a head is known from the second time on
                assert (await send(receiver, data, STRANGER)).status == 401
                assert (await send(receiver, data)).status == status
                assert (await send(receiver, spoof, STRANGER)).status == 401
        assert len(receiver.inlet.blocks) == 9


async def test_certificate_that_ends_is_refused_where_its_head_is_known() -> None:
    """And is served again after the line of its end is gone."""
    tokens = in_force(line(), BOILER)
    async with running_receiver(tokens, **SETTINGS) as receiver:
        client = await connected(receiver, PROXY)
        for lines, status in (((), 202), ((end_line(ENTRY, 0),), 401), ((), 202)):
            put(tokens, line(), BOILER, *lines)
            for _ in range(3):
                await client.send(told("boiler-7"))
                assert (await client.reply()).status == status
        await client.close()


async def test_without_the_setting_the_header_counts_for_nothing() -> None:
    """A proxy that does not know of it may leave in what a client wrote."""
    async with running_receiver(in_force(line(), BOILER), trusted_proxies=PROXY) as receiver:
        assert (await send(receiver, told("boiler-7"))).status == 401


def as_written(target: str, *lines: str, body: bytes = GOOD) -> bytes:
    """Return a post to a target with these further header lines, as they are."""
    sized = ("Host: door", "Content-Type: application/json", f"Content-Length: {len(body)}")
    head = "\r\n".join((f"POST {target} HTTP/1.1", *sized, *lines))
    return head.encode("latin-1") + b"\r\n\r\n" + body


async def test_no_token_is_in_log_page_or_metric() -> None:
    """Right and wrong ones, in each place, kept and refused."""
    with structlog.testing.capture_logs() as lines:
        async with running_receiver(in_force(line())) as receiver:
            for token in (SECRET, OTHER):
                for query in ("", f"?p={token}", f"?p={token}&unknown=1", f"?p={token}&p={token}"):
                    for header in ({}, {"Authorization": f"Bearer {token}"}, {"X-API-Key": token}):
                        await receiver.post(GOOD, query, header)
                        await receiver.post(b"[", query, header)
                await receiver.send(as_written(f"/none/{token}?p={token}"))
                await receiver.send(f"NOT HTTP {token}\r\n\r\n".encode())
            shown = [
                own_metrics(receiver.ledger).text().decode(),
                json.dumps(receiver.refused_posts.listed()),
                repr(receiver.ledger.senders.keys()),
                repr(lines),
            ]
    for text in shown:
        assert SECRET not in text
        assert OTHER not in text
    assert "token garden" in shown[2]


def test_work_for_a_wrong_token_does_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is hashed whole, once, and only digests are looked up; the guard compares in full."""
    tokens, hashed, compared = in_force(line(), line(OTHER)), list[str](), list[bytes]()
    digest_of, compare = entries_module.digest_of, hmac.compare_digest

    def counting(token: str) -> str:
        hashed.append(token)
        return digest_of(token)

    def comparing(given: bytes, wanted: bytes) -> bool:
        compared.append(given)
        return compare(given, wanted)

    monkeypatch.setattr(tokens_module, "digest_of", counting)
    monkeypatch.setattr(hmac, "compare_digest", comparing)
    wrong = ["", "x", SECRET[:-1], SECRET[:-1] + "x", "x" + SECRET[1:], "x" * 5_000, "é"]
    assert not any(map(tokens.find, wrong))
    assert hashed == wrong
    guard = Guard("the admin token of it", tokens=tokens)
    hashed.clear()
    assert not any(guard.log_in(each) for each in (*wrong, SECRET))
    assert hashed == [*wrong, SECRET]
    assert compared == [each.encode() for each in hashed]


async def post_wrong_ones(receiver: Receiver, first: int, count: int) -> None:
    """Post with so many distinct wrong tokens, over one connection."""
    client = await receiver.connect()
    at_once = 50
    for start in range(first, first + count, at_once):
        tokens = (f"iot_{at:043}" for at in range(start, start + at_once))
        await client.send(
            b"".join(post(GOOD, headers={"Authorization": f"Bearer {each}"}) for each in tokens)
        )
        for _ in range(at_once):
            assert (await client.reply()).status == 401
    await client.close()


@pytest.mark.parametrize(
    "count", [6_000, pytest.param(200_000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
async def test_memory_is_flat_under_distinct_wrong_tokens(count: int) -> None:
    """Heads, plans, counts and refused posts are bounded: most of it is there after the first."""
    async with running_receiver(in_force(line())) as receiver:
        await post_wrong_ones(receiver, 0, 4_000)
        before_bytes = resident_bytes()
        await post_wrong_ones(receiver, 4_000, count)
        grown_bytes = resident_bytes() - before_bytes
        assert receiver.ledger.posts_refused == {"unauthorized": 4_000 + count}
    assert grown_bytes < 8 * 1024**2


def resident_bytes() -> int:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
