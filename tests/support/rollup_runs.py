"""`python -m tests.support.rollup_runs URL`: runs the rollups until it is killed."""

from __future__ import annotations

import asyncio
import sys

import asyncpg

from ingest.sinks.postgres.housekeeping import plan, rollup_run
from ingest.sinks.postgres.housekeeping.rollups import Rollups
from ingest.sinks.postgres.housekeeping.view import look_at


async def main(url: str) -> None:
    """Run without an end. Many small transactions: so a kill comes in the middle of them."""
    rollup_run.KEYS_MAX = 3
    connection = await asyncpg.connect(url, server_settings={"timezone": "UTC"})
    job = Rollups(wanted=True)
    while True:
        try:
            await plan.run(connection, await look_at(connection, "readings", "none"), [job])
        except plan.OtherRun:  # the server still ends a run that was killed
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
