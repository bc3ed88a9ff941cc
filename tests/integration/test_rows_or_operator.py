"""Errors that a row or an operator may have caused: rows are dead-lettered, or writes are paused.

Real writers and a real server. Only the dead letters are in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count

import asyncpg
import pytest

from ingest.app.database import make_sink
from ingest.config.settings import Settings
from ingest.model.reading import EXHAUSTED, REFUSED, Reading
from ingest.system.clock import monotonic_s, unix_us
from tests.conftest import Server
from tests.support.commands import with_user
from tests.support.journals import block_of
from tests.support.writing import Writing

OLD_US = 1_000_000_000_000_000  # 2001, of a device whose clock was reset
ROLE = "fleet_writer"
GRANTS = f"grant usage on schema public to {ROLE}; grant insert, select on readings to {ROLE};"
POLICY = f"""{GRANTS} alter table readings enable row level security;
create policy honest on readings to {ROLE} using (true)
    with check (ts > '2020-01-01' and device_id <> 'evil')"""
BY_TRIGGER = f"""{GRANTS} create table readings_2026 (like readings);
grant insert on readings_2026 to {ROLE};
create function route() returns trigger language plpgsql as $$ begin
    execute format('insert into readings_%s values ($1.*)',
                   case when new.ts < '2020-01-01' then '2001' else '2026' end) using new;
    return new; end $$;
create trigger route before insert on readings for each row execute function route()"""
NO_PARTITION = f"""drop table readings;
create table readings (ts timestamptz not null, device_id text collate "C" not null,
    metric text collate "C" not null, value float8 not null,
    primary key (ts, device_id, metric, value)) partition by range (ts);
create table readings_now partition of readings for values from ('2020-01-01') to ('2100-01-01');
{GRANTS}"""
RAISED = f"""{GRANTS}
create function refuse() returns trigger language plpgsql as $$ begin
    if new.ts < '2020-01-01' then
        raise exception 'too old' using errcode = 'check_violation', table = 'readings';
    end if;
    return new; end $$;
create trigger refuse before insert on readings for each row execute function refuse()"""
BROKEN_TRIGGER = f"""{GRANTS}
create function broken() returns trigger language plpgsql as $$ begin
    insert into gone values (new.ts); return new; end $$;
create trigger broken after insert on readings for each row execute function broken()"""
NO_PRIVILEGE = f"{GRANTS} revoke insert on readings from {ROLE}"

_numbers = count(1)


class Fleet(Writing):
    """Writers on a real table that an operator has changed."""

    operator: asyncpg.Connection

    async def send(self, rows: int, *, ts_us: int | None = None) -> None:
        """Post so many readings, with a time of the fleet or with this one."""
        start_us = unix_us() if ts_us is None else ts_us
        readings = [Reading(start_us + next(_numbers), "d", "m", 1.0) for _ in range(rows)]
        block = block_of(readings)
        reservation = await self.buffer.reserve(rows, len(block.tuples))
        self.ledger.received += rows
        self.ledger.accepted += rows
        reservation.put(block)

    async def stored(self) -> int:
        """Return how many rows the table has."""
        return int(await self.operator.fetchval("select count(*) from readings"))

    def refused(self) -> int:
        """Return how many rows became dead letters."""
        return self.ledger.dead_lettered[REFUSED] + self.ledger.dead_lettered[EXHAUSTED]


@pytest.fixture(scope="module")
def shared_url(shared_url: str, server: Server) -> Iterator[str]:
    """Give one database for all tests here, and a role that may write to it."""
    server.run(lambda connection: connection.execute(f"create role {ROLE} login"))
    yield shared_url
    server.run(lambda connection: connection.execute(f"drop role {ROLE}"))


@pytest.fixture
async def fleet(shared_url: str, operator: asyncpg.Connection) -> AsyncIterator[Fleet]:
    """Give writers on a fresh table; they are not started."""
    await operator.execute(f"grant temp on database {await name_of(operator)} to {ROLE}")
    path = Fleet(batch_rows=1_000, batch_rows_max=20_000, wait_s_max=0.1, batch_linger_s=0.01)
    path.operator = operator
    for _ in range(2):
        settings = Settings(database_unsafe=True)
        path.half.sinks.append(make_sink(with_user(shared_url, ROLE), settings))
    yield path
    path.halted.set()
    path.buffer.shut_inlet()
    await asyncio.gather(*path.tasks)
    await operator.execute(f"drop owned by {ROLE}")


async def name_of(connection: asyncpg.Connection) -> str:
    """Return the name of the database."""
    return str(await connection.fetchval("select quote_ident(current_database())"))


async def start(fleet: Fleet, change: str) -> None:
    """Change the table as an operator does, then start the writers."""
    await fleet.operator.execute(change)
    for writer in fleet.half.make_writers(fleet.letters):
        fleet.tasks.append(asyncio.create_task(writer.run()))


TABLES = {
    "42501": POLICY,
    "42P01": BY_TRIGGER,
    "no_partition": NO_PARTITION,
    "23514": RAISED,
}


@pytest.mark.parametrize("code", TABLES)
async def test_rows_that_the_table_refuses_do_not_stop_the_others(fleet: Fleet, code: str) -> None:
    """A bad row alone in its batch, one among others, and many in a row: writes never pause."""
    await start(fleet, TABLES[code])
    await fleet.send(1, ts_us=OLD_US)
    await fleet.until(lambda: fleet.ledger.held == 0)  # the table is empty
    await fleet.send(10)
    await fleet.until(lambda: fleet.ledger.held == 0)
    assert (await fleet.stored(), fleet.refused()) == (10, 1)
    await fleet.send(30, ts_us=OLD_US)
    await fleet.until(lambda: fleet.ledger.held == 0)  # and no other post comes
    for _ in range(5):
        await fleet.send(5)
        await fleet.send(1, ts_us=OLD_US)
    await fleet.until(lambda: fleet.ledger.held == 0)
    assert (await fleet.stored(), fleet.refused()) == (35, 36)
    assert {each.code for each in fleet.letters.letters} == {code}
    assert fleet.ledger.retries["hold"] == fleet.ledger.retries["retry"] == 0


@pytest.mark.parametrize("change", [BROKEN_TRIGGER, NO_PRIVILEGE])
async def test_operators_fault_pauses_writes_and_costs_little(fleet: Fleet, change: str) -> None:
    """If no row goes through, nothing is dead-lettered, and few rows are tried."""
    for _ in range(20):
        await fleet.send(100)
    began_s = monotonic_s()
    await start(fleet, change)
    await fleet.until(lambda: fleet.database_state.hold_reason is not None)
    assert monotonic_s() - began_s < 2.5
    assert (fleet.refused(), fleet.ledger.held) == (0, 2_000)
    reason = "schema" if change is BROKEN_TRIGGER else "permission"
    assert fleet.database_state.hold_reason == reason
    await fleet.operator.execute(f"drop trigger if exists broken on readings; {GRANTS}")
    await fleet.until(lambda: fleet.ledger.held == 0)
    assert await fleet.stored() == 2_000


async def test_release_with_dead_letters_gives_up_on_what_class_42_refuses(fleet: Fleet) -> None:
    """However many they are, also if no row goes through at all."""
    await start(fleet, BROKEN_TRIGGER)
    for _ in range(20):
        await fleet.send(50)
    await fleet.until(lambda: fleet.database_state.hold_reason == "schema")
    assert fleet.refused() == 0
    assert fleet.half.release_hold(dead_letter=True)
    await fleet.until(lambda: fleet.ledger.held == 0, within_s=30)
    assert (await fleet.stored(), fleet.refused()) == (0, 1_000)
