"""The rows of a whole table for the archive: read by COPY, stored by COPY, summed up by the server.

Promises: a read or a write that stands still for STILL_S_MAX ends with an error; time limits of the
role do not end one that goes on.
Does not: know files, or make a table. The driver's errors pass through.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import Connection, Expired
from ingest.sinks.postgres.schema import KEY, quoted
from ingest.system.clock import monotonic_s

STILL_S_MAX = 120.0  # without one row
SCAN_S_MAX = 6 * 3600.0  # of one statement over a whole table
HEAP_ROW_BYTES_MIN = 52  # with names of one character; usual are some 70
PART_BLOCKS = 2_000  # of a checksum: some 200,000 rows, 0.1 s
_TID_RANGE_FROM = 14  # PostgreSQL
DROPPED_BYTES_MAX = 64 * 1024**2  # some 0.2 s of COPY

_BESIDE = """
select n.nspname::text as schema, to_regclass(found) is not null as there,
       exists (select from pg_inherits where inhrelid = to_regclass(found)) as attached
from pg_class c join pg_namespace n on n.oid = c.relnamespace,
     format('%I.%I', n.nspname, $2::text) as found
where c.oid = to_regclass($1)"""

# The same as in arrow_rows.py, which says why zeros and NaN are apart.
_CHECKSUM = """
select count(*) as rows, coalesce(sum(hash), 0)::text as sum from (
    select case when value = 0 or value = 'NaN'
           then hashint8extended(('x' || encode(float8send(value), 'hex'))::bit(64)::int8, seed)
           else hashfloat8extended(value, seed) end as hash
    from (select {value} as value,
                 timestamp_hash_extended({ts} at time zone 'UTC',
                     hashtextextended({metric}, hashtextextended({device_id}, 1))) as seed
          from only {table}{part}) as seeded) as hashed"""
_BLOCKS = """
select pg_relation_size(to_regclass($1)) / current_setting('block_size')::int8"""
# Without statistics the planner would read the whole table for each part. One process is enough.
_BY_BLOCKS = "set local enable_seqscan = off; set local max_parallel_workers_per_gather = 0"


class RowsTable(NamedTuple):
    """A table with readings, and the names of its four columns; all names without quotes."""

    schema: str
    table: str
    columns: tuple[str, ...] = KEY  # ts, device_id, metric, value

    @property
    def name(self) -> str:
        """The table as SQL has it, with its schema."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"

    def named(self, text: str) -> str:
        """Put the names into a statement."""
        columns = map(quoted, self.columns)
        return text.format(table=self.name, **dict(zip(KEY, columns, strict=True)))


async def beside(
    connection: Connection, parent: str, table: str, columns: Sequence[str] = KEY
) -> tuple[RowsTable, bool, bool]:
    """Return the table of this name beside `parent`; whether it exists, and is a partition."""
    row = await connection.fetchrow(_BESIDE, parent, table)
    if row is None:
        raise StartError(f"there is no table {parent}")
    return RowsTable(row["schema"], table, tuple(columns)), row["there"], row["attached"]


async def checksum(
    connection: Connection,
    table: RowsTable,
    pause: Callable[[float], Awaitable[None]] | None = None,
) -> tuple[int, int]:
    """Return how many rows a table has, and the sum of their hashes. Some 0.5 us a row.

    With `pause` they are read part by part, all in one snapshot. After each part `pause` is called
    with the seconds that it took. An older server would read the whole table for each part: there
    it is one statement.
    """
    if pause is None or connection.get_server_version().major < _TID_RANGE_FROM:
        async with connection.transaction():
            await connection.execute("set local statement_timeout = 0")
            return await _checksum(connection, table, "")
    rows = total = 0
    with _ends_if_still(connection) as moved:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute("set local statement_timeout = 0")
            for part in await _parts(connection, table):
                began_s = monotonic_s()
                found = await _checksum(connection, table, part)
                moved()
                rows, total = rows + found[0], total + found[1]
                await pause(monotonic_s() - began_s)
    return rows, total


async def _parts(connection: Connection, table: RowsTable) -> list[str]:
    """Return the conditions of all parts, by blocks; prepare the transaction for reading them.

    The last one has no end.
    """
    await connection.execute(_BY_BLOCKS)
    firsts = range(0, await connection.fetchval(_BLOCKS, table.name) or 1, PART_BLOCKS)
    ends = [f" and ctid < '({first},0)'" for first in firsts[1:]] + [""]
    return [f" where ctid >= '({first},0)'{end}" for first, end in zip(firsts, ends, strict=True)]


