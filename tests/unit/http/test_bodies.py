"""Bodies that arrive slowly, in part or all at once: which get memory, wait, or are refused; and
how they are decompressed.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import sys
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.http.bodies import (
    GZIP,
    LEAST_BYTES,
    LIGHT_INFLATED_BYTES,
    LIGHT_PARTS,
    PARTS_MAX,
    SMALL_BYTES,
    ZSTD,
    Bodies,
    expected_bytes,
    inflated,
    light,
)
from ingest.model.errors import Refused
from tests.support.receiver import (
    GOOD,
    JSON,
    Client,
    Receiver,
    Reply,
    head,
    post,
    running_receiver,
    until,
)
from tests.support.wire import request_of

KIB = 1024
LARGE = GOOD + b" " * (60_000 - len(GOOD))


def declared(size_bytes: int) -> bytes:
    """Return the head of a post with such a body."""
    return head(headers={**JSON, "Content-Length": str(size_bytes)})


def bodies_of(receiver: Receiver) -> Bodies:
    """Return the bodies of a receiver."""
    return receiver.endpoint._plain_bodies._bodies


async def finished(clients: list[Client], rest: bytes) -> list[Reply]:
    """Send the rest of each request; return the answers."""
    for client in clients:
        await client.send(rest)
    return [await client.reply() for client in clients]


@pytest.mark.parametrize(
    "start",
    [
        declared(64 * KIB) + b"[",
        head(headers={**JSON, "Transfer-Encoding": "chunked"}) + b"4e20\r\n" + b" " * 20_000,
    ],
    ids=["one byte of a declared one", "20 kB of a chunked one"],
)
async def test_large_bodies_that_do_not_come_lock_nobody_out(start: bytes) -> None:
    """64 connections with a part of a body: small posts pass, whole or in two, and large ones."""
    async with running_receiver(
        body_bytes_max=64 * KIB, receiver_bytes_max=64 * 64 * KIB, put_wait_s_max=0
    ) as receiver:
        await receiver.crowd(64, start)
        await until(lambda: bodies_of(receiver)._bytes_taken >= 64)
        for _ in range(10):
            assert (await receiver.post(GOOD)).status == 202
            split = await receiver.crowd(1, declared(len(GOOD)) + GOOD[:10])
            assert [each.status for each in await finished(split, GOOD[10:])] == [202]
            large = await receiver.crowd(1, declared(len(LARGE)) + LARGE[:20])
            assert [each.status for each in await finished(large, LARGE[20:])] == [202]


async def test_large_bodies_never_use_the_share_of_small_ones() -> None:
    """Half bodies fill all that large ones may use. A small post passes, a large one waits."""
    async with running_receiver(
        body_bytes_max=64 * KIB, receiver_bytes_max=256 * KIB, body_s_max=1.0
    ) as receiver:
        slow = await receiver.crowd(3, declared(len(LARGE)) + LARGE[:50_000])
        bodies = bodies_of(receiver)
        await until(lambda: len(bodies._queue) == 1)
        waiting = await receiver.crowd(1, declared(len(LARGE)) + LARGE)
        for _ in range(5):
            assert (await receiver.post(GOOD)).status == 202
        assert not await waiting[0].closed(0.05)
        assert bodies._bytes_taken <= 192 * KIB
        assert {(await each.reply()).code for each in slow} == {"body_timeout"}
        assert (await waiting[0].reply()).status == 202
        assert bodies._bytes_taken == bodies._bytes_taken_by_large == 0


async def test_many_half_arrived_bodies_all_become_whole() -> None:
    """They need ten times the memory that there is. None is refused, and none waits for ever."""
    async with running_receiver(
        body_bytes_max=64 * KIB, line_bytes_max=64 * KIB, receiver_bytes_max=1024 * KIB
    ) as receiver:
        bodies = bodies_of(receiver)
        places = 1024 // 256
        half = await receiver.crowd(12 + places, declared(len(LARGE)) + LARGE[:58_000])
        await until(lambda: len(bodies._queue) == places)
        assert bodies._bytes_taken <= (768 - 64) * KIB
        assert {each.status for each in await finished(half, LARGE[58_000:])} == {202}
        assert bodies._bytes_taken == bodies._bytes_taken_by_large == 0


async def test_large_body_that_trickles_is_ended_early_and_a_small_one_is_not() -> None:
    """The least rate holds for large bodies; a small one has all of body_s_max."""
    async with running_receiver(body_s_max=2.4) as receiver:
        (large,) = await receiver.crowd(1, declared(SMALL_BYTES + 1))
        (small,) = await receiver.crowd(1, declared(len(GOOD)))
        (quick,) = await receiver.crowd(1, declared(4 * LEAST_BYTES + 1))
        before_s = time.monotonic()

        async def trickle() -> None:
            for byte in GOOD:
                await asyncio.gather(large.send(bytes([byte])), small.send(bytes([byte])))
                await asyncio.sleep(0.005)

        async def send_in_time() -> None:
            body = GOOD + b" " * (4 * LEAST_BYTES + 1 - len(GOOD))
            for start in range(0, len(body), LEAST_BYTES):
                await quick.send(body[start : start + LEAST_BYTES])
                await asyncio.sleep(0.1)

        sending = asyncio.gather(trickle(), send_in_time())
        reply = await large.reply()
        assert 0.45 < time.monotonic() - before_s < 1.8
        assert reply.code == "body_timeout"
        assert f"{LEAST_BYTES} bytes in 0.6 s" in reply.document["detail"]
        assert [(await each.reply()).status for each in (small, quick)] == [202, 202]
        await sending


async def test_large_body_that_waits_too_long_is_503() -> None:
    """The wait for memory is bounded too, and is our lack, not the fault of a slow client."""
    half_mib = 512 * KIB
    async with running_receiver(
        body_bytes_max=half_mib, receiver_bytes_max=half_mib, body_s_max=0.2
    ) as receiver:
        bodies = bodies_of(receiver)
        assert bodies.count_in(half_mib)
        waiting = await receiver.crowd(2, declared(half_mib) + GOOD)
        await until(lambda: len(bodies._queue) == 2)
        (late,) = await receiver.crowd(1, declared(half_mib) + GOOD)
        assert (await late.reply(0.1)).code == "buffer_full"  # the queue is full: at once
        assert {(await each.reply()).code for each in waiting} == {"buffer_full"}
        bodies.count_out(half_mib)
        assert bodies._bytes_taken == 0
        assert not bodies._queue


async def test_waiting_client_gone_leaves_the_queue() -> None:
    """A client that disconnects while it waits for memory leaves it to the others."""
    async with running_receiver(
        body_bytes_max=64 * KIB, receiver_bytes_max=64 * KIB, body_s_max=5
    ) as receiver:
        bodies = bodies_of(receiver)
        holder = await receiver.crowd(1, declared(len(LARGE)) + LARGE[:20_000])
        await until(lambda: bodies._bytes_taken)
        (waiting,) = await receiver.crowd(1, declared(len(LARGE)) + LARGE[:20_000])
        await until(lambda: bodies._queue)
        await waiting.close()
        assert [each.status for each in await finished(holder, LARGE[20_000:])] == [202]
        await until(lambda: bodies._bytes_taken == 0)
        assert (await receiver.post(LARGE)).status == 202


async def test_bytes_granted_to_a_cancelled_handler_are_given_on() -> None:
    """A handler that is cancelled as it is granted its bytes does not keep them."""
    bodies = Bodies(body_bytes_max=64 * KIB, body_s_max=10, all_bytes_max=64 * KIB)
    request = request_of(declared(len(LARGE)), LARGE)

    async def receive() -> None:
        async with bodies.received(request):
            pass

    assert bodies.count_in(60_000)
    waiting = asyncio.create_task(receive())
    await asyncio.sleep(0)
    bodies.count_out(60_000)
    while bodies._queue:  # noqa: ASYNC110  a longer pause would let it go on
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert bodies._bytes_taken == bodies._bytes_taken_by_large == 0
    assert not bodies._incomplete


async def test_small_posts_go_before_large_ones_when_memory_is_free_again() -> None:
    """Two wait for memory; the small one, which came later, is first."""
    async with running_receiver(body_bytes_max=64 * KIB, receiver_bytes_max=64 * KIB) as receiver:
        bodies = bodies_of(receiver)
        assert bodies.count_in(64 * KIB)
        (large,) = await receiver.crowd(1, post(LARGE))
        await until(lambda: len(bodies._queue) == 1)
        (small,) = await receiver.crowd(1, post(GOOD))
        await until(lambda: len(bodies._queue) == 2)
        order = [place.is_for_large for place in sorted(bodies._queue, key=lambda each: each.rank)]
        assert order == [False, True]
        bodies.count_out(64 * KIB)
        assert [(await each.reply()).status for each in (large, small)] == [202, 202]


if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024
BODY = b'{"device_id":"d1"}' * 50


PACK: dict[str, Callable[[bytes], bytes]] = {
    GZIP: lambda body: gzip.compress(body, mtime=0),
    ZSTD: zstd.compress,
}
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # a frame of zstd without content
both = pytest.mark.parametrize("encoding", PACK)


def refusal(body: bytes, cap: int = MIB, encoding: str = GZIP) -> str:
    """Return the code with which a body is refused."""
    with pytest.raises(Refused) as caught:
        inflated(body, encoding, cap)
    return caught.value.code


def with_checksum(body: bytes) -> bytes:
    """Compress with zstd, with a checksum and without the size, as its program does for a pipe."""
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
    return packer.compress(body) + packer.flush()


@both
@given(parts=st.lists(st.binary(max_size=5_000), min_size=1, max_size=5))
def test_whole_parts_come_out_unchanged(encoding: str, parts: list[bytes]) -> None:
    """One part or several joined together, as `cat a.gz b.gz` makes them, whatever is in them."""
    packed = b"".join(map(PACK[encoding], parts))
    assert inflated(packed, encoding, MIB) == b"".join(parts)
    assert light(packed, encoding, MIB) == b"".join(parts)
    assert refusal(packed + b"x", encoding=encoding) == "bad_encoding"


def test_many_and_large_parts_come_out_unchanged() -> None:
    """Parts that are longer than what a decoder gets at once; frames without content, or a size."""
    parts = [bytes([place]) * 20_000 + bytes(range(256)) * place for place in range(200)]
    parts.append(random.Random(1).randbytes(50_000))
    for pack in (*PACK.values(), with_checksum, lambda body: SKIPPABLE + with_checksum(body)):
        encoding = GZIP if pack is PACK[GZIP] else ZSTD
        packed = b"".join(map(pack, parts))
        assert inflated(packed, encoding, 64 * MIB) == b"".join(parts)
        assert light(packed, encoding, 64 * MIB) is None


@pytest.mark.parametrize(
    "packed", [PACK[GZIP](BODY), with_checksum(BODY), PACK[GZIP](b"x") + PACK[GZIP](BODY)]
)
def test_every_cut_is_refused(packed: bytes) -> None:
    """There is no length at which a cut-off body passes, but at the end of a part."""
    encoding = GZIP if packed[:1] == b"\x1f" else ZSTD
    for size in set(range(len(packed))) - {len(PACK[GZIP](b"x"))}:
        assert refusal(packed[:size], encoding=encoding) == "bad_encoding"


@both
def test_wrong_checksum_is_refused(encoding: str) -> None:
    """One altered bit of the checksum is found."""
    packed = bytearray(PACK[GZIP](BODY) if encoding == GZIP else with_checksum(BODY))
    packed[-6 if encoding == GZIP else -2] ^= 1
    assert refusal(bytes(packed), encoding=encoding) == "bad_encoding"


@pytest.mark.parametrize("zeros", [1, 8, 512, MIB])
def test_zeros_after_gzip_are_padding(zeros: int) -> None:
    """As some programs fill up a block; what zstd has behind its frames is refused."""
    packed = PACK[GZIP](BODY) * 2 + bytes(zeros)
    assert inflated(packed, GZIP, MIB) == 2 * BODY
    assert light(packed, GZIP, MIB) == (2 * BODY if zeros < MIB else None)
    assert refusal(PACK[ZSTD](BODY) + bytes(zeros), encoding=ZSTD) == "bad_encoding"
    assert refusal(bytes(zeros)) == "bad_encoding"


@both
@pytest.mark.parametrize("body", [b"", b"{}", b"\x1f\x8b", b"\x78\x9c\x03\x00\x00\x00\x00\x01"])
def test_other_bytes_are_refused(encoding: str, body: bytes) -> None:
    """Nothing, plain text, a stub, and zlib's own format are neither."""
    assert refusal(body, encoding=encoding) == "bad_encoding"
    expected_bytes(body, encoding)  # never fails


