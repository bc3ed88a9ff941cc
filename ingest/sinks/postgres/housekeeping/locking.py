"""Changes of a table that need it for themselves, while others write to it all the time.

While a change waits for its lock, all who come after it wait too. So it waits a short time only,
gives up, lets the others go first, and tries again.
Promises: a try makes others wait for at most the longest of WAITS_S, and then `hold_s_max`. A
change is made whole or not at all.
Does not: end the sessions of others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.system.clock import monotonic_s

# An autovacuum gives way to a lock that has waited for `deadlock_timeout`, 1 s by default. A writer
# of ours waits for 3 s (`lock_s_max`).
WAITS_S = (0.3, 0.6, 1.2, 2.0)
PAUSE_S = 1.0  # for the others, between two tries

_HOLDERS = """
select pid, coalesce(nullif(application_name, ''), backend_type) as name, coalesce(state, '') as
       state, to_char(xact_start at time zone 'UTC', 'HH24:MI:SS') as since
from pg_stat_activity where pid <> pg_backend_pid() and pid in (
    select pid from pg_locks where locktype = 'relation' and relation = $1::oid and granted
    and database = (select oid from pg_database where datname = current_database()))
order by xact_start limit 5"""


async def change_alone(
    connection: Connection,
    table: str,
    oid: int,
    change: Callable[[], Awaitable[None]],
    *,
    hold_s_max: float,
    wait_s_max: float,
    mode: str = "access exclusive",
) -> float:
    """Lock the table against all others, and make the change in that transaction.

    `share row exclusive` is a mode that lets others read.

    Returns for how many seconds the lock was held. Raises StartError if it was not free for
    `wait_s_max`, or if the change took longer than `hold_s_max`: then nothing was changed.
    """
    began_s = monotonic_s()
    tries = 0
    while True:
        try:
            async with connection.transaction():
                await connection.execute(
                    f"set local lock_timeout = {round(1000 * WAITS_S[min(tries, 3)])}; "
                    f"set local statement_timeout = {round(1000 * hold_s_max)}"
                )
                await connection.execute(f"lock table {table} in {mode} mode")
                locked_s = monotonic_s()
                await change()
            return monotonic_s() - locked_s
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            tries += 1
            if monotonic_s() - began_s >= wait_s_max:
                holders = await _holders(connection, oid)
                raise StartError(
                    f"{table} was in use for {wait_s_max:.0f} s, so it could not be changed"
                    f"{holders}; end these, and run it again"
                ) from error
        except asyncpg.QueryCanceledError as error:
            raise StartError(
                f"a change of {table} would have taken longer than {hold_s_max:g} s with all "
                "writers waiting: it was undone"
            ) from error
        await asyncio.sleep(PAUSE_S)


async def _holders(connection: Connection, oid: int) -> str:
    rows = await connection.fetch(_HOLDERS, oid)
    named = [
        f"{row['name']} (process {row['pid']}, {row['state'] or 'at work'}, since {row['since']})"
        for row in rows
    ]
    return f"; it is used by {', '.join(named)}" if named else ""
