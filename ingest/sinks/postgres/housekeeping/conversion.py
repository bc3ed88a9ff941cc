"""Turns a plain table into a partitioned one while others write to it.

The old table becomes the first partition, whole: no reading is moved. Its end is the end of a day
or month that lies ahead of all readings. The steps:
1. A constraint on the old table says that it has no reading from that end on. It is added without
   a look at the rows, and holds for new rows at once.
2. The server compares all rows with it. This reads the whole table; others read and write.
3. In one transaction the old table gets another name, a new partitioned one takes its name, keys,
   owner, rights and comments, and the old one is attached. Because of the constraint the server
   does not read it again, so this takes milliseconds. The constraint goes with it.
Promises: killed at any moment, the next run goes on; what was done is read from the catalog. All
locks that keep writers waiting are held for a short time (locking.py).
Does not: make the partitions after the first one; a run of housekeeping does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import asyncpg
from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import new_parent, registry
from ingest.sinks.postgres.housekeeping.conversion_check import UNTIL, Plain, examine, too_far
from ingest.sinks.postgres.housekeeping.locking import change_alone
from ingest.sinks.postgres.housekeeping.names import fitted
from ingest.sinks.postgres.housekeeping.partitions import bounds_entry
from ingest.sinks.postgres.housekeeping.plan import OtherRun, alone
from ingest.sinks.postgres.housekeeping.spans import (
    BEGINNING_US,
    DAY_US,
    literal,
    span_bounds,
)
from ingest.sinks.postgres.housekeeping.view import PLAIN
from ingest.sinks.postgres.target import quoted
from ingest.system.clock import monotonic_s, rfc3339

MARGIN_US = DAY_US  # so long a run may be interrupted before a reading could come after the end
AHEAD_US_MAX = 400 * DAY_US
HOLD_S_MAX = 2.0
WAIT_S_MAX = 120.0
VALIDATE_LOCK_MS = 30_000
_IS_TAKEN = "select to_regclass($1) is not null"
OTHER_RUN_S_MAX = 15.0  # of the service; or of a killed one, until the server has noticed that


class Conversion(NamedTuple):
    """What a run would do to the table `plain`, or has begun to do.

    The first partition is called `name` and ends at `until_us`. `begun`: the constraint is there.
    """

    plain: Plain
    span: str
    name: str
    until_us: int
    begun: bool


async def planned(
    connection: Connection, table: str, span: str, ahead_us: int, *, column: str = "ts"
) -> Conversion:
    """Plan it. Raises StartError with all reasons if the table cannot be turned.

    `ahead_us` is how far ahead of now a reading may be (`ts_ahead_s_max`).
    """
    plain = await examine(connection, table, column)
    reasons = list(plain.reasons)
    newest_us = plain.now_us if plain.newest_us is None else plain.newest_us
    least_us = max(newest_us + 1, plain.now_us + ahead_us)
    begun = plain.until_us is not None and plain.until_us >= least_us
    until_us = plain.until_us if begun else None
    if until_us is None:
        until_us = span_bounds(span, max(newest_us, least_us + MARGIN_US)).to_us
    if plain.kind == PLAIN and not reasons and (far := too_far(plain, until_us, AHEAD_US_MAX)):
        reasons.append(far)
    cannot = f"{plain.table or table} cannot be partitioned"
    if reasons:
        raise StartError(f"{cannot}: {'; '.join(reasons)}")
    date = rfc3339(until_us)[:10].replace("-", "")
    name = fitted(plain.name, f"_before_{date}")
    if await connection.fetchval(_IS_TAKEN, f"{quoted(plain.schema)}.{quoted(name)}"):
        raise StartError(f"{cannot}: its part would be {name}: rename that table")
    return Conversion(plain, span, name, until_us, begun)


def in_words(plan: Conversion) -> list[str]:
    """Return one sentence for each thing that a person should know before it begins."""
    plain = plan.plain
    until = rfc3339(plan.until_us)
    said = [
        f"{plain.table} has about {plain.rows:,} readings, {plain.bytes / 1e9:,.2f} GB with its "
        "indexes. No reading is moved.",
        f"It becomes one partition, {plan.name}, for all readings before {until}. From then on "
        f"each {plan.span} has a partition of its own.",
        "First the server compares all rows with that time: it reads the table once, and others "
        "go on to read and write.",
        f"Then {plain.table} is locked for some milliseconds, while the new table takes its name, "
        "keys, owner, rights and comments.",
        f"With keep_hot, {plan.name} is dropped whole, once its newest reading is old enough.",
    ]
    if plan.begun:
        said.append("An earlier run has begun with this: it is continued.")
    return said


async def convert(
    connection: Connection,
    table: str,
    span: str,
    ahead_us: int,
    *,
    say: Callable[[str], None],
    column: str = "ts",
    wait_s_max: float = WAIT_S_MAX,
) -> None:
    """Do it, or what is left of it; `say` is given a sentence for each step.

    Raises StartError if it cannot be done, or if the table was in use for `wait_s_max`; then the
    next run continues. It sets the time limits of the session anew.
    """
    await _prepare(connection)
    plan = await planned(connection, table, span, ahead_us, column=column)
    async with _alone(connection, plan.plain.oid):
        # Another run may have ended meanwhile.
        plan = await planned(connection, table, span, ahead_us, column=column)
        if not plan.begun:
            held_s = await _constrain(connection, plan, wait_s_max)
            until = rfc3339(plan.until_us)
            say(f"step 1 of 3: the table takes readings before {until} only ({_ms(held_s)})")
        if not plan.plain.checked or not plan.begun:
            await _validate(connection, plan.plain.table)
            say("step 2 of 3: all rows were compared with that time")
        held_s = await change_alone(
            connection,
            plan.plain.table,
            plan.plain.oid,
            lambda: _swap(connection, plan, column),
            hold_s_max=HOLD_S_MAX,
            wait_s_max=wait_s_max,
        )
        say(f"step 3 of 3: {plan.plain.table} has partitions, {plan.name} first ({_ms(held_s)})")


async def _prepare(connection: Connection) -> None:
    """Set the session: no limit for the comparison, and the server notices if we are killed."""
    await connection.execute(f"set statement_timeout = 0; set lock_timeout = {VALIDATE_LOCK_MS}")
    with suppress(asyncpg.PostgresError):  # not every version and system can
        await connection.execute("set client_connection_check_interval = '1s'")


@asynccontextmanager
async def _alone(connection: Connection, oid: int) -> AsyncIterator[None]:
    """Hold the lock of the only run; wait for another one that is about to end."""
    until_s = monotonic_s() + OTHER_RUN_S_MAX
    while True:
        try:
            async with alone(connection, oid):
                yield
                return
        except OtherRun:
            if monotonic_s() > until_s:
                raise
        await asyncio.sleep(0.5)


def _ms(held_s: float) -> str:
    return f"it was locked for {1000 * held_s:.0f} ms"


async def take_back(
    connection: Connection, table: str, *, column: str = "ts", wait_s_max: float = WAIT_S_MAX
) -> bool:
    """Undo what an unfinished run has left; return whether there was anything."""
    plain = await examine(connection, table, column)
    if plain.checked is None:
        return False
    async with _alone(connection, plain.oid):
        await _drop_constraint(connection, plain, wait_s_max)
    return True


async def _drop_constraint(connection: Connection, plain: Plain, wait_s_max: float) -> None:
    async def drop() -> None:
        await connection.execute(f"alter table {plain.table} drop constraint if exists {UNTIL}")

    await change_alone(
        connection, plain.table, plain.oid, drop, hold_s_max=HOLD_S_MAX, wait_s_max=wait_s_max
    )


async def _constrain(connection: Connection, plan: Conversion, wait_s_max: float) -> float:
    """Add the constraint, in place of one of an earlier run whose end has come too near."""
    plain = plan.plain

    async def add() -> None:
        await connection.execute(
            f"alter table {plain.table} drop constraint if exists {UNTIL}, add constraint {UNTIL} "
            f"check ({plain.column} < timestamptz {literal(plan.until_us)}) not valid"
        )

    return await change_alone(
        connection, plain.table, plain.oid, add, hold_s_max=HOLD_S_MAX, wait_s_max=wait_s_max
    )


async def _validate(connection: Connection, table: str) -> None:
    """Compare all rows. Its lock keeps nobody from writing, so it may wait for an autovacuum."""
    try:
        await connection.execute(f"alter table {table} validate constraint {UNTIL}")
    except asyncpg.LockNotAvailableError as error:
        raise StartError(
            f"{table} is being altered or vacuumed by another session: wait, and run it again"
        ) from error
    except asyncpg.CheckViolationError as error:
        # A reading of the far future came in between the look for the newest one and the step 1.
        raise StartError(
            f"{table} got a reading that is further ahead than ts_ahead_s_max: run it again"
        ) from error


async def _swap(connection: Connection, plan: Conversion, column: str) -> None:
    """Put the new table in the place of the old one. In the transaction that has the lock."""
    plain = await examine(connection, plan.plain.table, column)
    same = plain.oid == plan.plain.oid and plain.until_us == plan.until_us and plain.checked
    if plain.reasons or not same:
        why = "; ".join(plain.reasons) or "another session has changed it"
        raise StartError(f"{plan.plain.table} was altered meanwhile: {why}; run it again")
    part = await new_parent.make(connection, plain, plan.name)
    bounds = f"from (minvalue) to ({literal(plan.until_us)})"
    await connection.execute(
        f"alter table {plain.table} attach partition {part} for values {bounds}"
    )
    await connection.execute(f"alter table {part} drop constraint {UNTIL}")
    kept = await registry.make(connection, plain.table, plain.owner)
    entry = bounds_entry(BEGINNING_US, plan.until_us)
    await registry.put(connection, kept, registry.PARTITION + plan.name, entry)
    await registry.put(connection, kept, registry.TABLE + plain.name, {"span": plan.span})
