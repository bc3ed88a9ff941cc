"""The blocks that one writer has taken from the outlet, and neither settled nor given back."""

from __future__ import annotations

from collections.abc import Sequence

from ingest.model.block import Block
from ingest.model.ports import Outlet


class Hand:
    """`blocks` are in the order in which they were taken."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self.blocks: list[Block] = []

    def settle(self, blocks: Sequence[Block]) -> None:
        """Settle some of the blocks."""
        self._outlet.settle(blocks)
        if len(blocks) == len(self.blocks):
            self.blocks = []
        else:
            gone = {id(block) for block in blocks}
            self.blocks = [block for block in self.blocks if id(block) not in gone]

    def give_back(self) -> None:
        """Give all of them back."""
        blocks, self.blocks = self.blocks, []
        if blocks:
            self._outlet.give_back(blocks)
