"""Faults of the table: what would alter or refuse rows without a word, or rows that it refuses."""

from __future__ import annotations

from tests.faults.matrix import fault
from tests.faults.operator_faults import paused
from tests.faults.world import World

SWAP = (
    "alter table readings rename to readings_was; "
    "create table readings (like readings_was including all); {change}; "
    "alter table readings owner to fleet"
)
BACK = "drop table readings; alter table readings_was rename to readings"
BLIND_S = 3_600  # the periodic check is too late: only the write itself can see the change


async def _stored(world: World, device: str) -> int:
    sql = f"select count(*) from readings where device_id = '{device}'"
    (row,) = await world.server.run(sql)
    return int(row["count"])


async def _refused_alone(
    world: World, device: str, ts: int, code: str, reason: str = "refused_by_database"
) -> None:
    """Post a reading that the table refuses: it alone becomes a dead letter, with the code."""
    name = f'ingest_readings_dead_lettered_total{{reason="{reason}"}}'
    before = (await world.service.metrics()).get(name, 0)
    answer = await world.service.post(
        [{"device_id": device, "metric": "m", "ts": ts, "value": 1}], ack="committed"
    )
    said = str(answer.document)
    world.expect(answer.status == 200 and code in said, f"{world.fault.name}: {said}")
    after = (await world.service.metrics()).get(name, 0)
    world.expect(after > before, f"{world.fault.name}: no dead letter for {device}")
    state = (await world.service.readyz()).document
    world.expect(state["state"] in {"accepting", "slowed"}, f"{world.fault.name}: {state}")
    world.count()


@fault(
    "F56",
    "policy for rows",
    "{n} readings refused: only these become dead letters",
    times=4,
)
async def row_policy(world: World) -> None:
    """Let a policy refuse the rows of some devices."""
    await world.answered(20)
    for sql in (
        "alter table readings enable row level security",
        "alter table readings force row level security",
        "create policy others on readings to fleet using (true) "
        "with check (device_id not like 'evil%')",
    ):
        await world.server.run(sql)
    try:
        for number in range(world.times):
            ts = world.run.job.plan.first_us + number
            await _refused_alone(world, f"evil-{number}", ts, "42501")
            await world.answered(20)
        world.expect(not await _stored(world, "evil-0"), "F56: the policy did not refuse it")
    finally:
        await world.server.run("alter table readings disable row level security")
    await world.expect_none_set_aside()


async def _partitioned(world: World) -> None:
    for sql in (
        "alter table readings rename to plain",
        "create table readings (like plain including defaults, "
        "primary key (ts, device_id, metric, value)) partition by range (ts)",
        "create table readings_now partition of readings "
        "for values from ('2020-01-01') to ('2100-01-01')",
        "alter table readings add constraint no_such check (metric <> 'refused')",
        "alter table readings owner to fleet",
    ):
        await world.server.run(sql)


@fault(
    "F57",
    "no partition for a row",
    "2 tables, {n} readings each: only these become dead letters",
    times=3,
    before=_partitioned,
)
async def no_partition(world: World) -> None:
    """Post readings of times for which there is no partition and no table."""
    await world.server.run(
        "create function forward() returns trigger language plpgsql as $$ begin "
        "if new.ts < '2022-01-01' then execute format("
        "'insert into readings_%s values ($1.*)', to_char(new.ts, 'YYYY')) using new; end if; "
        "return new; end $$"
    )
    await world.server.run(
        "create trigger forward after insert on readings for each row execute function forward()"
    )
    for number in range(world.times):
        await world.answered(20)
        year_2001, year_2021 = 980_000_000_000_000, 1_612_000_000_000_000
        waits = ("no_partition", "retries_exhausted")
        await _refused_alone(world, f"old-{number}", year_2001 + number, *waits)
        await _refused_alone(world, f"forwarded-{number}", year_2021 + number, "42P01")
    await world.expect_none_set_aside("retries_exhausted")


@fault(
    "F58",
    "column of another precision",
    "timestamptz(3) for 3 s, {n} times: on hold, nothing rounded",
    times=2,
    settings={"schema_check_s": BLIND_S},
)
async def other_precision(world: World) -> None:
    """Put a table with rounded times in the place of the real one."""
    change = "alter table readings alter column ts type timestamptz(3)"
    for _ in range(world.times):
        await world.answered(20)
        await paused(
            world, "schema", [SWAP.format(change=change)], [BACK], none="select 1 from readings"
        )
    await world.expect_none_set_aside()


@fault(
    "F59",
    "INSERT rule",
    "`do instead nothing` for 3 s, {n} times: on hold",
    times=2,
    settings={"schema_check_s": BLIND_S},
)
async def insert_rule(world: World) -> None:
    """Give the table a rule that throws rows away."""
    for _ in range(world.times):
        await world.answered(20)
        rule = "create rule nothing as on insert to readings do instead nothing"
        await paused(world, "schema", [rule], ["drop rule nothing on readings"])
    await world.expect_none_set_aside()


@fault(
    "F60",
    "nondeterministic collation",
    "names without case for 3 s, {n} times: on hold",
    times=2,
    settings={"schema_check_s": BLIND_S},
    debian=True,
)
async def other_collation(world: World) -> None:
    """Put a table in place to which `Pump-a` and `pump-A` are one device."""
    await world.server.run(
        "create collation any_case (provider = icu, locale = 'und-u-ks-level2', "
        "deterministic = false)"
    )
    change = "alter table readings alter column device_id type text collate any_case"
    for _ in range(world.times):
        await world.answered(20)
        await paused(
            world, "schema", [SWAP.format(change=change)], [BACK], none="select 1 from readings"
        )
    await world.expect_none_set_aside()


async def _hypertable(world: World) -> None:
    await world.server.run("create extension timescaledb")
    await world.server.run(
        "select create_hypertable('readings', 'ts', chunk_time_interval => interval '10 minutes')"
    )


@fault(
    "F61",
    "hypertable",
    "chunks dropped under load, the server killed {n} times",
    times=3,
    debian=True,
    database={"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"},
    before=_hypertable,
)
async def hypertable(world: World) -> None:
    """Kill a server with a hypertable; drop chunks of it."""
    for _ in range(world.times):
        await world.answered(20)
        await world.server.kill_all()
        await world.server.come_back()
        await world.server.run(
            "insert into readings values ('2020-01-01', 'dropped', 'm', 1) on conflict do nothing"
        )
        await world.server.run("select drop_chunks('readings', timestamptz '2020-06-01')")
        world.fixed()
        world.count()
    world.expect(not await _stored(world, "dropped"), "F61: the old chunk is still there")
    await world.expect_none_set_aside()
