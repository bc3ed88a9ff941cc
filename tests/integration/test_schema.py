"""The table: how it is made, and the check that it is still as we need it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from ingest.model.errors import StartError
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.schema import TargetTable


async def test_table_applied_is_as_the_contract_says(connection: asyncpg.Connection) -> None:
    """Columns, types, collations and key, in order."""
    await schema.apply(connection)
    assert (await schema.look(connection)).difference is None
    columns = await connection.fetch(
        """select column_name, data_type, collation_name, is_nullable
        from information_schema.columns where table_name = 'readings' order by ordinal_position"""
    )
    assert [tuple(each) for each in columns] == [
        ("ts", "timestamp with time zone", None, "NO"),
        ("device_id", "text", "C", "NO"),
        ("metric", "text", "C", "NO"),
        ("value", "double precision", None, "NO"),
    ]
    key = await connection.fetchval(
        "select pg_get_constraintdef(oid) from pg_constraint where conname = 'readings_pkey'"
    )
    assert key == "PRIMARY KEY (ts, device_id, metric, value)"


async def test_apply_again_changes_nothing(connection: asyncpg.Connection) -> None:
    """It runs at every start. Rows, and an index of the operator, stay."""
    await schema.apply(connection)
    await connection.execute(
        "insert into readings values (now(), 'd', 'm', 1); create index mine on readings (metric)"
    )
    before = await schema.show(connection)
    await schema.apply(connection)
    assert await schema.show(connection) == before
    assert await connection.fetchval("select count(*) from readings") == 1


async def test_apply_by_many_at_once_makes_one_table(
    connection: asyncpg.Connection, shared_url: str
) -> None:
    """Services that start at the same time do not make each other fail."""
    others = [await asyncpg.connect(shared_url) for _ in range(4)]
    await asyncio.gather(*(schema.apply(each, device_index=True) for each in others))
    assert (await schema.look(connection)).difference is None
    for each in others:
        await each.close()


async def test_apply_needs_no_right_to_create_where_the_table_is(
    connection: asyncpg.Connection,
) -> None:
    """The service's role can start on a table that another role has made."""
    await connection.execute('create role "least ""role" login')
    await schema.apply(connection, role='least "role')
    await connection.execute('set role "least ""role"')
    try:
        await schema.apply(connection)
        assert (await schema.look(connection)).difference is None
        await connection.execute("insert into readings values (now(), 'd', 'm', 1)")
        await connection.execute("create temp table t (x int)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("delete from readings")
    finally:
        await connection.execute("reset role")
        await connection.execute('drop owned by "least ""role"; drop role "least ""role"')


async def test_apply_for_a_missing_role_says_so_and_makes_nothing(
    connection: asyncpg.Connection,
) -> None:
    """The error says what to do."""
    with pytest.raises(StartError, match=r"no role 'nobody'.*CREATE ROLE"):
        await schema.apply(connection, role="nobody")
    assert await connection.fetchval("select to_regclass('readings')") is None


async def test_apply_on_a_foreign_table_changes_nothing_and_says_why(
    connection: asyncpg.Connection,
) -> None:
    """A table of that name that is not ours is not altered."""
    await connection.execute("create table readings (id int)")
    with pytest.raises(StartError, match=r"no column ts.*never changed"):
        await schema.apply(connection, device_index=True)
    assert await connection.fetchval("select to_regclass('readings_device_idx')") is None


async def test_device_index_is_made_when_asked_for(connection: asyncpg.Connection) -> None:
    """Off by default, since it costs a third of the throughput."""
    await schema.apply(connection)
    assert "readings_device_idx" not in await schema.show(connection)
    await schema.apply(connection, device_index=True)
    await schema.apply(connection, device_index=True)
    assert "readings_device_idx" in await schema.show(connection)


async def test_table_is_found_by_the_search_path(connection: asyncpg.Connection) -> None:
    """An operator may choose another schema than public."""
    await connection.execute('create schema "Fleet 1"; create role r login')
    await connection.execute('set search_path to "Fleet 1"')
    await schema.apply(connection, role="r")
    assert (await schema.look(connection)).difference is None
    assert await connection.fetchval("select to_regclass('public.readings')") is None
    assert await connection.fetchval("select has_table_privilege('r', 'readings', 'insert')")
    assert await connection.fetchval("select has_schema_privilege('r', 'Fleet 1', 'usage')")
    await connection.execute('drop schema "Fleet 1" cascade; drop owned by r; drop role r')


# A build without ICU can make no nondeterministic collation. What it is for us is this flag.
LOOSE = """drop collation if exists loose; create collation loose (provider = libc, locale = 'C');
update pg_collation set collisdeterministic = false where collname = 'loose';"""
DIFFERENCES = {
    "drop table readings": "there is no table readings",
    "alter table readings rename value to val": "has no column value",
    "alter table readings alter value type bigint": "value of readings is bigint instead of float8",
    "alter table readings alter value type numeric(9, 2)": "is numeric(9,2) instead of float8",
    "alter table readings alter ts type timestamptz(3)": "is timestamp(3) with time zone instead",
    LOOSE + "alter table readings alter metric type text collate loose": "column metric of "
    "readings has the nondeterministic collation loose",
    LOOSE
    + """alter table readings add site text collate loose;
    create unique index tidy on readings (ts, device_id collate loose, metric, value)""": (
        "the unique index tidy (loose) of readings has a nondeterministic collation"
    ),
    """create function less_case(text, text)
    returns int language sql immutable return bttextcmp(lower($1), lower($2));
    create operator class any_case for type text using btree as
    operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >,
    function 1 less_case(text, text);
    create unique index tidy on readings (ts, device_id any_case, metric, value)""": (
        "the unique index tidy (any_case) of readings has an operator class of its own"
    ),
    "create rule r as on insert to readings do instead nothing": "a rule for INSERT (r)",
    "create rule r as on insert to readings do also select 1": "a rule for INSERT (r)",
    """alter table readings rename to old;
    create view readings as select * from old""": "readings is a view; a table is needed",
    "alter table readings alter ts type timestamp": "is timestamp without time zone instead of",
    "alter table readings alter metric type varchar(9)": "character varying(9) instead of text",
    "alter table readings add site text not null": "column site of readings is NOT NULL",
    "alter table readings drop constraint readings_pkey": "no unique key on exactly",
    """alter table readings drop constraint readings_pkey;
    alter table readings add primary key (ts, device_id, metric)""": "no unique key on exactly",
    """alter table readings drop constraint readings_pkey;
    create unique index on readings (ts, device_id, metric, value) where value > 0""": "no unique",
    """alter table readings drop constraint readings_pkey;
    alter table readings add unique (ts, device_id, metric, value) deferrable""": "no unique key",
    """alter table readings drop constraint readings_pkey; alter table readings add id int;
    create unique index on readings (ts, device_id, metric, value, id)""": "no unique key",
    """alter table readings drop constraint readings_pkey;
    create unique index on readings (ts, device_id, metric, abs(value))""": "no unique key",
    """alter table readings drop constraint readings_pkey;
    alter table readings add unique (ts, device_id, metric, value);
    alter table readings alter value drop not null""": "column value of readings may be null",
}


@pytest.mark.parametrize("change", sorted(DIFFERENCES))
async def test_difference_is_named_in_a_sentence(
    connection: asyncpg.Connection, change: str
) -> None:
    """An operator reads it on /readyz."""
    await schema.apply(connection)
    await connection.execute(change)
    found = (await schema.look(connection)).difference
    assert found is not None
    assert DIFFERENCES[change] in found
    assert found in await schema.show(connection)


async def test_all_differences_come_with_the_statements_that_end_them(
    connection: asyncpg.Connection,
) -> None:
    """A table with history is named in one look, and fits once its owner has done what is said."""
    await connection.execute(
        """create table "My Data" ("time" timestamp, sensor varchar(64), kind varchar(9) not null,
        val real not null, site text not null);
        insert into "My Data" values ('2020-01-01 12:00', 'd', 'm', 21.4, 'a'),
        ('2020-01-01 12:00', 'd', 'm', 21.4, 'a'), (null, 'd', 'm', 21.4, 'a')"""
    )
    on = TargetTable("", "My Data", "time", "sensor", "kind", "val")
    seen = await schema.look(connection, on)
    assert (seen.difference or "").count(";") == len(seen.sql) - 1 == 7
    with pytest.raises(StartError, match=r'alter table public."My Data" alter "kind" type text'):
        await schema.apply(connection, on)
    await connection.execute("\n".join(seen.sql).replace("-- ", ""))
    assert (await schema.look(connection, on)).difference is None
    (row,) = await connection.fetch('select * from "My Data"')
    assert (row["time"].isoformat(), *row.values())[::4] == ("2020-01-01T12:00:00+00:00", 21.4)


async def test_statement_for_a_renamed_column_stands_alone(connection: asyncpg.Connection) -> None:
    """With its name in it, it is all that is needed: the key was renamed too."""
    await schema.apply(connection)
    await connection.execute("alter table readings rename value to val")
    (statement,) = (await schema.look(connection)).sql
    await connection.execute(statement.removeprefix("-- ").replace("THE_COLUMN", "val"))
    assert (await schema.look(connection)).difference is None


HARMLESS = [
    "create rule r as on delete to readings do instead nothing",
    """create rule r as on insert to readings do instead nothing;
    alter table readings disable rule r""",
    "alter table readings add site text",
    "alter table readings add site text not null default 'here'",
    "alter table readings add id bigint generated always as identity",
    "alter table readings add double float8 generated always as (value * 2) stored",
    "create domain place as text default 'here'; alter table readings add site place not null",
    "alter table readings add site text; alter table readings drop site",
    """alter table readings add site text not null;
    create function fill() returns trigger language plpgsql as $$ begin
        new.site := 'here'; return new; end $$;
    create trigger fill before insert on readings for each row execute function fill()""",
    """alter table readings drop constraint readings_pkey;
    create unique index on readings (device_id, metric, ts desc, value)""",
    "create index on readings using brin (ts)",
    """alter table readings rename to old; alter index readings_pkey rename to o;
    create table readings (like old, primary key (ts, device_id, metric, value))
    partition by list (metric)""",
]


@pytest.mark.parametrize("change", HARMLESS)
async def test_what_we_can_live_with_is_no_difference(
    connection: asyncpg.Connection, change: str
) -> None:
    """An operator may add columns with defaults, indexes and partitions."""
    await schema.apply(connection)
    await connection.execute(change)
    assert (await schema.look(connection)).difference is None
    assert "as the service expects it" in await schema.show(connection)


async def test_key_is_recognised_by_its_columns(connection: asyncpg.Connection) -> None:
    """Its name does not matter, and a partition's key counts too. Other unique indexes do not."""
    await schema.apply(connection)
    await connection.execute('create unique index "one Value" on readings (value)')
    assert await schema.is_key(connection, "public", "readings_pkey")
    assert not await schema.is_key(connection, "public", "one Value")
    assert not await schema.is_key(connection, "public", "none")
    await connection.execute("create table audit (like readings including all)")
    assert not await schema.is_key(connection, "public", "audit_pkey")
    await connection.execute("alter table audit inherit readings")  # as a hypertable's chunk
    assert await schema.is_key(connection, "public", "audit_pkey")
    assert not await schema.is_key(connection, "", "")


async def test_rule_on_a_partition_does_nothing_to_rows_of_the_table(
    connection: asyncpg.Connection,
) -> None:
    """So it is no difference: the server looks at the rules of the named table only."""
    await connection.execute(
        """create table readings (ts timestamptz, device_id text collate "C",
               metric text collate "C", value float8, primary key (ts, device_id, metric, value))
           partition by list (metric);
        create table part partition of readings default;
        create rule r as on insert to part do instead nothing;
        insert into readings values (now(), 'd', 'm', 1)"""
    )
    assert (await schema.look(connection)).difference is None
    assert await connection.fetchval("select count(*) from readings") == 1


async def test_show_says_all_that_the_check_looks_at(connection: asyncpg.Connection) -> None:
    """The schema's name, precisions, collations and rules."""
    await schema.apply(connection)
    await connection.execute(
        LOOSE
        + """alter table readings alter ts type timestamptz(3);
        alter table readings alter metric type text collate loose;
        create rule r as on insert to readings do instead nothing"""
    )
    assert (await schema.show(connection)).splitlines() == [
        "table public.readings",
        "  ts         timestamp(3) with time zone not null",
        '  device_id  text collate "C" not null',
        '  metric     text collate "loose" (nondeterministic) not null',
        "  value      double precision not null",
        "  CREATE UNIQUE INDEX readings_pkey ON public.readings USING btree "
        "(ts, device_id, metric, value)",
        "  RULE r ON INSERT",
        "column ts of readings is timestamp(3) with time zone instead of timestamptz: "
        "values would be rounded; column metric of readings has the nondeterministic collation "
        'loose: different names would be one; use collate "C"; table readings has a rule for '
        "INSERT (r): readings could be changed or lost; drop the rule",
        "alter table public.readings alter ts type timestamptz using ts::timestamptz;",
        'alter table public.readings alter metric type text collate "C" '
        'using metric::text collate "C";',
        'drop rule "r" on public.readings;',
    ]
    await connection.execute("drop table readings; create view readings as select 1")
    assert (await schema.show(connection)).startswith("view public.readings")
