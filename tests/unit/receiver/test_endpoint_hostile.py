"""Requests that no honest client sends, and bodies that come slowly, late, broken or not at all."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import statistics
import time
from itertools import pairwise

import pytest

from ingest.http.loop_share import ROUND_BYTES
from tests.support.posts import array
from tests.support.receiver import GOOD, JSON, head, post, running_receiver, until
from tests.support.ways import both_ways

SIZE = {**JSON, "Content-Length": str(len(GOOD))}
CHUNKED = {**JSON, "Transfer-Encoding": "chunked"}
QUIET = {"request_failed", "Traceback", "Error handling"}


def chunks(*parts: bytes) -> bytes:
    """Return a chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


MALFORMED = {
    "length and chunked": head(headers={**SIZE, "Transfer-Encoding": "chunked"}) + chunks(GOOD),
    "two lengths": b"POST /v1/readings HTTP/1.1\r\nHost: d\r\nContent-Length: 5\r\n"
    b"Content-Length: 6\r\n\r\n123456",
    "negative length": head(headers={**JSON, "Content-Length": "-1"}),
    "length in words": head(headers={**JSON, "Content-Length": "many"}),
    "length with plus": head(headers={**JSON, "Content-Length": "+5"}) + b"12345",
    "huge length": head(headers={**JSON, "Content-Length": "9" * 40}),
    "unknown coding": head(headers={**JSON, "Transfer-Encoding": "gzip"}) + GOOD,
    "chunked twice": head(headers={**JSON, "Transfer-Encoding": "chunked, chunked"}) + b"0\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "bare line feeds": b"GET /livez HTTP/1.1\nHost: a\n\n",
    "space before colon": b"GET /livez HTTP/1.1\r\nHost : a\r\n\r\n",
    "NUL in a header": b"GET /livez HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "folded header": b"GET /livez HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "not HTTP": b"SSH-2.0-client\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"GET /livez HTTP/9.9\r\nHost: a\r\n\r\n",
    "bad chunk size": head(headers=CHUNKED) + b"zz\r\nabc\r\n0\r\n\r\n",
    "huge chunk size": head(headers=CHUNKED) + b"f" * 20 + b"\r\nabc\r\n0\r\n\r\n",
    "raw byte in the target": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_request_is_400_and_closed(
    request_bytes: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """What cannot be read in one way only is refused, the connection closed, nothing logged."""
    async with running_receiver(body_s_max=0.5) as receiver:
        client = await receiver.connect()
        await client.send(request_bytes)
        reply = await client.reply()
        assert reply.status == 400
        assert reply.code == "bad_request"
        assert reply.headers["connection"] == "close"
        assert await client.closed()
        assert not receiver.inlet.blocks
    out, err = capfd.readouterr()
    assert not any(word in out + err for word in QUIET)


@pytest.mark.parametrize(
    "request_bytes",
    [
        head(headers={"X": "x" * 9_000}),
        head(target="/" + "x" * 9_000),
        head(headers={"x" * 9_000: "1"}),
        head(headers={f"X-{number}": "1" for number in range(200)}),
    ],
    ids=["long value", "long target", "long name", "many"],
)
async def test_large_head_is_431(request_bytes: bytes) -> None:
    """A head that is too large has a code of its own, and nothing of it is repeated."""
    async with running_receiver() as receiver:
        reply = await receiver.send(request_bytes)
        assert (reply.status, reply.code) == (431, "headers_too_large")
        assert b"xxxx" not in reply.body
        for bound in ("64 headers", "8 KiB in a line", "32 KiB before its end"):
            assert bound in reply.document["detail"]


async def test_fault_before_any_page_does_not_blame_the_request() -> None:
    """Aiohttp's own 500 is not the client's doing."""
    async with running_receiver() as receiver:
        site = receiver.endpoint._port
        assert json.loads(site._malformed("internal").body)["detail"] == (
            "the service has a fault; its log has the details"
        )
        assert b"the request is not valid" in site._malformed("bad_request").body


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X": "x" * (8 * 1024 - 3)}, 200),
        ({"X": "x" * (8 * 1024 + 1)}, 431),
        ({f"X-{number}": "1" for number in range(63)}, 200),  # and Host
        ({f"X-{number}": "1" for number in range(64)}, 431),
    ],
    ids=["8 KiB", "more", "64 headers", "65"],
)
async def test_head_may_be_as_large_as_the_refusal_says(
    headers: dict[str, str], status: int
) -> None:
    """Whoever trims a head to the bounds that were named is let in."""
    async with running_receiver() as receiver:
        reply = await receiver.send(head("GET", "/livez", headers=headers))
        assert reply.status == status


