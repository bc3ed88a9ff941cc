"""The sink beside the driver's COPY of ready bytes: `python -m benchmarks.bench_sink`.

Rows a second over 2 connections into a fresh keyed table, every fact new, alternating runs; then
the idempotent path with no and with only duplicates, and the INSERT method. A throw-away embedded
PostgreSQL with durable defaults, or the server of `--database-url` (its `readings` is dropped).
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import asyncpg
import uvloop

from ingest.block import HEADER, TRAILER, encode_reading
from ingest.clock import monotonic_s
from ingest.config import Settings
from ingest.postgres_embedded import EmbeddedPostgres
from ingest.reading import Reading
from ingest.schema import KEY, TABLE, apply
from ingest.sink_postgres import SinkPostgres

CONNECTIONS = 2
POST_ROWS = 100
START_US = 1_760_000_000_000_000

Batches = list[Sequence[bytes]]
Write = Callable[[Sequence[bytes], int], Awaitable[object]]


def make_batches(rows: int, batch_rows: int) -> Batches:
    """Encode `rows` facts of 200 devices as batches of posts of 100."""
    posts = [
        b"".join(
            encode_reading(Reading(START_US + n * 50, f"sensor-{n % 200:04}", "temperature", n / 8))
            for n in range(at, at + POST_ROWS)
        )
        for at in range(0, rows, POST_ROWS)
    ]
    size = batch_rows // POST_ROWS
    return [posts[at : at + size] for at in range(0, len(posts), size)]


async def timed(writes: Sequence[Write], batches: Batches, batch_rows: int) -> float:
    """Write all batches, each writer its share; return rows a second."""

    async def share(number: int, write: Write) -> None:
        for batch in batches[number :: len(writes)]:
            await write(batch, batch_rows)

    began_s = monotonic_s()
    await asyncio.gather(*(share(number, write) for number, write in enumerate(writes)))
    return len(batches) * batch_rows / (monotonic_s() - began_s)


def copy_of_ready_bytes(connection: asyncpg.Connection) -> Write:
    """Give the floor: the driver alone, one COPY a batch."""

    async def write(batch: Sequence[bytes], _: int) -> None:
        await connection.copy_to_table(
            TABLE,
            source=memoryview(b"".join((HEADER, *batch, TRAILER))),  # type: ignore[arg-type]
            columns=KEY,
            format="binary",
        )

    return write


def by_sink(sink: SinkPostgres, *, idempotent: bool = False) -> Write:
    """Give a sink's write."""
    return lambda batch, rows: sink.write(batch, rows, idempotent=idempotent)


async def compare(url: str, rows: int, batch_rows: int, runs: int) -> None:
    """Print the medians of alternating runs."""
    operator = await asyncpg.connect(url)
    drivers = [await asyncpg.connect(url) for _ in range(CONNECTIONS)]
    sinks = [SinkPostgres(url, Settings()) for _ in range(CONNECTIONS)]
    inserting = [SinkPostgres(url, Settings(write_method="insert")) for _ in range(CONNECTIONS)]
    batches = make_batches(rows, batch_rows)
    kinds: dict[str, list[Write]] = {
        "driver's COPY": [copy_of_ready_bytes(each) for each in drivers],
        "sink": [by_sink(each) for each in sinks],
        "sink, idempotent": [by_sink(each, idempotent=True) for each in sinks],
        "sink, all there": [by_sink(each, idempotent=True) for each in sinks],
        "sink, insert": [by_sink(each) for each in inserting],
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(runs):
        for kind, writes in kinds.items():
            if kind != "sink, all there":
                await operator.execute(f"drop table if exists {TABLE}")
                await apply(operator)
                await operator.execute("checkpoint")
                for each in (*sinks, *inserting):
                    await each.close()
                    await each.open()
            rates[kind].append(await timed(writes, batches, batch_rows))
    floor = statistics.median(rates["driver's COPY"])
    for kind, each_run in rates.items():
        median = statistics.median(each_run)
        spread = f"{min(each_run):,.0f} to {max(each_run):,.0f}"
        print(f"{batch_rows:>6} {kind:<18} {median:>10,.0f} rows/s  {median / floor:.2f}  {spread}")
    for connection in (operator, *drivers):
        await connection.close()
    for each in (*sinks, *inserting):
        await each.close()


async def main() -> None:
    """Read the flags and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", default="")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=5)
    flags = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-sink-", dir="/var/tmp"))
    folder.chmod(0o755)
    embedded = None if flags.database_url else EmbeddedPostgres(folder / "postgres")
    try:
        url = flags.database_url or (await embedded.start() if embedded else "")
        for batch_rows in (100, 1_000, 5_000):
            await compare(url, min(flags.rows, batch_rows * 400), batch_rows, flags.runs)
    finally:
        if embedded is not None:
            await embedded.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    uvloop.run(main())
