"""Counts, for each test of the path in this process, which way its posts went into the buffer."""

from __future__ import annotations

from tests.support.ways import goes

__all__ = ["goes"]
