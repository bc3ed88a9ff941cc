"""Looks up the last readings of one device in the table, so that an installer can check a sensor.

It reads on a connection of its own, one query at a time. A query waits at most LOOKUP_S_MAX for
the ones before it, and then takes at most LOOKUP_S_MAX. It may be slow: the key begins with `ts`.
So without an index for devices, the server searches through all readings that came since the last
one of the device.
Does not: change anything in the database.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
from asyncpg import Connection

from ingest.model.errors import Refused
from ingest.sinks.postgres import connection as sink_connection
from ingest.sinks.postgres.connection import DRIVER_ERRORS, DatabaseUrl, Expired, OneConnection
from ingest.sinks.postgres.schema import TABLE
from ingest.system.clock import rfc3339

LOOKUP_S_MAX = 3.0
WAITING_MAX = 8
READINGS_MAX = 500
_SQL = f"""select (extract(epoch from ts) * 1000000)::int8 as ts_us, metric, value from {TABLE}
where device_id = $1 order by ts desc limit $2"""  # noqa: S608  a constant of ours
_QUERY_CANCELED = "57014"


class Lookup(OneConnection):
    """Looks up readings in the database of `database_url`. It connects when first needed."""

    def __init__(self, database_url: DatabaseUrl) -> None:
        super().__init__()
        self._database_url = database_url
        self._queue = asyncio.Lock()
        self._waiting = 0

    async def last_readings(self, device_id: str, count: int) -> list[dict[str, Any]]:
        """Return at most `count` readings, newest `ts` first. Raises Refused.

        `ts` is RFC 3339, or Unix microseconds if its year is not between 1 and 9999.
        """
        if self._waiting >= WAITING_MAX:
            raise Refused("busy", "too many ask for readings at once", retry_after_s=2)
        self._waiting += 1
        try:
            await self._wait_in_queue()
            try:
                return await self._ask(device_id, min(count, READINGS_MAX))
            finally:
                self._queue.release()
        finally:
            self._waiting -= 1

    async def _wait_in_queue(self) -> None:
        """Wait for the queries before this one, which may wait for a database that is away."""
        try:
            async with asyncio.timeout(LOOKUP_S_MAX):
                await self._queue.acquire()
        except TimeoutError as error:
            raise Refused("busy", "others wait for the database too", retry_after_s=2) from error

    async def _ask(self, device_id: str, count: int) -> list[dict[str, Any]]:
        sound = False
        try:
            async with asyncio.timeout(LOOKUP_S_MAX):
                connection = await self._open()
            with sink_connection.deadline(connection, LOOKUP_S_MAX + 1):
                rows = await connection.fetch(_SQL, device_id, count)
            sound = True
        except asyncpg.PostgresError as error:
            if error.sqlstate == _QUERY_CANCELED:
                sound = True
                raise _too_slow() from error
            raise Refused("database_away", "the database does not answer the question") from error
        except (Expired, TimeoutError) as error:  # not even the error that it takes too long
            raise Refused("database_away", "the database does not answer") from error
        except (*DRIVER_ERRORS, ValueError) as error:
            raise Refused("database_away", "the database cannot be reached") from error
        finally:
            if not sound:
                self.drop()
        return [
            {"ts": _when(row["ts_us"]), "metric": row["metric"], "value": row["value"]}
            for row in rows
        ]

    async def _open(self) -> Connection:
        if self.connection is None or not self.is_open:
            self.connection = await sink_connection.connect(
                self._database_url(),
                name="iot-ingest dashboard",
                statement_s_max=LOOKUP_S_MAX,
                lock_s_max=1.0,
            )
        return self.connection


def _too_slow() -> Refused:
    return Refused(
        "database_away",
        f"not found within {LOOKUP_S_MAX:g} s: for such questions the table needs the index of "
        "`ingest schema apply --device-index`",
    )


def _when(ts_us: int) -> str | int:
    try:
        return rfc3339(ts_us)
    except OverflowError:
        return ts_us
