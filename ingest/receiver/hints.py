"""A hint for the sender of a body of which nothing can be read: what it has probably done."""

from __future__ import annotations

from ingest.model.errors import Refused

_UNREADABLE = frozenset({"not_json", "not_lines", "not_msgpack", "not_senml"})
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # how they begin
_LOOKED_AT_BYTES = 64


def note_body(refused: Refused, body: bytes) -> None:
    """Note the body of a refused post; tell its sender if it begins as another format does."""
    refused.body_start = body
    if refused.code not in _UNREADABLE:
        return
    for begin, encoding in _COMPRESSED.items():
        if body.startswith(begin):
            refused.detail += (
                f"; it begins as {encoding} does: is the header Content-Encoding: {encoding} "
                "missing, or was it compressed twice?"
            )
    if refused.code == "not_lines" and body[:_LOOKED_AT_BYTES].lstrip()[:1] in (b"{", b"["):
        refused.detail += "; JSON is posted to /v1/readings"
