"""The archive: bytes a reading, readings a second from the table to the verified file, memory.

`python -m benchmarks.archive --rows 20000000 --kind fleet`: fills a detached partition with the
readings of the load generator's fleet, and archives it in a process of its own, whose greatest
memory is read. The time is that of everything: checksum in SQL, COPY, sorting, writing, verifying.
`--kind nab`: each sensor's steps are drawn from those of the two files of the Numenta Anomaly
Benchmark (INGEST_TEST_DATA), so that no series is repeated. Timings of a busy machine have no
meaning. It needs disk of some 300 bytes a reading in TMPDIR.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path

import asyncpg
import uvloop

from benchmarks.database import connected, running_database
from benchmarks.machine import environment
from benchmarks.processes import REPOSITORY, scratch
from ingest.archive.archiver import ParquetArchiver
from ingest.archive.folder import ArchiveFolder
from ingest.model.rows import HEADER, PG_EPOCH_US, TRAILER, encode_rows, names_between
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import archived, registry
from ingest.sinks.postgres.housekeeping.archive_rows import RowsTable
from ingest.sinks.postgres.housekeeping.archiving import Detached
from loadgen.traffic.fleet import make_fleet

PARTITION = "readings_p20261126"
FROM_US = 1_795_651_200_000_000
DAY_US = 86_400_000_000
DEVICES = 2_000
NAB_FILES = ("ambient_temperature_system_failure.csv", "machine_temperature_system_failure.csv")
Item = tuple[int, bytes, float]


def fleet_items(rows: int, seed: int) -> Iterator[Item]:
    """Yield readings of the load generator's fleet in the order in which they are posted."""
    fleet = make_fleet(DEVICES, seed)
    draw = random.Random(seed)
    rounds = rows // (2 * DEVICES)
    step_us = DAY_US // rounds
    phases = [draw.randrange(step_us) for _ in fleet]
    names = {
        (each.name, metric): names_between(each.name, metric)
        for each in fleet
        for metric in each.measure(0.0)
    }
    for number in range(rounds):
        for device, phase in zip(fleet, phases, strict=True):
            at_us = number * step_us + phase + draw.randrange(1_000)
            for metric, value in device.measure((FROM_US + at_us) / 1e6).items():
                yield FROM_US + at_us, names[device.name, metric], float(value)


def nab_items(rows: int, seed: int) -> Iterator[Item]:
    """Yield readings like those of the two files: one in some whole seconds, eight decimals."""
    folder = Path(os.environ.get("INGEST_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    series = []
    for name in NAB_FILES:
        with (folder / "nab" / name).open() as file:
            series.append([float(row["value"]) for row in csv.DictReader(file)])
    steps = [[b - a for a, b in pairwise(each)] for each in series]
    draw = random.Random(seed)
    sensors = DEVICES
    names = [names_between(f"machine-{at:05d}", "temperature") for at in range(sensors)]
    now = [draw.choice(series[at % 2]) for at in range(sensors)]
    rounds = rows // sensors
    for number in range(rounds):
        at_us = FROM_US + number * DAY_US // rounds // 1_000_000 * 1_000_000
        for at in range(sensors):
            value = now[at] + draw.choice(steps[at % 2])
            now[at] = value if 0 < value < 120 else draw.choice(series[at % 2])
            yield at_us, names[at], round(now[at], 8)


async def fill(connection: asyncpg.Connection, items: Iterator[Item]) -> None:
    """Make the partition, with its key, and store the readings in it."""
    await schema.apply(connection)
    await registry.make(connection, "readings")
    await connection.execute(f"create table {PARTITION} (like readings including all)")

    async def source() -> AsyncIterator[bytes]:
        yield HEADER
        while some := [item for _, item in zip(range(20_000), items, strict=False)]:
            times, names, values = zip(*some, strict=True)
            yield encode_rows([each - PG_EPOCH_US for each in times], names, values)
        yield TRAILER

    await connection.copy_to_table(PARTITION, source=source(), format="binary", timeout=86_400)
    await connection.execute("checkpoint")


async def archive(url: str, folder: Path) -> dict[str, float]:
    """Archive the partition, and return the figures of this process."""
    async with connected(url) as connection:
        source = Detached(
            connection, "readings", RowsTable("public", PARTITION), FROM_US, FROM_US + DAY_US
        )
        started_s = time.monotonic()
        await ParquetArchiver(ArchiveFolder(folder)).archive(source)
        took_s = time.monotonic() - started_s
        (found,) = await archived.contents(connection, "readings")
    status = Path("/proc/self/status").read_text()
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    return {
        "readings": found.rows,
        "bytes_a_reading": found.bytes / found.rows,
        "readings_a_second": found.rows / took_s,
        "cpu_us_a_reading": 1e6 * sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) / found.rows,
        "peak_rss_mb": peak_kib * 1024 / 1e6,
    }


def main() -> int:
    """Fill, archive in a child, print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.archive", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--kind", choices=("fleet", "nab"), default="fleet")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(uvloop.run(archive(args.child[0], Path(args.child[1])))))
        return 0
    items = (fleet_items if args.kind == "fleet" else nab_items)(args.rows, args.seed)
    with scratch() as folder, running_database() as database:
        database.run(fill(database.connection, items))
        words = [sys.executable, "-m", "benchmarks.archive", "--child", database.url]
        process = subprocess.run(
            [*words, str(folder / "archive")], capture_output=True, text=True, check=False
        )
    if process.returncode:
        print(process.stderr, file=sys.stderr)
        return 1
    print(json.dumps({"kind": args.kind, **json.loads(process.stdout)}, indent=2))
    print(json.dumps(environment(), indent=2), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
