"""Records what a checkout leaves: a database with rollups, and a state folder of `ingest up`.

`python -m tests.path.recorded.record_up --checkout FOLDER --name 102f91b0` (default: this
repository) writes them, and the folder of record_state.py. `database-NAME.sql` has the readings of
several days, each in its partition, the registry of the housekeeping, rollups, and late readings
that no rollup has yet. The folder `up-NAME` is that of a `serve` and then of an `up`, which was
killed while the database was away. The stream has what was posted to `up`, and so has the stream of
the dead letters. `up-NAME.json` has the acknowledged readings. (In that of 102f91b0 a half of both
came from the journal of `serve`, which `up` took over at that time.)
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingest.embedded.programs import find_binaries
from ingest.system.files import is_locked
from tests.path.recorded import record_state
from tests.path.recorded.record import HERE, REPOSITORY, databases
from tests.path.recorded.record_state import Forwarder, Row, post, rows, text_of
from tests.path.recorded.service import Running, command

DAY_US = 86_400_000_000
DAYS = 4
LATE: dict[str, Any] = {"rollups": True}
# A dump names the version of its server and a key against a hostile one: psql's own commands.
_OF_PSQL = re.compile(r"^(\\|-- Dumped ).*\n", re.MULTILINE)


def days(device: str, count: int) -> list[Row]:
    """Return readings of several days that no other call returns."""
    made = rows(device, count)
    return [[ts_us + n % DAYS * DAY_US, *rest] for n, (ts_us, *rest) in enumerate(made)]


async def record(checkout: Path, folder: Path) -> tuple[str, dict[str, list[Row]]]:
    """Leave the state folder in `folder / "up"`; return the dump, and the acknowledged readings."""
    state_dir = folder / "up"
    async with databases(checkout, folder, "years") as urls, Forwarder(urls["years"]) as forwarder:
        flags = {"rollups": True, "database-url": urls["years"], "database-unsafe": True}
        words = [f"--{flag}={str(value).lower()}" for flag, value in flags.items()]
        settings = {**LATE, "housekeeping": False}
        async with Running(checkout, state_dir, forwarder.url, settings) as service:
            await service.wait_state("accepting")
            table = await post(service, days("rolled", 40))
            await service.wait_quiet()
            done = await command(checkout, "housekeeping", "run", "--yes", *words)
            assert done.code == 0, done
            table += await post(service, days("late", 20))  # no rollup has them
            await service.wait_quiet()
            dump = _dump_of(urls["years"])
            forwarder.cut()
            service.kill()  # with nothing in its journal: else `up` would not start
        async with Running(checkout, state_dir, forwarder.url, LATE, "up") as up:
            stream = await post(up, days("of-up", 60), {"bad": "of up"}, {"bad": "too"})
            up.kill()
        await _broker_ended(state_dir)
    for path in (state_dir / "broker").glob("server.*"):  # with paths and ports of this machine
        path.unlink()
    return dump, {"table": table, "stream": stream}


def _dump_of(url: str) -> str:
    """Return the statements that make a database anew."""
    words = ["--no-owner", "--no-privileges", "--rows-per-insert=50", "--dbname", url]
    program = find_binaries() / "pg_dump"
    done = subprocess.run([program, *words], check=True, capture_output=True, text=True)
    return _OF_PSQL.sub("", done.stdout)


async def _broker_ended(state_dir: Path) -> None:
    """Wait until the killed one's nats-server has ended, too."""
    async with asyncio.timeout(20):
        while is_locked(state_dir / "broker" / "server.lock"):  # noqa: ASYNC110  another process
            await asyncio.sleep(0.05)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record and write the files."""
    parser = argparse.ArgumentParser(prog="python -m tests.path.recorded.record_up")
    parser.add_argument("--checkout", type=Path, default=REPOSITORY, help="the code to record")
    parser.add_argument("--name", required=True, help="its commit")
    chosen = parser.parse_args(arguments)
    state, up = (HERE / f"{kind}-{chosen.name}" for kind in ("state", "up"))
    with tempfile.TemporaryDirectory(prefix="ingest-record-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        checkout = chosen.checkout.resolve()
        expected = asyncio.run(record_state.record(checkout, folder, state))
        dump, acknowledged = asyncio.run(record(checkout, folder))
        shutil.rmtree(up, ignore_errors=True)
        shutil.copytree(folder / "up", up)
    state.with_suffix(".json").write_text(text_of(expected))
    up.with_suffix(".json").write_text(text_of(dict(acknowledged)))
    (HERE / f"database-{chosen.name}.sql").write_text(dump)
    return 0


if __name__ == "__main__":
    sys.exit(main())
