"""The messages of the stream: each is one block, as a frame of the journal.

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


class CommitReply(msgspec.Struct, array_like=True):
    """What a writer says of a post that waits for its commit.

    First that it has it (`refused` is empty, no `outcome`), or why not: a code. Then the outcome:
    the refused rows, and whether the whole block was set aside.
    """

    refused: str = ""
    outcome: tuple[list[Refusal], bool] | None = None


TAKEN = msgspec.json.encode(CommitReply())


def encode_refusal(code: str) -> bytes:
    """Return the reply of a writer that does not take a post."""
    return msgspec.json.encode(CommitReply(code))


def encode_outcome(outcome: Outcome) -> bytes:
    """Return the reply that ends a post."""
    return msgspec.json.encode(CommitReply("", (list(outcome.refusals), outcome.set_aside)))


def decode_reply(data: bytes) -> CommitReply:
    """Return a reply. Raises NotOurs."""
    try:
        return msgspec.json.decode(data, type=CommitReply)
    except msgspec.DecodeError as error:
        raise NotOurs(str(error)) from error
