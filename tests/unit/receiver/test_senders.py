"""How much one sender may send and has sent, with a clock that the test moves; refused posts."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from types import SimpleNamespace
from typing import cast

import pytest

from ingest.access.tokens import ANYBODY, Tokens
from ingest.http.clients import Client, network_of
from ingest.http.connection import Connection
from ingest.http.request_and_answer import Request
from ingest.model.causes import Trouble
from ingest.model.errors import Refused
from ingest.model.ledger import OTHER_SENDERS, SENDERS_MAX, Ledger
from ingest.receiver import senders as module
from ingest.receiver.access import Access
from ingest.receiver.senders import (
    BODY_BYTES_MAX,
    COUNTS_MAX,
    FORGET_S,
    NOT_STORED_MAX,
    POSTS_MAX,
    POSTS_OF_PEER_MAX,
    WAIT_S_MAX,
    Account,
    Rates,
    RefusedPosts,
    SenderLimits,
    Senders,
)
from tests.support.receiver import (
    BAD,
    GOOD,
    OTHER,
    SECRET,
    head,
    in_force,
    line,
    post,
    running_receiver,
)
from tests.support.wire import connections_of, echo


class Clock:
    """Monotonic seconds."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock of the accounts."""
    clock = Clock()
    monkeypatch.setattr(module, "monotonic_s", clock)
    return clock


def made(rates: Rates) -> Account:
    """Return an account."""
    return Account("one", rates, [0, 0, 0])


def wait_s(quota: Account) -> float:
    """Try a post; return after how many seconds it may come, 0: it was taken."""
    try:
        quota.take_post()
    except Refused as refused:
        return refused.retry_after_s or 0.0
    return 0.0


def test_burst_is_taken_then_the_rate(clock: Clock) -> None:
    """Posts: ten at once, then one a second; and the wait that is told is enough."""
    quota = made(Rates(posts_per_s=1, burst_s=10))
    assert [wait_s(quota) for _ in range(10)] == [0] * 10
    with pytest.raises(Refused) as raised:
        quota.take_post()
    assert raised.value.code == "too_fast"
    told_s = raised.value.retry_after_s or 0.0
    assert told_s == pytest.approx(1)
    clock.now_s += told_s - 0.01
    assert wait_s(quota) > 0
    clock.now_s += 0.02
    assert wait_s(quota) == 0


@pytest.mark.parametrize("rate", [5e-324, 1e-310, 1e-300, 1e-9])
def test_tiny_rate_tells_a_wait_that_a_header_can_have(clock: Clock, rate: float) -> None:
    """The wait may be infinite, as a number: then 30 days are told."""
    posts, readings = made(Rates(posts_per_s=rate)), made(Rates(readings_per_s=rate))
    assert (wait_s(posts), wait_s(readings)) == (0, 0)
    readings.charge(1, 1)
    assert (wait_s(posts), wait_s(readings)) == (WAIT_S_MAX, WAIT_S_MAX)


def test_large_post_is_taken_once_and_paid_for(clock: Clock) -> None:
    """Readings: a debt of one post at most, and the mean rate is the limit."""
    quota = made(Rates(readings_per_s=100, burst_s=1))
    assert wait_s(quota) == 0
    quota.charge(5_000, 0)
    assert wait_s(quota) == pytest.approx(49)
    clock.now_s += 49.01
    assert wait_s(quota) == 0


@pytest.mark.parametrize("rate", [0.01, 3, 1_000])
def test_mean_rate_is_never_above_the_limit(clock: Clock, rate: float) -> None:
    """Ten times as many posts are tried, at random moments, for a long time."""
    drawn = random.Random(1)
    quota = made(Rates(posts_per_s=rate, burst_s=10))
    taken, began_s = 0, clock.now_s
    for _ in range(20_000):
        clock.now_s += drawn.expovariate(10 * rate)
        taken += wait_s(quota) == 0
    passed_s = clock.now_s - began_s
    assert 0.9 * rate * passed_s <= taken <= rate * (passed_s + 10) + 1


def senders_of(rates: Rates, ledger: Ledger) -> Senders:
    """Return senders that need no token."""
    access = Access(Tokens(), access="open", host_names=(), has_proxies=False)
    return Senders(access, SenderLimits(rates), ledger)


class _Connection:
    proxies = None


