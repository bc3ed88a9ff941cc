"""What housekeeping sees at its begin: the table, its partitions, the clock, and what the role may.

Does not: change anything. The driver's errors pass through.
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

from asyncpg import Connection

from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.partitions import (
    BEGINNING_US,
    DAY,
    END_US,
    MONTH,
    Partition,
    literal,
    partitions,
    span_bounds,
)
from ingest.sinks.postgres.schema import READINGS, TargetTable, quoted

# The kinds of a table.
MISSING, PLAIN, PARTITIONED, HYPERTABLE, OTHER = (
    *("missing", "plain", "partitioned", "hypertable", "other"),
)

AHEAD_MAX = 1_000  # spans that are counted
OLDEST_LOOKED_AT = 5  # the oldest partitions, in search of the oldest reading

# `by_time`: it is partitioned by the range of one column, the time. A default partition would be
# locked against all writes, and read in full, by each partition that is attached beside it.
_TABLE = """
select c.oid::int8 as oid, c.relkind::text as kind, format('%I.%I', n.nspname, c.relname) as name,
       coalesce(p.partstrat = 'r' and p.partnatts = 1 and (select attname from pg_attribute
           where attrelid = c.oid and attnum = p.partattrs[0]) = $2, false) as by_time,
       coalesce(p.partdefid, 0)::int8 as default_partition,
       exists (select from pg_index i join pg_attribute a
               on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
               where i.indrelid = c.oid and i.indisvalid and a.attname = $2) as time_index,
       exists (select from pg_trigger where tgrelid = c.oid and tgname = 'ts_insert_blocker')
           as blocked,
       pg_has_role(current_user, c.relowner, 'USAGE') as owner,
       has_schema_privilege(n.oid, 'CREATE') as may_create,
       pg_get_userbyid(c.relowner)::text as owner_name, current_user::text as role,
       c.relname::text as bare_name, n.nspname::text as schema,
       (extract(epoch from clock_timestamp()) * 1000000)::int8 as now_us
