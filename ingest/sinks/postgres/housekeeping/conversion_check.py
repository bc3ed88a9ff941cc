"""What stands against turning a plain table into a partitioned one, found before anything is done.

Promises: whatever would not follow the table (views, triggers, publications and others), or would
make PostgreSQL read the whole table under a lock, is a reason with what to do.
Does not: change anything. The driver's errors pass through.
"""

from __future__ import annotations

from typing import NamedTuple

from asyncpg import Connection, Record

from ingest.sinks.postgres.housekeeping.spans import DAY
from ingest.sinks.postgres.housekeeping.view import (
    HYPERTABLE,
    MISSING,
    OTHER,
    PARTITIONED,
    PLAIN,
    look_at,
)
from ingest.sinks.postgres.target import READINGS
from ingest.system.clock import rfc3339_or_us

# Our constraint on the plain table while it is being turned: no row from `until` on.
UNTIL = "ingest_partition_until"

_TABLE = r"""
select c.oid::int8 as oid, n.nspname::text as schema, c.relname::text as name,
       format('%I.%I', n.nspname, c.relname) as table, format('%I', $2::text) as column,
       r.rolname::text as owner,
       pg_has_role(c.relowner, 'USAGE') as owns,
       has_schema_privilege(n.oid, 'CREATE') as may_create,
       greatest(c.reltuples, 0)::float8 as rows, pg_total_relation_size(c.oid) as bytes,
       (extract(epoch from clock_timestamp()) * 1000000)::int8 as now_us,
       c.relpersistence <> 'p' as unlogged, c.reloftype <> 0 as typed,
       c.relrowsecurity or exists (select from pg_policy where polrelid = c.oid) as row_security,
       exists (select from pg_inherits where c.oid in (inhparent, inhrelid)) as inherits,
       array(select tgname::text from pg_trigger
             where tgrelid = c.oid and not tgisinternal
             and tgname <> 'ingest_rollup_mark' order by 1) as triggers,
       array(select rulename::text from pg_rewrite where ev_class = c.oid order by 1) as rules,
       array(select format('%s of %s', conname, conrelid::regclass) from pg_constraint
             where contype = 'f' and c.oid in (conrelid, confrelid) order by 1) as foreign_keys,
       array(select distinct pubname::text from pg_publication_tables
             where schemaname = n.nspname and tablename = c.relname order by 1) as publications,
       array(select distinct pg_describe_object(classid, objid, objsubid) from pg_depend
             where deptype = 'n' and (refclassid = 'pg_type'::regclass
                 and refobjid in (c.reltype, (select typarray from pg_type where oid = c.reltype))
                 or refclassid = 'pg_class'::regclass and refobjid = c.oid
                 and classid in ('pg_rewrite'::regclass, 'pg_proc'::regclass))
             order by 1) as dependents,
       array(select indexrelid::regclass::text from pg_index where indrelid = c.oid and indisunique
             and not (select attnum from pg_attribute where attrelid = c.oid and attname = $2)
                 = any (indkey[0:indnkeyatts - 1]) order by 1) as keys_without_time,
       array(select conname::text from pg_constraint where conrelid = c.oid and contype = 'x'
             order by 1) as exclusions,
       array(select conname::text from pg_constraint where conrelid = c.oid and conname <> $3
             and contype in ('c', 'n') and (not convalidated or connoinherit)
             order by 1) as loose_checks,
       array(select attname::text from pg_attribute a where attrelid = c.oid and attnum > 0
             and not attisdropped and (attidentity <> '' or exists (
                 select from pg_depend where refclassid = 'pg_class'::regclass
                 and classid = refclassid and refobjid = c.oid and refobjsubid = a.attnum
                 and deptype in ('a', 'i') and (select relkind from pg_class s where s.oid = objid)
                 = 'S')) order by 1) as counted,
       k.convalidated as checked,
       (extract(epoch from (regexp_match(pg_get_constraintdef(k.oid), '''([^'']+)''::timestamp')
           )[1]::timestamptz) * 1000000)::int8 as until_us
from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_roles r on r.oid = c.relowner
left join pg_constraint k on k.conrelid = c.oid and k.conname = $3 and k.contype = 'c'
where c.oid = to_regclass($1)"""

_NEWEST = "select (extract(epoch from max({column})) * 1000000)::int8 from {table}"