@both
def test_at_the_cap_passes_and_beyond_is_too_large(encoding: str) -> None:
    """The cap is inclusive, and counts all parts."""
    pack = PACK[encoding]
    assert len(inflated(pack(b"x" * 1000), encoding, 1000)) == 1000
    assert len(inflated(pack(b"x" * 500) * 2, encoding, 1000)) == 1000
    for packed in (pack(b"x" * 1001), pack(b"x" * 500) * 2 + pack(b"x")):
        assert refusal(packed, 1000, encoding) == "inflated_too_large"
    assert light(pack(b"x" * 1001), encoding, 1000) is None


@both
def test_bomb_costs_no_more_than_its_cap(encoding: str) -> None:
    """Of 64 MiB of zeros only so much is made as is allowed, whatever the body claims."""
    bomb = bytearray(PACK[encoding](bytes(64 * MIB)))
    if encoding == GZIP:
        bomb[-4:] = (10).to_bytes(4, "little")
    for cap, cost_s in ((4 * MIB, 0.05), (LIGHT_INFLATED_BYTES, 0.01)):
        before_s = time.thread_time()
        assert refusal(bytes(bomb), cap, encoding) == "inflated_too_large"
        assert time.thread_time() - before_s < cost_s
    before_s = time.thread_time()
    assert light(bytes(bomb)[:60_000], encoding, 4 * MIB) is None
    assert time.thread_time() - before_s < 0.01


