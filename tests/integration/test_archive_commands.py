"""`ingest archive` and the archive as a part of the housekeeping, from the table to the files."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pyarrow import parquet

from ingest.app.housekeeping import HOUSEKEEPING_FAILS, Housekeeping
from ingest.cli.doctor.checks import partition_checks
from ingest.config.settings import Settings
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.table_state import look_at
from ingest.years.archive import job, table_rows
from ingest.years.archive.archiver import ParquetArchiver
from ingest.years.archive.files import ArchiveFailed, ArchiveFolder
from tests.support.archives import Row, drawn, rows_in, rows_in_files, store
from tests.support.commands import Here, with_user
from tests.support.documents import commands, marked

DAY_US = 86_400_000_000
OLD_US = 1_779_926_400_000_000  # 2026-05-28
NAME = "readings_p20260528"
START, LOOK = marked("docs/grow/years.md", "test_archive_commands.py")


async def arrive(connection: asyncpg.Connection, rows: list[Row]) -> None:
    """Store readings of an old day, for which a partition of ours is made."""
    kept = await registry.make(connection, "readings")
    await connection.execute(
        f"create table {NAME} partition of readings "
        "for values from ('2026-05-28 00:00:00+00') to ('2026-05-29 00:00:00+00')"
    )
    bounds = {"from_us": OLD_US, "to_us": OLD_US + DAY_US}
    await registry.put(connection, kept, {registry.PARTITION + NAME: bounds})
    await store(connection, "readings", rows)


async def archiving(here: Here, url: str, folder: Path) -> tuple[str, ...]:
    """Make the table; return the flags with which days leave it for files in a folder."""
    (words,) = commands(START.replace("/srv/cold", shlex.quote(str(folder))))
    flags = ("--database-url", url, "--partition-span", "day", *words)
    assert (await here("schema", "apply", *flags)).code == 0
    return flags


async def test_readings_leave_for_files_and_come_back(
    connection: asyncpg.Connection, shared_url: str, here: Here, tmp_path: Path
) -> None:
    """Retention archives a day; a late reading is merged; restored, it stays until released."""
    words = await archiving(here, shared_url, tmp_path)
    name = NAME
    rows = drawn(30, 1, from_us=OLD_US, to_us=OLD_US + DAY_US)
    first, late = rows[:20], rows[20:]

    async def keep_house() -> list[tuple[str, str]]:
        done = await here("housekeeping", "run", "--yes", "--json", *words)
        did = json.loads(done.stdout)["did"]
        assert [each["error"] for each in did] == [""] * len(did), done
        return [(each["kind"], each["partition"]) for each in did]

    async def archive(*what: object) -> Any:
        done = await here(*what, "--json", *words)
        assert done.code == 0, done
        return json.loads(done.stdout)

    listing, verify, restore, release = commands(LOOK.replace("readings_p20261126", name))

    await arrive(connection, first)
    assert (await keep_house())[-3:] == [("detach", name), ("archive", name), ("drop", name)]
    assert await rows_in(connection, "readings") == []
    await arrive(connection, [*late, *first[:3]])
    await keep_house()
    assert sorted(rows_in_files(tmp_path.glob("*.parquet"))) == sorted(rows)
    some = parquet.read_table(tmp_path, filters=[("device_id", "==", rows[0][1])])  # as pandas does
    assert some.num_rows == sum(row[1] == rows[0][1] for row in rows)
    (listed,) = await archive(*listing)
    assert (listed["name"], listed["readings"], listed["restored"]) == (name, 30, False)
    assert await archive(*verify) == {"good": 1, "faults": {}}

    asked = (
        "select exists (select from pg_stat_activity where query ~ 'advisory_lock' and pid <> $1)"
    )
    async with registry.alone(connection, (await look_at(connection, "readings", "day")).oid):
        restoring = asyncio.create_task(archive(*restore))
        while not await connection.fetchval(asked, connection.get_server_pid()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not restoring.done()
    await restoring
    assert await rows_in(connection, "readings") == sorted(rows)
    assert await keep_house() == []
    again = await here(*restore, *words)
    assert again.code == 2
    assert "has readings of this time" in again.stderr
    assert await archive(*release) == {"released": True}
    assert len(await keep_house()) == 3
    assert await rows_in(connection, "readings") == []
    assert await archive(*verify, name) == {"good": 1, "faults": {}}

    (tmp_path / f"{name}.parquet").write_bytes(b"")
    broken = await here("archive", "verify", *words)
    assert broken.code == 1
    assert "0 bytes" in broken.stdout
    assert "no nothing in the" in (await here("archive", "verify", "nothing", *words)).stderr
    assert (await here("archive", "release", name, *words)).code == 1


async def test_run_whose_connection_was_cut_says_why(
    connection: asyncpg.Connection,
    shared_url: str,
    here: Here,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk while the server still sends rows: that is told, and the next run goes on."""
    words = await archiving(here, shared_url, tmp_path)
    await arrive(connection, drawn(1_000, 3, from_us=OLD_US, to_us=OLD_US + DAY_US))

    def full(_: object) -> None:
        raise ArchiveFailed("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(table_rows, "DROPPED_BYTES_MAX", 1_000)
        patched.setattr(ParquetArchiver, "_go_on", full)
        failed = await here("housekeeping", "run", "--yes", *words)
    assert failed.code != 0
    assert "no space left on device" in failed.stderr
    assert (await here("housekeeping", "run", "--yes", *words)).code == 0
    assert len(rows_in_files(tmp_path.glob("*.parquet"))) == 1_000


async def test_restore_tells_nobody_to_remove_what_is_not_in_the_archive_yet(
    connection: asyncpg.Connection, shared_url: str, here: Here, tmp_path: Path
) -> None:
    """A table has the name: one of somebody else, then a detached one with late readings."""
    words = await archiving(here, shared_url, tmp_path)
    await arrive(connection, drawn(3, 1, from_us=OLD_US, to_us=OLD_US + DAY_US))
    assert (await here("housekeeping", "run", "--yes", *words)).code == 0
    await connection.execute(f"create table {NAME} (theirs int)")
    assert "rename it" in (await here("archive", "restore", NAME, *words)).stderr
    kept = await registry.make(connection, "readings")
    entry = (await registry.entries(connection, "readings", f"archive/{NAME}"))[""]
    await registry.put(connection, kept, {f"archive/{NAME}": {**entry, "state": "detached"}})
    assert "on its way" in (await here("archive", "restore", NAME, *words)).stderr


async def test_archive_that_cannot_be_written_is_told_until_it_is_mended(
    connection: asyncpg.Connection, shared_url: str, here: Here, tmp_path: Path
) -> None:
    """The service says which step fails and why, and goes on by itself once that is mended."""
    in_the_way = tmp_path / "cold"
    in_the_way.write_text("")
    words = await archiving(here, shared_url, in_the_way)
    await arrive(connection, drawn(3, 1, from_us=OLD_US, to_us=OLD_US + DAY_US))
    failed = await here("housekeeping", "run", "--yes", *words)
    assert (failed.code, f"archive {NAME}: failed: " in failed.stdout) == (1, True)
    settings = Settings(
        partition_span="day",
        keep_hot="30d",
        archive_dir=str(in_the_way),
    )
    detached = f"1 partition detached, but not yet archived or dropped: {NAME}"
    assert detached in (await here("housekeeping", "status", *words)).stdout
    assert [
        each.state
        for each in await partition_checks(settings, shared_url)
        if detached in each.detail
    ] == ["warn"]
    housekeeping = Housekeeping(settings, lambda: shared_url)
    stopping = asyncio.Event()
    running = asyncio.create_task(housekeeping.run(stopping))
    while housekeeping.trouble().cause != HOUSEKEEPING_FAILS:
        assert not running.done()
        await asyncio.sleep(0.01)
    assert housekeeping.trouble().details.startswith(f"archive {NAME}: ")
    assert str(in_the_way) in housekeeping.trouble().details
    assert f"; {detached}" in housekeeping.trouble().details
    assert housekeeping.failed == 1
    in_the_way.unlink()
    while housekeeping.trouble().cause:
        assert not running.done()
        await asyncio.sleep(0.01)
    assert housekeeping.failed == 0
    stopping.set()
    await running
    assert len(rows_in_files(in_the_way.glob("*.parquet"))) == 3


async def test_verify_tells_no_fault_while_a_run_replaces_files(
    connection: asyncpg.Connection,
    shared_url: str,
    here: Here,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It looks again under the lock of the folder, and completes a move that was cut off."""
    words = await archiving(here, shared_url, tmp_path)
    await arrive(connection, drawn(3, 1, from_us=OLD_US, to_us=OLD_US + DAY_US))
    assert (await here("housekeeping", "run", "--yes", *words)).code == 0
    (found,) = await job.contents(connection, "readings")
    hidden = tmp_path / f".{NAME}.{found.token}"

    def hide() -> None:  # as between the record and the move
        hidden.mkdir()
        (tmp_path / f"{NAME}.parquet").rename(hidden / f"{NAME}.parquet")

    hide()
    assert (await here("archive", "verify", *words)).code == 0
    hide()
    with ArchiveFolder(tmp_path).locked():
        verifying = asyncio.create_task(here("archive", "verify", *words))
        await asyncio.sleep(0.3)
        assert not verifying.done()
    assert (await verifying).code == 0
    hide()
    monkeypatch.setattr("ingest.years.archive.archiver.ALONE_S_MAX", 0.0)
    with ArchiveFolder(tmp_path).locked():
        refused = await here("archive", "verify", *words)
    assert (refused.code, "another process writes" in refused.stdout) == (1, True)
    elsewhere = await here("archive", "verify", *words[:-1], str(tmp_path / "elsewhere"))
    assert (elsewhere.code, "No such file" in elsewhere.stdout) == (1, True)
    assert not (tmp_path / "elsewhere").exists()


async def test_role_that_may_not_see_the_archive_is_told(
    connection: asyncpg.Connection, shared_url: str, here: Here, tmp_path: Path, role: str
) -> None:
    """Else `verify` would find all of nothing in order."""
    words = ["--partition-span", "day", "--archive-dir", str(tmp_path)]
    assert (await here("schema", "apply", "--database-url", shared_url, *words)).code == 0
    await connection.execute(f"grant usage on schema public to {role}")
    words += ["--database-url", with_user(shared_url, role)]
    for command in ("list", "verify"):
        done = await here("archive", command, *words)
        assert (done.code, done.stdout) == (2, "")
        assert "public.ingest_housekeeping: set housekeeping_url" in done.stderr
    await connection.execute(f"drop owned by {role}")
