"""A dead letter: a reading that could not be written, or an invalid item, with the reason.

Does not: know its form on disk (dead_letters/format.py), or whether it is replayed later.
"""

from __future__ import annotations

from typing import NamedTuple

from ingest.model.reading import Reading

JSON = "json"
NDJSON = "ndjson"
MSGPACK = "msgpack"
SENML = "senml"
LINE = "line_protocol"
MAPPED = "mapped"
READINGS = "/v1/readings"


class Letter(NamedTuple):
    """One dead letter: a reading, or the original bytes of an invalid item.

    `reason` is one of REASONS, `code` an item code or a SQLSTATE. `field` and `item` (the index in
    the array) come from the post. So does what is needed to decode the original bytes again:
    `format`, `source` (where it came in), `precision`, `ignore_unknown`, for lines and SenML the
    `device` of those that name none, for lines the `prefix` of their metrics, and for mapped
    documents the `context`: a JSON object of what came beside the body. `received_us` is in Unix
    microseconds. `sender` is the name of the post's token ("" where nobody needs one: no address is
    kept), and `devices` are globs of the devices that it may speak for; none: all.
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
    format: str = JSON
    source: str = READINGS
    ignore_unknown: bool = False
    device: str = ""
    prefix: str = ""
    context: str = ""
    sender: str = ""
    devices: tuple[str, ...] = ()


INVALID = "invalid"
REFUSED = "refused_by_database"
EXHAUSTED = "retries_exhausted"
DRAINED = "drained"
NOT_OURS = "not_ours"  # a message of the stream that is no block of readings
REASONS = (INVALID, REFUSED, EXHAUSTED, DRAINED, NOT_OURS)
# Of a forwarder, which has its own dead letters.
REFUSED_BY_TARGET = "refused_by_target"
# Of `ingest mqtt`, which has its own, too: its messages as they came.
REFUSED_BY_SERVICE = "refused_by_service"
