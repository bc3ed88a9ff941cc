"""The archive with a real PostgreSQL: bit for bit, merged, verified, killed half-way; its pace."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.sinks.postgres.connection import Expired, Timeouts, opened_as
from ingest.sinks.postgres.housekeeping import registry
from ingest.years.archive import job, sorting, table_rows
from ingest.years.archive.archiver import REST_S_MAX, Pace, ParquetArchiver
from ingest.years.archive.arrow_rows import series_hash
from ingest.years.archive.files import ArchiveFailed, ArchiveFolder
from ingest.years.archive.table_rows import RowsTable
from tests.support.archives import (
    FROM_US,
    PARTITION,
    TO_US,
    Row,
    archiver,
    detached,
    drawn,
    fill,
    key_of,
    rows_in_files,
    store,
)


@pytest.fixture
async def table(operator: asyncpg.Connection) -> asyncpg.Connection:
    """Give a connection to a database with the table and its registry."""
    await registry.make(operator, "readings")
    return operator


async def test_rows_come_back_bit_for_bit(table: asyncpg.Connection, tmp_path: Path) -> None:
    """All kinds of floats, times and names, sorted by device, metric and time; nothing beside."""
    rows = drawn(3_000, 1)
    await fill(table, PARTITION, rows)
    await archiver(tmp_path).archive(detached(table))
    (found,) = await job.contents(table, "readings")
    assert sorted(rows_in_files([tmp_path / found.files[0][0]])) == sorted(rows)
    in_file = rows_in_files([tmp_path / f"{PARTITION}.parquet"])
    order = [(row[1].encode(), row[2].encode(), row[0]) for row in in_file]
    assert order == sorted(order)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", f"{PARTITION}.parquet"]
    assert (found.rows, found.from_us, found.to_us) == (3_000, FROM_US, TO_US)


async def test_nothing_is_written_where_the_disk_of_the_archive_is_missing(
    table: asyncpg.Connection, tmp_path: Path
) -> None:
    """The folder is empty, or gone: the table waits. A new archive_dir needs the old files too."""
    await fill(table, PARTITION, drawn(20, 2))
    cold, away = tmp_path / "cold", tmp_path / "away"
    await archiver(cold).archive(detached(table))
    await table.execute(f"truncate {PARTITION}")
    rows = drawn(20, 3)
    await store(table, PARTITION, rows)
    cold.rename(away)
    for _ in range(2):
        with pytest.raises(ArchiveFailed, match="is its disk there"):
            await archiver(cold).archive(detached(table))
        assert not cold.exists() or not list(cold.iterdir())
        cold.mkdir(exist_ok=True)
    cold.rmdir()
    with pytest.raises(ArchiveFailed, match=f"move all files of the old folder into {cold}2;"):
        await archiver(tmp_path / "cold2").archive(detached(table))
    for each in away.iterdir():
        each.rename(tmp_path / "cold2" / each.name)
    await archiver(tmp_path / "cold2").archive(detached(table))
    assert len(rows_in_files([tmp_path / "cold2" / f"{PARTITION}.parquet"])) > 20


async def test_stop_ends_it_at_the_next_piece(table: asyncpg.Connection, tmp_path: Path) -> None:
    """While it reads, merges and verifies: nothing is left, and the next run does all of it."""
    rows = drawn(200, 4)
    await fill(table, PARTITION, rows)
    for calls in range(1, 10):
        asked = partial(next, iter([False] * calls), True)
        kept = ParquetArchiver(ArchiveFolder(tmp_path), asked)
        try:
            await kept.archive(detached(table))
            break
        except ArchiveFailed as error:
            assert "the process stops" in str(error)  # noqa: PT017
        assert [each.name for each in tmp_path.iterdir()] == [".lock"]
    assert calls > 2
    assert sorted(rows_in_files([tmp_path / f"{PARTITION}.parquet"])) == sorted(rows)


async def test_stop_in_the_last_piece_leaves_a_connection_of_use(
    table: asyncpg.Connection, tmp_path: Path
) -> None:
    """The server has sent all rows when the first ones are refused: no statement waits for more."""
    rows = drawn(20, 5)
    await fill(table, PARTITION, rows)
    async with asyncio.timeout(10):
        with pytest.raises(ArchiveFailed, match="the process stops"):
            await ParquetArchiver(ArchiveFolder(tmp_path), lambda: True).archive(detached(table))
        await archiver(tmp_path).archive(detached(table))
    assert sorted(rows_in_files([tmp_path / f"{PARTITION}.parquet"])) == sorted(rows)


async def test_stop_with_much_to_come_cuts_the_connection(
    table: asyncpg.Connection,
    shared_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says why it ended, not that the connection is closed."""
    monkeypatch.setattr(table_rows, "DROPPED_BYTES_MAX", 10_000)
    await fill(table, PARTITION, drawn(2_000, 6))
    connection = await asyncpg.connect(shared_url)
    with pytest.raises(ArchiveFailed, match="the process stops"):
        await ParquetArchiver(ArchiveFolder(tmp_path), lambda: True).archive(detached(connection))
    assert connection.is_closed()
    await archiver(tmp_path).archive(detached(table))


