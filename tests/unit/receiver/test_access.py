"""Who may post: where a token is found, what a wrong one gets, what a token may not send."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from ingest.access.tokens import Tokens
from ingest.config.settings import Settings
from ingest.model.errors import StartError
from ingest.receiver.endpoint import Endpoint
from ingest.system.clock import unix_us
from tests.support.receiver import GOOD, Receiver, head, post, running_receiver
from tests.support.tokens import OTHER, SECRET, end, in_force, line, put

BEARER = {"Authorization": f"Bearer {SECRET}"}


def basic(user: str, password: str) -> dict[str, str]:
    """Return the header of a user and password."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


PLACES: list[tuple[str, dict[str, str]]] = [
    ("", BEARER),
    ("", {"authorization": f"bearer   {SECRET}"}),
    ("", {"Authorization": f"Token {SECRET}"}),
    ("", {"Authorization": f"Token user:{SECRET}"}),
    ("", basic("anybody", SECRET)),
    (f"?p={SECRET}", {}),
    (f"?u=me&p={SECRET}&ack=buffered", {}),
    (f"?ack=buffered&p=%69{SECRET[1:]}", {}),
    ("", {"X-API-Key": SECRET}),
    ("", {"x-auth-token": SECRET}),
    ("", {"Authorization": "Digest x", "X-API-Key": SECRET}),
    ("", {"Authorization": "Token ", "X-Auth-Token": SECRET}),
]


@pytest.mark.parametrize(("query", "headers"), PLACES)
async def test_token_is_found_where_clients_send_it(query: str, headers: dict[str, str]) -> None:
    """Each with a right one, and with a wrong one of the same length."""
    async with running_receiver(in_force(line())) as receiver:
        assert (await receiver.post(GOOD, query, headers)).status == 202
        wrong = {
            name: value.replace(SECRET, OTHER).replace(*(_in_base64(SECRET, OTHER)))
            for name, value in headers.items()
        }
        reply = await receiver.post(GOOD, query.replace(SECRET[1:], OTHER[1:]), wrong)
        assert (reply.status, reply.code) == (401, "unauthorized")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert len(receiver.inlet.blocks) == 1


def _in_base64(*tokens: str) -> tuple[str, str]:
    first, second = (basic("anybody", each)["Authorization"] for each in tokens)
    return first, second


WRONG: list[tuple[str, dict[str, str]]] = [
    ("", {}),
    ("", {"Authorization": ""}),
    ("", {"Authorization": SECRET}),
    ("", {"Authorization": f"Bearer {SECRET}x"}),
    ("", {"Authorization": f"Bearer {SECRET[:-1]}"}),
    ("", {"Authorization": f"Bearer {SECRET},{SECRET}"}),
    ("", {"Authorization": "Bearer " + "x" * 7000}),
    ("", {"Authorization": "Bearer \xff\xfe"}),
    ("", {"Authorization": "Basic !!!"}),
    ("", {"Authorization": "Basic \xff"}),
    ("", {"Authorization": "Basic " + base64.b64encode(SECRET.encode()).decode()}),
    ("", {"Authorization": f"Bearer {OTHER}", "X-API-Key": SECRET}),
    ("?p=", {}),
    (f"?P={SECRET}", {}),
    (f"?p={SECRET}%00", {}),
    (f"?p={SECRET}&p={SECRET}", {}),
    (f"?p={OTHER}", {"X-API-Key": SECRET}),
    ("?p=%ff%fe&u=%00", {}),
    ("", {"Authorization": f"Bearer {SECRET}", "authorization": f"Bearer {SECRET}"}),
    ("", {"X-API-Key": SECRET, "x-api-key": OTHER}),
    ("", {"Cookie": f"token={SECRET}"}),
]


