"""The tables of rollups beside the readings table, and the trigger that records late readings.

Four tables, named after the readings table: `_hourly` and `_daily` (the rollups), `_rollup_late`
(a row for each late reading: its hour and series), `_rollup_due` (the same, each once).
The trigger fires for a reading that is late: its hour may have been computed. For each other one
the server evaluates a condition, and queues nothing. The function of the trigger runs with the
rights of its owner, so that who writes readings needs no other right.
Promises: `make` and `unmake` may be repeated. The driver's errors pass through.
Does not: drop rollups, or commit.
"""

from __future__ import annotations

from typing import NamedTuple

from asyncpg import Connection

from ingest.sinks.postgres.target import TargetTable, quoted, shortened

TRIGGER = "ingest_rollup_mark"  # deploy/partition-a-table.sql knows it too

# A partition that was attached as a table may have a trigger of its own (no parent).
_TRIGGERS = """
with recursive tree (id) as (
    select $1::oid union select inhrelid from pg_inherits join tree on inhparent = id)
select format('%I.%I', n.nspname, c.relname) as name, tgrelid = $1::oid as top,
       tgenabled in ('O', 'A') as enabled, pg_get_triggerdef(g.oid) as text
from pg_trigger g join tree on tgrelid = id join pg_class c on c.oid = tgrelid
join pg_namespace n on n.oid = c.relnamespace
where tgname = $2 and not tgisinternal and tgparentid = 0"""
# Who may read the readings ($1), and not yet this table ($2).
_READERS = """
select case grantee when 0 then 'public' else format('%I', pg_get_userbyid(grantee)) end as name
from pg_class c, aclexplode(c.relacl) as a
where c.oid = $1::oid and a.privilege_type = 'SELECT' and grantee <> c.relowner
  and not exists (select from pg_class d, aclexplode(d.relacl) as b where d.oid = to_regclass($2)
                  and b.grantee = a.grantee and b.privilege_type = 'SELECT')"""


class RollupSpans(NamedTuple):
    """How long an hour and a day are, and when an hour is computed; all in microseconds.

    A reading is late if it comes `late_us` after its `ts` or later, by the server's clock. An hour
    is computed `close_us` after its end. Then all its readings are there that were not late. The
    difference is room for a clock that is set back. Only tests and benchmarks use other values.
    """

    hour_us: int = 3_600_000_000
    day_us: int = 86_400_000_000
    late_us: int = 6_600_000_000
    close_us: int = 7_200_000_000


class RollupTables(NamedTuple):
    """What belongs to the rollups of one table, as SQL names it, with the schema."""

    hourly: str
    daily: str
    late: str
    due: str
    function: str


def tables_of(target: TargetTable) -> RollupTables:
    """Return the names for a table; without the schema if that of the target is not known."""
    endings = ("_hourly", "_daily", "_rollup_late", "_rollup_due", "_rollup_mark")
    return RollupTables(
        *(target._replace(table=shortened(target.table, each)).name for each in endings)
    )


async def is_made(
    connection: Connection, oid: int, target: TargetTable, spans: RollupSpans
) -> bool:
    """Whether all tables are there, and the trigger of this version, enabled."""
    names = list(tables_of(target)[:4])
    query = "select bool_and(to_regclass(name) is not null) from unnest($1::text[]) name"
    found = await connection.fetch(_TRIGGERS, oid, TRIGGER)
    wanted = [each for each in found if each["enabled"] and _late(spans) in each["text"]]
    alone = len(found) == 1 and len(wanted) == 1 and wanted[0]["top"]
    return alone and bool(await connection.fetchval(query, names))


async def is_marking(connection: Connection, oid: int) -> bool:
    """Whether there is a trigger of rollups."""
    return bool(await connection.fetch(_TRIGGERS, oid, TRIGGER))


