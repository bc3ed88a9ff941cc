"""The messages of the stream: each is one block, as a frame of the journal.

Its headers may say more of it: its id, and that somebody waits for its outcome. A message without a
header is read as before there was one; what a reader does not know it ignores.
The CRC begins with 0 here: a message is no part of a file, so no frame can be mistaken for another.
"""

from __future__ import annotations

import msgspec

from ingest.buffers.frames import encode_head, frame_of
from ingest.model.ack import Outcome, Refusal
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


# The id of a message, the refused rows, and whether all of it was set aside.
_outcomes = msgspec.json.Decoder(tuple[str, tuple[Refusal, ...], bool])


def encode_outcome(message_id: str, outcome: Outcome) -> bytes:
    """Return what a writer tells the gateway of a message that somebody waits for."""
    return msgspec.json.encode((message_id, outcome.refusals, outcome.set_aside))


def decode_outcome(data: bytes) -> tuple[str, Outcome]:
    """Return the id of the message, and its outcome. Raises NotOurs."""
    try:
        message_id, refusals, set_aside = _outcomes.decode(data)
    except msgspec.DecodeError as error:
        raise NotOurs(str(error)) from error
    return message_id, Outcome(refusals, set_aside)
