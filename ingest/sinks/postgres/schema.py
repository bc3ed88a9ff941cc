"""The table of the readings: its names in SQL, how it is made, and the check that it still fits.

`apply` is idempotent, and needs a role that may create tables. `look` reads the catalog; it is the
full check. The driver's errors pass through: a sink and a command handle them in different ways.
A name is the one in PostgreSQL's catalog: capitals, spaces and quotes belong to it. What a
TargetTable returns for SQL names exactly this table and these columns, on each server.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple

from asyncpg import Connection, Record

from ingest.model.errors import StartError
from ingest.model.moments import TableForm
from ingest.model.tables import ALL_READINGS

TABLE = "readings"
KEY = ("ts", "device_id", "metric", "value")  # the default names, and those of our own SQL
KEY_LIST = ", ".join(KEY)
NAME_BYTES_MAX = 63  # of a name in PostgreSQL, which cuts longer ones silently
# Every other name is in quotes: the words that a later server reserves are not known.
_DEVICE_INDEX = "_device_idx"
_BARE = frozenset({"public", ALL_READINGS, TABLE, TABLE + _DEVICE_INDEX, *KEY})

# OID, name, and as ALTER has it
_TIME = (1184, "timestamptz", "timestamptz")
_TEXT = (25, "text", 'text collate "C"')
_NUMBER = (701, "float8", "double precision")
_LOCAL = 1114  # timestamp without time zone
_REAL = 700
_NO_TYPMOD = -1  # no precision and no length in brackets
_KINDS = {"r": "table", "p": "table", "v": "view", "m": "materialized view", "f": "foreign table"}
# Two services that start at the same time must not both create a table.
ALONE = "select pg_advisory_xact_lock(hashtext('iot-ingest schema'))"
# Who wrote the rows of the catalog that belong to the table `c`. Each ALTER TABLE, and each change
# of a key or a rule, writes such a row anew. VACUUM and ANALYZE do not.
STATE = """c.xmin
    || array(select xmin from pg_attribute where attrelid = c.oid and attnum > 0 order by attnum)
    || array(select xmin from pg_index where indrelid = c.oid order by indexrelid)
    || case when c.relhasrules
       then array(select xmin from pg_rewrite where ev_class = c.oid order by oid) end"""
_CREATE_TABLE = """create table {name} (
    {ts} timestamptz not null,
    {device_id} text collate "C" not null,
    {metric} text collate "C" not null,
    {value} double precision not null,
    primary key ({columns})
)"""
_HAS_DEVICE_INDEX = """
select exists (select from pg_index x join pg_class i on i.oid = x.indexrelid
               where x.indrelid = to_regclass($1) and i.relname = $2)"""
# Unique indexes on exactly the columns of our key ($2), of any name and order: so a retry is safe.
_UNIQUE_KEYS = """
select from pg_index i
where i.indisunique and i.indimmediate and i.indisvalid
  and i.indnkeyatts = cardinality($2::text[])
  and i.indpred is null and i.indexprs is null and i.indnkeyatts = (
      select count(*) from pg_attribute a where a.attrelid = i.indrelid
      and a.attnum = any (i.indkey[0:i.indnkeyatts - 1]) and a.attname = any ($2::text[]))"""
# Rules on a partition do nothing when a row is written to its parent. Operator classes from 16384
# on were made by a user: they may call different names equal.
_TABLE = f"""
select c.oid::int8 as oid, n.nspname::text as schema, c.relkind::text as kind,
       {STATE} as state, exists ({_UNIQUE_KEYS} and i.indrelid = c.oid) as keyed,
       array(select r.rulename::text from pg_rewrite r where r.ev_class = c.oid
             and r.ev_type = '3' and r.ev_enabled in ('O', 'A') order by 1) as insert_rules,
       (select o.indexrelid::regclass::text || ' (' || l.collname || ')' from pg_index o
        join pg_collation l on l.oid = any (o.indcollation) and not l.collisdeterministic
        where o.indrelid = c.oid and o.indisunique order by 1 limit 1) as loose_key,
       (select o.indexrelid::regclass::text || ' (' || p.opcname || ')' from pg_index o
        join pg_opclass p on p.oid = any (o.indclass) and p.oid >= 16384
        where o.indrelid = c.oid and o.indisunique order by 1 limit 1) as foreign_class,
       coalesce((select extversion from pg_extension where extname = 'timescaledb'), '')
           as timescaledb
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
# Before 2.18.1 INSERT with ON CONFLICT into a compressed chunk drops the rows behind a known one,
# without an error (TimescaleDB #7672).
_TIMESCALEDB_MIN = (2, 18, 1)
_IS_COMPRESSED = """
select exists (select from timescaledb_information.hypertables
               where compression_enabled and hypertable_schema = $1 and hypertable_name = $2)"""