@both
def test_very_many_parts_are_refused(encoding: str) -> None:
    """Each part costs, also an empty one; a light body has few of them."""
    empty = PACK[encoding](b"")
    assert inflated(empty * PARTS_MAX, encoding, MIB) == b""
    assert refusal(empty * (PARTS_MAX + 1), encoding=encoding) == "inflated_too_large"
    assert light(empty * LIGHT_PARTS, encoding, MIB) == b""
    assert light(empty * (LIGHT_PARTS + 1), encoding, MIB) is None


def test_window_of_zstd_is_bounded() -> None:
    """A frame that wants more memory than HTTP allows is refused before it gets it (RFC 9659)."""
    for log, code in ((23, None), (24, "bad_encoding")):
        packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
        packed = packer.compress(BODY) + packer.flush()
        if code is None:
            assert inflated(packed, ZSTD, MIB) == BODY
        else:
            assert refusal(packed, encoding=ZSTD) == code


async def test_heavy_body_leaves_the_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a 200 MiB bomb is decompressed, the event loop runs: here, only it ends the work."""
    bomb = await asyncio.to_thread(lambda: gzip.compress(bytes(200 * MIB), 1, mtime=0))
    loop_turned = threading.Event()

    def after_the_loop_turned(body: bytes, encoding: str, cap: int) -> bytes:
        assert threading.current_thread().name.startswith("inflate")
        assert loop_turned.wait(5)
        return inflated(body, encoding, cap)

    monkeypatch.setattr("ingest.http.rounds.inflated", after_the_loop_turned)
    async with running_receiver() as receiver:
        client = await receiver.connect()
        asyncio.get_running_loop().call_later(0.1, loop_turned.set)
        await client.send(post(bomb, headers={"Content-Encoding": "gzip"}))
        assert (await client.reply()).code == "inflated_too_large"
