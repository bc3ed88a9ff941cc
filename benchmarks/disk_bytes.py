"""What a reading takes on the disk: in PostgreSQL, in Parquet, in InfluxDB 1.x, VictoriaMetrics.

`python -m benchmarks.disk_bytes --rows 1000000`: gives all of them the same readings, lets each do
what it does later by itself (compaction, merge), and adds up the files. The readings are random
walks in steps of 0.1, of which half stay the same, with random microseconds; VictoriaMetrics keeps
milliseconds. Sizes do not depend on other work of the machine.
"""

from __future__ import annotations

import argparse
import random
import time
import urllib.request
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import uvloop

from benchmarks import peers
from benchmarks.database import connected, fresh_table
from benchmarks.processes import Broken, fetch, scratch
from benchmarks.service import Service
from ingest.sinks.postgres.target import TABLE

DEVICES, METRICS = 1_000, ("temperature", "humidity", "pressure", "battery")
EVERY_US = 10_000_000
FIRST_US = 1_790_000_000_000_000
POST_ROWS = 10_000
QUIET_S, QUIET_S_MAX = 15.0, 300.0
Item = tuple[int, str, str, float]


def items(rows: int, seed: int = 1) -> Iterator[Item]:
    """Yield ts, device, metric and value, round after round."""
    draw = random.Random(seed)
    now = {
        (f"room-{at:04d}", metric): draw.randrange(150, 300)
        for at in range(DEVICES)
        for metric in METRICS
    }
    for number in range(rows // len(now)):
        for series, tenths in now.items():
            step = draw.choice((-1, 1)) if draw.random() < 0.5 else 0
            now[series] = tenths + step
            at_us = FIRST_US + number * EVERY_US + draw.randrange(EVERY_US)
            yield at_us, *series, (tenths + step) / 10


def pieces(all_items: Iterator[Item]) -> Iterator[tuple[Item, ...]]:
    """Yield POST_ROWS of them at a time."""
    while some := tuple(islice(all_items, POST_ROWS)):
        yield some


def lines(some: tuple[Item, ...]) -> bytes:
    """Return readings as line protocol."""
    return "".join(
        f"{metric},device_id={device} value={value:.1f} {at_us}\n"
        for at_us, device, metric, value in some
    ).encode()


def disk_bytes(folder: Path) -> int:
    """Return what all files below a folder take on the disk. Some are mostly holes."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def settled(folder: Path) -> int:
    """Wait until the files have not changed for a while; return their size."""
    before, since_s = -1, time.monotonic()
    end_s = since_s + QUIET_S_MAX
    while time.monotonic() < end_s:
        now = disk_bytes(folder)
        if now != before:
            before, since_s = now, time.monotonic()
        elif time.monotonic() - since_s > QUIET_S:
            return now
        time.sleep(1)
    return before


def of_influx(rows: int) -> float:
    """Return the bytes a reading of InfluxDB 1.x, after its compaction."""
    settings = peers.INFLUX_SETTINGS
    # By default it compacts a shard that is cold for hours. The files are the same.
    cold = """  cache-snapshot-write-cold-duration = "2s"
  compact-full-write-cold-duration = "4s"
"""
    peers.INFLUX_SETTINGS = settings.replace("[http]", f"{cold}[http]")
    try:
        with scratch() as folder, peers.influx(folder) as peer:
            _post_all(peer, rows)
            size = settled(folder / "data") + disk_bytes(folder / "wal")
    finally:
        peers.INFLUX_SETTINGS = settings
    return size / rows


def of_victoria(rows: int) -> float:
    """Return the bytes a reading of VictoriaMetrics, after its merge."""
    with scratch() as folder, peers.victoria(folder) as peer:
        _post_all(peer, rows)
        for task in ("force_flush", "force_merge"):
            fetch(f"http://127.0.0.1:{peer.port}/internal/{task}")
        size = settled(folder / "data")
    return size / rows


def _post_all(peer: peers.Peer, rows: int) -> None:
    url = f"http://127.0.0.1:{peer.port}{peer.target}"
    for some in pieces(items(rows)):
        with urllib.request.urlopen(urllib.request.Request(url, lines(some)), timeout=60) as answer:
            if answer.status >= 300:
                raise Broken(f"{peer.child.name} answered {answer.status}")
    peers.check_count(peer, rows, unanswered=0)


async def _of_table(url: str, rows: int) -> tuple[float, float]:
    """Return the bytes a reading of the table and of its key."""
    async with connected(url) as connection:
        for some in pieces(items(rows)):
            await connection.execute(
                f"insert into {TABLE} select to_timestamp(t / 1e6), d, m, v "
                "from unnest($1::int8[], $2::text[], $3::text[], $4::float8[]) r (t, d, m, v)",
                *map(list, zip(*some, strict=True)),
            )
        await connection.execute(f"vacuum {TABLE}")
        (row,) = await connection.fetch(
            "select pg_table_size($1::text) as heap, pg_indexes_size($1::text) as keys", TABLE
        )
    return row["heap"] / rows, row["keys"] / rows


def main() -> None:
    """Print one line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disk_bytes", allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows // (DEVICES * len(METRICS)) * DEVICES * len(METRICS)
    with scratch() as folder, Service(folder / "state") as service:
        fresh_table(service.database_url)
        heap, keys = uvloop.run(_of_table(service.database_url, rows))
    print(f"PostgreSQL: {heap + keys:.1f} bytes a reading (heap {heap:.1f}, key {keys:.1f})")
    print(f"InfluxDB 1.x: {of_influx(rows):.2f} bytes a reading")
    print(f"VictoriaMetrics: {of_victoria(rows):.2f} bytes a reading")


if __name__ == "__main__":
    main()