_IS_KEY = f"""
with recursive named (id) as (select to_regclass(format('%I.%I', $3::text, $4::text))), up (id) as (
    select indrelid from pg_index join named on indexrelid = id
    union select inhparent from pg_inherits join up on inhrelid = id)
select exists (select from up where id = to_regclass($1))
   and exists ({_UNIQUE_KEYS} and i.indexrelid = (select id from named))"""  # noqa: S608  the same
_NOT_GRANTED = """
select current_user::text as role,
       array(select name from unnest(array['INSERT', 'SELECT']) name
             where not has_table_privilege(to_regclass($1), name)) as rights"""
_INDEXES = """
select pg_get_indexdef(indexrelid) from pg_index where indrelid = $1::oid order by 1"""


def quoted(name: str) -> str:
    """Return a name as SQL has it: in quotes, unless it is one of our own."""
    return name if name in _BARE else '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as SQL has it, whatever `standard_conforming_strings` is."""
    doubled = text.replace("'", "''")
    return "E'" + doubled.replace("\\", "\\\\") + "'" if "\\" in text else f"'{doubled}'"


def shortened(name: str, suffix: str) -> str:
    """Return `name` and `suffix` as one name; the first is cut if both together are too long."""
    kept = name.encode()[: NAME_BYTES_MAX - len(suffix.encode())]
    return kept.decode(errors="ignore") + suffix


class TargetTable(NamedTuple):
    """A table and its four columns, all without quotes.

    An empty `schema`: the first one of the search_path that has the table.
    """

    schema: str = ""
    table: str = TABLE
    ts: str = "ts"
    device_id: str = "device_id"
    metric: str = "metric"
    value: str = "value"

    @property
    def name(self) -> str:
        """The table as SQL names it, with its schema if that is known."""
        table = quoted(self.table)
        return f"{quoted(self.schema)}.{table}" if self.schema else table

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in the order of KEY."""
        return self.ts, self.device_id, self.metric, self.value

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the unique key: all of them."""
        return self.columns

    @property
    def column_list(self) -> str:
        """The columns as SQL lists them, in the order of KEY."""
        return ", ".join(map(quoted, self.columns))

    @property
    def in_sql(self) -> tuple[str, ...]:
        """The table and its columns as SQL names them."""
        return self.name, *map(quoted, self.columns)

    @property
    def source(self) -> str:
        """What stands in FROM if a question has the names of KEY; it needs an alias."""
        if self.columns == KEY:
            return self.name
        pairs = zip(self.columns, KEY, strict=True)
        return f"(select {', '.join(f'{quoted(a)} as {b}' for a, b in pairs)} from {self.name})"  # noqa: S608

    @property
    def device_index(self) -> str:
        """The name of the index for devices, without its schema."""
        return shortened(self.table, _DEVICE_INDEX)


READINGS = TargetTable()


class ColumnTarget(NamedTuple):
    """A declared table (model/tables.py) beside `readings`, with the columns of a form."""

    schema: str
    form: TableForm

    @property
    def table(self) -> str:
        """The table, without quotes."""
        return self.form.table

    @property
    def name(self) -> str:
        """The table as SQL names it, with its schema if that is known."""
        return TargetTable(self.schema, self.table).name

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the unique key, which is a moment of a device, and of a series."""
        return ("ts", "device_id", "series")[: self.form.fixed_columns]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns that are written, in the order of a row."""
        return self.key + self.form.columns

    @property
    def column_list(self) -> str:
        """All columns as SQL lists them."""
        return ", ".join(map(quoted, self.columns))