# What is named in a list, and what to do about it.
_NAMED = {
    "triggers": "it has triggers ({}): drop them, and create them again on the new table",
    "rules": "it has rules ({}): drop them",
    "foreign_keys": "foreign keys belong to it ({}): drop them, and add them again afterwards",
    "publications": (
        "it is published ({}): take it out of the publication, and add it again afterwards"
    ),
    "dependents": (
        "other objects depend on it ({}), and would go on with the old part alone: drop them, and "
        "create them again afterwards"
    ),
    "keys_without_time": (
        "a unique index without the time ({}) cannot be kept by a partitioned table: drop it"
    ),
    "exclusions": "it has exclusion constraints ({}): drop them",
    "loose_checks": "constraints are NOT VALID or NO INHERIT ({}): validate or drop them",
    "counted": (
        "columns are numbered by a sequence ({}), which the old part would take with it: drop "
        "their identity or default"
    ),
}
_PLAINLY = {
    "unlogged": "it is unlogged or temporary: alter table .. set logged",
    "typed": "it was made of a type: alter table .. not of",
    "row_security": "it has row security: drop its policies, and create them again afterwards",
    "inherits": "it inherits, or tables inherit from it: alter table .. no inherit",
}
_KINDS = {
    MISSING: "there is no such table that this role can see",
    PARTITIONED: "it is partitioned already",
    HYPERTABLE: "it is a hypertable: TimescaleDB makes its chunks by itself",
    OTHER: "it is not a plain table",
}


class Plain(NamedTuple):
    """A table as it was found. `reasons` say why it cannot be turned; empty: it can.

    `table` (with its schema) and `column` are written as SQL names them. `newest_us` is
    the time of the newest reading (None: it is empty). `until_us` is the end that an earlier run
    has set, and `checked` whether all rows were compared with it; None without one.
    """

    kind: str
    oid: int
    schema: str
    name: str
    table: str
    column: str
    owner: str
    rows: int
    bytes: int
    now_us: int
    newest_us: int | None
    until_us: int | None
    checked: bool | None
    reasons: list[str]


NOTHING = Plain(MISSING, 0, "", "", "", "", "", 0, 0, 0, None, None, None, [])


async def examine(connection: Connection, table: str, column: str = "ts") -> Plain:
    """Examine the table. The newest reading is found by the key, whose first column is the time."""
    view = await look_at(connection, table, DAY, target=READINGS._replace(ts=column), sizes=False)
    row = await connection.fetchrow(_TABLE, table, column, UNTIL)
    if view.kind != PLAIN or row is None:
        return NOTHING._replace(kind=view.kind, reasons=[_KINDS[view.kind]])
    newest_us = None
    reasons = _rights(row)
    if not reasons:  # without rights it may not be read either
        newest_us = await connection.fetchval(_NEWEST.format_map(row))
        reasons = _reasons(row)
    return Plain(
        kind=view.kind,
        oid=row["oid"],
        schema=row["schema"],
        name=row["name"],
        table=row["table"],
        column=row["column"],
        owner=row["owner"],
        rows=int(row["rows"]),
        bytes=row["bytes"],
        now_us=row["now_us"],
        newest_us=newest_us,
        until_us=row["until_us"],
        checked=row["checked"],
        reasons=reasons,
    )


def _rights(row: Record) -> list[str]:
    found = []
    if not row["owns"]:
        found.append(f"only its owner may do that: use a URL of the role {row['owner']}")
    if not row["may_create"]:
        found.append(f"this role may not create tables in the schema {row['schema']}")
    return found


def _reasons(row: Record) -> list[str]:
    found = [text.format(", ".join(row[name])) for name, text in _NAMED.items() if row[name]]
    return found + [text for name, text in _PLAINLY.items() if row[name]]


def too_far(plain: Plain, until_us: int, most_us: int) -> str | None:
    """Return why the old part would reach too far into the future; None if it does not."""
    if until_us - plain.now_us <= most_us:
        return None
    if plain.newest_us is not None and plain.newest_us - plain.now_us > most_us:
        return (
            f"the newest reading is of {rfc3339_or_us(plain.newest_us)}: all readings until then "
            "would go into the old part; delete or move those of the future first"
        )
    return (
        f"ts_ahead_s_max lets readings in until {rfc3339_or_us(until_us)}, and all of them would "
        "go into the old part; lower it first"
    )
