"""Rows of POST /v1/readings that no recorded request has: formats, encodings, hints, heads."""

from __future__ import annotations

import gzip
import sys
from typing import Any

from ingest.formats.media_types import FORMATS, USUAL
from ingest.model.errors import BufferFull, DeadLettersBroken, DeadLettersFull, Stopping
from ingest.model.reading import Reading
from tests.support.encodings import written
from tests.support.posts import array
from tests.support.receiver import BAD, GOOD, JSON, OTHER, SECRET, head, line
from tests.unit.receiver.rows import Group, Row, request

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

US = 1_750_000_000_000_000
FACTS = [Reading(US + number, "room-1", "t", number / 8) for number in range(40)]
OLD = Reading(300_000_000_000_000, "room-1", "t", 1.0)
TYPES = {FORMATS[media_type].name: media_type for media_type in USUAL}
KEPT = [(US, "d1", "temperature", 21.5)]
PAGE = "/v1/readings"
CHUNKED = {**JSON, "Transfer-Encoding": "chunked"}
BEARER = {"Authorization": f"Bearer {SECRET}"}


def post(body: bytes = GOOD, query: str = "", headers: Any = (), **more: Any) -> bytes:
    """Return a post of readings."""
    return request(PAGE + query, body, {**JSON, **dict(headers)}, **more)


def typed(body: bytes, media_type: str, **headers: str) -> bytes:
    """Return a post with numeric times in microseconds."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request(PAGE + "?precision=us", body, {"Content-Type": media_type, **named})


def chunks(*parts: bytes) -> bytes:
    """Return a chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