Target = TargetTable | ColumnTarget


class Look(NamedTuple):
    """What the full check found: the table, with its schema, and how it differs from ours.

    `state` is that of STATE; it was read before everything else. `oid` is 0 if there is no table.
    `difference` names all differences in one line; `sql` are the statements that end them.
    """

    target: Target
    oid: int
    state: str
    difference: str | None
    sql: Sequence[str] = ()


Difference = tuple[str, str]  # a sentence, and the SQL of the table's owner that ends it
# Called with the connection, in the transaction that has made the table; returns sentences.
OnMade = Callable[[Connection], Awaitable[list[str]]]


async def apply(
    connection: Connection,
    target: TargetTable = READINGS,
    *,
    device_index: bool = False,
    role: str | None = None,
    partitions: OnMade | None = None,
) -> list[str]:
    """Create the table if it is missing, and on request the index for devices and the grants.

    With `partitions` it is partitioned by time, and this makes the first ones. Returns one sentence
    for each step. What exists is not changed, so it may run at every start, and in several
    processes at once. It waits for locks as long as the settings of the connection allow. Raises
    StartError, with what to do, if a table of that name differs from ours, or its schema or `role`
    does not exist.
    """
    done = list[str]()
    table = target.name
    async with connection.transaction():
        await connection.execute("set local client_min_messages = warning")
        await connection.execute(ALONE)
        if not await connection.fetchval("select to_regclass($1) is not null", table):
            await _create(connection, target, by_time=partitions is not None)
            done.append(f"made the table {table}")
            if partitions:
                done += await partitions(connection)
        elif (found := await look(connection, target)).difference:
            said = f"{found.difference}; what exists is never changed by us. Its owner may do it:"
            raise StartError("\n".join([said, *found.sql]))
        else:
            done.append(f"the table {table} was there, and fits")
        if device_index:
            columns = (target.device_id, target.metric, target.ts)
            done.append(await make_device_index(connection, target, columns))
        if role is not None:
            await grant(connection, target, role)
            done.append(f"the role {role} may write and read the table")
    return done


async def make_device_index(
    connection: Connection, table: TargetTable, columns: Sequence[str]
) -> str:
    """Make the index for devices unless it is there; return a sentence."""
    name = quoted(table.device_index)
    if await connection.fetchval(_HAS_DEVICE_INDEX, table.name, table.device_index):
        return f"the index {name} was there"
    await connection.execute(
        f"create index {name} on {table.name} ({', '.join(map(quoted, columns))})"
    )
    return f"made the index {name}"


async def _create(connection: Connection, target: TargetTable, *, by_time: bool) -> None:
    schema = target.schema
    if schema and not await connection.fetchval(
        "select exists (select from pg_namespace where nspname = $1)", schema
    ):
        raise StartError(f"there is no schema {quoted(schema)}: create it first (CREATE SCHEMA)")
    names = {name: quoted(getattr(target, name)) for name in KEY}
    partitioned = f" partition by range ({names['ts']})" if by_time else ""
    await connection.execute(
        _CREATE_TABLE.format(name=target.name, columns=target.column_list, **names) + partitioned
    )


async def grant(connection: Connection, target: Target, role: str) -> None:
    """Allow `role` to write and read the table, and nothing else."""
    names = await connection.fetchrow(
        """select format('%I', r.rolname) as role, format('%I', current_database()) as database,
                  (select format('%I', n.nspname) from pg_class c
                   join pg_namespace n on n.oid = c.relnamespace
                   where c.oid = to_regclass($2)) as schema
           from pg_roles r where r.rolname = $1""",
        role,
        target.name,
    )
    if names is None:
        raise StartError(f"there is no role {role!r}: create it first (CREATE ROLE .. LOGIN)")
    await connection.execute(f"grant usage on schema {names['schema']} to {names['role']}")
    await connection.execute(f"grant insert, select on {target.name} to {names['role']}")
    await connection.execute(f"grant temp on database {names['database']} to {names['role']}")


