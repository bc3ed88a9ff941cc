"""Old partitions leave the table: who must say yes, and what a cut-off run leaves to the next."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
import structlog

from ingest.app.database import timeouts
from ingest.app.housekeeping import (
    HOUSEKEEPING_FAILS,
    RETENTION_WAITS,
    Housekeeping,
    housekeeping_jobs,
)
from ingest.cli.doctor.checks import OK, partition_checks
from ingest.config.settings import Settings
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import registry, runs
from ingest.sinks.postgres.housekeeping.partitions import (
    DAY,
    DAY_US,
    TimeSpan,
    bounds_entry,
    literal,
    partition_name,
)
from ingest.sinks.postgres.housekeeping.table_state import View, look_at
from ingest.years.partition_life import ARCHIVE, DETACH, DROP
from ingest.years.retention import Policy, Retention
from ingest.years.rollups import state as rollup_state
from ingest.years.rollups.job import Rollups
from ingest.years.rollups.state import progress
from tests.support.commands import Here
from tests.support.documents import commands, marked

KEEP = Policy(2 * DAY_US, "2d")
TABLE = """create table readings (ts timestamptz, device_id text, metric text, value float8,
primary key (ts, device_id, metric, value)) partition by range (ts)"""


async def make(connection: asyncpg.Connection, days: int, *, ours: bool = True) -> list[str]:
    """Make a table with a partition for each of the last days; return their names."""
    await connection.execute(f"{TABLE}; set timezone = 'UTC'; set lock_timeout = '50ms'")
    kept = await registry.make(connection, "readings")
    now_us = (await look_at(connection, "readings", DAY)).now_us
    names = []
    for back in reversed(range(days)):
        start = (now_us // DAY_US - back) * DAY_US
        name = partition_name("readings", DAY, start)
        lower, upper = literal(start), literal(start + DAY_US)
        await connection.execute(
            f"create table {name} partition of readings for values from ({lower}) to ({upper}); "
            f"insert into readings values ({lower}, 'd', 'm', 1)"
        )
        entry = bounds_entry(start, start + DAY_US)
        if ours:
            await registry.put(connection, kept, {registry.PARTITION + name: entry})
        names.append(name)
    return names


async def seen(connection: asyncpg.Connection) -> View:
    """Look at the table."""
    return await look_at(connection, "readings", DAY)


async def run(
    connection: asyncpg.Connection,
    policy: Policy | None = KEEP,
    *,
    yes: bool = False,
    archive_dir: str = "",
) -> list[str]:
    """Do what is due; return what became of each step."""
    job = Retention(policy, archive_dir=archive_dir)
    did = await runs.do_due(connection, await seen(connection), [job], yes=yes)
    return [
        f"{each.step.kind} {each.step.partition}"
        f"{each.error and ': ' + each.error}{each.left and ': waits: ' + each.left}"
        for each in did
    ]


async def names(connection: asyncpg.Connection) -> list[str]:
    """Return the names of the partitions."""
    return [each.name for each in (await seen(connection)).partitions]


async def tables(connection: asyncpg.Connection) -> list[str]:
    """Return the names of all partitions, also of those that were detached."""
    rows = await connection.fetch(
        "select relname from pg_class where relname like 'readings_p2%' and relkind = 'r' "
        "order by 1"
    )
    return [row[0] for row in rows]


async def test_old_partitions_go_once_a_person_has_said_yes(
    connection: asyncpg.Connection,
) -> None:
    """The first time it waits; the answer is recorded, and later spans go by themselves."""
    made = await make(connection, 5)
    said = await run(connection)
    assert [each.split(":")[0] for each in said] == [
        f"{kind} {name}" for name in made[:2] for kind in (DETACH, DROP)
    ]
    assert all("keep_hot = 2d has not been confirmed: 2 of 5 partitions" in each for each in said)
    assert await names(connection) == made
    assert await run(connection, yes=True) == [each.split(":")[0] for each in said]
    assert await names(connection) == await tables(connection) == made[2:]
    assert await connection.fetchval("select count(*) from readings") == 3
    assert await registry.entries(connection, "readings", "partition/" + made[0]) == {}
    assert await registry.entries(connection, "readings", registry.ARCHIVE) == {}
    assert await run(connection) == []
    # With the same keep_us, as if a day had passed; another one must be confirmed again.
    kept = await registry.make(connection, "readings")
    answer = Policy(DAY_US, "1d").entry((await seen(connection)).now_us)
    assert "not been confirmed" in (await run(connection, Policy(DAY_US, "1d")))[0]
    await registry.put(connection, kept, {"answer/keep_hot": answer})
    assert await run(connection, Policy(DAY_US, "1d")) == [f"detach {made[2]}", f"drop {made[2]}"]


async def test_partitions_of_others_and_pinned_ones_stay(connection: asyncpg.Connection) -> None:
    """Only what we made or adopted leaves; and what was restored stays until it is released."""
    made = await make(connection, 4, ours=False)
    kept = await registry.make(connection, "readings")
    await registry.put(connection, kept, {"table/readings": {"span": DAY}})
    assert await run(connection, yes=True) == []
    for each in (await seen(connection)).partitions:
        entry = bounds_entry(each.from_us, each.to_us)
        await registry.put(connection, kept, {registry.PARTITION + each.name: entry})
    await registry.put(connection, kept, {registry.PINNED + made[0]: {}})
    assert await run(connection, yes=True) == []
    await registry.remove(connection, kept, registry.PINNED + made[0])
    assert len(await run(connection, yes=True)) == 2
    assert await run(connection, None) == []


async def test_nothing_leaves_before_wanted_rollups_are_made(
    connection: asyncpg.Connection,
) -> None:
    """The table may have been in use all the time that their trigger needed its lock."""
    made = await make(connection, 4)
    did = await runs.do_due(
        connection, await seen(connection), [Retention(KEEP, rollups=True)], yes=True
    )
    said = [(each.error, each.left) for each in did]
    assert said == [("", "the rollups of this time are not computed yet")], "that is no failure"
    assert await names(connection) == made


async def test_keep_hot_on_a_plain_table_says_what_to_do(connection: asyncpg.Connection) -> None:
    """It fails: no yes would help. Without keep_hot nothing is said."""
    await schema.apply(connection)
    for yes in (False, True):
        (said,) = await run(connection, yes=yes)
        assert said.startswith("drop readings: not possible: public.readings has no partitions")
        assert "partition-a-table.sql" in said
    assert await run(connection, None) == []


async def test_reader_delays_a_detach_and_the_next_run_ends_it(
    connection: asyncpg.Connection, shared_url: str
) -> None:
    """Writes go on meanwhile. Until it ends nothing is dropped."""
    made = await make(connection, 4)
    reader = await asyncpg.connect(shared_url)
    reading = reader.transaction(isolation="repeatable_read")
    await reading.start()
    assert await reader.fetchval("select count(*) from readings") == 4
    running = asyncio.create_task(run(connection, yes=True))
    writer = await asyncpg.connect(shared_url)
    while not running.done():
        await writer.execute("insert into readings values (now(), 'd', 'm', random())")
        await asyncio.sleep(0.01)
    (said,) = await running
    assert said.startswith(f"detach {made[0]}: ")
    assert "timeout" in said
    assert made[0] in await tables(connection)
    assert await reader.fetchval("select count(*) from readings") == 4
    await reading.rollback()
    assert await run(connection, yes=True) == [f"detach {made[0]}", f"drop {made[0]}"]
    assert await tables(connection) == made[1:]
    await reader.close()
    await writer.close()


async def test_run_that_was_cut_off_is_ended_by_the_next(connection: asyncpg.Connection) -> None:
    """After the detach the rest is due, and needs no second yes, if keep_hot still wants it."""
    made = await make(connection, 4)
    job = Retention(KEEP)
    detach, drop = await job.plan(connection, await seen(connection))
    assert (detach.kind, drop.kind) == (DETACH, DROP)
    await job.do(connection, await seen(connection), detach)
    assert await names(connection) == made[1:]
    for policy in (None, Policy(30 * DAY_US, "30d")):
        (said,) = await run(connection, policy)
        assert said.startswith(f"drop {made[0]}: waits: {made[0]} was detached to be dropped")
        assert f'attach partition public."{made[0]}" for values from (' in said
    assert await run(connection) == [f"drop {made[0]}"]
    assert await tables(connection) == made[1:]


async def test_detach_that_got_no_lock_is_judged_by_the_policy_of_now(
    connection: asyncpg.Connection,
) -> None:
    """Its partition is still there. If keep_hot was raised or removed meanwhile, it stays."""
    made = await make(connection, 4)
    (detach, _) = await Retention(KEEP).plan(connection, await seen(connection))
    kept = await registry.make(connection, "readings")
    oid = await connection.fetchval("select $1::regclass::oid::int8", made[0])
    entry = {"state": "detaching", "oid": oid, "from_us": detach.from_us, "to_us": detach.to_us}
    await registry.put(connection, kept, {registry.ARCHIVE + made[0]: {**entry, "archive_dir": ""}})
    assert await run(connection, None) == []
    assert await run(connection, Policy(30 * DAY_US, "30d"), yes=True) == []
    assert await names(connection) == made
    assert "has not been confirmed" in (await run(connection))[0]
    assert await run(connection, yes=True) == [f"detach {made[0]}", f"drop {made[0]}"]


async def test_half_a_detach_for_an_archive_is_not_dropped_without_one(
    connection: asyncpg.Connection, shared_url: str
) -> None:
    """The rest of the detach is done at once. No yes drops it: the next run archives it.

    Also if keep_hot is removed or longer by then: what was confirmed is done.
    """
    made = await make(connection, 4)
    reader = await asyncpg.connect(shared_url)
    async with reader.transaction(isolation="repeatable_read"):
        await reader.fetchval("select count(*) from readings")
        said = await run(connection, KEEP._replace(archive_dir="/cold"), yes=True)
        assert "timeout" in said[0]
    await reader.close()
    said = await run(connection)
    assert said[0] == f"detach {made[0]}"
    for again in (said[1:], await run(connection, yes=True), await run(connection, None, yes=True)):
        (dropped, *more) = again
        assert dropped.startswith(f"drop {made[0]}: {made[0]} was detached to be archived in /cold")
        assert [each.split(":")[0] for each in more] in ([], [f"drop {made[1]}"])
    assert made[0] in await tables(connection)
    view = await seen(connection)
    for policy in (None, Policy(30 * DAY_US, "30d", "/cold"), KEEP._replace(archive_dir="/cold")):
        steps = await Retention(policy, archive_dir="/cold").plan(connection, view)
        steps = [each for each in steps if each.partition == made[0]]
        assert [(each.kind, each.waits) for each in steps] == [(ARCHIVE, ""), (DROP, "")]
    (archive, _) = await Retention(None, archive_dir="/other").plan(connection, view)
    assert "--yes archives it in /other, and then drops it" in archive.waits


async def test_table_of_an_older_version_is_not_dropped_before_its_archive_is_verified(
    connection: asyncpg.Connection,
) -> None:
    """`written` says that it was to be archived, though not where: no yes drops it without."""
    made = await make(connection, 4)
    job = Retention(KEEP)
    detach, _ = await job.plan(connection, await seen(connection))
    await job.do(connection, await seen(connection), detach)
    kept, key = await registry.make(connection, "readings"), registry.ARCHIVE + made[0]
    entry = (await registry.entries(connection, "readings", key))[""]
    await registry.put(connection, kept, {key: entry | {"state": "written"}})
    for policy in (KEEP, None):
        (said,) = await run(connection, policy, yes=True)
        assert f"{made[0]} was detached to be archived, and archive_dir is not set any more" in said
        assert made[0] in await tables(connection)


async def test_entry_that_cannot_be_read_stops_its_own_partition_alone(
    connection: asyncpg.Connection,
) -> None:
    """It says so in each run. Rollups wait: nobody knows whether its time is final."""
    made = await make(connection, 5)
    kept = await registry.make(connection, "readings")
    entry = {"state": "sold", "oid": 1}
    await registry.put(connection, kept, {registry.ARCHIVE + made[0]: entry})
    said = f"drop {made[0]}: the entry archive/{made[0]} of ingest_housekeeping is damaged: nothing"
    for others in ([f"detach {made[1]}", f"drop {made[1]}"], []):
        first, *more = await run(connection, yes=True)
        assert (first.startswith(said), more) == (True, others), first
    assert await names(connection) == [made[0], *made[2:]]
    assert await registry.entries(connection, "readings", registry.ARCHIVE) == {made[0]: entry}
    jobs: list[runs.Job] = [Rollups(wanted=True), Retention(KEEP, rollups=True)]
    for _ in range(2):
        did = await runs.do_due(connection, await seen(connection), jobs, yes=True)
        assert [(each.step.kind, "is damaged" in each.error) for each in did] == [
            ("rollups", True),
            (DROP, True),
        ]


async def test_partition_that_somebody_attached_again_or_made_anew_stays(
    connection: asyncpg.Connection,
) -> None:
    """What is dropped is the table that was detached, and it belongs to no other table now."""
    made = await make(connection, 5)
    job = Retention(KEEP)
    steps = await job.plan(connection, await seen(connection))
    first, second = ([each for each in steps if each.partition == name] for name in made[:2])
    for detach, _ in (first, second):
        await job.do(connection, await seen(connection), detach)
    lower, upper = literal(first[0].from_us), literal(first[0].to_us)
    await connection.execute(
        f"alter table readings attach partition {made[0]} for values from ({lower}) to ({upper}); "
        f"drop table {made[1]}; create table {made[1]} (mine int)"
    )
    assert await run(connection) == [
        f"drop {made[0]}: {made[0]} was attached again by somebody: it stays",
        f"drop {made[1]}",
    ]
    assert await run(connection) == []
    assert await tables(connection) == made
    assert await connection.fetchval("select count(*) from readings") == 4


async def test_detached_table_that_was_dropped_by_hand_is_told_once(
    connection: asyncpg.Connection,
) -> None:
    """In each state before the archive has it; a new partition of the same name stays ours."""
    made = await make(connection, 6)
    policy = KEEP._replace(archive_dir="/cold")
    job = Retention(policy)
    steps = await job.plan(connection, await seen(connection))
    first, second, third = ([each for each in steps if each.partition == name] for name in made[:3])
    for each in (first, second, third):
        await job.do(connection, await seen(connection), each[0])
    kept = await registry.make(connection, "readings")
    for name, state in ((made[0], "detaching"), (made[2], "verified")):
        key = registry.ARCHIVE + name
        entry = (await registry.entries(connection, "readings", key))[""]
        await registry.put(connection, kept, {key: {**entry, "state": state}})
    await registry.put(connection, kept, {registry.PINNED + made[0]: {}})
    bounds = first[0][3:5]
    await connection.execute(
        f"drop table {made[0]}; alter table {made[1]} rename to mine; drop table {made[2]}; "
        f"create table {made[0]} partition of readings for values "
        f"from ({literal(bounds[0])}) to ({literal(bounds[1])})"
    )
    said = await run(connection, policy)
    gone = "was dropped or renamed by somebody before it was in the archive"
    assert [each.split(":")[:2] for each in said] == [
        [f"drop {made[0]}", f" {made[0]} {gone}"],
        [f"drop {made[1]}", f" {made[1]} {gone}"],
        [f"drop {made[2]}"],
    ]
    entries = await registry.entries(connection, "readings", registry.ARCHIVE)
    assert {name: each["state"] for name, each in entries.items()} == {made[2]: "dropped"}
    ours = {each.name for each in (await seen(connection)).partitions if each.ours}
    assert made[0] in ours
    assert await run(connection, policy) == []


async def test_rollups_know_what_has_left_the_table_and_nothing_else(
    connection: asyncpg.Connection, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detach without its lock changes nothing; the days of one that is half done wait."""
    made = await make(connection, 4)
    monkeypatch.setattr(runs, "TRY_AGAIN_S", 0.01)
    jobs: list[runs.Job] = [Rollups(wanted=True), Retention(KEEP, rollups=True)]
    (did,) = await runs.do_due(connection, await seen(connection), jobs[:1])
    assert did.error == ""

    async def ran() -> list[str]:
        did = await runs.do_due(connection, await seen(connection), jobs, yes=True)
        return [each.error for each in did if each.step.kind == DETACH]

    async def state() -> tuple[object, list[TimeSpan]]:
        at = await progress(connection, "readings")
        assert at is not None
        return at.gone, await rollup_state.frozen(connection, "readings", at)

    first = (await seen(connection)).partitions[0]
    span = TimeSpan(first.from_us, first.to_us)
    other = await asyncpg.connect(shared_url)
    async with other.transaction():
        await other.execute("lock table readings in share update exclusive mode")
        (error,) = await ran()
    assert "lock timeout" in error
    assert await state() == ((), [])
    async with other.transaction(isolation="repeatable_read"):
        await other.fetchval("select count(*) from readings")
        (error,) = await ran()
    assert "timeout" in error
    await other.close()
    assert await state() == ((), [span])
    assert await ran() == [""]
    assert await state() == ((span,), [span])
    assert await names(connection) == made[1:]


