"""A dead letter: what could not be written, with the reason why, as the path hands it over.

Does not: know how it is kept (dead_letter_format.py), or whether it comes back.
"""

from __future__ import annotations

from typing import NamedTuple

from ingest.model.reading import Reading


class Letter(NamedTuple):
    """One dead letter: a reading, or the original bytes of an item that could not become one.

    `reason` is one of REASONS; `code` an item code or a SQLSTATE. `precision`, `field` and `item`
    (the index in the array) are those of the post. `received_us` is Unix microseconds.
    """

    reason: str
    code: str
    message: str
    received_us: int
    reading: Reading | None = None
    original: bytes | None = None
    precision: str | None = None
    field: str | None = None
    item: int | None = None
    attempts: int = 0


INVALID = "invalid"
REFUSED = "refused_by_database"
EXHAUSTED = "retries_exhausted"
DRAINED = "drained"
REASONS = (INVALID, REFUSED, EXHAUSTED, DRAINED)
