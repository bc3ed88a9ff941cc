"""The buffer that the settings choose, as the service makes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ingest.app.buffer import changed_columns, make_buffer, note_columns, open_buffer
from ingest.config.settings import Settings
from ingest.model.block import SHARED_ROWS_MAX
from ingest.model.errors import StartError
from ingest.model.ledger import Ledger
from ingest.system.clock import rfc3339, unix_us
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


async def test_readings_that_wait_in_the_journal_keep_their_home(tmp_path: Path) -> None:
    """Tables may change while the journal is empty, or from a time on that all of it is before."""
    folder, file, hour_us = StateFolder.open(tmp_path), tmp_path / "tables.toml", 3_600_000_000

    async def opened(*sinces_us: int, post: bool = False, of: str = "metrics") -> None:
        file.write_text(
            "".join(
                f'[[table]]\nname="t"\n{of}=["m{number}"]\nsince={rfc3339(since_us)}\n'
                for number, since_us in enumerate(sinces_us)
            )
        )
        settings = Settings(tables_file=str(file) if sinces_us else "", journal_unsafe=True)
        buffer = make_buffer(settings, folder, Ledger())
        try:
            open_buffer(buffer, settings, folder, lambda _: None)
            note_columns(folder, settings)
            assert not changed_columns(folder, settings)
            if post:
                assert buffer.take_in(make_block(1))
                await buffer.keep_rest()
        finally:
            await buffer.close()

    past, later = unix_us() - hour_us, unix_us() + hour_us
    await opened(past)
    await opened()
    await opened(later)
    await opened(past, post=True)  # all may change while the journal is empty
    await opened(past, later)
    await opened(past)
    for sinces_us in ((), (past, past), (past - 1, later), (later,)):
        with pytest.raises(StartError, match=r"the journal has readings until .* later `since`"):
            await opened(*sinces_us)
    with pytest.raises(StartError, match="column 'm0' of 't'"):
        await opened(past, later, of='measurement="w"\nfields')
    await opened(past, later)
    for damaged in (b"", b'[["t","","m', b'[["\xff","","m",0]]', b"{}"):
        folder.journal_columns.write_bytes(damaged)
        with pytest.raises(StartError, match=re.escape(str(folder.journal_columns))):
            await opened(past)