async def test_late_readings_are_merged_each_once(
    table: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of three visits, some of them sent again; of equal zeros and NaN the first ones stay.

    With runs of 50 rows, of which two are merged at once.
    """
    monkeypatch.setattr(sorting, "MERGED_MAX", 2)
    monkeypatch.setattr(sorting, "RUN_ROWS", 50)
    kept: dict[object, Row] = {}
    rows = drawn(500, 2)
    draw = random.Random(3)
    for visit in range(3):
        some = [*draw.sample(rows, 250), *drawn(5, 10 + visit)]
        changed = [
            (*row[:3], row[3] ^ 1 << 63) if row[3] << 1 & (1 << 64) - 1 == 0 else row
            for row in some
        ]
        unique = {key_of(row): row for row in changed}
        for key, row in unique.items():
            kept.setdefault(key, row)
        await fill(table, PARTITION, unique.values())
        await archiver(tmp_path).archive(detached(table))
        await table.execute(f"drop table {PARTITION}")
        (found,) = await job.contents(table, "readings")
        assert sorted(rows_in_files([tmp_path / found.files[0][0]])) == sorted(kept.values())
        archiver(tmp_path).verify(found)
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == []


async def test_partition_of_a_part_of_the_span_is_merged(
    table: asyncpg.Connection, tmp_path: Path
) -> None:
    """A late reading's partition has another name, and may be a day of an archived month."""
    rows = drawn(50, 4)
    await fill(table, PARTITION, rows[:30])
    await fill(table, "readings_p20261127_2", rows[30:])
    narrow = detached(table)
    wide = narrow._replace(from_us=narrow.from_us - 10_000_000)
    await archiver(tmp_path).archive(wide)
    await archiver(tmp_path).archive(detached(table, "readings_p20261127_2"))
    (found,) = await job.contents(table, "readings")
    assert (found.name, found.rows, found.from_us) == (PARTITION, 50, FROM_US - 10_000_000)


async def test_second_call_writes_nothing(table: asyncpg.Connection, tmp_path: Path) -> None:
    """A run that was killed before the drop finds the same rows in the archive."""
    await fill(table, PARTITION, drawn(100, 5))
    await archiver(tmp_path).archive(detached(table))
    before = (tmp_path / f"{PARTITION}.parquet").stat()  # its time of access may change
    await archiver(tmp_path).archive(detached(table))
    after = (tmp_path / f"{PARTITION}.parquet").stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


async def test_empty_partition_makes_no_file(table: asyncpg.Connection, tmp_path: Path) -> None:
    """It is recorded, so it may be dropped; late readings then make the file."""
    await fill(table, PARTITION, [])
    await archiver(tmp_path).archive(detached(table))
    (found,) = await job.contents(table, "readings")
    assert (found.rows, found.files) == (0, ())
    await store(table, PARTITION, drawn(10, 6))
    await archiver(tmp_path).archive(detached(table))
    (found,) = await job.contents(table, "readings")
    assert (found.rows, len(found.files)) == (10, 1)


async def test_damaged_files_are_found(table: asyncpg.Connection, tmp_path: Path) -> None:
    """Each byte counts, and late readings are not merged with damaged files."""
    await fill(table, PARTITION, drawn(500, 7))
    await archiver(tmp_path).archive(detached(table))
    (found,) = await job.contents(table, "readings")
    path = tmp_path / f"{PARTITION}.parquet"
    whole = path.read_bytes()
    for at in (len(whole) // 4, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(ArchiveFailed):
            archiver(tmp_path).verify(found)
    await store(table, PARTITION, drawn(3, 8))
    with pytest.raises(ArchiveFailed):
        await archiver(tmp_path).archive(detached(table))
    path.unlink()
    with pytest.raises(ArchiveFailed, match="No such file"):
        archiver(tmp_path).verify(found)


async def test_rows_that_change_meanwhile_are_noticed(
    table: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes to the detached table between COPY and the checksum: the next run goes on."""
    await fill(table, PARTITION, drawn(100, 9))
    original = table_rows.checksum

    async def after_a_change(*of_table: Any) -> tuple[int, int]:
        await table.execute(f"update {PARTITION} set value = 1 where value = 25")
        await table.execute(f"insert into {PARTITION} values ('2026-11-27', 'new', 'm', 1)")
        return await original(*of_table)

    with monkeypatch.context() as patch:
        patch.setattr(table_rows, "checksum", after_a_change)
        with pytest.raises(ArchiveFailed, match="differ from the table"):
            await archiver(tmp_path).archive(detached(table))
    assert await job.contents(table, "readings") == []
    assert not (tmp_path / f"{PARTITION}.parquet").exists()
    await archiver(tmp_path).archive(detached(table))
    assert (await job.contents(table, "readings"))[0].rows == 101


async def test_full_disk_and_foreign_files_are_refused(
    table: asyncpg.Connection, tmp_path: Path
) -> None:
    """Before anything is written; so is a second process in the same folder."""
    await fill(table, PARTITION, drawn(10, 11))
    with pytest.raises(ArchiveFailed, match="make room"):
        await archiver(tmp_path, free_bytes_min=2**60).archive(detached(table))
    (tmp_path / f"{PARTITION}.parquet").write_bytes(b"of another database")
    with pytest.raises(ArchiveFailed, match="not in the record"):
        await archiver(tmp_path).archive(detached(table))
    assert (tmp_path / f"{PARTITION}.parquet").read_bytes() == b"of another database"
    (tmp_path / f"{PARTITION}.parquet").unlink()
    with archiver(tmp_path).folder.locked(), pytest.raises(ArchiveFailed, match="another process"):
        await archiver(tmp_path).archive(detached(table))


async def test_hash_of_names_is_that_of_the_server(connection: asyncpg.Connection) -> None:
    """Of names of all lengths, since the hash takes 12 bytes at a time."""
    names = [("é" * size)[: max(1, size)] + "abc"[: size % 4] for size in range(1, 60)]
    for name in names:
        wanted = "select hashtextextended($1, hashtextextended($2, 1))"
        got = await connection.fetchval(wanted, name, name[::-1])
        assert series_hash(name[::-1], name) == got % 2**64, name


class Killed(BaseException):
    """The process was killed here."""


async def killed_at(
    moment: int, connection: asyncpg.Connection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Archive, and stop for good before the step `moment`; return whether there was such a step."""
    dying = archiver(folder)
    steps = count(1)

    def or_die(do: Callable[..., Any]) -> Callable[..., Any]:
        async def step(*args: Any) -> Any:
            if next(steps) >= moment:
                raise Killed
            return await do(*args)

        return step

    monkeypatch.setattr(dying, "_aside", or_die(dying._aside))
    with monkeypatch.context() as patch:
        patch.setattr(job, "record", or_die(job.record))
        try:
            await dying.archive(detached(connection))
        except Killed:
            return True
    return False


async def test_killed_at_any_step_the_next_run_goes_on(
    table: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a first archive, then of a merge: after the next run each reading is there once."""
    first, late = drawn(40, 20), drawn(20, 21)
    moment, was_killed = 0, True
    while was_killed:
        moment += 1
        folder = tmp_path / str(moment)
        for rows, wanted in ((first, first), ([*late, *first[:5]], [*first, *late])):
            await table.execute(f"drop table if exists {PARTITION}")
            await fill(table, PARTITION, rows)
            was_killed = await killed_at(moment, table, folder, monkeypatch)
            await archiver(folder).archive(detached(table))
            (found,) = await job.contents(table, "readings")
            archiver(folder).verify(found)
            assert sorted(rows_in_files(folder.glob("*.parquet"))) == sorted(wanted), moment
            assert len(list(folder.iterdir())) == 2, moment
        await table.execute("delete from ingest_housekeeping")
    assert moment > 10


TIMEOUTS = Timeouts(5.0, 3.0, 10.0, 20.0, 60.0)


async def test_it_rests_in_each_phase_if_others_need_the_processors(
    table: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each piece: one of the COPY, one that was merged, one of the new file."""
    rests: list[float] = []
    rows = drawn(2_000, 7)
    await fill(table, PARTITION, rows)
    monkeypatch.setattr("ingest.years.archive.archiver.thread_cpu_s", lambda: 0.0)
    monkeypatch.setattr("ingest.years.archive.archiver.sleep", rests.append)
    kept = ParquetArchiver(ArchiveFolder(tmp_path))
    await kept.archive(detached(table))
    assert len(rests) == 3
    assert all(0 < each <= REST_S_MAX for each in rests)
    assert sorted(rows_in_files([tmp_path / f"{PARTITION}.parquet"])) == sorted(rows)


async def test_parts_have_the_checksum_of_the_whole_table(
    table: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one block each. A table without rows is one part."""
    monkeypatch.setattr(table_rows, "PART_BLOCKS", 1)
    took_s: list[float] = []

    async def pause(seconds: float) -> None:
        took_s.append(seconds)

    for rows, parts_min in ((0, 1), (500, 10)):
        name = f"{PARTITION}_{rows}"
        await fill(table, name, drawn(rows, 8))
        took_s.clear()
        named = RowsTable("public", name)
        found = await table_rows.checksum(table, named)
        assert await table_rows.checksum(table, named, pause) == found
        assert found[0] == rows
        assert len(took_s) >= parts_min


async def test_stop_ends_the_sum_of_a_table_after_one_part(
    table: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a merge nothing else is done meanwhile that would notice the stop."""
    monkeypatch.setattr(table_rows, "PART_BLOCKS", 1)
    rests: list[float] = []
    rows = drawn(500, 9)
    await fill(table, PARTITION, rows[:490])
    await ParquetArchiver(ArchiveFolder(tmp_path)).archive(detached(table))
    await store(table, PARTITION, rows[490:])
    monkeypatch.setattr(Pace, "rest_s", lambda _pace, took_s: rests.append(took_s))
    stopped = ParquetArchiver(ArchiveFolder(tmp_path), lambda: True)
    with pytest.raises(ArchiveFailed, match="the process stops"):
        await stopped.archive(detached(table))
    assert rests == []


async def test_sum_ends_if_the_server_stands_still_and_not_by_a_limit_of_the_role(
    table: asyncpg.Connection, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot may be open for minutes. A part takes a tenth of a second, and never hours."""
    monkeypatch.setattr(table_rows, "PART_BLOCKS", 2)
    monkeypatch.setattr(table_rows, "STILL_S_MAX", 0.5)
    await fill(table, PARTITION, drawn(500, 10))
    named = RowsTable("public", PARTITION)
    wanted = await table_rows.checksum(table, named)
    has_limit = table.get_server_version().major >= 17
    url = f"{shared_url}&transaction_timeout=300ms" if has_limit else shared_url
    stopped: list[int] = []

    async def pause(_: float) -> None:
        await asyncio.sleep(0.05)

    async with opened_as("iot-ingest test", url, TIMEOUTS) as connection:
        assert await table_rows.checksum(connection, named, pause) == wanted
        pid = await connection.fetchval("select pg_backend_pid()")

        async def stop(_: float) -> None:
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)

        try:
            async with asyncio.timeout(20):
                with pytest.raises(Expired):
                    await table_rows.checksum(connection, named, stop)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert stopped == [pid]
