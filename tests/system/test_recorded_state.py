"""The service takes over the state of an older commit: no reading is lost or stored twice.

tests/path/recorded/ has the files and the recording script. The service was killed while its
database was away. The database of these tests has the table of that time, with what was written.
102f91b0 is the newest, 54a95c7 the last one before partitions, fd6d781 an older one. Of 102f91b0
there are also a database with partitions and rollups, and a folder that `serve` and then `up` used.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.path.recorded.exchange import Case, Part, exchange
from tests.path.recorded.record import HERE, REPOSITORY
from tests.path.recorded.record_state import listed_letters
from tests.path.recorded.service import Done, Running, command, run_sql
from tests.support.rollups import DAY_US, HOUR_US, differences, raw, stored
from tests.support.rollups import expected as rollups_of

LONG_AGO_S = 1_000_000_000.0  # the files are older than the longest time for finished files
TABLE_SQL = """
    select (extract(epoch from ts) * 1000000)::bigint as ts_us, device_id, metric, value
    from readings
"""
TABLE_BEFORE = """
    create table readings (ts timestamptz not null, device_id text collate "C" not null,
    metric text collate "C" not null, value double precision not null,
    primary key (ts, device_id, metric, value))
"""
FILL_SQL = """
    insert into readings select 'epoch'::timestamptz + (row->>0)::bigint * interval '1 us',
    row->>1, row->>2, (row->>3)::float8 from jsonb_array_elements($1::text::jsonb) row
"""
OLDER = ("54a95c7", "fd6d781")
QUICK = {"dlq_replay_pause_s": 0.1}
STATES = ["102f91b0", *(pytest.param(each, marks=pytest.mark.slow) for each in OLDER)]
UP = "102f91b0"  # of the recorded database and the folder of `up`
Row = tuple[Any, ...]


@pytest.fixture(scope="module", params=STATES)
def recorded(request: pytest.FixtureRequest) -> Path:
    """Give the recorded folder of a commit."""
    return HERE / f"state-{request.param}"


@pytest.fixture(scope="module")
def expected(recorded: Path) -> dict[str, Any]:
    """Give the acknowledged readings, and the older commit's list of its dead letters."""
    found: dict[str, Any] = json.loads(recorded.with_suffix(".json").read_text())
    return found


@pytest.fixture
def state_dir(recorded: Path, open_tmp_path: Path) -> Path:
    """Give a copy of the recorded folder."""
    return copied(recorded, open_tmp_path / "state")


def copied(recorded: Path, copy: Path) -> Path:
    """Copy a recorded folder, with the modes and the times of such a folder."""
    shutil.copytree(recorded, copy)
    for path in [copy, *copy.rglob("*")]:
        path.chmod((0o755 if path == copy else 0o700) if path.is_dir() else 0o600)
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    return copy


def differing(wanted: Iterable[Iterable[Any]], there: Iterable[Iterable[Any]]) -> list[str]:
    """Name each reading that is not in the table, is there twice, or should not be there."""
    left, right = Counter(map(tuple, wanted)), Counter(map(tuple, there))
    missing = [f"is not in the table: {row}" for row in left - right]
    return missing + [f"is in the table and must not: {row}" for row in right - left]


