"""Tokens for tests: their lines, and the tokens in force."""

from __future__ import annotations

from typing import Any

from ingest.access.token_lines import Entries, TokenEntry, digest_of, end_line, entry_line
from ingest.access.tokens import Tokens

SECRET = "iot_" + "s" * 43
OTHER = "iot_" + "o" * 43


def line(token: str = SECRET, name: str = "garden", **scope: Any) -> bytes:
    """Return the line of a token."""
    return entry_line(TokenEntry(name, digest_of(token), **scope))


def end(token: str = SECRET, at_us: int = 0) -> bytes:
    """Return the line that ends a token."""
    return end_line(TokenEntry("garden", digest_of(token)), at_us)


def entries_of(*lines: bytes) -> Entries:
    """Return what these lines say."""
    entries = Entries()
    for _ in entries.read(b"".join(lines)):
        pass
    return entries


def in_force(*lines: bytes) -> Tokens:
    """Return tokens with these lines in force."""
    tokens = Tokens()
    put(tokens, *lines)
    return tokens


def put(tokens: Tokens, *lines: bytes) -> None:
    """Put these lines in force instead of those before."""
    for _ in tokens.change(entries_of(*lines)):
        pass