def account(senders: Senders, network: str, connection: object = _Connection()) -> Account:
    """Post from a network; return its account."""
    request = Request.__new__(Request)
    request.peer = Client(network, network)
    request.sender = cast(Connection, connection)
    senders.take_post(request, senders._known(ANYBODY))
    found: Account = request.account
    return found


@pytest.mark.parametrize("rates", [Rates(), Rates(posts_per_s=1e9)])
def test_memory_is_bounded_and_those_who_send_are_kept(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, rates: Rates
) -> None:
    """A million networks do not make the one that sends a new sender."""
    monkeypatch.setattr(module, "NETWORKS_MAX", 50)
    ledger = Ledger()
    senders = senders_of(rates, ledger)
    busy = account(senders, "busy")
    for number in range(10_000):
        account(senders, f"network {number}").charge(2, 1)
        assert account(senders, "busy") is busy
    assert 50 < len(senders._networks) + len(senders._older) <= 100
    assert len(ledger.senders) == SENDERS_MAX + 1
    assert ledger.senders["busy"] == [10_001, 0, 0]
    rest = 10_000 - (SENDERS_MAX - 1)
    assert ledger.senders[OTHER_SENDERS] == [rest, 2 * rest, 0]


async def test_connection_that_is_lost_gives_its_place_back_once(clock: Clock) -> None:
    """The post of another sender, which came behind, is taken up after its end."""
    senders = Senders(
        Access(Tokens(), access="open", host_names=(), has_proxies=False),
        SenderLimits(connections_max=2),
        Ledger(),
    )
    connections = connections_of(echo)
    one, other = Connection(connections), Connection(connections)
    for each in (one, other):
        each.valve.transport = cast(asyncio.Transport, each)  # somebody is there
        account(senders, "first", each)
    one.connection_lost(None)
    account(senders, "second", one)
    assert senders._connections == {"first": 1}


def test_sender_of_which_nothing_is_stored_is_named(clock: Clock) -> None:
    """After a minute, until a valid reading comes or it is silent."""
    senders = senders_of(Rates(), Ledger())
    telegraf, good = account(senders, "telegraf"), account(senders, "good")
    for _ in range(7):
        assert senders.not_stored() == Trouble()
        for each in (telegraf, good):
            each.charge(5, each is good)
            senders.nothing_stored(each, 5)
        good.charge(1, 1)
        clock.now_s += 10
    words = "of 1 sender no reading is stored"
    assert senders.not_stored() == Trouble("sender_not_stored", words, "telegraf, 35 readings")
    clock.now_s += 30
    assert senders.not_stored().cause, "it posts now and then"
    telegraf.charge(5, 1)
    assert senders.not_stored() == Trouble()
    once = account(senders, "once")
    senders.nothing_stored(once, 500)
    clock.now_s += FORGET_S / 2
    senders.nothing_stored(once, 500)
    assert senders.not_stored().details == "once, 1,000 readings"
    clock.now_s += FORGET_S + 1
    assert senders.not_stored() == Trouble(), "long ago"
    senders.nothing_stored(once, 500)
    assert senders.not_stored() == Trouble(), "it has begun again"
    for number in range(2 * NOT_STORED_MAX):
        senders.nothing_stored(account(senders, str(number)), 1)
    assert len(senders._not_stored) == NOT_STORED_MAX
    clock.now_s += FORGET_S + 1
    senders.nothing_stored(account(senders, "later"), 1)
    assert len(senders._not_stored) == 1


async def test_names_of_tokens_are_counted_and_never_their_secrets() -> None:
    """Kept and refused posts of a known sender count; one that is not known counts for nobody."""
    tokens = in_force(line(), line(OTHER, "yard"))
    async with running_receiver(tokens) as receiver:
        client = await receiver.connect()
        for secret, body in ((SECRET, GOOD), (SECRET, BAD), (OTHER, GOOD), (SECRET[:-1], GOOD)):
            await client.send(post(body, headers={"Authorization": f"Bearer {secret}"}))
            await client.reply()
        counts = {"token garden": [2, 2, 1], "token yard": [1, 1, 0]}
        assert receiver.ledger.senders == counts
    assert receiver.ledger.listed_senders()[1] == {
        "sender": "token yard",
        "posts": 1,
        "readings": 1,
        "refused": 0,
    }


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
