"""Compressed bodies: strict about the end, capped in size, off the loop when it is work."""

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
    LIGHT_INFLATED_BYTES,
    LIGHT_PARTS,
    PARTS_MAX,
    ZSTD,
    expected_bytes,
    inflated,
    light,
)
from ingest.model.errors import Refused
from tests.support.receiver import post, running_receiver

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
