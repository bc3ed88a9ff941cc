"""Makes the partitioned table that takes the place of a plain one: same name, keys, rights.

Promises: columns, defaults, checks, keys, indexes, owner, rights (of columns too), comments and
tablespace are those of the plain table. It runs in the caller's transaction, which has locked it.
The driver's errors pass through.
"""

from __future__ import annotations

from asyncpg import Connection, Record

from ingest.sinks.postgres.housekeeping.conversion_check import UNTIL, Plain
from ingest.sinks.postgres.housekeeping.names import fitted
from ingest.sinks.postgres.target import quoted

# The definitions name the table as it is called now: the new one will have this name.
_INDEXES = """
select x.relname::text as name, format('%I', x.relname) as as_sql,
       case when k.oid is null then pg_get_indexdef(x.oid)
       else format('alter table %s add constraint %I %s', $2::text, k.conname,
                   pg_get_constraintdef(k.oid)) end as definition,
       format('comment on index %I.%I is %L', n.nspname, x.relname,
              obj_description(x.oid, 'pg_class')) as comment
from pg_index i join pg_class x on x.oid = i.indexrelid
join pg_namespace n on n.oid = x.relnamespace
left join pg_constraint k on k.conindid = x.oid and k.conrelid = i.indrelid
    and k.contype in ('p', 'u')
where i.indrelid = $1::oid and i.indisvalid order by k.contype = 'p' desc nulls last, x.oid"""

# Rights that others than the owner have: on the table, then on columns.
_RIGHTS = """
with granted as (
    select c.relowner as owner, null as attribute, right_.* from pg_class c,
           aclexplode(c.relacl) right_ where c.oid = $1::oid
    union all
    select c.relowner, a.attname, right_.* from pg_class c join pg_attribute a on a.attrelid = c.oid
           cross join aclexplode(a.attacl) right_ where c.oid = $1::oid and not a.attisdropped)
select privilege_type || coalesce(' (' || quote_ident(attribute) || ')', '') as what,
       case when grantee = 0 then 'public' else format('%I', pg_get_userbyid(grantee)) end as whom,
       case when is_grantable then ' with grant option' else '' end as and_more
from granted where grantee <> owner"""

_ABOUT = """
select format('comment on table %s is %L', $2::text, obj_description($1::oid, 'pg_class'))
           as comment,
       (select format(' tablespace %I', t.spcname) from pg_class c
        join pg_tablespace t on t.oid = c.reltablespace where c.oid = $1::oid) as tablespace"""


async def make(connection: Connection, plain: Plain, part: str) -> str:
    """Rename the plain table to `part`, and make the new one; return the name of the old one.

    Both names are as SQL has them, with the schema.
    """
    indexes = await connection.fetch(_INDEXES, plain.oid, plain.table)
    rights = await connection.fetch(_RIGHTS, plain.oid)
    about = await connection.fetchrow(_ABOUT, plain.oid, plain.table)
    assert about is not None, "the question always has one row"
    schema = quoted(plain.schema)
    old = f"{schema}.{quoted(part)}"
    await connection.execute(f"alter table {plain.table} rename to {quoted(part)}")
    await _rename_indexes(connection, plain, part, schema, indexes)
    await connection.execute(
        f"create table {plain.table} (like {old} including all excluding indexes "
        f"excluding identity) partition by range ({plain.column}){about['tablespace'] or ''}"
    )
    await connection.execute(f"alter table {plain.table} drop constraint {UNTIL}")
    await connection.execute(f"alter table {plain.table} owner to {quoted(plain.owner)}")
    await _copy_rights(connection, plain.table, rights)
    for row in indexes:
        await connection.execute(row["definition"])
        await connection.execute(row["comment"])
    await connection.execute(about["comment"])
    return old


async def _rename_indexes(
    connection: Connection, plain: Plain, part: str, schema: str, indexes: list[Record]
) -> None:
    """Free the names of the indexes for those of the new table."""
    for number, row in enumerate(indexes):
        name: str = row["name"]
        rest = name.removeprefix(plain.name) if name.startswith(plain.name) else f"_{number}_idx"
        to = quoted(fitted(part, rest))
        await connection.execute(f"alter index {schema}.{row['as_sql']} rename to {to}")


async def _copy_rights(connection: Connection, table: str, rights: list[Record]) -> None:
    """Grant what was granted before, and nothing that default privileges would add."""
    oid = await connection.fetchval("select to_regclass($1)::oid::int8", table)
    for row in await connection.fetch(_RIGHTS, oid):
        await connection.execute(f"revoke {row['what']} on {table} from {row['whom']}")
    for row in rights:
        await connection.execute(
            f"grant {row['what']} on {table} to {row['whom']}{row['and_more']}"
        )
