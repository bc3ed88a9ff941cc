"""The messages of the stream: each is one block, as a frame of the journal.

The CRC begins with 0 here: a message is no part of a file, so no frame can be mistaken for another.
"""

from __future__ import annotations

from ingest.buffers.frames import encode_head, frame_of
from ingest.model.block import Block
from ingest.model.rows import rows_fault
from ingest.system.clock import monotonic_s, unix_us

SALT = 0


class NotOurs(Exception):
    """A message that is no block. The text says what is wrong with it."""


def encode_message(block: Block) -> bytes:
    """Return the message of a sealed block."""
    return encode_head(block, SALT) + block.tuples


def decode_message(data: bytes) -> Block:
    """Return the block of a message. Raises NotOurs.

    The CRC shows that the bytes are those that a gateway wrote. The layout of the rows is checked
    too, because PostgreSQL refuses a whole batch for one byte, and does not say which.
    """
    frame = frame_of(data, SALT)
    if frame is None:
        raise NotOurs("it is no frame, or its check sum is wrong")
    if fault := rows_fault(frame.tuples, frame.rows):
        raise NotOurs(fault)
    age_s = max(0.0, (unix_us() - frame.received_us) / 1e6)
    block = Block(
        frame.tuples,
        frame.rows,
        received_s=monotonic_s() - age_s,
        received_us=frame.received_us,
        newest_ts_us=frame.newest_ts_us,
    )
    block.posts = frame.posts
    block.sealed = True
    return block