async def fill(url: str, rows: list[list[Any]]) -> None:
    """Make the table as it was, with the readings that were written."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(TABLE_BEFORE)
        await connection.execute(FILL_SQL, json.dumps(rows))
    finally:
        await connection.close()


async def status_of_post(service: Running, *headers: str) -> str:
    """Post an empty array; return the status line."""
    head = "".join(f"{each}\r\n" for each in ("Host: localhost", *headers, "Content-Length: 2"))
    send: list[Part] = [
        f"POST /v1/readings HTTP/1.1\r\nContent-Type: application/json\r\n{head}\r\n[]"
    ]
    got, then = await exchange(service.address("data"), Case("post", "", "data", send))
    assert got, then
    return str(got[0][0])


async def table(url: str) -> list[Row]:
    """Return the readings in the table."""
    return [tuple(row) for row in await run_sql(url, TABLE_SQL)]


async def test_recorded_state_folder_is_taken_over(
    expected: dict[str, Any], state_dir: Path, database_url: str
) -> None:
    """The journal is written, letters are replayed, also by hand from the mark, all is counted."""
    journal, returning, refused = (expected[each] for each in ("journal", "returning", "refused"))
    left = len(refused) + expected["invalid"]

    unsafe = ("--database-unsafe", "true")  # the tests' server does not fsync

    async def dlq(*words: str) -> Done:
        return await command(REPOSITORY, "dlq", *words, "--state-dir", state_dir)

    async def left_by_reason() -> dict[str, int]:
        counted: Counter[str] = Counter()
        for each in json.loads((await dlq("stats", "--json")).stdout)["by"]:
            counted[each["reason"]] += each["letters"]
        return dict(counted)

    written = expected["elsewhere"]
    await fill(database_url, written)
    assert await listed_letters(REPOSITORY, state_dir) == expected["dead_letters"]
    async with Running(REPOSITORY, state_dir, database_url, QUICK) as service:
        await service.wait_state("accepting")
        await service.wait_sample("ingest_readings_recovered_total", expected["recovered"])
        await service.wait_sample("ingest_dlq_readings", left)
        samples = await service.wait_quiet()
        assert samples["ingest_ledger_imbalance_rows"] == 0
        assert samples["ingest_readings_replayed_total"] == len(returning)
        assert samples["ingest_readings_committed_total"] == len(journal) + len(returning)
        assert samples["ingest_readings_dropped_total"] == 0
        assert differing([*written, *journal, *returning], await table(database_url)) == []
        wanted = {"refused_by_database": len(refused), "invalid": expected["invalid"]}
        assert await left_by_reason() == wanted
        if "token" in expected:
            with_token = f"Authorization: Bearer {expected['token']}"
            assert (await status_of_post(service)).startswith("HTTP/1.1 401")
            assert not (await status_of_post(service, with_token)).startswith("HTTP/1.1 401")
        # By hand. Marked letters are done: their readings are in the table already.
        done = await dlq("replay", *unsafe, "--where", "reason=refused_by_database")
        assert done.code == 0, done
        everything = [*written, *journal, *returning, *refused]
        assert differing(everything, await table(database_url)) == []
        done = await dlq("replay", *unsafe)
        assert done.code == 1, "invalid items are still invalid"
        assert await left_by_reason() == {"invalid": expected["invalid"]}
        await service.wait_sample("ingest_dlq_readings", expected["invalid"])
        assert (await service.samples())["ingest_ledger_imbalance_rows"] == 0
        service.kill()
        await service.start()
        await service.wait_state("accepting")
        samples = await service.wait_quiet()
        assert samples["ingest_ledger_imbalance_rows"] == 0
        assert samples["ingest_readings_recovered_total"] == 0
        assert samples["ingest_readings_replayed_total"] == 0
        assert differing(everything, await table(database_url)) == []


@pytest.mark.slow
async def test_folder_of_which_a_file_is_lost_is_not_taken_over_whole(
    expected: dict[str, Any], state_dir: Path, database_url: str
) -> None:
    """The same checks find a missing journal segment and missing marks."""
    max((state_dir / "journal").glob("*.log")).unlink()
    for marks in (state_dir / "dead-letters").glob("*.cursor"):
        marks.unlink()
    assert await listed_letters(REPOSITORY, state_dir) != expected["dead_letters"]
    async with Running(REPOSITORY, state_dir, database_url, QUICK) as service:
        await service.wait_state("accepting")
        left = len(expected["refused"]) + expected["invalid"]
        await service.wait_sample("ingest_readings_replayed_total", len(expected["returning"]) + 5)
        samples = await service.wait_quiet()
        assert 0 < samples["ingest_readings_recovered_total"] < expected["recovered"]
        assert samples["ingest_dlq_readings"] != left
        found = differing(expected["journal"], await table(database_url))
        assert any(each.startswith("is not in the table") for each in found)
        assert any("'replayed'" in each for each in found)


@pytest.fixture
async def left(database_url: str) -> dict[str, list[Row]]:
    """Restore the recorded database; give the readings in it, and those that the stream has."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute((HERE / f"database-{UP}.sql").read_text())
    finally:
        await connection.close()
    found = json.loads((HERE / f"up-{UP}.json").read_text())
    return {name: [tuple(row) for row in rows] for name, rows in found.items()}


async def housekeeping(url: str, *words: str) -> Done:
    """Run `ingest housekeeping` with rollups."""
    flags = ("--database-url", url, "--database-unsafe", "true", "--rollups", "true")
    done = await command(REPOSITORY, "housekeeping", *words, *flags)
    assert done.code == 0, done
    return done


async def rollups_differ(url: str) -> list[Any]:
    """Return which rollups of the table are not those of its readings."""
    connection = await asyncpg.connect(url)
    try:
        readings = await raw(connection)
        hours = await stored(connection, "readings_hourly", "hour")
        days = await stored(connection, "readings_daily", "day")
    finally:
        await connection.close()
    return [
        *differences(hours, rollups_of(readings, HOUR_US)),
        *differences(days, rollups_of(readings, DAY_US)),
    ]


async def test_recorded_database_is_taken_over(
    left: dict[str, list[Row]], database_url: str
) -> None:
    """All partitions are in the registry; late readings come to the rollups; none is lost."""
    assert differing(left["table"], await table(database_url)) == []
    assert await rollups_differ(database_url) != [], "the late readings are in no rollup yet"
    await housekeeping(database_url, "run", "--yes")
    assert await rollups_differ(database_url) == []
    status = json.loads((await housekeeping(database_url, "status", "--json")).stdout)
    assert status["partitions"] == status["partitions_ours"] >= 13
    assert differing(left["table"], await table(database_url)) == []


@pytest.mark.slow
async def test_recorded_folder_of_up_is_taken_over(
    left: dict[str, list[Row]], database_url: str, open_tmp_path: Path
) -> None:
    """What `serve` had left, and what `up` has taken, comes from the stream into the table."""
    state_dir = copied(HERE / f"up-{UP}", open_tmp_path / "state")
    settings = {"rollups": True, "housekeeping": False, "late_days_max": 20_000}
    async with Running(REPOSITORY, state_dir, database_url, settings, "up") as up:
        wanted = [*left["table"], *left["stream"]]
        async with asyncio.timeout(20):
            while len(await table(database_url)) < len(wanted):  # noqa: ASYNC110  another process
                await asyncio.sleep(0.05)
        assert differing(wanted, await table(database_url)) == []
        done = await command(REPOSITORY, "dlq", "stats", "--json", "--state-dir", state_dir)
        assert json.loads(done.stdout)["live"] == 2, done
        up.signal(15)
        assert up.ended() == 0
    await housekeeping(database_url, "run", "--yes")
    assert await rollups_differ(database_url) == []
