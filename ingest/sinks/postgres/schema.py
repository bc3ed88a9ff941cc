"""The table `readings`: how it is made, and the check that it is still as we need it.

`apply` is idempotent, and needs a role that may create tables. `look` reads the catalog; it is the
full check. The driver's errors pass through: a sink and a command handle them in different ways.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

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
_NO_TYPMOD = -1  # no precision and no length in brackets
_KINDS = {"r": "table", "p": "table", "v": "view", "m": "materialized view", "f": "foreign table"}

# Who wrote the rows of the catalog that belong to the table `c`. Each ALTER TABLE, and each change
# of a key or a rule, writes such a row anew. VACUUM and ANALYZE do not.
STATE = """c.xmin
    || array(select xmin from pg_attribute where attrelid = c.oid and attnum > 0 order by attnum)
    || array(select xmin from pg_index where indrelid = c.oid order by indexrelid)
    || case when c.relhasrules
       then array(select xmin from pg_rewrite where ev_class = c.oid order by oid) end"""

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

# Rules on a partition do nothing when a row is written to its parent. Operator classes from 16384
# on were made by a user: they may call different names equal.
_TABLE = f"""
select c.oid::int8 as oid, format('%I.%I', n.nspname, c.relname) as name, c.relkind::text as kind,
       {STATE} as state, exists ({_UNIQUE_KEYS} and i.indrelid = c.oid) as keyed,
       array(select r.rulename::text from pg_rewrite r where r.ev_class = c.oid
             and r.ev_type = '3' and r.ev_enabled in ('O', 'A') order by 1) as insert_rules,
       (select o.indexrelid::regclass::text || ' (' || l.collname || ')' from pg_index o
        join pg_collation l on l.oid = any (o.indcollation) and not l.collisdeterministic
        where o.indrelid = c.oid and o.indisunique order by 1 limit 1) as loose_key,
       (select o.indexrelid::regclass::text || ' (' || p.opcname || ')' from pg_index o
        join pg_opclass p on p.oid = any (o.indclass) and p.oid >= 16384
        where o.indrelid = c.oid and o.indisunique order by 1 limit 1) as foreign_class
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = to_regclass($1)"""  # noqa: S608  built from constants of this file

# One row for each column. `must_fill`: an INSERT must set the column, as the server does not. It
# has no default (of its own or of its domain), is not generated, and no trigger before the insert
# could set it.
_COLUMNS = """
select a.attname as name, a.atttypid::int8 as type_oid, a.atttypmod as typmod,
       format_type(a.atttypid, a.atttypmod) as type_name, a.attnotnull as not_null,
       l.collname as collation, coalesce(not l.collisdeterministic, false) as loose,
       a.attnotnull and not a.atthasdef and a.attidentity = '' and a.attgenerated = ''
       and t.typdefault is null and not exists (
           select from pg_trigger g where g.tgrelid = a.attrelid and not g.tgisinternal
           and g.tgtype & 7 = 7 and g.tgenabled <> 'D') as must_fill
from pg_attribute a join pg_type t on t.oid = a.atttypid
left join pg_collation l on l.oid = a.attcollation
where a.attrelid = $1::oid and a.attnum > 0 and not a.attisdropped
order by a.attnum"""

_IS_KEY = f"""
with recursive named (id) as (select to_regclass(format('%I.%I', $1::text, $2::text))), up (id) as (
    select indrelid from pg_index join named on indexrelid = id
    union select inhparent from pg_inherits join up on inhrelid = id)
select exists (select from up where id = to_regclass($3))
   and exists ({_UNIQUE_KEYS} and i.indexrelid = (select id from named))"""  # noqa: S608  the same

_NOT_GRANTED = """
select current_user::text as role,
       array(select name from unnest(array['INSERT', 'SELECT']) name
             where not has_table_privilege(to_regclass($1), name)) as rights"""

_INDEXES = """
select pg_get_indexdef(indexrelid) from pg_index where indrelid = $1::oid order by 1"""


class Look(NamedTuple):
    """What the full check found: the table as statements name it, and how it differs from ours.

    `state` is that of STATE; it was read before everything else. `oid` is 0 if there is no table.
    """

    table: str
    oid: int
    state: str
    difference: str | None


# Called with the connection, in the transaction that has made the table; returns sentences.
OnMade = Callable[[Connection], Awaitable[list[str]]]


async def apply(
    connection: Connection,
    *,
    device_index: bool = False,
    role: str | None = None,
    partitions: OnMade | None = None,
) -> list[str]:
    """Create the table if it is missing, and on request the index for devices and the grants.

    With `partitions` it is partitioned by time, and this makes the first ones. Returns one sentence
    for each step. What exists is not changed, so it may run at every start,
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
            by_time = " partition by range (ts)" if partitions else ""
            await connection.execute(_CREATE_TABLE + by_time)
            done.append(f"made the table {TABLE}")
            if partitions:
                done += await partitions(connection)
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
    return (await look(connection)).difference