async def test_table_whose_record_is_lost_is_told_with_the_command_that_mends_it(
    connection: asyncpg.Connection, shared_url: str, here: Here
) -> None:
    """Run, plan, status and doctor say it; then `schema adopt` ends it."""
    await make(connection, 4)
    await connection.execute("drop table ingest_housekeeping")
    words = ("--keep-hot", "2d", "--partition-span", "day", "--database-url", shared_url)
    done = await here("housekeeping", "run", "--yes", *words)
    assert done.code == 1
    shown = [(await here("housekeeping", each, *words)).stdout for each in ("plan", "status")]
    (check,) = await partition_checks(Settings(keep_hot="2d"), shared_url)
    assert check.state != OK
    for said in (done.stdout, *shown, check.detail):
        assert "public.ingest_housekeeping has no entry of public.readings" in said
        assert "`ingest schema adopt --yes` hands the partitions over" in said
    assert (await here("schema", "adopt", "--yes", *words)).code == 0
    waits = await here("housekeeping", "plan", *words)
    assert "\nwaits: keep_hot = 2d has not been confirmed" in waits.stdout


async def test_with_an_archive_nothing_is_dropped_before_it_was_verified(
    connection: asyncpg.Connection,
) -> None:
    """The step between detach and drop is that of the archive; the registry says how far it is."""
    made = await make(connection, 4)
    policy = KEEP._replace(archive_dir="/cold")
    job = Retention(policy)
    detach, archive, drop = await job.plan(connection, await seen(connection))
    assert [each.kind for each in (detach, archive, drop)] == [DETACH, ARCHIVE, DROP]
    assert "archived and dropped" in archive.waits
    view = await seen(connection)
    await job.do(connection, view, detach)
    with pytest.raises(Exception, match="not in the archive yet"):
        await job.do(connection, view, drop)
    assert [each.kind for each in await job.plan(connection, view)] == [ARCHIVE, DROP]
    kept = await registry.make(connection, "readings")
    key = registry.ARCHIVE + made[0]
    entry = (await registry.entries(connection, "readings", key))[""]
    assert entry["state"] == "detached"
    await registry.put(connection, kept, {key: {**entry, "state": "verified", "rows": 1}})
    await job.do(connection, view, drop)
    entry = (await registry.entries(connection, "readings", key))[""]
    assert (entry["state"], entry["rows"]) == ("dropped", 1)
    assert await tables(connection) == made[1:]


