"""The table `readings`: how it is made, and the check that it is still as we need it.

`apply` is idempotent, and needs a role that may create tables. `difference` is one query that reads
the catalog. Both find the table by the search_path, as every write does. The driver's errors pass
through: a sink and a command handle them in different ways.
"""

from __future__ import annotations

from asyncpg import Connection, Record

from ingest.model.errors import StartError

TABLE = "readings"
KEY = ("ts", "device_id", "metric", "value")
KEY_LIST = ", ".join(KEY)
_TYPES = {  # OID and name
    "ts": (1184, "timestamptz"),
    "device_id": (25, "text"),
    "metric": (25, "text"),
    "value": (701, "float8"),
}

# A condition that is always true, but is an error (42883) unless the columns have these types.
# Without it a column `value` that is a bigint would be filled with wrong numbers: a binary COPY
# stores the bytes of the double as another number, and INSERT .. SELECT rounds it. With it that
# cannot happen, since there is no implicit cast between arrays of different types.
# The server resolves the condition when it parses the statement, after it has locked the table. So
# no ALTER TABLE can come between. Comparing with null makes it a constant: no cost per row
# (measured).
TYPE_GUARD = " and ".join(
    f"(array[{name}] = null::{type_name}[]) is null" for name, (_, type_name) in _TYPES.items()
)

_CREATE_TABLE = f"""create table {TABLE} (
    ts         timestamptz      not null,
    device_id  text collate "C" not null,
    metric     text collate "C" not null,
    value      double precision not null,
    primary key ({KEY_LIST})
)"""
DEVICE_INDEX = f"{TABLE}_device_idx"
_CREATE_DEVICE_INDEX = (
    f"create index if not exists {DEVICE_INDEX} on {TABLE} (device_id, metric, ts)"
)
_HAS_DEVICE_INDEX = """
select exists (select from pg_class i join pg_class t on t.relnamespace = i.relnamespace
               where t.oid = to_regclass($1) and i.relname = $2)"""

# Unique indexes on exactly our four columns, of any name and order. They make a retry safe.
_UNIQUE_KEYS = """
select from pg_index i
where i.indisunique and i.indimmediate and i.indisvalid and i.indnkeyatts = 4
  and i.indpred is null and i.indexprs is null and (
      select array_agg(a.attname::text order by a.attname) from pg_attribute a
      where a.attrelid = i.indrelid and a.attnum = any (i.indkey[0:3])
  ) = array['device_id', 'metric', 'ts', 'value']"""

# One row for each column. `must_fill`: an INSERT must set the column, as the server does not. It
# has no default (of its own or of its domain), is not generated, and no trigger before the insert
# could set it.
_COLUMNS = f"""
select a.attname as name, a.atttypid::int8 as type_oid,
       format_type(a.atttypid, a.atttypmod) as type_name, a.attnotnull as not_null,
       a.attnotnull and not a.atthasdef and a.attidentity = '' and a.attgenerated = ''
       and t.typdefault is null and not exists (
           select from pg_trigger g where g.tgrelid = a.attrelid and not g.tgisinternal
           and g.tgtype & 7 = 7 and g.tgenabled <> 'D') as must_fill,
       exists ({_UNIQUE_KEYS} and i.indrelid = a.attrelid) as keyed
from pg_attribute a join pg_type t on t.oid = a.atttypid
where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
order by a.attnum"""  # noqa: S608  built from constants of this file

_IS_KEY = f"""
with recursive named (id) as (select to_regclass(format('%I.%I', $1::text, $2::text))), up (id) as (
    select indrelid from pg_index join named on indexrelid = id
    union select inhparent from pg_inherits join up on inhrelid = id)
select exists (select from up where id = to_regclass($3))
   and exists ({_UNIQUE_KEYS} and i.indexrelid = (select id from named))"""  # noqa: S608  the same

_INDEXES = """
select pg_get_indexdef(indexrelid) from pg_index where indrelid = to_regclass($1) order by 1"""


