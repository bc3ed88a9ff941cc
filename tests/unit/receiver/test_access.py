"""Who may post: where a token is found, what a wrong one gets, what a token may not send."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.access.tokens import Tokens
from ingest.config.settings import Settings
from ingest.model.block import decode_rows
from ingest.model.errors import StartError
from ingest.model.ledger import POSTS
from ingest.receiver.endpoint import Endpoint
from ingest.system.clock import unix_us
from tests.support.receiver import GOOD, Receiver, head, post, running_receiver
from tests.support.tokens import OTHER, SECRET, end, in_force, line, put

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