@pytest.mark.parametrize(("query", "headers"), WRONG)
async def test_what_is_no_token_gets_401(query: str, headers: dict[str, str]) -> None:
    """No place is looked at after the first one that has a token, and none may have two."""
    async with running_receiver(in_force(line())) as receiver:
        reply = await receiver.send(raw_post(GOOD, query, headers))
        assert (reply.status, reply.code) == (401, "unauthorized")
        assert SECRET.encode() not in reply.body
        assert not receiver.inlet.blocks
        assert receiver.ledger.posts_refused == {"unauthorized": 1}
        (shown,) = receiver.refused_posts.listed()
        assert (shown["peer"], shown["code"]) == ("127.0.0.1", "unauthorized")
        assert SECRET not in json.dumps(shown)


def raw_post(body: bytes, query: str, headers: dict[str, str]) -> bytes:
    """Return a post whose headers are these bytes (Latin-1), repeated ones too."""
    lines = [f"POST /v1/readings{query} HTTP/1.1", "Host: door", f"Content-Length: {len(body)}"]
    lines += ["Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


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


async def test_refused_body_is_not_waited_for() -> None:
    """A wrong token gets its answer at once; a client cannot make the service read its body."""
    async with running_receiver(in_force(line())) as receiver:
        client = await receiver.connect()
        await client.send(head(headers={"Content-Length": "1000000"}))
        reply = await client.reply()
        assert reply.status == 401
        assert reply.headers["connection"] == "close"


async def test_probes_need_no_token() -> None:
    """A load balancer has none."""
    async with running_receiver(in_force(line())) as receiver:
        assert (await receiver.send(head("GET", "/livez"))).status == 200
        assert (await receiver.send(head("GET", "/readyz"))).status == 503


async def test_open_access_takes_every_token() -> None:
    """Devices that have one need not be changed: it is not looked at, wherever it is."""
    async with running_receiver(in_force(line()), access="open") as receiver:
        twice = {"Authorization": "Bearer x", "authorization": "Bearer y"}
        for query, headers in (("", twice), ("?u=a&p=b&p=c", {}), ("", {})):
            assert (await receiver.post(GOOD, query, headers)).status == 202


async def test_wrong_query_does_not_show_the_token() -> None:
    """The text of a refusal names the parameter, never its value."""
    async with running_receiver(in_force(line())) as receiver:
        for query in (f"?p={SECRET}&q=1", f"?p={SECRET}&ack=x"):
            reply = await receiver.post(GOOD, query)
            assert reply.status == 400
            assert SECRET.encode() not in reply.body
        assert SECRET not in json.dumps(receiver.refused_posts.listed())


# What a token may send


def of(*devices: str, value: Any = 1) -> bytes:
    """Return a post with a reading of each device."""
    items = [{"device_id": each, "metric": "m", "value": value} for each in devices]
    return json.dumps(items).encode()


async def test_readings_of_other_devices_are_dead_letters_and_the_rest_is_kept() -> None:
    """Small and large posts, one item or several; the dead letter has the item as posted."""
    tokens = in_force(line(devices=("green-*",)))
    async with running_receiver(tokens) as receiver:
        reply = await receiver.post(of("green-1", "blue", "green-2"), headers=BEARER)
        assert (reply.status, reply.document["accepted"]) == (202, 2)
        (error,) = reply.document["errors"]
        assert (error["index"], error["field"], error["code"]) == (1, "device_id", "not_allowed")
        (letter,) = receiver.dead_letters.letters
        assert (letter.reason, letter.code) == ("invalid", "not_allowed")
        assert (letter.sender, letter.devices) == ("garden", ("green-*",))
        assert json.loads(letter.original or b"")["device_id"] == "blue"
        assert {each.device_id for each in receiver.inlet.readings} == {"green-1", "green-2"}
        many = ["green-1"] * 1000 + ["blue"] + ["green-2"] * 1000
        reply = await receiver.post(of(*many), headers=BEARER)
        assert (reply.status, reply.document["accepted"]) == (202, 2000)
        assert [each["index"] for each in reply.document["errors"]] == [1000]


@pytest.mark.parametrize("count", [1, 2, 2000])
async def test_post_without_an_allowed_reading_gets_403(count: int) -> None:
    """Nothing of it is kept, also not as dead letters."""
    async with running_receiver(in_force(line(device="green"))) as receiver:
        body = of(*["blue"] * count) if count > 1 else of("blue")[1:-1]
        reply = await receiver.post(body, headers=BEARER)
        assert (reply.status, reply.code) == (403, "outside_scope")
        assert not receiver.dead_letters.letters
        assert not receiver.inlet.blocks
        assert receiver.ledger.rejected == {"outside_scope": count}
        assert (await receiver.post(of("green"), headers=BEARER)).status == 202


async def test_device_that_is_hidden_does_not_get_in() -> None:
    """The name twice, in other letters, or as an escape: what is stored is what was checked."""
    async with running_receiver(in_force(line(devices=("green",)))) as receiver:
        for body in (
            b'{"device_id":"blue","device_id":"green","metric":"m","value":1}',
            b'{"device_id":"green","device_id":"blue","metric":"m","value":1}',
            b'{"device_id":"green","device\\u005fid":"blue","metric":"m","value":1}',
            b'{"device_id":"blu\\u0065","metric":"m","value":1}',
            b'{"device_id":"blue","values":{"a":1,"b":2}}',
        ):
            for query in ("", "?unknown=ignore"):
                reply = await receiver.post(body, query, BEARER)
                assert reply.status in (403, 422), reply.body
        assert not receiver.inlet.blocks


async def test_source_and_format_are_limits() -> None:
    """A token of another source is refused before the body is read."""
    async with running_receiver(in_force(line(sources=("ttn",)))) as receiver:
        reply = await receiver.post(GOOD, headers=BEARER)
        assert (reply.status, reply.code) == (403, "outside_scope")


# Pages of browsers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": "http://door"}, 202),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "none"}, 202),
        ({"Sec-Fetch-Site": "same-origin"}, 202),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none", "sec-fetch-site": "cross-site"}, 403),
        ({"Origin": "http://door", "origin": "http://evil.example"}, 403),
    ],
)
async def test_pages_of_other_sites_may_not_post(headers: dict[str, str], status: int) -> None:
    """With a right token too: a page of another site may have learned it. Probes as well."""
    async with running_receiver(in_force(line())) as receiver:
        reply = await receiver.send(raw_post(GOOD, "", {**BEARER, **headers}))
        assert reply.status == status
        assert (await receiver.post(GOOD, headers=BEARER)).status == 202
        probe = await receiver.send(head("GET", "/livez", headers))
        assert probe.status == (200 if status == 202 else 403) or len(headers) > 1


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 202),
        ("127.0.0.1", 202),
        ("[::1]:8080", 202),
        ("Ingest.Example:443", 202),
        ("evil.example", 421),
        ("localhost.evil.example:8080", 421),
        ("", 421),
    ],
)
async def test_page_of_a_name_that_points_to_the_loopback(host: str, status: int) -> None:
    """An attacker's name may point to 127.0.0.1. A program sends no Origin, and any Host works:
    a proxy on this machine keeps the Host of its clients."""
    async with running_receiver(host_names="ingest.example,b") as receiver:
        lines = f"POST /v1/readings HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(GOOD)}\r\n"
        by_page = f"{lines}Origin: http://{host}\r\n\r\n".encode() + GOOD
        assert (await receiver.send(by_page)).status == status
        assert (await receiver.send(f"{lines}\r\n".encode() + GOOD)).status == 202


async def test_post_without_a_media_type_is_json() -> None:
    """A page of another site could send it too, so the guard must be there."""
    async with running_receiver() as receiver:
        plain = f"POST /v1/readings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GOOD)}\r\n"
        assert (await receiver.send(f"{plain}\r\n".encode() + GOOD)).status == 202
        foreign = f"{plain}Origin: http://evil.example\r\n\r\n".encode() + GOOD
        assert (await receiver.send(foreign)).status == 403


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
