"""POST /v1/readings as a client sees it: answers, codes, query parameters, encodings."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ingest.config.settings import Settings
from ingest.model.errors import BufferFull, ConfigError, StartError, Stopping
from ingest.model.reading import Reading
from ingest.receiver.endpoint import Endpoint
from tests.support.receiver import BAD, GOOD, Receiver, head, post, running_receiver, until
from tests.support.ways import both_ways, reserves

TS_US = 1_750_000_000_000_000


@both_ways
async def test_post_single_reading_is_buffered() -> None:
    """One object: 202, and the reading is in the buffer, ready for the table."""
    async with running_receiver() as receiver:
        reply = await receiver.post(GOOD)
        assert reply.status == 202
        assert reply.headers["content-type"] == "application/json"
        assert "date" in reply.headers
        assert reply.document == {
            "accepted": 1,
            "dead_lettered": 0,
            "ack": "buffered",
            "errors": [],
        }
        assert receiver.inlet.readings == [Reading(TS_US, "d1", "temperature", 21.5)]
        assert receiver.inlet.blocks[0].sender == "127.0.0.1"
        assert receiver.ledger.accepted == receiver.ledger.received == 1
        assert receiver.ledger.requests["/v1/readings", 202] == 1


@reserves
async def test_post_some_items_invalid_keeps_both_kinds() -> None:
    """Valid items are accepted; invalid ones are dead-lettered with their bytes, and named."""
    async with running_receiver() as receiver:
        reply = await receiver.post(b"[" + b",".join([GOOD, BAD, GOOD]) + b"]", "?precision=ms")
        assert reply.status == 202
        document = reply.document
        (error,) = document.pop("errors")
        assert document == {"accepted": 2, "dead_lettered": 1, "ack": "buffered"}
        assert (error["index"], error["field"], error["code"]) == (1, "value", "wrong_type")
        (letter,) = receiver.dead_letters.letters
        assert (letter.reason, letter.code, letter.item) == ("invalid", "wrong_type", 1)
        assert (letter.original, letter.precision) == (BAD, "ms")
        assert len(receiver.inlet.readings) == 2
        assert receiver.ledger.accepted == 2
        assert receiver.ledger.dead_lettered["invalid"] == 1


@reserves
async def test_post_many_errors_lists_a_hundred() -> None:
    """The answer stays small; the counts are whole, and it says that the list is not."""
    async with running_receiver() as receiver:
        reply = await receiver.post(b"[" + b",".join([BAD] * 150 + [GOOD]) + b"]")
        document = reply.document
        assert (document["accepted"], document["dead_lettered"]) == (1, 150)
        assert [error["index"] for error in document["errors"]] == list(range(100))
        assert document["errors_truncated"] is True
        assert len(receiver.dead_letters.letters) == 150


@pytest.mark.parametrize(
    ("body", "query", "status", "code"),
    [
        (b"[" + BAD + b"]", "", 422, "all_invalid"),
        (b"[" + GOOD + b"," + BAD + b"]", "?strict=true", 422, "invalid_items"),
        (b"[" + BAD + b"]", "?strict=true", 422, "all_invalid"),
        (b"[]", "", 422, "empty"),
        (b"", "", 400, "not_json"),
        (b"{", "", 400, "not_json"),
        (b'{"device_id":"\xff"}', "", 400, "not_json"),
        (b"[" + b",".join([GOOD] * 11) + b"]", "", 413, "too_many_readings"),
        (GOOD, "?colour=red", 400, "unknown_parameter"),
        (GOOD, "?ACK=buffered", 400, "unknown_parameter"),
        (GOOD, "?ack=buffered&ack=buffered", 400, "bad_parameter"),
        (GOOD, "?ack=maybe", 400, "bad_parameter"),
        (GOOD, "?ack=", 400, "bad_parameter"),
        (GOOD, "?strict=yes", 400, "bad_parameter"),
        (GOOD, "?precision=m", 400, "bad_parameter"),
        (GOOD, "?unknown=keep", 400, "bad_parameter"),
        (GOOD, "?ack=durable", 400, "ack_unavailable"),
        (GOOD, "?%ff%00=%0a", 400, "unknown_parameter"),
        (GOOD, "?\xff=1", 400, "bad_request"),
    ],
)
async def test_post_refused_keeps_nothing(body: bytes, query: str, status: int, code: str) -> None:
    """A 4xx is a problem document with a stable code, and nothing of the post is kept."""
    async with running_receiver(post_rows_max=10) as receiver:
        reply = await receiver.send(post(body, query))
        assert (reply.status, reply.code) == (status, code)
        assert not receiver.inlet.blocks
        assert not receiver.dead_letters.letters
        assert receiver.ledger.received == sum(receiver.ledger.rejected.values())


async def test_post_refused_for_its_items_names_them() -> None:
    """A 422 lists the errors like a success does, and every reading counts as rejected."""
    async with running_receiver() as receiver:
        reply = await receiver.post(b"[" + GOOD + b"," + BAD + b"]", "?strict=true")
        assert [error["index"] for error in reply.document["errors"]] == [1]
        assert reply.document["detail"] == "the post has 1 invalid reading and strict=true"
        assert dict(receiver.ledger.rejected) == {"invalid_items": 2}


async def test_post_bad_parameter_tells_what_is_right() -> None:
    """The problem names the parameter and its values, in ASCII, without an echo of raw bytes."""
    async with running_receiver() as receiver:
        reply = await receiver.post(GOOD, "?precision=hours%0a%1b")
        assert reply.document["parameter"] == "precision"
        assert reply.document["allowed"] == ["s", "ms", "us", "ns"]
        assert reply.body.isascii()
        assert b"\n" not in reply.body
        reply = await receiver.post(GOOD, "?ack=durable")
        assert reply.document["available"] == ["buffered", "committed"]


@both_ways
async def test_post_query_parameters_reach_the_decoder() -> None:
    """precision and unknown change how the same body is read; so does the next post without."""
    async with running_receiver() as receiver:
        body = b'{"device_id":"d1","metric":"m","ts":1750000000,"value":1,"extra":1}'
        assert (await receiver.post(body)).code == "all_invalid"
        assert (await receiver.post(body, "?unknown=ignore&precision=s")).status == 202
        assert (await receiver.post(body, "?unknown=error")).code == "all_invalid"
        assert receiver.inlet.readings == [Reading(TS_US, "d1", "m", 1.0)]


@both_ways
async def test_post_without_ts_gets_the_time_of_receipt() -> None:
    """The time of receipt is set once, and the block has it."""
    async with running_receiver() as receiver:
        assert (await receiver.post(b'{"device_id":"d","metric":"m","value":1}')).status == 202
        (block,) = receiver.inlet.blocks
        assert receiver.inlet.readings[0].ts_us == block.received_us


@pytest.mark.parametrize(
    ("content_type", "taken"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ('application/json;charset="utf-8"', True),
        ("application/json; profile=x", True),
        ("application/json; charset=latin-1", False),
        ("application/x-www-form-urlencoded", False),
        ("text/plain", False),
        ("application/json-seq", False),
        ("", True),
        ("\xff\xfe", False),
    ],
)
async def test_post_media_type_must_be_json(content_type: str, taken: bool) -> None:
    """Anything else is 415, with the header to send (curl's default is a form)."""
    async with running_receiver() as receiver:
        reply = await receiver.post(GOOD, headers={"Content-Type": content_type})
        if taken:
            assert reply.status == 202
        else:
            assert (reply.status, reply.code) == (415, "unsupported_media_type")
            assert "content-type: application/json" in reply.document["detail"]


async def test_post_without_media_type_is_json() -> None:
    """Many small clients send none."""
    async with running_receiver() as receiver:
        size = {"Content-Length": str(len(GOOD))}
        reply = await receiver.send(head(headers=size) + GOOD)
        assert reply.status == 202


@reserves
@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip"])
async def test_post_gzipped_is_inflated(encoding: str) -> None:
    """A small gzip body is read like a plain one."""
    async with running_receiver() as receiver:
        reply = await receiver.post(gzip.compress(GOOD), headers={"Content-Encoding": encoding})
        assert reply.status == 202
        assert len(receiver.inlet.readings) == 1


@reserves
async def test_post_gzipped_large_is_inflated_on_a_thread() -> None:
    """A large honest body passes, however it came in."""
    async with running_receiver() as receiver:
        items = [GOOD.replace(b"21.5", b"%d.%d" % (n, n * 7919)) for n in range(5000)]
        body = gzip.compress(b"[" + b",".join(items) + b"]", 1)
        reply = await receiver.post(body, headers={"Content-Encoding": "gzip"})
        assert reply.status == 202
        assert len(receiver.inlet.readings) == 5000


# Without a time in it: test processes must agree on the names of the tests.
GZIPPED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("body", "encoding", "status", "code"),
    [
        (GZIPPED[:-1], "gzip", 400, "bad_encoding"),
        (GZIPPED + b"x", "gzip", 400, "bad_encoding"),
        (GZIPPED * 2, "gzip", 400, "not_json"),  # two members are one body: two objects
        (GOOD, "gzip", 400, "bad_encoding"),
        (gzip.compress(bytes(5_000_000), mtime=0), "gzip", 413, "inflated_too_large"),
        (GZIPPED, "identity", 400, "not_json"),
        (GOOD, "br", 415, "unsupported_encoding"),
        (GOOD, "snappy", 415, "unsupported_encoding"),
        (GOOD, "deflate", 415, "unsupported_encoding"),
        (gzip.compress(GZIPPED, mtime=0), "gzip, gzip", 415, "unsupported_encoding"),
    ],
)
async def test_post_badly_encoded_is_refused(
    body: bytes, encoding: str, status: int, code: str
) -> None:
    """A body that is not what its encoding says never passes and never yields 5xx."""
    async with running_receiver() as receiver:
        reply = await receiver.post(body, headers={"Content-Encoding": encoding})
        assert (reply.status, reply.code) == (status, code)
        assert not receiver.inlet.blocks