async def look(connection: Connection, table: str = TABLE) -> Look:
    """Check the table in full. A name without a schema is found by the search_path."""
    found = await connection.fetchrow(_TABLE, table)
    if found is None:
        missing = f"there is no table {table} that this role can see: run `ingest schema apply`"
        return Look(table, 0, "", missing)
    columns = await connection.fetch(_COLUMNS, found["oid"])
    state = "{" + ",".join(map(str, found["state"])) + "}"
    return Look(found["name"], found["oid"], state, _difference(found, columns))


def _difference(table: Record, rows: list[Record]) -> str | None:
    if (kind := _KINDS.get(table["kind"], "something else")) != "table":
        return f"{TABLE} is a {kind}; a table is needed"
    columns = {each["name"]: each for each in rows}
    for name in KEY:
        if found := _column_difference(name, columns.get(name)):
            return found
    for name, column in columns.items():
        if name not in _TYPES and column["must_fill"]:
            return f"column {name} of {TABLE} is NOT NULL without a default, and not one of ours"
    return _key_or_rule_difference(table)


def _key_or_rule_difference(table: Record) -> str | None:
    if not table["keyed"]:
        return f"table {TABLE} has no unique key on exactly ({KEY_LIST}): a retry would store twice"
    if table["loose_key"]:
        return (
            f"the unique index {table['loose_key']} of {TABLE} has a nondeterministic collation: "
            'different names would be one; make it with collate "C"'
        )
    if table["foreign_class"]:
        return (
            f"the unique index {table['foreign_class']} of {TABLE} has an operator class of its "
            "own: different names could be one; make it with the default"
        )
    if rules := ", ".join(table["insert_rules"]):
        return (
            f"table {TABLE} has a rule for INSERT ({rules}): readings could be changed or lost; "
            "drop the rule"
        )
    return None


def _column_difference(name: str, column: Record | None) -> str | None:
    if column is None:
        return f"table {TABLE} has no column {name}"
    type_oid, type_name = _TYPES[name]
    if column["type_oid"] != type_oid:
        return f"column {name} of {TABLE} is {column['type_name']} instead of {type_name}"
    if column["typmod"] != _NO_TYPMOD:
        return (
            f"column {name} of {TABLE} is {column['type_name']} instead of {type_name}: "
            "values would be rounded"
        )
    if not column["not_null"]:
        return f"column {name} of {TABLE} may be null: two nulls would be two readings"
    if column["loose"]:
        return (
            f"column {name} of {TABLE} has the nondeterministic collation {column['collation']}: "
            'different names would be one; use collate "C"'
        )
    return None


async def not_granted(connection: Connection, table: str = TABLE) -> str | None:
    """Return in one sentence which right on the table the role lacks; None if it lacks none."""
    found = await connection.fetchrow(_NOT_GRANTED, table)
    assert found is not None, "the question always has one row"
    rights = found["rights"]
    if not rights:
        return None
    verb = "is" if len(rights) == 1 else "are"
    return f"{' and '.join(rights)} on {table} {verb} not granted to the role {found['role']}"


async def is_key(connection: Connection, schema: str, index: str, table: str = TABLE) -> bool:
    """Whether `index` is the unique key of the table, or of one of its partitions."""
    return bool(await connection.fetchval(_IS_KEY, schema, index, table))


async def show(connection: Connection) -> str:
    """Describe the table for a user: columns, indexes, rules, and how it differs from ours."""
    found = await connection.fetchrow(_TABLE, TABLE)
    if found is None:
        return f"table {TABLE}\n{(await look(connection)).difference}"
    rows = await connection.fetch(_COLUMNS, found["oid"])
    lines = [f"{_KINDS.get(found['kind'], 'something else')} {found['name']}"]
    lines += [_column_line(row) for row in rows]
    lines += [f"  {each[0]}" for each in await connection.fetch(_INDEXES, found["oid"])]
    lines += [f"  RULE {each} ON INSERT" for each in found["insert_rules"]]
    lines.append(_difference(found, rows) or "as the service expects it")
    return "\n".join(lines)


def _column_line(column: Record) -> str:
    collation = f' collate "{column["collation"]}"' if column["collation"] else ""
    loose = " (nondeterministic)" if column["loose"] else ""
    null = " not null" if column["not_null"] else ""
    return f"  {column['name']:<10} {column['type_name']}{collation}{loose}{null}"
