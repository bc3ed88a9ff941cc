"""A DETACH .. CONCURRENTLY that somebody left half done is ended by the housekeeping."""

from __future__ import annotations

import asyncpg
import pytest

from ingest.sinks.postgres.housekeeping import registry, runs
from ingest.sinks.postgres.housekeeping.partitions import DAY, DAY_US, bounds_entry
from ingest.sinks.postgres.housekeeping.table_state import View, look_at
from ingest.years.retention import FINISH, HalfDetached, Policy, Retention

NAME = "readings_p20200101"
FROM_US = 1_577_836_800_000_000
MADE = f"""
create table readings (ts timestamptz, device_id text, metric text, value float8,
primary key (ts, device_id, metric, value)) partition by range (ts);
create table {NAME} partition of readings for values from ('2020-01-01+00') to ('2020-01-02+00');
insert into readings values ('2020-01-01 12:00+00', 'd', 'm', 1)"""
KEEP = Policy(2 * DAY_US, "2d")


async def _half_detached(connection: asyncpg.Connection, url: str, *, ours: bool = True) -> View:
    """Make a table of ours with one partition, which is half detached; return its view."""
    await connection.execute(MADE)
    kept = await registry.make(connection, "readings")
    if ours:
        await registry.put(connection, kept, {registry.TABLE + "readings": {"span": DAY}})
        entry = bounds_entry(FROM_US, FROM_US + DAY_US)
        await registry.put(connection, kept, {registry.PARTITION + NAME: entry})
    holder, by_hand = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        await holder.execute("begin; lock table readings in access share mode")
        await by_hand.execute("set statement_timeout = '50ms'")
        with pytest.raises(asyncpg.QueryCanceledError):
            await by_hand.execute(f"alter table readings detach partition {NAME} concurrently")
    finally:
        await holder.close()
        await by_hand.close()
    return await look_at(connection, "readings", DAY)


async def test_it_is_ended_and_the_table_stays(
    connection: asyncpg.Connection, shared_url: str
) -> None:
    """Until then no reading of its time can be written; afterwards the table has its readings."""
    view = await _half_detached(connection, shared_url)
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("insert into readings values ('2020-01-01 13:00+00', 'd', 'm', 1)")
    (did,) = await runs.do_due(connection, view, [HalfDetached()])
    assert (did.step.kind, did.step.partition, did.error) == (FINISH, NAME, "")
    view = await look_at(connection, "readings", DAY)
    assert view.partitions == []
    assert await HalfDetached().plan(connection, view) == []
    await HalfDetached().do(connection, view, did.step)  # somebody else has ended it
    assert await connection.fetchval(f"select count(*) from {NAME}") == 1


@pytest.mark.parametrize("ours", [True, False])
async def test_it_is_left_alone(
    connection: asyncpg.Connection, shared_url: str, ours: bool
) -> None:
    """What retention has begun is for retention to end; a table of others is only looked at."""
    view = await _half_detached(connection, shared_url, ours=ours)
    if ours:
        kept = await registry.make(connection, "readings")
        oid = await connection.fetchval("select to_regclass($1)::oid::int8", NAME)
        entry = {"state": "detaching", "oid": oid, "from_us": FROM_US, "to_us": FROM_US + DAY_US}
        await registry.put(connection, kept, {registry.ARCHIVE + NAME: entry})
    assert await HalfDetached().plan(connection, view) == []


@pytest.mark.parametrize("entry", [None, {"state": "dropped", "oid": 1}])
async def test_retention_does_not_take_it_for_its_own(
    connection: asyncpg.Connection, shared_url: str, entry: dict[str, object] | None
) -> None:
    """An earlier partition of the same name has left an entry: it is not that of this one."""
    view = await _half_detached(connection, shared_url)
    kept = await registry.make(connection, "readings")
    if entry is not None:
        await registry.put(connection, kept, {registry.ARCHIVE + NAME: entry})
    did = await runs.do_due(connection, view, [Retention(KEEP)], yes=True)
    assert [each.error for each in did] == [f"{NAME} was half detached by somebody else"]
    did = await runs.do_due(connection, view, [HalfDetached(), Retention(KEEP)], yes=True)
    assert [each.error for each in did] == [
        "",
        f"{NAME} is not a partition of public.readings any more",
    ]
    assert await connection.fetchval(f"select count(*) from {NAME}") == 1
