"""What a sender is told whose body cannot be read: a newcomer finds the cause in the answer."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.support.receiver import GOOD, JSON, head, running_receiver

GZIP = gzip.compress(GOOD, mtime=0)
ZSTD = b"\x28\xb5\x2f\xfd\x04\x00"


@pytest.mark.parametrize(
    ("target", "body", "told"),
    [
        ("/v1/readings", GZIP, "header Content-Encoding: gzip missing"),
        ("/v1/readings", ZSTD, "header Content-Encoding: zstd missing"),
        ("/v1/in/esp", GZIP, "header Content-Encoding: gzip missing"),
        ("/write", GZIP, "header Content-Encoding: gzip missing"),
        ("/write", b" " + GOOD, "JSON is posted to /v1/readings"),
        ("/v1/readings", b'{"device_id":"\xff"}', "it is not UTF-8"),
        ("/v1/in/esp", b"[%b1]" % (b"[]," * 25_000), "may have at most 20000 lists and objects"),
    ],
    ids=["gzip", "zstd", "gzip_source", "gzip_lines", "json_lines", "not_utf8", "many_lists"],
)
async def test_cause_is_told(tmp_path: Path, target: str, body: bytes, told: str) -> None:
    """And not only what the parser has found."""
    sources = tmp_path / "sources.toml"
    sources.write_text('[[source]]\nname = "esp"\ndevice = "id"\n')
    async with running_receiver(sources_file=str(sources)) as receiver:
        if "lists" in told:
            body = b'{"a":%b}' % body
        sized = {**JSON, "Content-Length": str(len(body))}
        reply = await receiver.send(head("POST", target, sized) + body)
        assert 400 <= reply.status < 500
        assert told in reply.document.get("detail", reply.document.get("message"))


async def test_chunks_that_are_too_small_are_named() -> None:
    """The body was complete."""
    chunked = head("POST", "/v1/readings", {**JSON, "Transfer-Encoding": "chunked"})
    async with running_receiver() as receiver:
        reply = await receiver.send(chunked + b"1\r\n \r\n" * 20_000 + b"0\r\n\r\n")
        assert reply.code == "bad_request"
        assert "too small" in reply.document["detail"]
