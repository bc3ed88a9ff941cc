"""Receives the body of one post; bounds the bytes and the time of each body and of all together.

Promises: a byte of a body counts when it has arrived, not when it is declared, until the caller has
finished with it. All together have `all_bytes_max`. Bodies over SMALL_BYTES, the large ones, may
use three quarters of it, and bodies that are not complete seven eighths. So there is always room
for a small body that arrives whole. A body that finds no room waits unread on its socket, at most
`body_s_max`; then it is refused with 503, since the lack is ours. Large bodies cannot wait for each
other for ever: `body_bytes_max` is kept free for the oldest one that is not complete.
A body has `body_s_max` to arrive. A large one must also bring LEAST_BYTES in each quarter of it.
A compressed body is decompressed to the content of one or more whole parts (members of gzip, frames
of zstd), each with its checksum verified, and never beyond a bound. Other bytes after a part, but
zeros after gzip, and incomplete bodies are refused. The sizes that a body claims are not trusted:
a light one takes about 1 ms at most, whatever it has.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from aiohttp import StreamReader, web

from ingest.http.framer import MEMORY, SMALL_CHUNKS
from ingest.http.request_and_answer import Request
from ingest.model.errors import Refused
from ingest.system.clock import monotonic_s
from ingest.system.words import quoted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SMALL_BYTES = 16 * 1024
# At this rate not even SMALL_BYTES would arrive in `body_s_max`. With the default it is 1.6 kB/s; a
# device on a slow mobile line posts a small body, for which there is no least rate.
LEAST_BYTES = SMALL_BYTES // 4
SOCKET_BYTES = 256 * 1024  # one read of a socket may bring this much before it can be paused
GZIP, ZSTD = "gzip", "zstd"
LIGHT_PACKED_BYTES = 64 * 1024
LIGHT_INFLATED_BYTES = 256 * 1024
LIGHT_PARTS = 16
# Each part of zstd costs 15 us, however short it is.
PARTS_MAX = 1_000
PART_BYTES = 16 * 1024  # given to the decoder of each part but the first
ZSTD_EXPANSION = 4  # of bodies whose size is not known
# Only of a server of others. What it gives may have been cut off, and nothing tells that.
INFLATED = (
    "the server has decompressed the body itself, so nobody can tell whether it is whole; start "
    "the server with auto_decompress=False, or send bodies that are not compressed"
)
TAKEN = "a middleware has taken a part of the body: it must read it with `request.read()`"

_ENCODINGS = {"gzip": GZIP, "x-gzip": GZIP, "zstd": ZSTD, "identity": None}
# A window of 8 MiB is what RFC 9659 allows in HTTP. It bounds the memory of a decoder.
_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
_FAULTS = (zlib.error, zstd.ZstdError)


class _Body:
    """One body: its bytes in memory, and the time it has left."""

    __slots__ = (
        "deadline_s",
        "is_large",
        "is_whole",
        "number",
        "part_bytes",
        "part_s",
        "size_bytes",
    )

    def __init__(self, *, is_large: bool, body_s_max: float) -> None:
        self.number = 0  # of a large one: the order in which they began
        self.size_bytes = 0
        self.is_large = is_large
        self.is_whole = False  # nothing more will come
        self.deadline_s = monotonic_s() + body_s_max
        self.part_s = monotonic_s() + body_s_max / 4  # when LEAST_BYTES must have arrived
        self.part_bytes = 0


class _Place(asyncio.Future[None]):
    """A place in the queue for memory; done when the bytes are booked."""

    def __init__(self, body: _Body, more_bytes: int) -> None:
        super().__init__()
        self.body = body
        self.more_bytes = more_bytes

    @property
    def is_for_large(self) -> bool:
        return _is_large(self.body, self.more_bytes)

    @property
    def rank(self) -> tuple[bool, int]:
        """Small bodies go before large ones, older before younger ones."""
        return self.is_for_large, self.body.number


class Bodies:
    """All bodies that are being received at one port; together they have `all_bytes_max`."""

    def __init__(self, *, body_bytes_max: int, body_s_max: float, all_bytes_max: int) -> None:
        self._body_bytes_max = body_bytes_max
        self._body_s_max = body_s_max
        self._bytes_max = all_bytes_max
        # One body must fit, whatever the settings.
        self._bytes_max_of_incomplete = max(all_bytes_max * 7 // 8, body_bytes_max)
        self._bytes_max_of_large = max(all_bytes_max * 3 // 4, body_bytes_max)
        self._bytes_taken = 0
        self._bytes_taken_by_large = 0
        self._numbers = count()
        self._incomplete: dict[_Body, None] = {}  # the large ones, the oldest first
        self._queue: list[_Place] = []
        self._grant_is_due = False  # nothing is given away before

    @asynccontextmanager
    async def received(
        self, request: Request, body_bytes_max: int | None = None
    ) -> AsyncIterator[bytes]:
        """Give the whole body once it has arrived; it counts until the context ends.

        Raises Refused (`body_too_large`, `body_timeout`, `buffer_full`, `bad_request`) or
        ConnectionError if the client is gone.
        """
        declared = max(0, request.head.body_bytes)
        bytes_max = body_bytes_max or self._body_bytes_max
        check_size(declared, bytes_max)
        body = _Body(is_large=declared > SMALL_BYTES, body_s_max=self._body_s_max)
        try:
            yield await self._read(request, body, bytes_max)
        finally:
            self._incomplete.pop(body, None)
            self._bytes_taken -= body.size_bytes
            self._bytes_taken_by_large -= body.size_bytes * body.is_large
            self._grant()

    def count_in(self, size_bytes: int) -> bool:
        """Count a body that arrived whole. Returns False if there is no room for it."""
        if self._bytes_taken + size_bytes > self._bytes_max:
            return False
        if size_bytes > SMALL_BYTES:
            if self._bytes_taken_by_large + size_bytes > self._bytes_max_of_large:
                return False
            self._bytes_taken_by_large += size_bytes
        self._bytes_taken += size_bytes
        return True

    def count_out(self, size_bytes: int) -> None:
        """Count a body no longer that was counted in. Its request may begin, and count it in again.

        Those in the queue go on after that.
        """
        self._bytes_taken -= size_bytes
        if size_bytes > SMALL_BYTES:
            self._bytes_taken_by_large -= size_bytes
        if self._queue and not self._grant_is_due:
            self._grant_is_due = True
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._grant_now)  # when all of this round have begun

    # Reading

    async def _read(self, request: Request, body: _Body, bytes_max: int) -> bytes:
        """Read to the end; book each part as it arrives."""
        parts: list[bytes] = []
        content = request.content
        if content is None:
            body.is_whole = True
            whole = request.body or b""
            if not self._book(body, len(whole)):
                await self._wait_for_memory(request, body, len(whole))
            self._incomplete.pop(body, None)
            return whole
        if content.total_compressed_bytes is not None:
            raise Refused("internal", INFLATED)
        if not content.is_eof():
            _send_continue(request)
        while not content.at_eof():
            part = await self._next_part(content, body)
            check_size(body.size_bytes + len(part), bytes_max)
            body.is_whole = content.at_eof()
            if not self._book(body, len(part)):
                await self._wait_for_memory(request, body, len(part))
            parts.append(part)
        self._incomplete.pop(body, None)
        if body.size_bytes != content.total_bytes:
            raise Refused("internal", TAKEN)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _next_part(self, content: StreamReader, body: _Body) -> bytes:
        in_time_s = min(body.deadline_s, body.part_s) if body.is_large else body.deadline_s
        try:
            async with asyncio.timeout(max(0.0, in_time_s - monotonic_s())):
                part = await content.readany()
        except TimeoutError:
            raise self._too_slow(in_time_s < body.deadline_s) from None
        except web.RequestPayloadError as broken:
            why = SMALL_CHUNKS if str(broken) == SMALL_CHUNKS else "the body is not complete"
            raise Refused("bad_request", why) from None
        except RuntimeError as error:  # aiohttp raises it if the transport is closed already
            raise ConnectionResetError("the client is gone") from error
        body.part_bytes += len(part)
        if body.part_bytes >= LEAST_BYTES:
            body.part_bytes, body.part_s = 0, monotonic_s() + self._body_s_max / 4
        return part

    def _too_slow(self, is_rate: bool) -> Refused:
        if is_rate:
            least = f"{LEAST_BYTES} bytes in {self._body_s_max / 4:g} s"
            return Refused("body_timeout", f"a large body must bring at least {least}")
        return Refused("body_timeout", f"the body did not arrive within {self._body_s_max:g} s")

    # Memory

    def _book(self, body: _Body, more_bytes: int) -> bool:
        """Count bytes that have arrived. Returns False if there is no room for them."""
        is_large = _is_large(body, more_bytes)
        more_of_large = 0
        if is_large:
            more_of_large = more_bytes if body.is_large else body.size_bytes + more_bytes
            if self._bytes_taken_by_large + more_of_large > self._bytes_max_for(body):
                return False
        bytes_max = self._bytes_max if body.is_whole else self._bytes_max_of_incomplete
        if self._bytes_taken + more_bytes > bytes_max:
            return False
        body.is_large = is_large
        self._bytes_taken_by_large += more_of_large
        body.size_bytes += more_bytes
        self._bytes_taken += more_bytes
        return True

    def _bytes_max_for(self, body: _Body) -> int:
        """Return how much all large bodies may use if this one gets more.

        The oldest incomplete one always gets enough to become complete, and then the next one.
        """
        if body not in self._incomplete:
            self._incomplete[body] = None
            body.number = next(self._numbers)
        if body.is_whole or next(iter(self._incomplete)) is body:
            return self._bytes_max_of_large
        return self._bytes_max_of_large - self._body_bytes_max

    async def _wait_for_memory(self, request: Request, body: _Body, more_bytes: int) -> None:
        place = _Place(body, more_bytes)
        alike = sum(other.is_for_large == place.is_for_large for other in self._queue)
        if alike >= max(1, self._bytes_max // SOCKET_BYTES):
            raise _too_many()
        began_s = monotonic_s()
        self._queue.append(place)
        request.sender.valve.shut(MEMORY)
        try:
            async with asyncio.timeout(self._body_s_max):
                await place
        except TimeoutError:
            raise _too_many() from None
        finally:
            if place in self._queue:
                self._queue.remove(place)
            request.sender.valve.open(MEMORY)
        waited_s = monotonic_s() - began_s
        body.deadline_s += waited_s
        body.part_s += waited_s

    def _grant_now(self) -> None:
        self._grant_is_due = False
        self._grant()

    def _grant(self) -> None:
        """Book what has room, until the first for which there is none."""
        if self._grant_is_due:
            return
        for place in sorted(self._queue, key=lambda each: each.rank):
            if not place.done():
                if not self._book(place.body, place.more_bytes):
                    return
                place.set_result(None)
            self._queue.remove(place)


def check_size(size_bytes: int, bytes_max: int) -> None:
    """Raise Refused("body_too_large") if a body of this size is not allowed."""
    if size_bytes > bytes_max:
        raise Refused(
            "body_too_large",
            f"a body may have at most {bytes_max} bytes",
            body_bytes_max=bytes_max,
        )


def _is_large(body: _Body, more_bytes: int) -> bool:
    return body.is_large or body.size_bytes + more_bytes > SMALL_BYTES


def _too_many() -> Refused:
    return Refused("buffer_full", "too many bodies at once", retry_after_s=2)


def _send_continue(request: Request) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def encoding_of(header: str | None) -> str | None:
    """Return GZIP, ZSTD, or None for a plain body. Raises Refused("unsupported_encoding")."""
    encoding = (header or "identity").strip().lower()
    try:
        return _ENCODINGS[encoding]
    except KeyError:
        raise Refused(
            "unsupported_encoding",
            f"the header Content-Encoding may be gzip, zstd or absent, not {quoted(encoding)}",
        ) from None


def expected_bytes(body: bytes, encoding: str) -> int:
    """Return the decompressed size as the body claims it, or a guess. It may be wrong."""
    if encoding == GZIP:
        return int.from_bytes(body[-4:], "little")
    try:
        size: int | None = zstd.get_frame_info(body).decompressed_size
    except zstd.ZstdError:
        return 0  # it is refused at once
    return ZSTD_EXPANSION * len(body) if size is None else size


def inflated(body: bytes, encoding: str, inflated_bytes_max: int) -> bytes:
    """Decompress a body; blocks for about 1 ms per MiB of the result.

    Raises Refused("bad_encoding") and Refused("inflated_too_large").
    """
    whole = _inflated(body, encoding, inflated_bytes_max, PARTS_MAX)
    if whole is None:
        raise Refused(
            "inflated_too_large",
            f"the decompressed body has more than {inflated_bytes_max} bytes, or the body has more "
            f"than {PARTS_MAX} parts",
            inflated_bytes_max=inflated_bytes_max,
        )
    return whole


def light(
    body: bytes, encoding: str, inflated_bytes_max: int, bytes_max: int = LIGHT_INFLATED_BYTES
) -> bytes | None:
    """Decompress a light body, of at most `bytes_max`; None if it is not light.

    Raises Refused("bad_encoding").
    """
    if len(body) > LIGHT_PACKED_BYTES:
        return None
    return _inflated(body, encoding, min(bytes_max, inflated_bytes_max), LIGHT_PARTS)


def _inflated(body: bytes, encoding: str, bytes_max: int, parts_max: int) -> bytes | None:
    """Decompress a body; None if there is more than allowed."""
    pieces: list[bytes] = []
    left_bytes = bytes_max + 1
    at, step = 0, max(1, len(body))
    while at < len(body) or not at:
        if not parts_max:
            return None
        parts_max -= 1
        decoder = _decoder(encoding)
        first = at
        while not decoder.eof:
            some = body[at : at + step]
            if not some:
                raise _fault(encoding, first, "is not complete")
            at += len(some)
            try:
                piece = decoder.decompress(some, left_bytes)
            except _FAULTS as error:
                raise _fault(encoding, first, f"is not valid {encoding}") from error
            pieces.append(piece)
            left_bytes -= len(piece)
            if left_bytes <= 0:
                return None
        at -= len(decoder.unused_data)
        if encoding == GZIP and body.startswith(b"\0", at) and body.count(0, at) == len(body) - at:
            break  # some programs fill up with zeros
        step = PART_BYTES  # what a decoder does not use is copied
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _decoder(encoding: str) -> Any:
    """Return a decoder of one part."""
    if encoding == GZIP:
        return zlib.decompressobj(wbits=31)  # 16 + 15: a gzip wrapper, and nothing else
    return zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)


def _fault(encoding: str, at: int, why: str) -> Refused:
    what = f"what follows byte {at} of the {encoding} body" if at else "the body"
    return Refused("bad_encoding", f"{what} {why}")
