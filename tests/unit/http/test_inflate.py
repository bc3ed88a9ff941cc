"""Gunzip of bodies: strict about the end, capped in size, off the loop when it is work."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.http.inflate import LIGHT_INFLATED_BYTES, Inflater, gunzip, is_light
from ingest.model.errors import Refused

MIB = 1024 * 1024
BODY = b'{"device_id":"d1"}' * 50


def refusal(body: bytes, cap: int = MIB) -> str:
    """Return the code with which a body is refused."""
    with pytest.raises(Refused) as caught:
        gunzip(body, cap)
    return caught.value.code


@given(st.binary(max_size=5_000))
def test_gunzip_whole_body_returns_it(body: bytes) -> None:
    """What gzip packed comes out unchanged, whatever it is."""
    assert gunzip(gzip.compress(body, mtime=0), MIB) == body


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 30])
def test_gunzip_cut_off_body_is_refused(cut: int) -> None:
    """A body that lacks its end is never taken for a whole one."""
    assert refusal(gzip.compress(BODY, mtime=0)[:-cut]) == "bad_encoding"


def test_gunzip_every_cut_is_refused() -> None:
    """There is no length at which a cut-off body passes."""
    packed = gzip.compress(BODY, mtime=0)
    for size in range(len(packed)):
        assert refusal(packed[:size]) == "bad_encoding"


def test_gunzip_wrong_checksum_is_refused() -> None:
    """One altered bit of the checksum, or of the content, is found."""
    packed = bytearray(gzip.compress(BODY, mtime=0))
    packed[-6] ^= 1
    assert refusal(bytes(packed)) == "bad_encoding"


@pytest.mark.parametrize(
    "tail",
    [
        b"x",
        b"\0",
        b"\0" * 8,
        gzip.compress(b"", mtime=0),
        gzip.compress(BODY, mtime=0),
        b"\xff" * 20,
    ],
)
def test_gunzip_bytes_after_the_end_are_refused(tail: bytes) -> None:
    """Trailing bytes and second members are refused, zeros included."""
    assert refusal(gzip.compress(BODY, mtime=0) + tail) == "bad_encoding"


@pytest.mark.parametrize("body", [b"", b"{}", b"\x1f\x8b", b"\x78\x9c\x03\x00\x00\x00\x00\x01"])
def test_gunzip_other_bytes_are_refused(body: bytes) -> None:
    """Nothing, plain text, a stub, and zlib's own format are not gzip."""
    assert refusal(body) == "bad_encoding"


def test_gunzip_at_the_cap_passes_and_beyond_is_too_large() -> None:
    """The cap is inclusive."""
    assert len(gunzip(gzip.compress(b"x" * 1000, mtime=0), 1000)) == 1000
    assert refusal(gzip.compress(b"x" * 1001, mtime=0), 1000) == "inflated_too_large"


def test_gunzip_bomb_that_claims_little_stops_at_its_claim() -> None:
    """A bomb whose trailer has a small size is decompressed only up to that size."""
    bomb = bytearray(gzip.compress(bytes(64 * MIB), mtime=0))
    bomb[-4:] = (10).to_bytes(4, "little")
    assert is_light(bytes(bomb[-60_000:]))
    before_s = time.thread_time()
    assert refusal(bytes(bomb), 4 * MIB) == "bad_encoding"
    assert time.thread_time() - before_s < 0.01


def test_is_light_depends_on_both_sizes() -> None:
    """A body is light if it is small both packed and as it claims to come out."""
    assert is_light(gzip.compress(BODY, mtime=0))
    assert not is_light(gzip.compress(bytes(LIGHT_INFLATED_BYTES + 1), mtime=0))
    assert not is_light(bytes(70_000))


async def test_inflater_heavy_body_leaves_the_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a 200 MiB bomb is decompressed, the event loop runs: here, only it ends the work."""
    bomb = await asyncio.to_thread(lambda: gzip.compress(bytes(200 * MIB), 1, mtime=0))
    loop_turned = threading.Event()

    def gunzip_after_the_loop_turned(body: bytes, cap: int) -> bytes:
        assert loop_turned.wait(5)
        return gunzip(body, cap)

    monkeypatch.setattr("ingest.http.inflate.gunzip", gunzip_after_the_loop_turned)
    inflater = Inflater(waiting_bytes_max=64 * MIB)
    asyncio.get_running_loop().call_later(0.01, loop_turned.set)
    with pytest.raises(Refused) as caught:
        await inflater.inflate(bomb, 4 * MIB)
    assert caught.value.code == "inflated_too_large"
    inflater.close()


async def test_inflater_many_heavy_bodies_wait_within_bounds() -> None:
    """At most two bodies are in work, and more bytes than allowed do not wait: they are refused."""
    heavy = gzip.compress(bytes(LIGHT_INFLATED_BYTES + 1), mtime=0)
    inflater = Inflater(waiting_bytes_max=10 * len(heavy))
    results = await asyncio.gather(
        *(inflater.inflate(heavy, 4 * MIB) for _ in range(15)), return_exceptions=True
    )
    refused = [each for each in results if isinstance(each, Refused)]
    assert [each.code for each in refused] == ["buffer_full"] * 5
    assert sum(thread.name.startswith("inflate") for thread in threading.enumerate()) <= 2
    assert len(await inflater.inflate(heavy, 4 * MIB)) == LIGHT_INFLATED_BYTES + 1  # room again
    inflater.close()
