"""Collects what is read of one post that may have several blocks: its rows, and its faults.

Lines and mapped documents share it. A block has at most `post.rules.post_rows_max` rows.
Promises: of faults no more are kept than the body may have at full length; the others are counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from ingest.formats.post import ItemError, Points, Post, most_invalid
from ingest.model.block import Block
from ingest.model.errors import Refused
from ingest.model.rows import encode_rows


class BlockBuilder:
    """What has been read of one post. `rows` counts its readings, `faults` its faulty items."""

    def __init__(self, post: Post, body_bytes: int) -> None:
        self.rows = 0
        self.errors: list[ItemError] = []
        self.not_kept = 0  # items with a fault that are not in `errors`
        self._post = post
        self._errors_max = most_invalid(body_bytes)
        self._blocks: list[Block] = []
        self._bytes = 0  # of them, of `_parts`, and of the items in `errors`
        # Of the next block:
        self._parts: list[bytes] = []
        self._block_rows = 0
        self._newest_us = 0
        self._owners = array("L")  # the item of each row

    @property
    def faults(self) -> int:
        """So many items have a fault."""
        return len(self.errors) + self.not_kept

    @property
    def is_full_of_errors(self) -> bool:
        """Whether the next fault is only counted."""
        return len(self.errors) >= self._errors_max

    def fault(self, error: ItemError) -> None:
        """Keep a fault, if it is not one too many."""
        if self.is_full_of_errors:
            self.not_kept += 1
            return
        self.errors.append(error)
        self._bytes += len(error.original)

    def add(
        self,
        times_pg_us: Sequence[int],
        names: list[bytes],
        values: list[float],
        owners: Sequence[int],
        newest_us: int,
    ) -> None:
        """Add rows to the last block; begin a new one when it is full."""
        at, rows, block_rows_max = 0, len(names), self._post.rules.post_rows_max
        while at < rows:
            end = min(rows, at + block_rows_max - self._block_rows)
            part = encode_rows(times_pg_us[at:end], names[at:end], values[at:end])
            self._parts.append(part)
            self._bytes += len(part)
            self._owners.extend(owners[at:end])
            self._block_rows += end - at
            self._newest_us = max(self._newest_us, newest_us)
            if self._block_rows == block_rows_max:
                self._end_block()
            at = end
        self.rows += rows

    def points(self) -> Points:
        """Return all that was added."""
        self._end_block()
        return Points(self._blocks, self.errors, not_kept=self.not_kept)

    def _end_block(self) -> None:
        if not self._block_rows:
            return
        post, owners = self._post, self._owners
        is_alike = owners == array("L", range(self._block_rows))
        block = Block(
            b"".join(self._parts),
            self._block_rows,
            received_s=post.received_s,
            received_us=post.received_us,
            newest_ts_us=self._newest_us,
            items=None if is_alike else owners,
        )
        self._blocks.append(block)
        self._parts, self._owners = [], array("L")
        self._block_rows = self._newest_us = 0

    def check_bytes(self, bytes_max: int) -> None:
        """Raise Refused if rows and kept faults take more."""
        if self._bytes > bytes_max:
            raise Refused(
                "body_too_large",
                f"its readings take more than {bytes_max} bytes; split the post",
                body_bytes_max=bytes_max,
            )