async def make(
    connection: Connection, oid: int, target: TargetTable, spans: RollupSpans, owner: str = ""
) -> None:
    """Make what is missing, and the trigger anew. The caller has locked the table against writes.

    So every write that has begun before has ended, and every later one fires the trigger. `owner`
    is to own all, if it is not this role.
    """
    await connection.execute("set local client_min_messages = warning")
    for statement in _statements(tables_of(target), target, spans):
        await connection.execute(statement)
    if owner:
        names = tables_of(target)
        for table in names[:4]:
            await connection.execute(f"alter table {table} owner to {quoted(owner)}")
        await connection.execute(f"alter function {names.function}() owner to {quoted(owner)}")
    await _drop_triggers(connection, oid)
    await connection.execute(
        f"create trigger {TRIGGER} after insert on {target.name} for each row "
        f"when (new.{quoted(target.ts)} < pg_catalog.clock_timestamp() - {_late(spans)}::interval) "
        f"execute function {tables_of(target).function}()"
    )


async def unmake(connection: Connection, oid: int, target: TargetTable) -> None:
    """Drop the trigger and what it writes to. The rollups stay."""
    await connection.execute("set local client_min_messages = warning")
    names = tables_of(target)
    await _drop_triggers(connection, oid)
    await connection.execute(f"drop function if exists {names.function}()")
    await connection.execute(f"drop table if exists {names.late}, {names.due}")


async def grant_to_readers(
    connection: Connection, oid: int, target: TargetTable, registry_name: str
) -> None:
    """Let all who may read the readings read the rollups, and how far they are."""
    for table in (*tables_of(target)[:2], registry_name):
        for row in await connection.fetch(_READERS, oid, table):
            await connection.execute(f"grant select on {table} to {row['name']}")


async def _drop_triggers(connection: Connection, oid: int) -> None:
    for each in await connection.fetch(_TRIGGERS, oid, TRIGGER):
        await connection.execute(f"drop trigger {TRIGGER} on {each['name']}")


def _late(spans: RollupSpans) -> str:
    """Return the interval as the server prints it, so that definitions can be compared."""
    seconds, rest_us = divmod(spans.late_us, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    fraction = f".{rest_us:06d}".rstrip("0") if rest_us else ""
    return f"'{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}{fraction}'"


def _statements(names: RollupTables, target: TargetTable, spans: RollupSpans) -> list[str]:
    series = 'device_id text collate "C" not null, metric text collate "C" not null'
    numbers = ", ".join(
        f"{name} double precision not null" for name in ("min", "max", "sum", "first", "last")
    )
    made: list[str] = []
    for table, ending, start in (
        (names.hourly, "_hourly_time_idx", "hour"),
        (names.daily, "_daily_time_idx", "day"),
    ):
        index = quoted(shortened(target.table, ending))
        made += [
            f"create table if not exists {table} ({series}, {start} timestamptz not null, "
            f"count bigint not null, {numbers}, primary key (device_id, metric, {start}))",
            f"create index if not exists {index} on {table} using brin ({start}) "
            "with (autosummarize = on, pages_per_range = 32)",
        ]
    new = [f"new.{quoted(each)}" for each in (target.ts, target.device_id, target.metric)]
    return [
        *made,
        f"create table if not exists {names.late} (hour timestamptz not null, {series})",
        f"create table if not exists {names.due} (hour timestamptz not null, {series}, "
        "primary key (hour, device_id, metric))",
        # Each name has its schema: it runs as its owner, with the search_path of the writer.
        f"""create or replace function {names.function}() returns trigger
        language plpgsql security definer as $$
        begin
            insert into {names.late} (hour, device_id, metric) values (
                pg_catalog.date_bin('{spans.hour_us} microseconds'::pg_catalog.interval, {new[0]},
                    '1970-01-01 00:00:00+00'::pg_catalog.timestamptz), {new[1]}, {new[2]});
            return null;
        end $$""",  # noqa: S608
        f"revoke all on function {names.function}() from public",
    ]
