"""The buffer that the settings choose, as the service makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.app.buffer import make_buffer
from ingest.config.settings import Settings
from ingest.model.block import SHARED_ROWS_MAX
from ingest.model.ledger import Ledger
from ingest.system.state_folder import StateFolder
from tests.support.blocks import make_block


@pytest.mark.parametrize("buffer", ["memory", "journal"])
@pytest.mark.parametrize(
    ("batch_rows_max", "rows_max"),
    [(7, 7), (SHARED_ROWS_MAX - 1, SHARED_ROWS_MAX - 1), (20_000, SHARED_ROWS_MAX)],
)
async def test_posts_share_no_block_that_is_larger_than_a_batch_may_be(
    tmp_path: Path, buffer: str, batch_rows_max: int, rows_max: int
) -> None:
    """A batch takes whole blocks: `batch_rows_max` is its bound, whatever the posts are like."""
    settings = Settings(buffer=buffer, batch_rows_max=batch_rows_max)
    inlet = make_buffer(settings, StateFolder.open(tmp_path), Ledger())
    inlet.open()
    try:
        for _ in range(2 * SHARED_ROWS_MAX):
            assert inlet.take_in(make_block(1))
        sizes = []
        while taken := inlet.take(batch_rows_max):
            assert sum(block.rows for block in taken) <= batch_rows_max
            sizes += [block.rows for block in taken]
            inlet.settle(taken)
        assert max(sizes) == rows_max
    finally:
        await inlet.close()
