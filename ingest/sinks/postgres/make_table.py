"""Makes the table at the start if it is missing, and if the setting `schema_apply` allows it.

Does not: change a table that exists, or raise if it fails. It logs why, and the check of the table
that follows decides.
"""

from __future__ import annotations

import asyncpg
from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.model.verdict import Verdict
from ingest.sinks.postgres import connection as sink_connection
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.connection import DRIVER_ERRORS, Timeouts, text_of
from ingest.sinks.postgres.housekeeping.ahead import PartitionsAhead
from ingest.sinks.postgres.housekeeping.opening import opened_as
from ingest.sinks.postgres.housekeeping.spans import NONE
from ingest.sinks.postgres.housekeeping.view import look_at
from ingest.sinks.postgres.sqlstate import verdict_for
from ingest.sinks.postgres.target import READINGS, TargetTable
from ingest.system.logs import get_logger
from ingest.system.words import counted

NAME = "iot-ingest schema"  # as pg_stat_activity shows it
_HAS_TIMESCALEDB = "select exists (select from pg_extension where extname = 'timescaledb')"


async def first_partitions(
    connection: Connection, span: str, ahead: PartitionsAhead, target: TargetTable = READINGS
) -> schema.OnMade | None:
    """Return what makes the first partitions of a new table; None if it is to have none.

    TimescaleDB can make a hypertable of a plain table only, and then makes the chunks itself.
    """
    if span == NONE or await connection.fetchval(_HAS_TIMESCALEDB):
        return None

    async def begin(connection: Connection) -> list[str]:
        view = await look_at(connection, target.name, span, target=target)
        made = await ahead.begin(connection, view._replace(span=span))
        return [f"made {counted(made, 'partition')}, one for each {span}"]

    return begin


async def make_table(
    database_url: str, target: TargetTable, timeouts: Timeouts, *, span: str, ahead: PartitionsAhead
) -> bool:
    """Connect, create the table if it is missing, and disconnect. Raises no error of the driver.

    It has a partition for each `span`, which may be `none`. Returns False if another try may help:
    the server was away, or the table was locked.
    """
    try:
        async with opened_as(NAME, database_url, timeouts) as connection:
            # The commit of a new table may wait for a standby, for which the server has no limit.
            with sink_connection.deadline(connection, timeouts.command_s_max):
                partitions = await first_partitions(connection, span, ahead, target)
                await schema.apply(connection, target, partitions=partitions)
    except (asyncpg.PostgresError, *DRIVER_ERRORS, StartError) as error:
        get_logger("schema").warning("table_not_made", why=text_of(error))
        verdict = verdict_for(getattr(error, "sqlstate", None))
        return isinstance(error, StartError) or verdict not in (Verdict.WAIT, Verdict.RETRY)
    return True