BAD_ENTRIES = b'{"device_id":"d","ts":1700000000,"values":{"ok":1,%b}}' % b",".join(
    b'"k%d":null' % number for number in range(4_000)
)
PLAIN = [
    Row(post(), 202, kept=KEPT, counts={("requests", (PAGE, 202)): 1, ("received", ""): 1}),
    Row(
        post(array(GOOD, BAD, GOOD), "?precision=ms"),
        202,
        kept=KEPT * 2,
        letters=[
            {
                "reason": "invalid",
                "code": "wrong_type",
                "item": 1,
                "original": BAD,
                "precision": "ms",
            }
        ],
        counts={("accepted", ""): 2, ("dead_lettered", "invalid"): 1},
    ),
    Row(
        post(array(GOOD, BAD), "?strict=true"),
        422,
        "invalid_items",
        "the post has 1 invalid reading and strict=true",
        counts={("rejected", "invalid_items"): 2},
    ),
    Row(post(GOOD, "?precision=hours%0a%1b"), 400, says='"allowed":["s","ms","us","ns"]'),
    Row(post(GOOD, "?ack=durable"), 400, says='"available":["buffered","committed"]'),
    Row(post(array(GOOD, BAD)), 503, "buffer_full", given={("inlet", "error"): BufferFull(3.0)}),
    Row(post(), 503, "draining", given={("inlet", "error"): Stopping("shut")}),
    *(
        Row(
            post(),
            503,
            code,
            given={("admission", "code"): code},
            headers={"connection": "close" if code == "draining" else None},
            counts={("received", ""): 0},
        )
        for code in ("starting", "draining", "disk_low")
    ),
    Row(
        post(array(GOOD, BAD)),
        503,
        "disk_low",
        given={("dead_letters", "error"): DeadLettersBroken("I/O error")},
        counts={("rejected", "disk_low"): 2},
    ),
    Row(  # all indices, so that the client can post the rest
        post(array(GOOD, *[BAD] * 120)),
        422,
        "dead_letters_full",
        f'"items":{[*range(1, 121)]}'.replace(" ", ""),
        given={("dead_letters", "error"): DeadLettersFull("full")},
        counts={("rejected", "dead_letters_full"): 121},
    ),
    Row(  # the dead letters of a post are no larger than its body
        post(BAD_ENTRIES),
        202,
        says='"also":[{"field":"values.k1","code":"wrong_type"}',
        kept=1,
        letters=[{"original": BAD_ENTRIES}],
    ),
    # No 100 for a body that is refused; it may never come.
    Row(
        head(headers={**JSON, "Content-Length": "9", "Expect": "100-continue"}),
        503,
        "starting",
        given={("admission", "code"): "starting"},
        headers={"connection": "close"},
    ),
    # What would have to be ignored is named.
    Row(post().replace(b"HTTP/1.1", b"HTTP/2.0"), 400, says="speaks HTTP/1.1"),
    Row(head(headers={**JSON, "Transfer-Encoding": "gzip, chunked"}), 400, says="is chunked"),
    Row(head(headers=CHUNKED, version="1.0") + chunks(GOOD), 400, says="with HTTP/1.1"),
    Row(post(GOOD, headers={"Expect": "nonsense"}), 400, says="is 100-continue"),
    Row(
        post(GOOD, headers={"Content-Encoding": "identity\r\nContent-Encoding: gzip"}),
        415,
        says="may have one",
    ),
    Row(head(headers=CHUNKED) + b"1\r\n \r\n" * 20_000 + b"0\r\n\r\n", 400, says="too small"),
    # What follows CONNECT would belong to a tunnel, which this port is not.
    Row(post() + head("CONNECT", "x:1") + post(), 202, kept=KEPT, then=(404,)),
    Row(head("POST", "/v1/in/esp"), 404, says="no source is declared"),
    # What the port offers may be read without a token, but not by a page of another site.
    Row(head("GET", "/openapi.json", {"Origin": "http://evil.example"}), 403),
    # A head may be as large as the refusal of a larger one says.
    Row(head("GET", "/livez", {"X": "x" * (8 * 1024 + 1)}), 431, says="8 KiB in a line"),
    Row(head(headers={f"X-{n}": "1" for n in range(200)}), 431, says="64 headers"),
]
MANY = 5_000
LARGE = array(*(GOOD.replace(b"21.5", b"%d.%d" % (n, n * 7919)) for n in range(MANY)))
FORMS = [
    row
    for media_type in FORMATS
    for body in (written(FORMATS[media_type].name, FACTS),)
    for row in (
        Row(typed(body, f"{media_type.upper()}; charset=utf-8"), 202, kept=FACTS),
        *(
            Row(
                typed(pack(body[:50]) + pack(body[50:]), media_type, Content_Encoding=encoding),
                202,
                kept=FACTS,
            )
            for pack, encoding in ((gzip.compress, "gzip"), (zstd.compress, "zstd"))
        ),
    )
] + [
    # A large body is inflated on a thread.
    Row(post(gzip.compress(LARGE, 1), headers={"Content-Encoding": "gzip"}), 202, kept=MANY),
    Row(typed(b"x", "application/cbor"), 415, says=USUAL[-1], headers={"accept": ", ".join(USUAL)}),
    Row(
        typed(b"x", "application/json", Content_Encoding="br"),
        415,
        headers={"accept-encoding": "gzip, zstd"},
    ),
    Row(typed(b"x", "application/json", Content_Encoding="zstd"), 400, "bad_encoding"),
    Row(
        typed(zstd.compress(bytes(64 << 20)), "application/msgpack", Content_Encoding="zstd"),
        413,
        "inflated_too_large",
    ),
    # The cause is told, and not only what the parser has found.
    Row(post(packed=False, body=gzip.compress(GOOD)), 400, says="Content-Encoding: gzip missing"),
    Row(post(b"\x28\xb5\x2f\xfd\x04\x00"), 400, says="Content-Encoding: zstd missing"),
    Row(post(b'{"device_id":"\xff"}'), 400, says="it is not UTF-8"),
    Row(request("/write", gzip.compress(GOOD)), 400, says="Content-Encoding: gzip missing"),
    Row(request("/write", b" " + GOOD), 400, says="JSON is posted to /v1/readings"),
]
SENML = [  # records without a device are of the token's device, also as dead letters
    Row(
        typed(
            b'[{"n":"t","v":21.5},{"n":"door","vs":"open"},{"n":"other/t","v":1},{"n":"t"}]',
            "application/senml+json",
            **BEARER,
        ),
        202,
        kept=[("gateway", "t", 21.5)],
        letters=[
            {"code": "not_allowed", "device": "gateway"},
            {"code": "missing_field", "device": "gateway"},
        ],
        counts={("line_fields", "text_ignored"): 1},
    ),
    Row(
        typed(b'[{"n":"t","vs":"x"}]', "application/senml+json", **BEARER),
        422,
        "empty",
        counts={("line_fields", "text_ignored"): 0},
    ),
]
MSGPACK = [
    Row(typed(written(name, FACTS), media_type, **BEARER), 202 if name == "msgpack" else 403)
    for name, media_type in TYPES.items()
] + [Row(typed(b"x", "text/plain", Authorization="Bearer x"), 401)]
BOUND = 100_000
AT_THE_BOUND = [
    row
    for size, status in ((BOUND, 202), (BOUND + 1, 413))
    for body in (GOOD + b" " * (size - len(GOOD)),)
    for row in (
        Row(post(body), status),
        Row(head(headers=CHUNKED) + chunks(body[:70_000], body[70_000:]), status),
    )
] + [Row(head(headers={**JSON, "Content-Length": str(10**12)}), 413, "body_too_large")]
LATE = [
    Row(head(headers=headers) + sent, 408, "body_timeout", headers={"connection": "close"})
    for headers, sent in (
        ({**JSON, "Content-Length": str(len(GOOD))}, GOOD[:10]),
        (CHUNKED, b""),
        ({**JSON, "Content-Length": "50000"}, GOOD[:10]),
    )
]
GROUPS = {
    "readings": Group(PLAIN),
    "formats": Group(FORMS),
    "senml": Group(SENML, tokens=[line(device="gateway")]),
    "msgpack only": Group(MSGPACK, tokens=[line(formats=("msgpack",)), line(OTHER, "other")]),
    "bodies at the bound": Group(
        AT_THE_BOUND, {"body_bytes_max": BOUND, "inflated_bytes_max": 2 * BOUND}
    ),
    "bodies that do not come": Group(LATE, {"body_s_max": 0.1}),
    "gateways": Group(  # each of two gives half of the limit
        [Row(post(), 202), Row(post(), 429, "too_fast")],
        {"sender_posts_per_s_max": 0.02, "sender_burst_s": 100, "gateways": 2},
    ),
    "large posts": Group(  # a body that is decoded in steps costs the same
        [Row(post(array(*[GOOD] * 4_000)), 202), Row(post(), 429, "too_fast")],
        {"sender_readings_per_s_max": 1, "sender_burst_s": 1},
    ),
    "networks": Group(  # also behind a proxy, whose other clients go on
        [
            Row(post(body, headers={"X-Forwarded-For": f"203.0.113.{address}"}), status)
            for body, address, status in (
                (array(GOOD, BAD), 1, 202),
                (GOOD, 1, 429),
                (GOOD, 2, 202),
            )
        ],
        {
            "sender_readings_per_s_max": 0.01,
            "sender_burst_s": 100,
            "trusted_proxies": "127.0.0.1",
            "access": "open",
        },
    ),
}
