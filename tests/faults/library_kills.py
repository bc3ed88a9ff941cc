"""Kills a program of others that has the pipeline inside, and counts itself what was promised.

    python -m tests.faults.library_kills --kills 40

The program puts readings from many tasks, and writes down each put that was kept, on a pipe. After
each kill it starts again on the same state folder. At every fourth kill the database is killed too,
and comes back a little later. In the end the table must have each reading of each kept put, once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import ingest
from ingest.buffers.journal.segments import has_blocks
from tests.support import tcp_ports
from tests.support.documents import REPOSITORY
from tests.system.database import Database

FIRST_US = 1_764_000_000_000_000
OF_ONE_RUN = 100_000_000  # each reading has a time of its own, in microseconds
SIZES = (1, 7, 100)
ACKS: tuple[Any, ...] = ("durable", "committed")
TASKS = 24
SETTINGS: dict[str, Any] = {"journal_unsafe": True, "wait_s_max": 0.5, "partition_span": "none"}


class Counted(NamedTuple):
    """What was promised, what the table has, and how they differ."""

    kept: int
    stored: int
    lost: int
    twice: int

    def __str__(self) -> str:
        return f"kept {self.kept:,}, stored {self.stored:,}, lost {self.lost}, twice {self.twice}"


async def program(url: str, folder: str, first_us: int) -> None:
    """Be the program of others: put without end; write the first time and the size of what is kept.

    A put that is refused because of room, or because its commit is not known, is put again.
    """
    numbers = count(first_us)
    chosen = random.Random(first_us)

    async def put(pipeline: ingest.Pipeline) -> None:
        while True:
            size = chosen.choice(SIZES)
            begin = next(numbers)
            for _ in range(size - 1):
                next(numbers)
            some = [
                {"device_id": f"k{at % 50}", "metric": "m", "ts": begin + at, "value": 1.5}
                for at in range(size)
            ]
            try:
                kept = await pipeline.put(some, ack=chosen.choice(ACKS))
            except (ingest.BufferFull, ingest.Refused):
                await asyncio.sleep(0.01)
                continue
            assert kept.accepted == size, kept
            os.write(sys.stdout.fileno(), b"%d %d\n" % (begin, size))

    async with ingest.Pipeline(url, state_dir=folder, **SETTINGS) as pipeline:
        await asyncio.gather(*(put(pipeline) for _ in range(TASKS)))


async def killed(url: str, folder: Path, first_us: int, alive_s: float) -> set[int]:
    """Run the program, kill it after a while; return the times of the readings that are kept."""
    words = ("-m", __spec__.name, "child", url, str(folder), str(first_us))
    child = await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    first = await child.stdout.readline()  # it works
    asyncio.get_running_loop().call_later(alive_s, child.kill)
    lines = (first + await child.stdout.read()).split(b"\n")[:-1]  # the last one may be a part
    assert await child.wait() == -9, "it has ended by itself"
    kept: set[int] = set()
    for begin, size in (map(int, line.split()) for line in lines):
        kept.update(range(begin, begin + size))
    return kept


async def run(folder: Path, kills: int, seed: int = 1) -> Counted:
    """Kill so many times; let a last program store what is left; count."""
    chosen, kept = random.Random(seed), set[int]()
    async with Database(folder / "db", tcp_ports.free_port()) as database:
        state = folder / "state"
        for number in range(kills):
            first_us = FIRST_US + number * OF_ONE_RUN
            kept |= await killed(database.url, state, first_us, 0.2 + chosen.random())
            if number % 4 == 3:
                await database.kill()
                first_us += OF_ONE_RUN // 2  # a program that finds no database, killed too
                kept |= await killed(database.url, state, first_us, chosen.random())
                await database.start()
            print(f"kill {number + 1}: {len(kept):,} readings are kept", file=sys.stderr)
        while has_blocks(state / "journal"):
            async with ingest.Pipeline(database.url, state_dir=state, **SETTINGS):
                await asyncio.sleep(1)
        rows = await database.run(
            "select (extract(epoch from ts) * 1000000)::bigint, count(*) from readings group by 1"
        )
    stored = {each[0] for each in rows}
    twice = sum(each[1] > 1 for each in rows)
    return Counted(len(kept), len(stored), len(kept - stored), twice)


def main() -> int:
    """Run with the arguments; 1 if a reading is lost, or is there twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="library-kills-") as folder:
        Path(folder).chmod(0o755)
        counted = asyncio.run(run(Path(folder), args.kills, args.seed))
    print(counted, file=sys.stderr)
    return 1 if counted.lost or counted.twice else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        asyncio.run(program(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    sys.exit(main())
