"""The tables of rollups: how they are made beside the readings table, and how they are computed.

Four tables, named after the readings table: `_hourly` and `_daily` (the rollups), `_rollup_late`
(a row for each late reading: its hour and series), `_rollup_due` (the same, each once).
A trigger records late readings: their hours may have been computed. For each other reading the
server evaluates a condition, and queues nothing. The function of the trigger runs with the rights
of its owner, so that who writes readings needs no other right.

Of values at one time, `first` and `last` take the lesser one; NaN is greater than all others.
`min` and `max` never are -0.0, so that they do not depend on the order of the rows. A sum of values
whose sum is no number of float8 is infinite, and not an error.
Promises: a rollup is never replaced by one of fewer readings: then the raw readings have been
removed, in part or all. `make` and `unmake` may be repeated. The driver's errors pass through.
Does not: drop rollups, or commit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from ingest.sinks.postgres.connection import Connection
from ingest.sinks.postgres.housekeeping.partitions import BEGINNING_US, END_US, TimeSpan, literal
from ingest.sinks.postgres.schema import TargetTable, quoted, shortened

HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
# An hour is computed so long after its end. A reading is late if it comes LATE after its `ts` or
# later, by the server's clock. So all readings of the hour are there that were not late. The
# difference is room for a clock that is set back.
CLOSE_US = 2 * HOUR_US
LATE = "01:50:00"  # as the server prints it: definitions are compared
TRIGGER = "ingest_rollup_mark"  # deploy/partition-a-table.sql knows it too
Key = tuple[str, str, str]  # hour, as the server prints it; device, metric

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


async def is_made(connection: Connection, oid: int, target: TargetTable) -> bool:
    """Whether all tables are there, and the trigger of this version, enabled."""
    names = list(tables_of(target)[:4])
    query = "select bool_and(to_regclass(name) is not null) from unnest($1::text[]) name"
    found = await connection.fetch(_TRIGGERS, oid, TRIGGER)
    wanted = [each for each in found if each["enabled"] and f"'{LATE}'" in each["text"]]
    alone = len(found) == 1 and len(wanted) == 1 and wanted[0]["top"]
    return alone and bool(await connection.fetchval(query, names))


async def is_marking(connection: Connection, oid: int) -> bool:
    """Whether there is a trigger of rollups."""
    return bool(await connection.fetch(_TRIGGERS, oid, TRIGGER))


async def make(connection: Connection, oid: int, target: TargetTable, owner: str) -> None:
    """Make what is missing, and the trigger anew. The caller has locked the table against writes.

    So every write that has begun before has ended, and every later one fires the trigger. `owner`
    is to own all; empty: this role.
    """
    await connection.execute("set local client_min_messages = warning")
    names = tables_of(target)
    for statement in _statements(names, target):
        await connection.execute(statement)
    if owner:
        for table in names[:4]:
            await connection.execute(f"alter table {table} owner to {quoted(owner)}")
        await connection.execute(f"alter function {names.function}() owner to {quoted(owner)}")
    await _drop_triggers(connection, oid)
    await connection.execute(
        f"create trigger {TRIGGER} after insert on {target.name} for each row "
        f"when (new.{quoted(target.ts)} < pg_catalog.clock_timestamp() - '{LATE}'::interval) "
        f"execute function {names.function}()"
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


def _statements(names: RollupTables, target: TargetTable) -> list[str]:
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
                pg_catalog.date_bin('{HOUR_US} microseconds'::pg_catalog.interval, {new[0]},
                    '1970-01-01 00:00:00+00'::pg_catalog.timestamptz), {new[1]}, {new[2]});
            return null;
        end $$""",  # noqa: S608
        f"revoke all on function {names.function}() from public",
    ]


