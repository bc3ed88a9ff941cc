"""Rows of declared tables at a real server: each reading once, over all tables, whatever comes."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest

from ingest.model.block import Refusal
from ingest.model.causes import Verdict, WriteFailed
from ingest.model.moments import decode_readings, form_of_table
from ingest.model.ports import Stored
from ingest.model.reading import Reading
from ingest.model.tables import ColumnTable, Tables
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.checked_connection import KnownServer
from ingest.sinks.postgres.sink import SinkPostgres
from tests.support.commands import with_user
from tests.support.rows import START_US, apply_tables, placed
from tests.support.sink_ways import WAYS, sink_for

CLIMATE = ColumnTable("climate", "", ("temperature", "humidity", "co2"), (0, 0, 0))
CPU = ColumnTable("cpu", "cpu", ("idle", "user"), (0, 0))
TABLES = Tables([CLIMATE, CPU])
FORM = form_of_table(CLIMATE)
ALL = "select (extract(epoch from ts) * 1000000)::int8, device_id, metric, value from {}"
READINGS_ONLY = [Reading(START_US, "d", "noise", 1.0)]


@pytest.fixture
async def owner(operator: asyncpg.Connection) -> asyncpg.Connection:
    """Give the operator's connection to fresh tables."""
    await apply_tables(operator, TABLES)
    return operator


@pytest.fixture
async def sink(way: str, shared_url: str) -> AsyncIterator[SinkPostgres]:
    """Give a sink of that way, and close it, so that nothing holds the tables of a failed test."""
    made = sink_for(way, shared_url)
    yield made
    await made.close()


async def stored(owner: asyncpg.Connection, table: str = "all_readings") -> list[Reading]:
    """Return what a table of that shape has."""
    return sorted(Reading(*row) for row in await owner.fetch(ALL.format(table)))


def moment(at: int = 0, device: str = "d", /, **values: float) -> list[Reading]:
    """Give the readings of one moment."""
    return [Reading(START_US + at, device, metric, value) for metric, value in values.items()]


async def write(sink: SinkPostgres, way: str, *blocks: Sequence[Reading]) -> Stored:
    """Write blocks in one of the ways of a sink."""
    tuples = [placed(each, TABLES) for each in blocks]
    count = sum(map(len, blocks))
    if way == "isolating":
        return await sink.write_isolating(tuples, count, no_refusal)
    return await sink.write(tuples, count, idempotent=way == "staged")


async def no_refusal(bad: list[Refusal]) -> None:
    """Be a ports.SetAside for rows that are all right."""
    raise AssertionError(f"no row is at fault: {bad}")


def parts_of(random_: random.Random) -> list[list[Reading]]:
    """Give some blocks of one batch: moments in whole and in part, with rivals and repeats."""
    metrics = [*FORM.columns, "noise", "cpu.idle,cpu=cpu0", "cpu.user,cpu=cpu0", "cpu.idle", "cpu"]
    return [
        [
            Reading(START_US + random_.randrange(3), random_.choice("ab"), metric, value)
            for metric in random_.sample(metrics, random_.randrange(1, 6))
            for value in random_.sample([1.0, 2.0, -0.5], random_.choice([1, 1, 1, 2]))
        ]
        for _ in range(random_.randrange(1, 5))
    ]


@pytest.mark.parametrize("seed", range(8))
async def test_each_reading_is_stored_once_by_several_writers(
    owner: asyncpg.Connection, shared_url: str, seed: int
) -> None:
    """Repeats, parts and rivals, in four ways at once. What is committed is what is there."""
    random_, known = random.Random(seed), KnownServer(len(WAYS))
    sinks = {way: sink_for(way, shared_url, known) for way in WAYS}
    posted, committed = set[Reading](), 0

    async def until_stored(way: str, blocks: list[list[Reading]]) -> int:
        for _ in range(20):
            try:
                return (await write(sinks[way], way, *blocks)).committed
            except WriteFailed as failed:
                if failed.sqlstate != "40P01":  # a deadlock of two that write the same
                    raise
        raise AssertionError("a retry helps")

    for _ in range(12):
        batches = {way: parts_of(random_) for way in WAYS}
        posted |= {each for batch in batches.values() for block in batch for each in block}
        committed += sum(await asyncio.gather(*map(until_stored, batches, batches.values())))
        found = Counter(await stored(owner))
        assert found == Counter(posted)
        assert committed == len(posted)
    for sink in sinks.values():
        await sink.close()


