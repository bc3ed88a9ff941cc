"""One table as one connection knows it: its statements, and what was met in its writes.

Does not: decide when the table is checked; the driver's errors pass through.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncpg import Connection

from ingest.model.causes import PERMISSION, SCHEMA, WriteFailed
from ingest.sinks.postgres.column_statements import ColumnStatements, column_statements_for
from ingest.sinks.postgres.schema import ColumnTarget, Look, Target, look, not_granted
from ingest.sinks.postgres.statements import Statements, statements_for

# After so many writes in a row with readings that found their place taken, the next ones probably
# have some too. Then the idempotent path is used until so many writes in a row had none.
_CONFLICT_RUN = 2
_IDEMPOTENT_STAY = 20


@dataclass(slots=True)
class CheckedTable:
    """What is known about one table on one connection.

    `sql` is None if the table must be checked in full before the next write. `refuses_copy`:
    because of row-level security, or since a trigger leaves out rows of it; INSERT works.
    """

    sql: Statements | ColumnStatements | None = None
    checked_s: float = float("-inf")
    has_staging: bool = False
    refuses_copy: bool = False
    conflict_run: int = 0
    idempotent_left: int = 0

    async def prepare(self, connection: Connection, found: Look, readings: Target) -> None:
        """Make the statements for what the full check has found."""
        if isinstance(found.target, ColumnTarget):
            sql: Statements | ColumnStatements = column_statements_for(found, readings)
        else:
            sql = statements_for(found)
        await connection.execute(sql.prepare)
        self.sql = sql

    @property
    def statements(self) -> Statements | ColumnStatements:
        """The statements for the table, which was checked."""
        assert self.sql is not None, "it is checked before it is written to"
        return self.sql

    @property
    def takes_copy(self) -> bool:
        """Whether a plain COPY will probably do."""
        return not (self.refuses_copy or self.idempotent_left)

    def written(self, conflicts: int) -> None:
        """Remember whether readings of a write found their place taken: that fails a whole COPY.

        They may be new all the same, if they then were stored in another place.
        """
        if conflicts == 0:
            self.conflict_run = 0
            self.idempotent_left = max(0, self.idempotent_left - 1)
            return
        self.conflict_run += 1
        if self.conflict_run >= _CONFLICT_RUN:
            self.idempotent_left = _IDEMPOTENT_STAY


async def explain(connection: Connection, target: Target, failed: WriteFailed) -> bool:
    """Say in `failed` how this table differs, or which right on it lacks; or return False."""
    if failed.reason not in (PERMISSION, SCHEMA):
        return False
    text = None
    if failed.reason == PERMISSION:
        text = await not_granted(connection, target)
        if text is None:
            return False
        failed.message, failed.may_be_row = text, False
    # Another table, or a view, may have this name now.
    seen = await look(connection, target)
    if seen.difference is not None:
        failed.message = "; ".join(filter(None, (seen.difference, text)))
        failed.may_be_row, failed.reason = False, SCHEMA
    return text is not None or seen.difference is not None