@pytest.mark.parametrize("used_before", [False, True])
async def test_head_without_an_end_is_431_before_it_is_large(used_before: bool) -> None:
    """Each line is short enough: a thousand such connections must not fill the memory."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        if used_before:
            await client.send(head(method="GET", target="/livez"))
            assert (await client.reply()).status == 200
        await client.send(b"POST /v1/readings HTTP/1.1\r\nHost: x\r\n")
        for number in range(10):
            await client.send(b"X-%d: %b\r\n" % (number, b"x" * 4_000))
            await asyncio.sleep(0.01)
        reply = await client.reply(2)
        assert (reply.status, reply.code) == (431, "headers_too_large")
        assert "32 KiB before its end" in reply.document["detail"]
        assert await client.closed(2)


async def test_endless_head_of_a_client_that_does_not_read_leaves_no_connection() -> None:
    """Its answer can never be sent, so a polite close would never end."""
    loop = asyncio.get_running_loop()
    async with running_receiver(body_s_max=0.5, keepalive_s_max=0.5) as receiver:
        connections = receiver.endpoint._port.connections
        assert connections is not None
        host, _, port = receiver.address.rpartition(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.setblocking(False)
            await loop.sock_connect(client, (host, int(port)))
            await until(lambda: connections.count == 1)
            (handler,) = connections._open
            transport = handler.transport
            assert transport is not None
            with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
            while not transport.get_write_buffer_size():  # one by one: none may wait for its round
                await loop.sock_sendall(client, head(method="GET", target="/no"))
                await asyncio.sleep(0.002)
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\n")
            while not transport.is_closing():
                await loop.sock_sendall(client, b"X: %b\r\n" % (b"x" * 4_000))
                await asyncio.sleep(0.001)
            await until(lambda: connections.count == 0)
            await until(lambda: not transport.get_write_buffer_size())


async def test_head_that_comes_in_many_pieces_is_taken() -> None:
    """What is bounded is the head of one request, not what a connection sends in its life."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        for _ in range(3):
            whole = head(headers={**SIZE, **{f"X-{n}": "x" * 1_000 for n in range(20)}}) + GOOD
            for at in range(0, len(whole), 1_500):
                await client.send(whole[at : at + 1_500])
                await asyncio.sleep(0.002)
            assert (await client.reply()).status == 202


