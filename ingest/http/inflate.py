"""Strict, bounded decompression of a gzip body.

Promises: the result is exactly the content of one whole gzip member, with checksum and length
verified, and never more than the bound. Several members, bytes after the end and incomplete bodies
are refused. Decompressing a light body takes less than 1 ms, even if its trailer has a wrong size.
"""

from __future__ import annotations

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor

from ingest.model.errors import Refused
from ingest.system.words import quoted

LIGHT_PACKED_BYTES = 64 * 1024
LIGHT_INFLATED_BYTES = 256 * 1024
THREADS = 2


def claimed_bytes(body: bytes) -> int:
    """Return the decompressed size in the gzip trailer (modulo 4 GiB). It may be wrong."""
    return int.from_bytes(body[-4:], "little")


def is_light(body: bytes) -> bool:
    """Whether `gunzip` of this body is quick, even if the size in the trailer is wrong."""
    return len(body) <= LIGHT_PACKED_BYTES and claimed_bytes(body) <= LIGHT_INFLATED_BYTES


def gunzip(body: bytes, inflated_bytes_max: int) -> bytes:
    """Decompress one gzip member; blocks for about 1 ms per MiB of the result.

    It stops at the size in the trailer. So a bomb with a small size in its trailer costs little.
    Raises Refused("bad_encoding") and Refused("inflated_too_large").
    """
    claimed = claimed_bytes(body)
    inflater = zlib.decompressobj(wbits=31)  # 16 + 15: a gzip wrapper, and nothing else
    try:
        inflated = inflater.decompress(body, min(claimed, inflated_bytes_max) + 1)
    except zlib.error as error:
        raise Refused("bad_encoding", "the body is not valid gzip") from error
    if len(inflated) > inflated_bytes_max:
        raise Refused(
            "inflated_too_large",
            f"the decompressed body has more than {inflated_bytes_max} bytes",
            inflated_bytes_max=inflated_bytes_max,
        )
    if len(inflated) > claimed:
        raise Refused("bad_encoding", "the gzip body is not complete, or more bytes follow it")
    if not inflater.eof:
        raise Refused("bad_encoding", "the gzip body is not complete")
    if inflater.unused_data:
        raise Refused("bad_encoding", "more bytes follow the gzip body; send one member only")
    return inflated


class Inflater:
    """Decompresses bodies that are not light, on two threads.

    `waiting_bytes_max` bounds the bodies that wait for a thread. A body over the bound is refused
    with 503, so a flood of bombs does not fill the memory.
    """

    def __init__(self, *, waiting_bytes_max: int) -> None:
        self._waiting_bytes_max = waiting_bytes_max
        self._waiting_bytes = 0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="inflate")

    async def inflate(self, body: bytes, inflated_bytes_max: int) -> bytes:
        """Return the decompressed body. Raises Refused; safe to cancel."""
        if self._waiting_bytes + len(body) > self._waiting_bytes_max:
            raise Refused("buffer_full", "too many large gzip bodies at once", retry_after_s=2)
        self._waiting_bytes += len(body)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, gunzip, body, inflated_bytes_max)
        finally:
            self._waiting_bytes -= len(body)

    def close(self) -> None:
        """End the threads; blocks for the bodies in work only (milliseconds)."""
        self._threads.shutdown(cancel_futures=True)


def is_gzip(header: str | None) -> bool:
    """Whether the body is gzip. Raises Refused("unsupported_encoding") for other encodings."""
    encoding = (header or "identity").strip().lower()
    if encoding in {"gzip", "x-gzip"}:
        return True
    if encoding != "identity":
        raise Refused(
            "unsupported_encoding",
            f"the header Content-Encoding may be gzip or absent, not {quoted(encoding)}",
        )
    return False