@pytest.mark.parametrize("way", WAYS)
async def test_first_row_of_a_moment_stays_and_the_rest_goes_to_readings(
    owner: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """A later part, a rival and a repeat change nothing in the row."""
    sink = sink_for(way, shared_url)
    first = moment(temperature=1, humidity=2)
    assert await write(sink, way, first) == Stored(2, 0)
    row = "select xmin::text, ctid::text, temperature, humidity, co2 from climate"
    before = await owner.fetch(row)
    assert await write(sink, way, first) == Stored(0, 2)
    later = moment(temperature=1, humidity=3, co2=4)
    assert await write(sink, way, later) == Stored(2, 1)
    assert await write(sink, way, later, moment(1, co2=5)) == Stored(1, 3)
    assert (await owner.fetch(row + " order by ts"))[:1] == before
    assert await stored(owner, "readings") == moment(co2=4, humidity=3)
    assert await owner.fetchval("select count(*) from climate") == 2
    await sink.close()


@pytest.mark.parametrize("way", WAYS)
async def test_series_are_rows_of_their_own_and_keep_the_metrics_name(
    owner: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """Also in `readings`, where a rival goes, and with names that SQL would take for its own."""
    series = ["", ",cpu=cpu0", ',cpu=it\'s\\, "x",n=ü']
    sink = sink_for(way, shared_url)
    for value, new in ((1.0, 6), (2.0, 3)):
        rows = [
            Reading(START_US, "d", f"cpu.{field}{each}", value if field == "idle" else 7.0)
            for each in series
            for field in ("idle", "user")
        ]
        assert await write(sink, way, rows) == Stored(new, 6 - new)
        assert set(rows) <= set(await stored(owner))
    assert await owner.fetchval("select count(*) from cpu") == 3
    assert len(await stored(owner, "readings")) == 3
    await sink.close()


async def test_parts_of_moments_are_not_copied_again_and_again(
    owner: asyncpg.Connection, shared_url: str
) -> None:
    """Each COPY that fails leaves dead rows. Of a fleet with parts the second one is the last."""
    sink = sink_for("copy", shared_url)
    await write(sink, "copy", READINGS_ONLY)
    for number, metric in enumerate(("temperature", "humidity", "co2")):
        rows = [moment(at, **{metric: 1.0}) for at in range(50)]
        assert await write(sink, "copy", *rows) == Stored(50, 0)
        assert (sink.tables[FORM].idempotent_left > 0) is (number == 2)
    assert sink.tables[None].takes_copy
    await sink.close()


@pytest.mark.parametrize("way", ["copy", "staged", "insert"])
async def test_batch_with_a_refused_row_in_one_table_stores_nothing_in_the_others(
    owner: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """All tables of a batch are one transaction."""
    await owner.execute("alter table readings add check (value <> 5)")
    sink = sink_for(way, shared_url)
    bad = Reading(START_US, "d", "noise", 5.0)
    with pytest.raises(WriteFailed) as failed:
        await write(sink, way, moment(temperature=1), [bad], moment(1, **{"cpu.idle": 3}))
    assert (failed.value.verdict, failed.value.sqlstate) == (Verdict.ISOLATE, "23514")
    assert await stored(owner) == []
    assert await write(sink, way, moment(temperature=1), moment(noise=3)) == Stored(2, 0)
    await sink.close()


@pytest.mark.parametrize("way", ["copy", "insert"])
async def test_refused_moment_is_refused_as_a_whole_by_the_numbers_of_its_readings(
    owner: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """Others of the batch are stored, also those of other tables. A rival in `readings` counts."""
    await owner.execute(
        "alter table climate add check (temperature <> 5); alter table cpu add check (idle <> 5);"
        "alter table readings add check (value <> 5)"
    )
    sink = sink_for(way, shared_url)
    assert await write(sink, way, moment(7, humidity=1)) == Stored(1, 0)
    blocks = [
        [*moment(1, temperature=1, co2=2), *moment(2, noise=5), *moment(3, temperature=5, co2=6)],
        [*moment(4, noise=1), *moment(5, **{"cpu.idle": 5, "cpu.user": 6, "cpu.idle,x=y": 7})],
        [*moment(7, humidity=5, co2=1), *moment(8, humidity=9)],  # its rival is refused
    ]
    tuples = [placed(each, TABLES) for each in blocks]
    every = [each for block in tuples for each in decode_readings(block)]
    aside = list[Refusal]()

    async def set_aside(bad: list[Refusal]) -> None:
        aside.extend(bad)

    wanted = {each for each in every if each.ts_us - START_US in (2, 3, 7)}
    wanted |= {each for each in every if each.metric in ("cpu.idle", "cpu.user")}
    found = await sink.write_isolating(tuples, len(every), set_aside)
    assert {every[each.row] for each in aside} == wanted
    assert [each.row for each in aside] == sorted(each.row for each in aside)
    assert {each.sqlstate for each in aside} == {"23514"}
    assert found == Stored(len(every) - len(wanted), 0)
    assert set(await stored(owner)) == {*every} - wanted | {*moment(7, humidity=1)}
    await sink.close()


@pytest.mark.parametrize("way", ["copy", "insert"])
async def test_each_table_of_the_rows_must_take_one(
    owner: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """Rows of a table that takes none are not at fault, whatever the others take."""
    sink = sink_for(way, shared_url)
    row, plain = placed(moment(temperature=1), TABLES), placed(READINGS_ONLY, TABLES)
    cpu = placed(moment(**{"cpu.idle": 1}), TABLES)
    assert await sink.takes_any([row, plain, cpu])
    await write(sink, way, moment(temperature=1))
    assert not await sink.takes_any([row, plain])
    assert await sink.takes_any([row, plain, cpu], like_stored=True)
    assert await sink.takes_any([placed(moment(temperature=2), TABLES)])
    await owner.execute(
        """create function f() returns trigger language plpgsql as $$ begin
           insert into nowhere values (1); return new; end $$;
           create trigger t before insert on cpu for each row execute function f()"""
    )
    assert not await sink.takes_any([plain, cpu], like_stored=True)
    assert await sink.takes_any([plain], like_stored=True)
    assert await stored(owner) == moment(temperature=1)
    await sink.close()


async def test_another_unique_constraint_is_the_fault_of_a_row(
    owner: asyncpg.Connection, shared_url: str
) -> None:
    """Only our key makes it a repeated moment."""
    await owner.execute("create unique index on climate (temperature)")
    sink = sink_for("copy", shared_url)
    await write(sink, "copy", moment(temperature=1))
    with pytest.raises(WriteFailed) as failed:
        await write(sink, "copy", moment(1, temperature=1))
    assert failed.value.verdict is Verdict.ISOLATE
    await sink.close()


MADE_AGAIN = """drop table climate cascade; create table climate (ts timestamptz not null,
device_id text collate "C" not null, temperature float8, humidity float8, co2 float8 {})"""
WRONG = {
    "drop table climate cascade": 'no table public."climate" that .* run `ingest schema apply`',
    "alter table climate drop column co2 cascade": 'climate" has no column "co2": run `ingest',
    "alter table climate alter co2 set not null": '"co2" of "climate" is NOT NULL',
    MADE_AGAIN.format(""): r"no unique key on exactly \(ts, device_id\)",
    MADE_AGAIN.format(", primary key (ts, device_id, co2)"): "no unique key",
    "alter table climate alter co2 type real": '"co2" of "climate" is real instead of float8',
}


@pytest.mark.parametrize("way", ["copy", "staged", "insert"])
@pytest.mark.parametrize("change", WRONG)
async def test_altered_table_stops_the_next_write(
    operator: asyncpg.Connection, shared_url: str, way: str, change: str
) -> None:
    """Between two writes, and before the first. `readings` is still written to."""
    await apply_tables(operator, TABLES)
    fresh, used = sink_for(way, shared_url), sink_for(way, shared_url)
    assert await write(used, way, moment(temperature=1)) == Stored(1, 0)
    await operator.execute("truncate climate; drop view all_readings; " + change)
    for sink in (fresh, used):
        with pytest.raises(WriteFailed) as failed:
            await write(sink, way, moment(1, temperature=1), READINGS_ONLY)
        assert re.search(WRONG[change], failed.value.message)
        assert (failed.value.verdict, failed.value.reason) == (Verdict.HOLD, "schema")
        assert not failed.value.doubtful
    assert await operator.fetchval("select count(*) from readings") == 0
    assert await write(used, way, READINGS_ONLY) == Stored(1, 0)
    await operator.execute("drop table if exists climate")
    await apply_tables(operator, TABLES)
    assert await write(used, way, moment(1, temperature=1)) == Stored(1, 0)
    for sink in (fresh, used):
        await sink.close()


@pytest.mark.parametrize("way", ["copy", "staged", "insert"])
async def test_altered_table_that_still_fits_stops_no_write(
    owner: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """Whichever of the tables it is, and if it is made again."""
    sink = sink_for(way, shared_url)
    for number, change in enumerate(
        (
            "select 1",
            "alter table climate add site text",
            "alter table readings add site text",
            "truncate climate; alter table cpu add site text",
            "alter table climate rename to old; create table climate (like old including all)",
        )
    ):
        await owner.execute(change)
        rows = [*moment(number, temperature=1, noise=2), *moment(number, **{"cpu.idle": 1})]
        assert await write(sink, way, rows) == Stored(3, 0), change
        assert await write(sink, way, rows) == Stored(0, 3), change
    await sink.close()


async def test_change_that_a_write_of_two_tables_waits_for_is_seen_by_it(
    owner: asyncpg.Connection, shared_url: str
) -> None:
    """Also at an isolation level that would not see it, or not see another writer's row."""
    await owner.execute("alter role postgres set default_transaction_isolation = 'serializable'")
    sinks = {way: sink_for(way, shared_url) for way in WAYS}
    try:
        for way, sink in sinks.items():
            assert await write(sink, way, moment(0, way, temperature=1, noise=1))
            again = moment(0, way, temperature=2, noise=1)
            assert await write(sink, way, again) == Stored(1, 1)
        await owner.execute("drop view all_readings; begin isolation level read committed")
        await owner.execute("alter table climate alter ts type timestamptz(0)")
        writes = [
            asyncio.create_task(write(sink, way, moment(9, way, temperature=1, noise=1)))
            for way, sink in sinks.items()
        ]
        waiting = "select count(*) from pg_locks where not granted and relation = $1::regclass"
        while await owner.fetchval(waiting, "climate") < len(WAYS):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await owner.execute("commit")
        for failed in await asyncio.gather(*writes, return_exceptions=True):
            assert isinstance(failed, WriteFailed)
            assert "timestamp(0)" in failed.message
    finally:
        await owner.execute("alter role postgres reset default_transaction_isolation")
        for sink in sinks.values():
            await sink.close()


@pytest.mark.parametrize("way", WAYS)
async def test_write_waits_for_the_row_of_another_transaction(
    owner: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """Once that is committed, its values are known, also at a level that sees one snapshot only."""
    await owner.execute("alter role postgres set default_transaction_isolation = 'serializable'")
    sink = sink_for(way, shared_url)
    try:
        assert await write(sink, way, moment(5, temperature=1)) == Stored(1, 0)
        await owner.execute("begin isolation level read committed")
        await owner.execute(
            "insert into climate select '2025-10-09 08:53:20+0', 'd', 1, null, 3"  # as START_US
        )
        task = asyncio.create_task(write(sink, way, moment(temperature=1, humidity=2, co2=4)))
        waiting = "select count(*) from pg_locks where not granted and locktype = 'transactionid'"
        while not await owner.fetchval(waiting):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await owner.execute("commit")
        assert await task == Stored(2, 1)
        assert await stored(owner, "readings") == moment(co2=4, humidity=2)
    finally:
        await owner.execute("alter role postgres reset default_transaction_isolation")
        await sink.close()


@pytest.mark.parametrize("way", WAYS)
async def test_rest_of_a_moment_is_not_lost_in_an_altered_table_of_readings(
    owner: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """It is checked in the same transaction, though no row of the batch is one of it."""
    sink = sink_for(way, shared_url)
    assert await write(sink, way, moment(temperature=1)) == Stored(1, 0)
    await owner.execute("create rule r as on insert to readings do instead nothing")
    with pytest.raises(WriteFailed, match="a rule for INSERT") as failed:
        await write(sink, way, moment(temperature=2))
    assert failed.value.verdict is Verdict.HOLD
    await sink.close()


NOT_GRANTED = {
    "revoke all on climate from plain_role": 'INSERT and SELECT on public."climate" are not',
    "revoke select on climate from plain_role": 'SELECT on public."climate" is not granted',
    "revoke insert on cpu from plain_role": 'INSERT on public."cpu" is not granted',
    "revoke insert on readings from plain_role": "INSERT on public.readings is not granted",
}


@pytest.mark.parametrize("way", WAYS)
async def test_right_that_is_not_granted_is_named_with_its_table(
    operator: asyncpg.Connection, shared_url: str, role: str, way: str
) -> None:
    """No row is at fault, and none is tried alone."""
    sink = sink_for(way, with_user(shared_url, role))
    try:
        for number, (change, message) in enumerate(NOT_GRANTED.items()):
            await operator.execute("drop schema public cascade; create schema public")
            await schema.apply(operator, role=role)
            await apply_tables(operator, TABLES, role=role)
            rows = [*moment(number, temperature=1, noise=2), *moment(number, **{"cpu.idle": 1})]
            assert await write(sink, way, rows) == Stored(3, 0)
            await operator.execute(change)
            if "select" in change and way in ("copy", "isolating"):
                continue  # a plain COPY needs none
            with pytest.raises(WriteFailed) as failed:
                await write(sink, way, [each._replace(device_id="e") for each in rows])
            assert failed.value.message.startswith(message)
            assert (failed.value.verdict, failed.value.may_be_row) == (Verdict.HOLD, False)
            assert failed.value.reason == "permission"
    finally:
        await sink.close()
        await operator.execute(f"drop owned by {role}")


async def test_table_with_policies_for_rows_takes_no_copy_but_rows(
    operator: asyncpg.Connection, shared_url: str, role: str
) -> None:
    """The other tables are still copied to."""
    await schema.apply(operator, role=role)
    await apply_tables(operator, TABLES, role=role)
    await operator.execute(
        "alter table climate enable row level security; create policy p on climate using (true)"
    )
    sink = sink_for("copy", with_user(shared_url, role))
    try:
        for number in range(2):
            rows = [*moment(number, temperature=1, noise=2)]
            assert await write(sink, "copy", rows) == Stored(2, 0)
        assert not sink.tables[FORM].takes_copy
        assert sink.tables[None].takes_copy
    finally:
        await sink.close()
        await operator.execute(f"drop owned by {role}")


FUNCTION = """create function change() returns trigger language plpgsql as
$$ begin {} return new; end $$; create trigger change before insert on {}
for each row execute function change()"""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "change",
    [
        FUNCTION.format("new.humidity := coalesce(new.humidity, 50); new.co2 := 400;", "climate"),
        FUNCTION.format("new.ts := date_trunc('minute', new.ts);", "climate"),
        FUNCTION.format("if new.temperature <> 1.5 then return null; end if;", "climate"),
        FUNCTION.format("return null;", "climate"),
        FUNCTION.format("new.ts := date_trunc('minute', new.ts);", "readings"),
        "alter table climate add f float8 generated always as (temperature * 1.8 + 32) stored",
        "alter table climate add n bigint generated always as identity",
        "alter table climate alter humidity set default 50, alter co2 set default 400",
    ],
)
async def test_nothing_is_lost_by_what_the_owner_of_a_table_adds(
    owner: asyncpg.Connection, sink: SinkPostgres, way: str, change: str
) -> None:
    """Each value stands somewhere: new, a rival of one that is there, and both in one batch."""
    await owner.execute(change)
    rows = [moment(temperature=1.5), moment(temperature=2.5), moment(9, temperature=3.5)]
    await write(sink, way, rows[0])
    await write(sink, way, rows[1], rows[2])
    assert {1.5, 2.5, 3.5} <= {row.value for row in await stored(owner)}
    done = await write(sink, way, *rows, moment(3, temperature=4.5), moment(4, noise=5.5))
    assert done.committed + done.duplicate == 5
    there = {row.value for row in await stored(owner)} - {50.0, 400.0}
    assert there == {1.5, 2.5, 3.5, 4.5, 5.5}


@pytest.mark.parametrize("way", WAYS)
async def test_rival_of_a_row_that_a_policy_hides_is_stored(
    operator: asyncpg.Connection, shared_url: str, role: str, way: str
) -> None:
    """The service cannot see that the row is there."""
    await schema.apply(operator, role=role)
    await apply_tables(operator, TABLES, role=role)
    sink = sink_for(way, with_user(shared_url, role))
    try:
        assert await write(sink, way, moment(temperature=1)) == Stored(1, 0)
        await operator.execute(
            "alter table climate enable row level security; "
            "create policy a on climate for insert with check (true); "
            "create policy b on climate for select using (ts > '2020-01-01' and temperature > 1)"
        )
        await write(sink, way, moment(temperature=2), moment(1, temperature=3))
        there = sorted(row.value for row in await stored(operator))
        assert there == [1.0, 2.0, 3.0]
    finally:
        await sink.close()
        await operator.execute(f"drop owned by {role}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "rule", ["insert to climate do instead nothing", "update to climate do also select 1"]
)
async def test_rule_on_a_declared_table_stops_the_writes(
    owner: asyncpg.Connection, sink: SinkPostgres, way: str, rule: str
) -> None:
    """A rule could take the row away unseen. PostgreSQL refuses ON CONFLICT beside it."""
    assert await write(sink, way, moment(temperature=1)) == Stored(1, 0)
    await owner.execute(f"create rule changes as on {rule}")
    with pytest.raises(WriteFailed) as failed:
        await write(sink, way, moment(temperature=2))
    assert failed.value.verdict in {Verdict.HOLD, Verdict.UNKNOWN}, "both pause writes"
    assert len(await stored(owner)) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_writer_that_is_killed_between_two_tables_has_stored_nothing(
    owner: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """The write fails with doubt or without; written again, each reading stands once."""
    sink = sink_for(way, shared_url)
    rows = [*moment(temperature=1, humidity=2, noise=3), *moment(1, temperature=1)]
    assert await write(sink, way, moment(5, temperature=1, noise=1)) == Stored(2, 0)
    await owner.execute("begin; lock table readings in share mode")
    task = asyncio.create_task(write(sink, way, rows))
    waiting = "select pid from pg_locks where not granted and relation = 'readings'::regclass"
    while (pid := await owner.fetchval(waiting)) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await owner.execute("select pg_terminate_backend($1)", pid)
    with pytest.raises(WriteFailed) as failed:
        await task
    assert failed.value.verdict is Verdict.WAIT
    await owner.execute("commit")
    again: Any = await write(sink, "staged" if way == "copy" else way, rows)
    assert again == Stored(4, 0)
    assert len(await stored(owner)) == 6
    await sink.close()