async def test_service_says_that_it_waits_and_a_yes_of_the_command_ends_it(
    connection: asyncpg.Connection, shared_url: str, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/readyz has the cause, metrics the number of steps, and `plan` says what would be done."""
    monkeypatch.setattr("ingest.app.housekeeping.PAUSE_S", 600.0)
    monkeypatch.setattr("ingest.app.housekeeping.WAITING_PAUSE_S", 0.05)
    made = await make(connection, 4)
    kept = await registry.make(connection, "readings")
    await registry.put(connection, kept, {"table/readings": {"span": DAY}})
    settings = Settings(keep_hot="2d")
    free_bytes: int | None = None
    housekeeping = Housekeeping(settings, lambda: shared_url, disk_free_bytes=lambda: free_bytes)
    stopping = asyncio.Event()
    running = asyncio.create_task(housekeeping.run(stopping))
    while housekeeping.trouble().cause != RETENTION_WAITS:
        assert not running.done()
        await asyncio.sleep(0.01)
    assert housekeeping.waiting == 2
    assert housekeeping.failed == 0
    said = housekeeping.trouble().details
    assert said.startswith(f"detach {made[0]}: keep_hot = 2d has not been")
    (block,) = marked("docs/grow/years.md", "test_retention.py")
    plan, run = commands(block.replace("30d", "2d"))
    url = ("--database-url", shared_url)
    assert "waits: keep_hot = 2d" in (await here(*plan, *url)).stdout
    said = ""
    # The other run may have the lock, or may do it after the yes.
    while f"drop {made[0]}: done" not in said and housekeeping.trouble().cause:
        said = (await here(*run, *url)).stdout
    while housekeeping.trouble().cause:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert housekeeping.waiting == 0
    stopping.set()
    await running
    monkeypatch.setattr("ingest.app.housekeeping.PAUSE_S", 0.05)
    stopping = asyncio.Event()
    running = asyncio.create_task(housekeeping.run(stopping))
    assert housekeeping.full_in_s() is None
    free_bytes = 1
    while (full_s := housekeeping.full_in_s()) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert full_s < 3_600
    free_bytes = 10**15
    assert housekeeping.full_in_s() is None
    stopping.set()
    await running


async def test_long_run_ends_early_and_the_next_one_begins_at_once(
    connection: asyncpg.Connection, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So partitions are made ahead, and rollups computed, while hundreds of partitions leave."""
    made = await make(connection, 6)
    kept = await registry.make(connection, "readings")
    now_us = (await seen(connection)).now_us
    await registry.put(connection, kept, {registry.KEEP_HOT: KEEP.entry(now_us)})
    counted = 0

    async def run_counted(*where: Any, **more: Any) -> runs.Report:
        nonlocal counted
        counted += 1
        return await real(*where, **more)

    real = runs.run
    monkeypatch.setattr(runs, "run", run_counted)
    monkeypatch.setattr(runs, "RUN_S", 0.0)
    monkeypatch.setattr("ingest.app.housekeeping.PAUSE_S", 600.0)
    housekeeping = Housekeeping(Settings(keep_hot="2d"), lambda: shared_url)
    stopping = asyncio.Event()
    running = asyncio.create_task(housekeeping.run(stopping))
    async with asyncio.timeout(20):
        while await tables(connection) != made[3:] or counted < 7:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    assert counted == 7  # one a step, and one that found nothing; then it pauses
    stopping.set()
    await running
    settings = Settings(keep_hot="1d")
    where = (shared_url, timeouts(settings), DAY, housekeeping_jobs(settings))
    report = await runs.run_all(*where, yes=True)  # as the command
    assert counted == 10
    assert [each.step.kind for each in report.did] == [DETACH, DROP]
    assert await tables(connection) == made[4:]


@pytest.mark.parametrize(
    ("key", "entry", "event", "why"),
    [
        (
            "archive/x",
            {"state": "detached"},
            "housekeeping_step_failed",
            "the entry archive/x of ingest_housekeeping is damaged: nothing is done for x",
        ),
        (
            "rollups",
            {"gone": 5},
            "housekeeping_failed",
            "TypeError: 'int' object is not iterable",
        ),
    ],
)
async def test_damaged_entry_of_the_registry_does_not_end_the_service(
    connection: asyncpg.Connection, shared_url: str, *, key: str, entry: Any, event: str, why: str
) -> None:
    """The housekeeping says what it cannot read, and goes on once that is mended."""
    await make(connection, 1)
    kept = await registry.make(connection, "readings")
    await registry.put(connection, kept, {"table/readings": {"span": DAY}})
    await registry.put(connection, kept, {key: entry})
    settings = Settings(keep_hot="2d")
    housekeeping = Housekeeping(settings, lambda: shared_url)
    stopping = asyncio.Event()
    with structlog.testing.capture_logs() as lines:
        running = asyncio.create_task(housekeeping.run(stopping))
        while event not in {each["event"] for each in lines}:
            assert not running.done()
            await asyncio.sleep(0.01)
    assert why in [each["why"] for each in lines if each["event"] == event]
    await registry.remove(connection, kept, key)
    assert housekeeping.trouble().cause == HOUSEKEEPING_FAILS
    assert housekeeping.trouble().details.endswith(why)
    while housekeeping.failed:
        assert not running.done()
        await asyncio.sleep(0.01)
    stopping.set()
    await running


async def test_columns_that_no_file_has_are_named_before_a_person_says_yes(
    connection: asyncpg.Connection,
) -> None:
    """Also if such a column was added after the first yes; not if the archive is not used."""
    await make(connection, 4)
    cold = Policy(2 * DAY_US, "2d", "/cold")

    async def waits(policy: Policy) -> set[str]:
        steps = await Retention(policy).plan(connection, await seen(connection))
        return {each.waits for each in steps}

    assert "would be lost" not in "".join(await waits(cold))
    kept = await registry.make(connection, "readings")
    await registry.put(connection, kept, {"answer/keep_hot": cold.entry(0)})
    assert await waits(cold) == {""}
    await connection.execute("alter table readings add received timestamptz default now()")
    (why,) = await waits(cold)
    assert "what is in received would be lost: the files lack it" in why
    assert "would be lost" not in "".join(await waits(KEEP))
    await Retention(cold).do(
        connection,
        await seen(connection),
        (await Retention(cold).plan(connection, await seen(connection)))[0],
    )
    assert await waits(cold) == {""}