# The parts of the hour that is being computed. Names have the default collation: so in comparisons
# with those of the table the table's collation counts, and its indexes fit.
PARTS = "pg_temp.ingest_rollup_parts"
MAKE_PARTS = """create temp table if not exists ingest_rollup_parts (
    device_id text, metric text, n bigint, least double precision,
    greatest double precision, total double precision, large double precision,
    first_ts timestamptz, last_ts timestamptz)"""
EMPTY_PARTS = f"truncate {PARTS}"

# Values beyond it are added as 2^-64 of them: 10^18 of the others have a finite sum.
_LARGE = "1e290"
_DOWN, _UP = repr(2.0**-64), repr(2.0**64)
_UP_MAX = repr(2.0**960)  # times _UP it is infinite
_EPOCH = "'1970-01-01 00:00:00+00'::timestamptz"
KEYS = "unnest($1::text[]::timestamptz[], $2::text[], $3::text[]) as k (hour, device_id, metric)"
# What SQL asks of a row of what is due.
IS_OF_KEYS = f"(hour, device_id, metric) in (select hour, device_id, metric from {KEYS})"  # noqa: S608


def columns(keys: Collection[Key]) -> list[list[str]]:
    """Return the three parameters of KEYS."""
    return [[each[at] for each in keys] for at in range(3)]


def within(spans: Iterable[TimeSpan]) -> str:
    """Return what SQL asks of `hour`: whether it is in one of these."""
    conditions = [
        f"hour >= '{lower}' and hour < '{upper}'"
        for lower, upper in zip(*bounds(spans), strict=True)
    ]
    return f"({' or '.join(conditions)})" if conditions else "false"


def bounds(spans: Iterable[TimeSpan]) -> tuple[list[str], list[str]]:
    """Return the lower and the upper bounds of spans as texts that are times for the server."""
    lower, upper = list[str](), list[str]()
    for each in spans:
        lower.append("-infinity" if each.from_us == BEGINNING_US else literal(each.from_us)[1:-1])
        upper.append("infinity" if each.to_us == END_US else literal(each.to_us)[1:-1])
    return lower, upper


def _sums(column: str) -> str:
    inside = f"{column} between -{_LARGE} and {_LARGE}"
    return f"""sum({column}) filter (where {inside}) as total,
        sum({column} * {_DOWN}::float8) filter (where not ({inside})) as large"""


def _sum_of(total: str, large: str) -> str:
    """Return the sum of both in SQL, infinite if it is too large.

    A product that underflows is an error of the server. `large` is 0 or at least 2^847, as all its
    values are multiples of that: beside it a total below 1 does not count.
    """
    total = f"coalesce({total}, 0)"
    both = f"({large} + case when abs({total}) > 1 then {total} * {_DOWN}::float8 else 0 end)"
    return f"""case when coalesce({large}, 0) = 0 then {total}
        when abs{both} >= {_UP_MAX}::float8 then {both} * 'infinity'::float8
        else {both} * {_UP}::float8 end"""


_AGGREGATES = f"""count(*) as n, min(value) as least, max(value) as greatest, {_sums("value")},
        min(ts) as first_ts, max(ts) as last_ts"""
_MERGED = """sum(n)::bigint as n, min(least) as least, max(greatest) as greatest,
        sum(total) as total, sum(large) as large, min(first_ts) as first_ts, max(last_ts) as last_ts
        """


def part(target: TargetTable, from_us: int, to_us: int) -> str:
    """Return the statement that adds the readings of a time to the parts."""
    return f"""insert into {PARTS} select device_id, metric, {_AGGREGATES}
from {target.source} r where ts >= {literal(from_us)} and ts < {literal(to_us)}
group by device_id, metric"""  # noqa: S608


def hour_of_parts(target: TargetTable, hour_us: int) -> str:
    """Return the statement that stores the rollups of the hour that the parts are of."""
    parts = f"select device_id, metric, {literal(hour_us)}::timestamptz as hour, {_MERGED}"
    return _stored(target, f"{parts} from {PARTS} group by device_id, metric")


