"""Strict, capped gunzip of one body.

Promises: the result is exactly what one whole gzip member holds, checksum and length verified, and
never more than the cap. Several members, bytes after the end and cut-off bodies are refused.
A light body (less than 1 ms of work, even if it lies) is inflated at once, others on threads.
"""

from __future__ import annotations

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor

from ingest.http.response import shown
from ingest.model.errors import Refused

LIGHT_PACKED_BYTES = 64 * 1024
LIGHT_INFLATED_BYTES = 256 * 1024
THREADS = 2


def claimed_bytes(body: bytes) -> int:
    """Return the inflated size that the gzip trailer claims (modulo 4 GiB; may be a lie)."""
    return int.from_bytes(body[-4:], "little")


def is_light(body: bytes) -> bool:
    """Whether `gunzip` of this body is quick, however much its trailer lies."""
    return len(body) <= LIGHT_PACKED_BYTES and claimed_bytes(body) <= LIGHT_INFLATED_BYTES


def gunzip(body: bytes, inflated_bytes_max: int) -> bytes:
    """Inflate one gzip member; blocks for about 1 ms per MiB that comes out.

    Inflates no further than the trailer's claim, so a small claim before a bomb costs little.
    Raises Refused("bad_encoding") and Refused("inflated_too_large").
    """
    claimed = claimed_bytes(body)
    stop_bytes = min(claimed, inflated_bytes_max)
    inflater = zlib.decompressobj(wbits=31)  # 16 + 15: a gzip wrapper, and nothing else
    try:
        inflated = inflater.decompress(body, stop_bytes + 1)
    except zlib.error as error:
        raise Refused("bad_encoding", "the body is not valid gzip") from error
    if len(inflated) > inflated_bytes_max:
        raise Refused(
            "inflated_too_large",
            f"the inflated body has more than {inflated_bytes_max} bytes",
            inflated_bytes_max=inflated_bytes_max,
        )
    if len(inflated) > claimed:
        raise Refused("bad_encoding", "the gzip body is cut off, or followed by further bytes")
    if not inflater.eof:
        raise Refused("bad_encoding", "the gzip body is cut off")
    if inflater.unused_data:
        raise Refused("bad_encoding", "bytes follow the gzip body; send one member only")
    return inflated


class Inflater:
    """Inflates on the loop what is light, and on two threads what is not.

    `waiting_bytes_max` bounds the bodies that wait for a thread: a flood of bombs is refused with
    503 instead of filling memory.
    """

    def __init__(self, inflated_bytes_max: int, waiting_bytes_max: int) -> None:
        self._inflated_bytes_max = inflated_bytes_max
        self._waiting_bytes_max = waiting_bytes_max
        self._waiting_bytes = 0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="inflate")

    async def inflate(self, body: bytes) -> bytes:
        """Return the inflated body. Raises Refused; safe to cancel."""
        if is_light(body):
            return gunzip(body, self._inflated_bytes_max)
        if self._waiting_bytes + len(body) > self._waiting_bytes_max:
            raise Refused("buffer_full", "too many large gzip bodies at once", retry_after_s=2)
        self._waiting_bytes += len(body)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, gunzip, body, self._inflated_bytes_max)
        finally:
            self._waiting_bytes -= len(body)

    def close(self) -> None:
        """Let the threads go; blocks for the bodies in work only (milliseconds)."""
        self._threads.shutdown(cancel_futures=True)


def is_gzip(header: str | None) -> bool:
    """Whether the body is gzipped; raise Refused("unsupported_encoding") for other encodings."""
    encoding = (header or "identity").strip().lower()
    if encoding in {"gzip", "x-gzip"}:
        return True
    if encoding != "identity":
        raise Refused(
            "unsupported_encoding",
            f"the header Content-Encoding may be gzip or absent, not {shown(encoding)}",
        )
    return False