from pg_class c join pg_namespace n on n.oid = c.relnamespace
left join pg_partitioned_table p on p.partrelid = c.oid
where c.oid = to_regclass($1)"""

# Only these can have readings: partitions without a page, and there may be hundreds, have none.
_WITH_PAGES = """
select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = $1 and (c.relkind <> 'r' or pg_relation_size(c.oid) > 0)"""


class View(NamedTuple):
    """The table as it was at `now_us` of the database's clock.

    `table` is its name with the schema, as SQL has it; `schema` and `name` are its parts as they
    are. `span` is day or month: that of new partitions. `ours`: it was made partitioned by us, or
    adopted, and this role can see that. `time_index`: an index begins with the time. `owner` owns
    it, `role` is who we are. `cannot_make` is why this role cannot make partitions, or empty.
    `target` has the names of the columns. `registry` is the name of our records, and empty if this
    role may not read them.
    """

    table: str
    schema: str
    name: str
    oid: int
    kind: str
    span: str
    partitions: list[Partition]
    now_us: int
    ours: bool
    has_default: bool
    time_index: bool
    owner: str
    role: str
    cannot_make: str
    target: TargetTable = READINGS
    registry: str = ""

    @property
    def not_ours(self) -> str:
        """Why nothing of a table with partitions is ours, in words; empty if something is.

        Also empty if this role may not read our records.
        """
        ours = self.ours or any(each.ours for each in self.partitions)
        if self.kind != PARTITIONED or ours or not self.registry:
            return ""
        named = "" if self.name == READINGS.table else f"--table-name {shlex.quote(self.name)} "
        return (
            f"{self.registry} has no entry of {self.table} and its partitions: another tool made "
            "them, or the entries are lost (restore them from a back-up, if there is an archive). "
            f"`ingest schema adopt {named}--yes` hands the partitions over to the housekeeping"
        )

    @property
    def covered_to_us(self) -> int:
        """Until when each time from now on has a partition; the time of now if it has none."""
        at = END_US if self.has_default else self.now_us
        for each in self.partitions:
            if each.from_us <= at < each.to_us:
                at = each.to_us
        return at

    @property
    def spans_ahead(self) -> int:
        """How many whole days or months after the present one have a partition, without a gap.

        At most AHEAD_MAX.
        """
        count = 0
        bounds = span_bounds(self.span, self.now_us)
        while count < AHEAD_MAX:
            bounds = span_bounds(self.span, bounds.to_us)
            if bounds.to_us > self.covered_to_us:
                break
            count += 1
        return count


async def oldest_us(connection: Connection, view: View) -> int | None:
    """Return the time of the oldest reading; of a partitioned table it looks into few partitions.

    Returns None if there is none, or no index helps to find it.
    """
    if not view.time_index:
        return None
    column = quoted(view.target.ts)
    with_pages = {name for (name,) in await connection.fetch(_WITH_PAGES, view.oid)}
    wheres = [_where(column, each) for each in view.partitions if each.name in with_pages]
    for where in wheres[:OLDEST_LOOKED_AT] if view.kind == PARTITIONED else [""]:
        found: int | None = await connection.fetchval(
            f"select (extract(epoch from min({column})) * 1000000)::int8 from {view.table} {where}"  # noqa: S608
        )
        if found is not None:
            return found
    return None


def _where(column: str, partition: Partition) -> str:
    """Return the condition that lets the server look into this partition alone."""
    conditions = []
    if partition.from_us != BEGINNING_US:
        conditions.append(f"{column} >= {literal(partition.from_us)}")
    if partition.to_us != END_US:
        conditions.append(f"{column} < {literal(partition.to_us)}")
    return f"where {' and '.join(conditions)}" if conditions else ""


async def look_at(
    connection: Connection,
    table: str,
    span: str,
    *,
    target: TargetTable = READINGS,
    sizes: bool = True,
) -> View:
    """Return the view of a table. `span` is the setting.

    Only `month` changes that of a table which exists. `day` is the default, and a command may lack
    the setting of the service: then the one that the table was made with counts.
    """
    row = await connection.fetchrow(_TABLE, table, target.ts)
    if row is None:
        return _missing(table, target)
    kind = _kind(row["kind"], by_time=row["by_time"], blocked=row["blocked"])
    known = await registry.entries(connection, table, registry.TABLE)
    records, is_readable = await registry.name_beside(connection, table)
    is_hidden = not is_readable and await registry.exists(connection, records)
    made_as = known.get(row["bare_name"], {}).get("span", DAY)
    found = []
    if kind == PARTITIONED:
        found = await partitions(connection, table, sizes=sizes)
    foreign = f"does not own {row['name']} (its owner is {row['owner_name']})"
    lacks = "" if row["owner"] else f"{foreign}: set housekeeping_url to a URL with that role"
    if not lacks and not row["may_create"]:
        lacks = f"may not create tables in the schema {row['schema']}"
    cannot = f"the role {row['role']} {lacks}" if lacks else ""
    if kind == PARTITIONED and row["default_partition"]:
        cannot = f"{row['name']} has a default partition, which each new one would lock"
    return View(
        table=row["name"],
        schema=row["schema"],
        name=row["bare_name"],
        oid=row["oid"],
        kind=kind,
        # A table of others is only looked at, and its spans may be of any length.
        span=MONTH if row["bare_name"] in known and span == MONTH else made_as,
        partitions=found,
        now_us=row["now_us"],
        ours=row["bare_name"] in known,
        has_default=bool(row["default_partition"]),
        time_index=row["time_index"],
        owner=row["owner_name"],
        role=row["role"],
        cannot_make=cannot,
        target=target._replace(schema=row["schema"]),
        registry="" if is_hidden else records,
    )


def _missing(table: str, target: TargetTable) -> View:
    return View(
        table=table,
        schema="",
        name=table,
        oid=0,
        kind=MISSING,
        span=DAY,
        partitions=[],
        now_us=0,
        ours=False,
        has_default=False,
        time_index=False,
        owner="",
        role="",
        cannot_make=f"there is no table {table}",
        target=target,
    )


def _kind(relkind: str, *, by_time: bool, blocked: bool) -> str:
    if relkind == "p":
        return PARTITIONED if by_time else OTHER
    if relkind != "r":
        return OTHER
    return HYPERTABLE if blocked else PLAIN