def of_keys(target: TargetTable) -> str:
    """Return the statement that computes series of hours: $1 hours, $2 devices, $3 metrics.

    It asks for each by itself; that needs the index for devices.
    """
    return _stored(
        target,
        f"""select k.hour, k.device_id, k.metric, a.* from {KEYS} cross join lateral (
        select {_AGGREGATES} from {target.source} r
        where r.device_id = k.device_id and r.metric = k.metric
        and r.ts >= k.hour and r.ts < k.hour + {_us(HOUR_US)}) a where a.n > 0""",  # noqa: S608
    )


def of_keys_of_hour(target: TargetTable, hour_us: int) -> str:
    """Return the statement that computes series of an hour, as `of_keys`; it reads all of it."""
    return _stored(
        target,
        f"""select {literal(hour_us)}::timestamptz as hour, device_id, metric, {_AGGREGATES}
        from {target.source} r join {KEYS} using (device_id, metric)
        where ts >= {literal(hour_us)} and ts < {literal(hour_us + HOUR_US)}
        group by device_id, metric""",  # noqa: S608
    )


def _stored(target: TargetTable, found: str) -> str:
    """Store rollups of hours. The value of a time is looked up by the key, which begins with ts."""
    first, last = (
        f"""select value from {target.source} r where r.ts = p.{ts}
    and r.device_id = p.device_id and r.metric = p.metric order by value limit 1"""  # noqa: S608
        for ts in ("first_ts", "last_ts")
    )
    return f"""insert into {tables_of(target).hourly} as old
    (device_id, metric, hour, count, min, max, sum, first, last)
select p.device_id, p.metric, p.hour, p.n, p.least + 0.0, p.greatest + 0.0,
    {_sum_of("p.total", "p.large")}, f.value, l.value
from ({found}) as p
cross join lateral ({first}) f cross join lateral ({last}) l
order by 1, 2, 3
{_replace("hour")}"""  # noqa: S608


def _replace(start: str) -> str:
    names = ("count", "min", "max", "sum", "first", "last")
    return f"""on conflict (device_id, metric, {start}) do update set
    {", ".join(f"{each} = excluded.{each}" for each in names)} where excluded.count >= old.count"""


def day(target: TargetTable, day_us: int) -> str:
    """Return the statement that computes a day of all series, from its hours."""
    where = f"h.hour >= {literal(day_us)} and h.hour < {literal(day_us + DAY_US)}"
    start = f"{literal(day_us)}::timestamptz"
    return _stored_day(target, start, f"{tables_of(target).hourly} h where {where}")


def days_of_keys(target: TargetTable, until_us: int) -> str:
    """Return the statement that computes the days, before `until_us`, of series of hours."""
    bin_ = f"date_bin({_us(DAY_US)}, hour, {_EPOCH})"
    return _stored_day(
        target,
        "k.day",
        f"""(select distinct {bin_} as day, device_id, metric from {KEYS}
        where hour < {literal(until_us)}) as k
    join {tables_of(target).hourly} h on h.device_id = k.device_id and h.metric = k.metric
    and h.hour >= k.day and h.hour < k.day + {_us(DAY_US)}""",  # noqa: S608
    )


def _stored_day(target: TargetTable, start: str, source: str) -> str:
    return f"""insert into {tables_of(target).daily} as old
    (device_id, metric, day, count, min, max, sum, first, last)
select device_id, metric, day, n, least, greatest, {_sum_of("total", "large")}, first, last from (
    select h.device_id, h.metric, {start} as day, sum(h.count)::bigint as n,
        min(h.min) as least, max(h.max) as greatest, {_sums("h.sum")},
        (array_agg(h.first order by h.hour))[1] as first,
        (array_agg(h.last order by h.hour desc))[1] as last
    from {source} group by 1, 2, 3) as d
{_replace("day")}"""  # noqa: S608


def _us(us: int) -> str:
    return f"'{us} microseconds'::interval"