async def look(connection: Connection, target: Target = READINGS) -> Look:
    """Check the table in full. Without a schema it is found by the search_path."""
    found = await connection.fetchrow(_TABLE, target.name, target.key)
    if found is None:
        file = " with its tables_file" if isinstance(target, ColumnTarget) else ""
        missing = f"there is no table {target.name} that this role can see"
        return Look(target, 0, "", f"{missing}: run `ingest schema apply`{file}")
    columns = await connection.fetch(_COLUMNS, found["oid"])
    state = "{" + ",".join(map(str, found["state"])) + "}"
    at = target._replace(schema=found["schema"])
    differs = list(_differences(at, found, columns))
    version = found["timescaledb"]
    is_old = version and (*map(int, re.findall(r"\d+", version)[:3]),) < _TIMESCALEDB_MIN
    if is_old and await connection.fetchval(_IS_COMPRESSED, at.schema, at.table):
        needed = ".".join(map(str, _TIMESCALEDB_MIN))
        said = f"{quoted(at.table)} is a hypertable with compression, and TimescaleDB {version} "
        said += f"loses late readings in it: update it to {needed} or later (alter extension)"
        differs.append((said, "alter extension timescaledb update;"))
    difference = "; ".join(said for said, _ in differs) or None
    repairs = [sql for _, sql in differs if sql]
    renames = [each for each in repairs if "THE_COLUMN" in each]  # then the others differ
    return Look(at, found["oid"], state, difference, renames or repairs)


def _differences(target: Target, table: Record, rows: list[Record]) -> Iterator[Difference]:
    name = quoted(target.table)
    if (kind := _KINDS.get(table["kind"], "something else")) != "table":
        other = "Name a table (table_name); a trigger of yours may feed another one"
        if isinstance(target, ColumnTarget):
            other = "Drop it, or declare a table of another name (tables_file)"
        yield (
            f"{name} is a {kind}; a table is needed: nothing else has the unique key that "
            f"makes a retry safe. {other}",
            "",
        )
        return
    columns = {each["name"]: each for each in rows}
    types = [_TIME, _TEXT, _TEXT][: len(target.key)]
    types += [_NUMBER] * (len(target.columns) - len(types))
    for column, kept in zip(target.columns, types, strict=True):
        yield from _column_differences(target, column, kept, columns.get(column))
    for column, found in columns.items():
        if column not in target.columns and found["must_fill"]:
            yield (
                f"column {column} of {name} is NOT NULL without a default, and not one of ours",
                f"alter table {target.name} alter {quoted(column)} drop not null;",
            )
    loose = any(each["loose"] for name, each in columns.items() if name in target.columns)
    yield from _key_and_rule_differences(target, table, loose)


def _key_and_rule_differences(
    target: Target, table: Record, is_loose: bool
) -> Iterator[Difference]:
    """`is_loose`: a column of ours is; then its indexes are too, and become what it becomes."""
    name = quoted(target.table)
    if not table["keyed"]:
        key = ", ".join(map(quoted, target.key))
        pairs = (", ".join(f"{row}.{quoted(each)}" for each in target.key) for row in "ab")
        same = " = ".join(f"({each})" for each in pairs)
        yield (
            f"table {name} has no unique key on exactly ({key}): a retry would store twice",
            f"-- delete from {target.name} a using {target.name} b "  # noqa: S608
            f"where a.tableoid = b.tableoid and a.ctid > b.ctid and {same};\n"
            f"create unique index on {target.name} ({key});",
        )
    for index, what, needed in (
        (not is_loose and table["loose_key"], "a nondeterministic collation", 'collate "C"'),
        (table["foreign_class"], "an operator class of its own", "the default"),
    ):
        if index:
            yield (
                f"the unique index {index} of {name} has {what}: different names could be one; "
                f"make it with {needed}",
                f"drop index {index.rpartition(' (')[0]};",
            )
    if rules := table["insert_rules"]:
        yield (
            f"table {name} has a rule for INSERT ({', '.join(rules)}): readings could be changed "
            "or lost; drop the rule",
            "\n".join(f"drop rule {quoted(each)} on {target.name};" for each in rules),
        )