async def apply(
    connection: Connection, *, device_index: bool = False, role: str | None = None
) -> list[str]:
    """Create the table if it is missing, and on request the index for devices and the grants.

    Returns one sentence for each step. What exists is not changed, so it may run at every start,
    and in several processes at once. It waits for locks as long as the settings of the connection
    allow. Raises StartError, with what to do, if a table of that name differs from ours or `role`
    does not exist.
    """
    done = list[str]()
    async with connection.transaction():
        await connection.execute("set local client_min_messages = warning")
        # Two services that start at the same time must not both create it.
        await connection.execute("select pg_advisory_xact_lock(hashtext('iot-ingest schema'))")
        if not await connection.fetchval("select to_regclass($1) is not null", TABLE):
            await connection.execute(_CREATE_TABLE)
            done.append(f"made the table {TABLE}")
        elif found := await difference(connection):
            raise StartError(f"{found}; a table that exists is never changed by us: alter it")
        else:
            done.append(f"the table {TABLE} was there, and fits")
        if device_index:
            there = await connection.fetchval(_HAS_DEVICE_INDEX, TABLE, DEVICE_INDEX)
            await connection.execute(_CREATE_DEVICE_INDEX)
            index = f"the index {DEVICE_INDEX}"
            done.append(f"{index} was there" if there else f"made {index}")
        if role is not None:
            await _grant(connection, role)
            done.append(f"the role {role} may write and read the table")
    return done


async def _grant(connection: Connection, role: str) -> None:
    """Allow `role` to write and read the table, and nothing else."""
    names = await connection.fetchrow(
        """select format('%I', r.rolname) as role, format('%I', current_database()) as database,
                  (select format('%I', n.nspname) from pg_class c
                   join pg_namespace n on n.oid = c.relnamespace
                   where c.oid = to_regclass($2)) as schema
           from pg_roles r where r.rolname = $1""",
        role,
        TABLE,
    )
    if names is None:
        raise StartError(f"there is no role {role!r}: create it first (CREATE ROLE .. LOGIN)")
    await connection.execute(f"grant usage on schema {names['schema']} to {names['role']}")
    await connection.execute(f"grant insert, select on {TABLE} to {names['role']}")
    await connection.execute(f"grant temp on database {names['database']} to {names['role']}")


async def difference(connection: Connection) -> str | None:
    """Return in one sentence how the table differs from the contract; None if it does not."""
    rows = await connection.fetch(_COLUMNS, TABLE)
    if not rows:
        return f"there is no table {TABLE} that this role can see: run `ingest schema apply`"
    columns = {each["name"]: each for each in rows}
    for name in KEY:
        if found := _column_difference(name, columns.get(name)):
            return found
    for name, column in columns.items():
        if name not in _TYPES and column["must_fill"]:
            return f"column {name} of {TABLE} is NOT NULL without a default, and not one of ours"
    if not rows[0]["keyed"]:
        return f"table {TABLE} has no unique key on exactly ({KEY_LIST}): a retry would store twice"
    return None


def _column_difference(name: str, column: Record | None) -> str | None:
    if column is None:
        return f"table {TABLE} has no column {name}"
    type_oid, type_name = _TYPES[name]
    if column["type_oid"] != type_oid:
        return f"column {name} of {TABLE} is {column['type_name']} instead of {type_name}"
    if not column["not_null"]:
        return f"column {name} of {TABLE} may be null: two nulls would be two readings"
    return None


async def is_key(connection: Connection, schema: str, index: str) -> bool:
    """Whether `index` is the unique key of the table, or of one of its partitions."""
    return bool(await connection.fetchval(_IS_KEY, schema, index, TABLE))


async def show(connection: Connection) -> str:
    """Describe the table for a user: columns, indexes, and how it differs from the contract."""
    rows = await connection.fetch(_COLUMNS, TABLE)
    lines = [f"table {TABLE}"]
    for row in rows:
        null = " not null" if row["not_null"] else ""
        lines.append(f"  {row['name']:<10} {row['type_name']}{null}")
    lines += [f"  {each[0]}" for each in await connection.fetch(_INDEXES, TABLE)]
    found = await difference(connection)
    lines.append(found if found else "as the service expects it")
    return "\n".join(lines)
