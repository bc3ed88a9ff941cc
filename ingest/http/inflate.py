"""Strict, bounded decompression of a body: gzip or zstd.

Promises: the result is exactly the content of one or more whole parts (members of gzip, frames of
zstd), each with its checksum verified, and never more than the bound. Other bytes after a part, but
zeros after gzip, and incomplete bodies are refused. The sizes that a body claims are not trusted:
decompressing a light one takes about 1 ms at most, whatever it has.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any

from ingest.model.errors import Refused
from ingest.system.words import quoted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP, ZSTD = "gzip", "zstd"
LIGHT_PACKED_BYTES = 64 * 1024
LIGHT_INFLATED_BYTES = 256 * 1024
LIGHT_PARTS = 16
# Each part of zstd costs 15 us, however short it is.
PARTS_MAX = 1_000
PART_BYTES = 16 * 1024  # given to the decoder of each part but the first
ZSTD_EXPANSION = 4  # of bodies whose size is not known

_ENCODINGS = {"gzip": GZIP, "x-gzip": GZIP, "zstd": ZSTD, "identity": None}
# A window of 8 MiB is what RFC 9659 allows in HTTP. It bounds the memory of a decoder.
_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
_FAULTS = (zlib.error, zstd.ZstdError)


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