@pytest.mark.parametrize("code", ["starting", "draining", "disk_low"])
async def test_post_not_admitted_is_503(code: str) -> None:
    """No post is accepted; Retry-After is there; a stopping service closes the connection."""
    async with running_receiver() as receiver:
        receiver.admission.code = code
        client = await receiver.connect()
        await client.send(post(GOOD))
        reply = await client.reply()
        assert (reply.status, reply.code) == (503, code)
        assert int(reply.headers["retry-after"]) >= 1
        assert (reply.headers.get("connection") == "close") == (code == "draining")
        assert receiver.ledger.received == 0
        if code == "draining":
            assert await client.closed()


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
async def test_post_met_by_the_stop_is_503_draining() -> None:
    """A buffer that is shut while a post waits for room gives the same answer as draining."""
    async with running_receiver() as receiver:
        receiver.inlet.error = Stopping("the buffer is shut")
        reply = await receiver.post(GOOD)
        assert (reply.status, reply.code) == (503, "draining")
        assert dict(receiver.ledger.rejected) == {"draining": 1}


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


async def test_probes_answer_on_the_data_port() -> None:
    """/livez is about the process, /readyz is what health says; HEAD has no body."""
    async with running_receiver() as receiver:
        reply = await receiver.send(head("GET", "/livez"))
        assert (reply.status, reply.body) == (200, b"ok\n")
        reply = await receiver.send(head("GET", "/readyz?verbose"))
        assert (reply.status, reply.document) == (503, {"state": "full"})
        client = await receiver.connect()
        await client.send(head("HEAD", "/livez") + head("GET", "/livez"))
        assert (await client.reply(head_only=True)).headers["content-length"] == "3"
        assert (await client.reply()).body == b"ok\n"


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/metrics", 404, "not_found"),
        ("POST", "/v1/readings/", 404, "not_found"),
        ("POST", "/v1//readings", 404, "not_found"),
        ("GET", "/v1/readings", 405, "method_not_allowed"),
        ("PUT", "/v1/readings", 405, "method_not_allowed"),
        ("DELETE", "/v1/readings", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/readings", 405, "method_not_allowed"),
        ("POST", "/livez", 405, "method_not_allowed"),
    ],
)
async def test_other_pages_and_methods_are_problems(
    method: str, target: str, status: int, code: str
) -> None:
    """404 and 405 are problem documents too, and 405 tells the method."""
    async with running_receiver() as receiver:
        reply = await receiver.send(head(method, target, {"Content-Length": "0"}))
        assert (reply.status, reply.code) == (status, code)
        if status == 405:
            assert reply.headers["allow"] == ("GET, HEAD" if "livez" in target else "POST")


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
        receiver.inlet.open.clear()
        client = await receiver.connect()
        await client.send(post(GOOD))
        await until(lambda: receiver.inlet.waiting)
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
        receiver.inlet.open.clear()
        client = await receiver.connect()
        await client.send(post(GOOD))
        await until(lambda: receiver.inlet.waiting)
        await receiver.endpoint.finish(0.05)
        receiver.inlet.open.set()
        assert json.loads((await client.reply()).body)["accepted"] == 1