async def _checksum(connection: Connection, table: RowsTable, part: str) -> tuple[int, int]:
    query = table.named(_CHECKSUM.replace("{part}", part))
    row = await connection.fetchrow(query, timeout=SCAN_S_MAX)
    assert row is not None, "an aggregate always has one row"
    return row["rows"], int(row["sum"])


async def rows_max(connection: Connection, table: RowsTable) -> int:
    """Return how many rows a table may have, by the size of its heap."""
    heap_bytes = await connection.fetchval("select pg_relation_size(to_regclass($1))", table.name)
    return int(heap_bytes or 0) // HEAP_ROW_BYTES_MIN


async def copy_out(
    connection: Connection,
    table: RowsTable,
    marker: bytes,
    take: Callable[[bytes], Awaitable[None]],
) -> None:
    """Give all rows of a table to `take`, in pieces of binary COPY.

    Each row has five columns: `marker`, ts, value, device_id, metric. So the begin of a row can be
    found by its bytes. The next piece is read when `take` has returned. Raises an error of
    `take`. Then the connection is cut if more than DROPPED_BYTES_MAX are still to come.
    """
    query = f"select '\\x{marker.hex()}'::bytea, {{ts}}, {{value}}, {{device_id}}, {{metric}} "
    taking = _Taking(connection, take)
    try:
        with _ends_if_still(connection) as moved:
            async with connection.transaction():
                await connection.execute("set local statement_timeout = 0")

                async def moved_and_taken(data: bytes) -> None:
                    await taking.take(data)
                    moved()

                await connection.copy_from_query(
                    table.named(f"{query} from only {{table}}"),
                    output=moved_and_taken,
                    format="binary",
                    timeout=SCAN_S_MAX,
                )
    except Exception:
        taking.raise_failed()  # it is the cause of the others
        raise
    taking.raise_failed()


class _Taking:
    """Gives pieces to `take` until it fails; then it drops them, because it must not raise.

    asyncpg 0.32 asks the server to cancel when the taker of a COPY raises, and the next statement
    waits for the answer. If the COPY had already ended, no answer comes, and it waits for ever.
    """

    def __init__(self, connection: Connection, take: Callable[[bytes], Awaitable[None]]) -> None:
        self._connection = connection
        self._take = take
        self._failed: Exception | None = None
        self._dropped_bytes = 0

    async def take(self, data: bytes) -> None:
        """Give a piece to `take`, or drop it. Raises only if the connection is cut."""
        if self._failed is None:
            try:
                await self._take(data)
            except Exception as error:
                self._failed = error
            return
        self._dropped_bytes += len(data)
        if self._dropped_bytes > DROPPED_BYTES_MAX:
            self._connection.terminate()
            raise self._failed

    def raise_failed(self) -> None:
        """Raise the error of `take`, if there was one."""
        if self._failed is not None:
            raise self._failed


async def copy_in(connection: Connection, table: RowsTable, rows: AsyncIterator[bytes]) -> None:
    """Store rows of binary COPY in a table."""
    with _ends_if_still(connection) as moved:
        await connection.copy_to_table(
            table.table,
            schema_name=table.schema,
            columns=table.columns,
            source=_seen(rows, moved),
            format="binary",
            timeout=SCAN_S_MAX,
        )


async def _seen(rows: AsyncIterator[bytes], moved: Callable[[], None]) -> AsyncIterator[bytes]:
    async for each in rows:
        moved()
        yield each


@contextmanager
def _ends_if_still(connection: Connection) -> Iterator[Callable[[], None]]:
    """Cut the connection, and raise Expired, if nobody calls what this yields for STILL_S_MAX."""
    loop = asyncio.get_running_loop()
    last_s, expired = loop.time(), False

    def moved() -> None:
        nonlocal last_s
        last_s = loop.time()

    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer, expired
        if loop.time() - last_s < STILL_S_MAX:
            timer = loop.call_at(last_s + STILL_S_MAX, look)
            return
        expired = True
        connection.terminate()

    timer = loop.call_later(STILL_S_MAX, look)
    try:
        yield moved
    except Exception as error:
        if expired:
            raise Expired(f"nothing moved for {STILL_S_MAX:g} s") from error
        raise
    finally:
        timer.cancel()