def _column_differences(
    target: Target, name: str, kind: tuple[int, str, str], column: Record | None
) -> Iterator[Difference]:
    table, shown = quoted(target.table), quoted(name)
    alter = f"alter table {target.name} alter {shown}"
    if column is None:
        lacks = f"table {table} has no column {shown}"
        if isinstance(target, ColumnTarget):
            yield f"{lacks}: run `ingest schema apply`", ""
        else:
            yield (
                lacks,
                f"-- alter table {target.name} rename THE_COLUMN to {shown}; -- write the present "
                "name of this column for THE_COLUMN; then look again",
            )
        return
    type_oid, type_name, full = kind
    casts = {
        _LOCAL: f"{shown} at time zone 'UTC'",
        _REAL: f"{shown}::text::{full}",  # 21.4 stays 21.4: the text is what was posted
    }
    using = casts.get(column["type_oid"], f"{shown}::{full}")
    to_type = f"{alter} type {full} using {using};"
    if (column["type_oid"], column["typmod"]) != (type_oid, _NO_TYPMOD):
        cut = ": values would be rounded" if column["type_oid"] == type_oid else ""
        is_ = f"column {shown} of {table} is {column['type_name']}"
        yield f"{is_} instead of {type_name}{cut}", to_type
    elif column["loose"]:
        yield (
            f"column {shown} of {table} has the nondeterministic collation {column['collation']}: "
            'different names would be one; use collate "C"',
            to_type,
        )
    if name not in target.key:
        if column["not_null"]:
            yield (
                f"column {shown} of {table} is NOT NULL: moments without this value would be "
                "refused",
                f"{alter} drop not null;",
            )
    elif not column["not_null"]:
        yield (
            f"column {shown} of {table} may be null: two nulls would be two readings",
            f"-- delete from {target.name} where {shown} is null;\n{alter} set not null;",  # noqa: S608
        )


async def not_granted(connection: Connection, target: Target = READINGS) -> str | None:
    """Return in one sentence which right on the table the role lacks; None if it lacks none."""
    found = await connection.fetchrow(_NOT_GRANTED, target.name)
    assert found is not None, "the question always has one row"
    rights = found["rights"]
    if not rights:
        return None
    verb = "is" if len(rights) == 1 else "are"
    return f"{' and '.join(rights)} on {target.name} {verb} not granted to the role {found['role']}"


async def is_key(
    connection: Connection, schema: str, index: str, target: Target = READINGS
) -> bool:
    """Whether `index` is the unique key of the table, or of one of its partitions."""
    return bool(await connection.fetchval(_IS_KEY, target.name, target.key, schema, index))


async def show(connection: Connection, target: Target = READINGS) -> str:
    """Describe the table for a user: columns, indexes, rules, and how it differs from ours."""
    seen = await look(connection, target)
    found = await connection.fetchrow(_TABLE, target.name, target.key)
    if found is None:
        return f"table {target.name}\n{seen.difference}"
    lines = [f"{_KINDS.get(found['kind'], 'something else')} {seen.target.name}"]
    lines += [_column_line(row) for row in await connection.fetch(_COLUMNS, found["oid"])]
    lines += [f"  {each[0]}" for each in await connection.fetch(_INDEXES, found["oid"])]
    lines += [f"  RULE {each} ON INSERT" for each in found["insert_rules"]]
    lines.append(seen.difference or "as the service expects it")
    return "\n".join([*lines, *seen.sql])


def _column_line(column: Record) -> str:
    collation = f' collate "{column["collation"]}"' if column["collation"] else ""
    loose = " (nondeterministic)" if column["loose"] else ""
    null = " not null" if column["not_null"] else ""
    return f"  {column['name']:<10} {column['type_name']}{collation}{loose}{null}"
