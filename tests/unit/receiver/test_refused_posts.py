"""Refused posts leave a trace: counted by code, and the last ones kept without their secrets."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import cast

from ingest.http.clients import Client, network_of
from ingest.http.request import Request
from ingest.model.errors import Refused
from ingest.model.ledger import Ledger
from ingest.receiver.senders import (
    BODY_BYTES_MAX,
    COUNTS_MAX,
    POSTS_MAX,
    POSTS_OF_PEER_MAX,
    RefusedPosts,
)
from tests.support.receiver import GOOD, head, post, running_receiver


async def test_refused_post_is_kept_with_peer_code_field_and_begin() -> None:
    """What a maker needs to find the fault, for the first post of a connection and later ones."""
    late = b'[{"device_id":"d","metric":"m","value":1,"ts":12},{"id":"d"}]'
    async with running_receiver() as receiver:
        await receiver.send(post(late))
        await receiver.send(post(b"{" + b"\xff" * 500))
        await receiver.send(post(GOOD, headers={"Content-Type": "text/plain"}))
        client = await receiver.connect()
        for body in (GOOD, b"[]"):
            await client.send(post(body))
            await client.reply()
        await receiver.send(head("GET", "/s3cret", {"X-API-Key": "s3cret"}))
        await receiver.send(post(GOOD))
        listed = receiver.refused_posts.listed()
    assert [each["code"] for each in listed] == [
        *("not_found", "empty", "unsupported_media_type", "not_json", "all_invalid")
    ]
    assert {each["peer"] for each in listed} == {"127.0.0.1"}
    assert "s3cret" not in json.dumps(listed), "no header, query or path"
    *_, typed, broken, item = listed
    assert (item["item_code"], item["field"]) == ("ts_too_old", "ts")
    assert item["body"] == '{"device_id":"d","metric":"m","value":1,"ts":12}', "the first of them"
    assert len(broken["body"]) == BODY_BYTES_MAX
    assert typed["body"] == GOOD.decode()[:BODY_BYTES_MAX]
    assert receiver.ledger.posts_refused == {each["code"]: 1 for each in listed}


async def test_refused_with_503_is_counted_and_drives_no_other_out() -> None:
    """Its cause is the service's own, and on /readyz."""
    async with running_receiver() as receiver:
        await receiver.send(post(b"[]"))
        receiver.admission.code = "starting"
        await receiver.send(post(b"[]"))
        assert [each["code"] for each in receiver.refused_posts.listed()] == ["empty"]
        assert receiver.ledger.posts_refused == {"empty": 1, "starting": 1}


def from_peer(address: str) -> Request:
    """Return a request of a client, as far as it is looked at."""
    client = Client(address, network_of(address))
    return cast(Request, SimpleNamespace(client=client, body_start=lambda _: b""))


def test_flood_of_refused_posts_is_bounded() -> None:
    """The last hundred are kept, twenty of an address, each with little of its body."""
    ledger = Ledger()
    posts = RefusedPosts(ledger)
    for number in range(1_000):
        peer = f"10.0.0.{number % 7}" if number < 990 else "10.0.0.9"
        refused = Refused("not_json", "")
        refused.body_start = b"%d " % number + b"x" * 1_000_000
        posts.refused(from_peer(peer), refused)
        posts.refused(None, Refused("bad_request", ""))
    listed = posts.listed()
    assert len(listed) == POSTS_MAX
    assert listed[0]["body"].startswith("999 ")
    assert max(len(each["body"]) for each in listed) == BODY_BYTES_MAX
    assert ledger.posts_refused == {"not_json": 1_000, "bad_request": 1_000}
    for _ in range(1_000):
        noisy = from_peer("2001:db8::7")
        refused = Refused("not_json", "")
        refused.body_start = b"{"
        posts.refused(noisy, refused)
    peers = Counter(each["peer"] for each in posts.listed())
    assert peers["2001:db8::7"] == POSTS_OF_PEER_MAX
    assert peers.total() == POSTS_MAX
    assert peers["10.0.0.9"] == 10, "the others' newest stay"
    assert posts.listed()[0]["count"] == 1_000
    for at in range(COUNTS_MAX):
        posts.refused(from_peer(f"10.1.{at >> 8}.{at & 255}"), Refused("not_json", ""))
    posts.refused(from_peer("2001:db8::7"), Refused("not_json", ""))
    assert posts.listed()[0]["count"] == 1, "the oldest counts are forgotten"
