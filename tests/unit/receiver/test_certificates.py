"""Identity by the name in a client's certificate, which only a trusted proxy may tell."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ingest.access.token_lines import TokenEntry, certificate_key, end_line, entry_line
from ingest.receiver.access import certificate_name
from tests.support.receiver import GOOD, Client, Receiver, Reply, head, post, running_receiver
from tests.support.tokens import OTHER, SECRET, in_force, line, put
from tests.unit.receiver.rows import request

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