async def test_client_that_leaves_in_the_middle_of_its_body_is_no_fault_of_ours() -> None:
    """A client that disconnects within its body is counted as 400, and not as a fault of ours."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        await client.send(head(headers={**JSON, "Content-Length": "50"}) + b"[")
        await asyncio.sleep(0.05)
        await client.close()
        await until(lambda: sum(receiver.ledger.requests.values()) == 1)
        ((_, status),) = receiver.ledger.requests
        assert status == 400


async def test_bad_chunk_after_the_head_is_400_at_once() -> None:
    """A body that breaks off is not waited for until its deadline."""
    async with running_receiver(body_s_max=30) as receiver:
        client = await receiver.connect()
        await client.send(head(headers=CHUNKED) + b"5\r\n[1,2,\r\n")
        await asyncio.sleep(0.02)
        await client.send(b"nonsense\r\n")
        reply = await client.reply(2)
        assert (reply.status, reply.code) == (400, "bad_request")


@both_ways
@pytest.mark.parametrize(
    "target", ["http://door/v1/readings?precision=ms", "/v1/%72eadings?precision=ms"]
)
async def test_other_spellings_of_the_route_are_taken(target: str) -> None:
    """An absolute target and percent-encoding mean the same page."""
    async with running_receiver() as receiver:
        assert (await receiver.send(head(target=target, headers=SIZE) + GOOD)).status == 202


async def test_http_1_0_is_served_and_closed() -> None:
    """An old client gets its answer and, unless it asks otherwise, the end of the connection."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        await client.send(head(headers=SIZE, version="1.0") + GOOD)
        assert (await client.reply()).status == 202
        assert await client.closed()
        client = await receiver.connect()
        kept = head(headers={**SIZE, "Connection": "keep-alive"}, version="1.0") + GOOD
        for _ in range(2):
            await client.send(kept)
            assert (await client.reply()).headers["connection"] == "keep-alive"


@both_ways
async def test_connection_close_is_obeyed() -> None:
    """A client that asks for the end gets it, announced."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        await client.send(post(GOOD, headers={"Connection": "close"}))
        assert (await client.reply()).headers["connection"] == "close"
        assert await client.closed()


async def test_head_on_the_route_has_no_body() -> None:
    """An answer to HEAD that had a body would shift all later answers."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        await client.send(head("HEAD", "/v1/readings") + head("GET", "/livez"))
        assert (await client.reply(head_only=True)).status == 405
        assert (await client.reply()).body == b"ok\n"


async def test_body_on_get_is_dropped() -> None:
    """The body of a refused request is not read as the next request."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        smuggled = post(GOOD)
        sized = {"Content-Length": str(len(smuggled))}
        await client.send(head("GET", "/livez", sized) + smuggled + head("GET", "/livez"))
        assert (await client.reply()).status == 200
        assert (await client.reply()).status == 200
        assert not receiver.inlet.blocks


async def test_connect_ends_the_connection_and_leaves_nobody_waiting() -> None:
    """What follows it would belong to a tunnel, which this port is not: the end is announced."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        await client.send(post(GOOD) + head("CONNECT", "x:1") + post(GOOD))
        assert (await client.reply()).status == 202
        refused = await client.reply()
        assert (refused.status, refused.headers["connection"]) == (404, "close")
        assert await client.closed()


@both_ways
@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
@pytest.mark.parametrize("cut", [0, 30, -len(GOOD), -10], ids=["", "head", "body", "half body"])
async def test_upgrade_is_ignored_and_swallows_nothing(protocol: str, cut: int) -> None:
    """Behind posts that ask for one stand others in the same bytes: each is answered."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        asks = post(GOOD, headers={"Connection": "Upgrade", "Upgrade": protocol})
        for _ in range(2):
            if cut:
                await client.send(asks[:cut])
                await asyncio.sleep(0.01)
            await client.send((asks[cut:] if cut else asks) + post(GOOD) + asks * 2 + post(GOOD))
            assert [(await client.reply()).status for _ in range(5)] == [202] * 5
        assert len(receiver.inlet.readings) == 10


@pytest.mark.parametrize("name", ["Upgrade", "UPGRADE", "uPgRaDe"])
@pytest.mark.parametrize("body", ["sized", "chunked", "none"])
async def test_no_spelling_and_no_cut_of_an_upgrade_swallows_what_follows(
    name: str, body: str
) -> None:
    """Posts behind it were never answered, if its name came in two parts or in capitals."""
    asks = {"Connection": name, name: "h2c"}
    first = {
        "sized": post(GOOD, headers=asks),
        "chunked": head(headers={**CHUNKED, **asks}) + chunks(GOOD),
        "none": head("GET", "/livez", asks),
    }[body]
    both = first + post(GOOD)
    async with running_receiver() as receiver:
        for cut in range(0, len(first) + 60, 3):
            client = await receiver.connect()
            await client.send(both[:cut])
            await asyncio.sleep(0.0005)
            await client.send(both[cut:] + both)
            answers = [(await asyncio.wait_for(client.reply(), 1)).status for _ in range(4)]
            assert set(answers) <= {200, 202}, cut
            await client.close()


async def test_chunked_body_of_a_request_with_upgrade_has_its_end() -> None:
    """Also where its length is not known beforehand."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        asks = {**CHUNKED, "Connection": "Upgrade", "Upgrade": "h2c"}
        await client.send((head(headers=asks) + chunks(GOOD) + post(GOOD)) * 30)
        assert [(await client.reply()).status for _ in range(60)] == [202] * 60


