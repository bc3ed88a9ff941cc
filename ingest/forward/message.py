"""One message of the stream: a frame of the journal, with a CRC that begins with 0."""

from __future__ import annotations

from typing import NamedTuple

from ingest.buffers.journal.format import Frame, FrameReader
from ingest.model.rows import ROW_BYTES_MIN, first_readings

SALT = 0


class Content(NamedTuple):
    """The rows of a message, how many they are, and when the first was received (Unix us)."""

    tuples: bytes
    rows: int
    received_us: int


def content_of(message: bytes) -> Content | None:
    """Return what a message holds, or None if no gateway has written it."""
    frames: list[Frame] = list(
        FrameReader(lambda count, at: message[at : at + count], SALT, 0, len(message))
    )
    if len(frames) != 1 or (frames[0].start, frames[0].end) != (0, len(message)):
        return None
    frame = frames[0]
    those = first_readings(frame.tuples, frame.rows)
    size = sum(ROW_BYTES_MIN + len((r.device_id + r.metric).encode()) for r in those)
    if not frame.rows or len(those) != frame.rows or size != len(frame.tuples):
        return None
    return Content(frame.tuples, frame.rows, frame.received_us)
