"""The buffer that the settings ask for, and the space that is left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ingest.app.buffer import changed_columns, make_buffer, note_columns, open_buffer
from ingest.app.space import Backlog, Waiting
from ingest.config.settings import Settings
from ingest.model.block import SHARED_ROWS_MAX
from ingest.model.causes import Trouble, Verdict, WriteFailed
from ingest.model.errors import StartError
from ingest.model.ledger import Ledger
from ingest.system.clock import rfc3339, unix_us
from ingest.system.state_folder import StateFolder
from ingest.writer.database_state import DatabaseState
from tests.support.health import EMPTY
from tests.support.journals import make_block


@pytest.mark.parametrize("buffer", ["memory", "journal"])
@pytest.mark.parametrize(
    ("batch_rows_max", "rows_max"),
    [(7, 7), (SHARED_ROWS_MAX - 1, SHARED_ROWS_MAX - 1), (20_000, SHARED_ROWS_MAX)],
)
async def test_posts_share_no_block_that_is_larger_than_a_batch_may_be(
    tmp_path: Path, buffer: str, batch_rows_max: int, rows_max: int
) -> None:
    """A batch takes whole blocks: `batch_rows_max` is its bound, whatever the posts are like."""
    inlet = make_buffer(
        Settings(buffer=buffer, batch_rows_max=batch_rows_max), StateFolder.open(tmp_path), Ledger()
    )
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
        with pytest.raises(
            StartError, match=r"the journal still has readings, .*'m\d' of table 't'"
        ):
            await opened(*sinces_us)
    with pytest.raises(StartError, match="column 'm0' of table 't'"):
        await opened(past, later, of='measurement="w"\nfields')
    await opened(past, later)
    for damaged in (b"", b'[["t","","m', b'[["\xff","","m",0]]', b"{}"):
        folder.journal_columns.write_bytes(damaged)
        with pytest.raises(StartError, match=re.escape(str(folder.journal_columns))):
            await opened(past)


LOCKED = WriteFailed(Verdict.RETRY, "no lock", sqlstate="55P03")
AWAY = WriteFailed(Verdict.WAIT, "connection refused")


class Rig:
    """A backlog with a clock and figures that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        for part in ("app.space", "writer.database_state"):
            monkeypatch.setattr(f"ingest.{part}.monotonic_s", lambda: self.now_s)
        self.state = DatabaseState(wait_s_min=1, wait_s_max=1, hold_probe_s=1)
        self.stats = EMPTY
        self.stream: Waiting | None = None
        self.backlog = Backlog(self.state, lambda: self.stats, lambda: self.stream)

    def after(self, seconds: float, count: int, oldest_s: float) -> Trouble:
        """Let time pass; return what is wrong then."""
        self.now_s += seconds
        self.stats = EMPTY._replace(rows=count, oldest_received_s=self.now_s - oldest_s)
        return self.backlog.trouble()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Nothing waits."""
    return Rig(monkeypatch)


def test_writes_that_do_not_go_through_are_told_with_what_is_known(rig: Rig) -> None:
    """Not before 10 s; with the error and what blocks. A database that is away is told as that."""
    assert rig.after(3600, 0, 0) == Trouble(), "nobody posts"
    assert rig.after(9, 500, 9) == Trouble()
    told = "no write has gone through for 11 s; 71,800 readings wait, the oldest for 11 s"
    assert rig.after(2, 71_800, 11) == Trouble("writes_fail", told)
    rig.state.retried(LOCKED, rows=1, attempt=1)
    assert rig.backlog.trouble().details == "55P03: no lock"
    rig.state.failed(AWAY)
    assert rig.after(1, 71_800, 12) == Trouble()
    rig.state.opened()
    assert rig.after(1, 71_800, 13) == Trouble(
        "behind", "71,800 readings wait, the oldest for 13 s"
    )
    assert rig.after(12, 71_800, 25).cause == "writes_fail"
    assert rig.backlog.trouble().details == "", "of before the outage"
    rig.stream = (3, "messages", 25.0)  # which a writer had that was killed
    assert rig.after(30, 0, 0).words.startswith("3 messages wait, the oldest for 25 s")


def test_backlog_that_is_written_is_told_with_its_end(rig: Rig) -> None:
    """From the rate of the last minute. It ends when the oldest waits clearly less long."""
    left, told = 16_800_000, ""
    for _ in range(40):
        left -= 70_000
        rig.state.stored()
        cause, told, *_ = rig.after(1, left, 360)
        assert cause == "behind"
    assert (
        told
        == "14,000,000 readings wait, the oldest for 6 min; at this rate all are written in 3 min"
    )
    for _ in range(70):  # as many come as are written
        rig.state.stored()
        told = rig.after(1, left, 360).words
    assert told == "14,000,000 readings wait, the oldest for 6 min"
    assert rig.after(1, 100, 6).cause == "behind"
    assert rig.after(1, 100, 4) == Trouble()
    assert rig.after(1, 100, 6) == Trouble()