async def test_connect_method_is_refused() -> None:
    """We are no proxy."""
    async with running_receiver() as receiver:
        reply = await receiver.send(b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n")
        assert reply.status in {404, 405}


@both_ways
async def test_pipelined_posts_are_answered_in_order() -> None:
    """Fifty posts in one write: fifty answers, fifty readings."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        bodies = [GOOD.replace(b"21.5", b"%d.5" % number) for number in range(50)]
        await client.send(b"".join(map(post, bodies)))
        for _ in bodies:
            assert (await client.reply()).status == 202
        assert [reading.value for reading in receiver.inlet.readings] == [
            n + 0.5 for n in range(50)
        ]


@pytest.mark.parametrize("count", [1, 30, 100])
@pytest.mark.parametrize("way", ["whole", "split", "gzip"])
async def test_garbage_behind_posts_undoes_none_of_them(count: int, way: str) -> None:
    """In the same bytes: each post is answered and kept; then comes one 400, and the end."""
    body = gzip.compress(GOOD) if way == "gzip" else GOOD
    one = post(body, headers={"Content-Encoding": "gzip"} if way == "gzip" else None)
    sent = one * count + b"\x00\x01\x02 garbage\r\n\r\n"
    async with running_receiver() as receiver:
        client = await receiver.connect()
        if way == "split":
            await client.send(sent[: len(one) - 10])
            await asyncio.sleep(0.01)
            sent = sent[len(one) - 10 :]
        await client.send(sent)
        assert [(await client.reply()).status for _ in range(count)] == [202] * count
        assert (await client.reply()).code == "bad_request"
        assert await client.closed()
        assert len(receiver.inlet.readings) == count


@pytest.mark.parametrize("way", ["whole", "gzip", "split", "chunked"])
async def test_client_that_has_closed_its_sending_side_gets_its_answers(way: str) -> None:
    """As `nc -N` does; also to posts that wait for room. Then the connection ends."""
    one = {
        "whole": post(GOOD),
        "split": post(GOOD),
        "gzip": post(gzip.compress(GOOD), headers={"Content-Encoding": "gzip"}),
        "chunked": head(headers=CHUNKED) + chunks(GOOD),
    }[way]
    async with running_receiver() as receiver:
        receiver.inlet.open.clear()
        client = await receiver.connect()
        if way == "split":
            await client.send(one[:-10])
            await asyncio.sleep(0.01)
        await client.send((one[-10:] if way == "split" else one) + one * 2)
        client.writer.write_eof()
        await until(lambda: receiver.inlet.waiting)
        assert not await client.closed(0.05)
        receiver.inlet.open.set()
        replies = [await client.reply() for _ in range(3)]
        assert [each.status for each in replies] == [202] * 3
        assert [each.headers.get("connection") for each in replies] == [None, None, "close"]
        assert await client.closed()


@pytest.mark.parametrize(
    ("request_bytes", "detail"),
    [
        (post(GOOD).replace(b"HTTP/1.1", b"HTTP/2.0"), "speaks HTTP/1.1"),
        (head(headers={**CHUNKED, "Transfer-Encoding": "gzip, chunked"}), "is chunked"),
        (head(headers=CHUNKED, version="1.0") + chunks(GOOD), "with HTTP/1.1"),
        (post(GOOD, headers={"Expect": "nonsense"}), "is 100-continue"),
        (
            post(GOOD, headers={"Content-Encoding": "identity\r\nContent-Encoding: gzip"}),
            "may have one",
        ),
    ],
)
async def test_head_that_cannot_be_meant_is_refused(request_bytes: bytes, detail: str) -> None:
    """What would have to be ignored is named, and nothing is kept."""
    async with running_receiver() as receiver:
        reply = await receiver.send(request_bytes)
        assert reply.status == (415 if b"Content-Encoding" in request_bytes else 400)
        assert detail in reply.document["detail"]
        assert not receiver.inlet.blocks


# Bodies


@pytest.mark.parametrize("pause_s", [0.0, 0.01])
async def test_body_in_pieces_is_one_body(pause_s: float) -> None:
    """Byte by byte or in chunks: the same post."""
    async with running_receiver() as receiver:
        for data in (post(GOOD), head(headers=CHUNKED) + chunks(GOOD[:10], GOOD[10:])):
            client = await receiver.connect()
            step = 40 if pause_s else 1
            for start in range(0, len(data), step):
                await client.send(data[start : start + step])
                await asyncio.sleep(pause_s)
            assert (await client.reply()).status == 202
        assert len(receiver.inlet.readings) == 2


async def test_large_body_passes_at_its_bound_and_not_beyond() -> None:
    """The bound is inclusive, for a declared length and for chunks."""
    async with running_receiver(body_bytes_max=100_000, inflated_bytes_max=200_000) as receiver:
        for size, status in ((100_000, 202), (100_001, 413)):
            body = GOOD + b" " * (size - len(GOOD))
            for data in (post(body), head(headers=CHUNKED) + chunks(body[:70_000], body[70_000:])):
                client = await receiver.connect()
                await client.send(data)
                reply = await client.reply()
                assert reply.status == status
                if status == 413:
                    assert reply.code == "body_too_large"
                    assert reply.document["body_bytes_max"] == 100_000


async def test_declared_body_too_large_is_refused_before_it_comes() -> None:
    """413 while the client still holds the body in its hands; nothing is read into memory."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        await client.send(head(headers={**JSON, "Content-Length": str(10**12)}))
        assert (await client.reply(2)).code == "body_too_large"


async def test_small_body_over_the_bound_in_one_packet_is_413() -> None:
    """The bound holds where the body came together with its head, too."""
    async with running_receiver(body_bytes_max=1024) as receiver:
        assert (await receiver.post(GOOD + b" " * 1024)).code == "body_too_large"


@pytest.mark.parametrize("headers", [SIZE, CHUNKED, {**JSON, "Content-Length": "50000"}])
async def test_body_that_does_not_come_is_408(headers: dict[str, str]) -> None:
    """A client that does not send its declared body gets an answer, and its connection ends."""
    async with running_receiver(body_s_max=0.1) as receiver:
        client = await receiver.connect()
        await client.send(head(headers=headers) + (b"" if headers is CHUNKED else GOOD[:10]))
        reply = await client.reply(2)
        assert (reply.status, reply.code) == (408, "body_timeout")
        assert reply.headers["connection"] == "close"
        assert not receiver.inlet.blocks


async def test_body_that_trickles_is_408() -> None:
    """The deadline is for the whole body, not for each byte."""
    async with running_receiver(body_s_max=0.2) as receiver:
        client = await receiver.connect()
        await client.send(head(headers=SIZE))
        before_s = time.monotonic()

        async def trickle() -> None:
            for byte in GOOD:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        assert (await client.reply(3)).code == "body_timeout"
        assert time.monotonic() - before_s < 1
        trickling.cancel()


async def test_expect_continue_gets_it_before_the_body() -> None:
    """A client that asks first is answered first; twice on one connection."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        for body in (GOOD, GOOD + b" " * 50_000):
            asks = {**JSON, "Content-Length": str(len(body)), "Expect": "100-continue"}
            await client.send(head(headers=asks))
            assert (await client.reply()).status == 100
            await client.send(body)
            assert (await client.reply()).status == 202


async def test_expect_continue_refused_gets_only_the_refusal() -> None:
    """No 100 for a refused body; the connection ends, since the body may never come."""
    async with running_receiver() as receiver:
        receiver.admission.code = "starting"
        client = await receiver.connect()
        await client.send(head(headers={**SIZE, "Expect": "100-continue"}))
        reply = await client.reply()
        assert (reply.status, reply.code) == (503, "starting")
        assert reply.headers["connection"] == "close"


async def test_client_gone_in_the_middle_of_its_body_leaves_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Fifty clients break off: nothing kept, nothing counted, nothing logged."""
    async with running_receiver() as receiver:
        for cut in range(1, 51):
            client = await receiver.connect()
            await client.send(post(GOOD)[:-cut])
            await client.close()
        await asyncio.sleep(0.05)
        assert receiver.endpoint._keeping.in_work == 0
        assert receiver.ledger.received == 0
        assert not receiver.inlet.blocks
    out, err = capfd.readouterr()
    assert not any(word in out + err for word in QUIET)


async def test_bad_chunk_behind_a_post_in_work_ends_only_its_own_request() -> None:
    """A pipelined body that breaks off while it waits: the first post gets its answer."""
    async with running_receiver(body_s_max=30) as receiver:
        receiver.inlet.open.clear()
        client = await receiver.connect()
        await client.send(post(GOOD))
        await until(lambda: receiver.inlet.waiting)
        await client.send(head(headers=CHUNKED) + b"5\r\n[1,2,\r\n")
        await asyncio.sleep(0.02)
        await client.send(b"nonsense\r\n")
        await asyncio.sleep(0.02)
        receiver.inlet.open.set()
        assert (await client.reply(2)).status == 202
        assert (await client.reply(2)).code == "bad_request"
        assert await client.closed()


async def test_gzip_bombs_leave_other_clients_alone() -> None:
    """While bombs are being refused, a plain post is answered quickly."""
    bomb = await asyncio.to_thread(lambda: gzip.compress(bytes(200 * 1024 * 1024), 9))
    async with running_receiver() as receiver:

        async def throw() -> None:
            reply = await receiver.post(bomb, headers={"Content-Encoding": "gzip"})
            assert (reply.status, reply.code) == (413, "inflated_too_large")

        throwing = [asyncio.create_task(throw()) for _ in range(20)]
        client = await receiver.connect()
        took_s = []
        while not all(task.done() for task in throwing):
            before_s = time.perf_counter()
            await client.send(post(GOOD))
            assert (await client.reply()).status == 202
            took_s.append(time.perf_counter() - before_s)
        await asyncio.gather(*throwing)
        assert statistics.median(took_s) < 0.1  # 1 ms on a quiet machine


@both_ways
async def test_a_crowd_of_posts_leaves_the_loop_to_others_between() -> None:
    """A writer needs several rounds of the loop for a batch: no round serves all posts."""
    body = array(*[GOOD] * 150)
    async with running_receiver() as receiver:
        clients = [await receiver.connect() for _ in range(100)]
        for client in clients:
            client.writer.write(
                post(body)
            )  # it is sent at once; the receiver reads it when we wait
        kept = [0]
        while len(receiver.inlet.blocks) < len(clients):
            await asyncio.sleep(0)
            kept.append(len(receiver.inlet.blocks))
        most = max(after - before for before, after in pairwise(kept))
        assert most <= -(-ROUND_BYTES // len(body))
