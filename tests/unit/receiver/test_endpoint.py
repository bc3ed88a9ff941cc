"""POST /v1/readings as a client sees it: answers, codes, query parameters, encodings."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from ingest.config.settings import Settings
from ingest.model.errors import BufferFull, ConfigError, StartError
from ingest.receiver.endpoint import Endpoint
from tests.support.receiver import BAD, GOOD, Receiver, post, running_receiver
from tests.support.ways import both_ways, reserves


@both_ways
async def test_post_without_ts_gets_the_time_of_receipt() -> None:
    """The time of receipt is set once, and the block has it."""
    async with running_receiver() as receiver:
        assert (await receiver.post(b'{"device_id":"d","metric":"m","value":1}')).status == 202
        (block,) = receiver.inlet.blocks
        assert receiver.inlet.readings[0].ts_us == block.received_us


@reserves
async def test_post_without_room_is_503_with_retry_after() -> None:
    """BufferFull becomes 503 buffer_full; its readings are rejected, not dead-lettered."""
    async with running_receiver() as receiver:
        receiver.inlet.error = BufferFull(3.0)
        waits = set()
        for _ in range(30):
            reply = await receiver.post(b"[" + GOOD + b"," + BAD + b"]")
            assert (reply.status, reply.code) == (503, "buffer_full")
            waits.add(int(reply.headers["retry-after"]))
        assert min(waits) >= 1
        assert len(waits) > 1  # jittered
        assert dict(receiver.ledger.rejected) == {"buffer_full": 60}
        assert not receiver.dead_letters.letters


@reserves
async def test_post_met_by_a_bug_is_500_once_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """A fault of ours: 500 without its details, the ledger balanced, one log line at most."""
    async with running_receiver() as receiver:
        receiver.inlet.error = RuntimeError("secret connection string")
        for _ in range(5):
            reply = await receiver.post(GOOD)
            assert (reply.status, reply.code) == (500, "internal")
            assert b"secret" not in reply.body
        assert dict(receiver.ledger.rejected) == {"internal": 5}
        assert receiver.ledger.requests["/v1/readings", 500] == 5
    assert capsys.readouterr().out.count("request_failed") == 1


async def test_start_on_a_busy_port_says_which_and_what_to_do() -> None:
    """The error names the port and the flag."""
    async with running_receiver() as receiver:
        second = Receiver(Settings())
        port = int(receiver.address.rpartition(":")[2])
        with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port} .*--listen HOST:PORT"):
            await second.endpoint.start("127.0.0.1", port)
        await second.close()


async def test_start_on_an_unknown_host_is_a_start_error() -> None:
    """A name that does not resolve is a StartError, and not an error of the resolver."""
    receiver = Receiver(Settings())
    with pytest.raises(StartError, match=r"no\.such\.host\.invalid"):
        await receiver.endpoint.start("no.such.host.invalid", 0)
    await receiver.close()


async def test_start_beyond_loopback_warns(capsys: pytest.CaptureFixture[str]) -> None:
    """A port open to the network is logged; the loopback is not."""
    for host, warned in (("0.0.0.0", 1), ("127.0.0.1", 0)):
        receiver = Receiver(Settings(access="open"))
        await receiver.endpoint.start(host, 0)
        await receiver.close()
        out = capsys.readouterr().out
        assert out.count("open_to_the_network") == out.count("unless access is open") == warned


async def test_start_on_ipv6_gives_an_address_in_brackets() -> None:
    """The address returned is fit for a URL."""
    if not Path("/proc/net/if_inet6").exists():
        return  # a machine without IPv6
    receiver = Receiver(Settings())
    address = await receiver.endpoint.start("::1", 0)
    await receiver.close()
    assert address.startswith("[::1]:")


def make_endpoint(**settings: Any) -> Endpoint:
    """Make a receiver that is not started."""
    return Receiver(Settings(**settings)).endpoint


async def test_ack_default_that_the_buffer_cannot_give_is_a_config_error() -> None:
    """A default acknowledgement that the service cannot give is an error at start."""
    with pytest.raises(ConfigError, match="ack_default: durable"):
        make_endpoint(ack_default="durable")


@both_ways
async def test_ack_default_committed_is_used() -> None:
    """A post that does not ask gets the default."""
    async with running_receiver(ack_default="committed", ack_wait_s_max=0.05) as receiver:
        assert (await receiver.post(GOOD)).code == "outcome_unknown"
        assert (await receiver.post(GOOD, "?ack=buffered")).document["ack"] == "buffered"


@reserves
async def test_finish_waits_for_posts_inside_and_only_for_them() -> None:
    """Draining: posts in work get answers, new ones get 503, finish returns with the last."""
    async with running_receiver() as receiver:
        client = await receiver.waits(post(GOOD))
        receiver.admission.code = "draining"
        finish = asyncio.create_task(receiver.endpoint.finish(5))
        assert (await receiver.post(GOOD)).code == "draining"
        assert not finish.done()
        receiver.inlet.open.set()
        await finish
        assert (await client.reply()).status == 202


@reserves
async def test_finish_gives_up_in_time() -> None:
    """A post that never ends does not delay the stop for longer than asked."""
    async with running_receiver() as receiver:
        client = await receiver.waits(post(GOOD))
        await receiver.endpoint.finish(0.05)
        receiver.inlet.open.set()
        assert json.loads((await client.reply()).body)["accepted"] == 1
