"""The ledger of readings of old days, and every place where such a reading may be.

Posts go on until `stop`: each one has readings of one old day, and that day changes often, so days
leave the table while others get readings. Each reading is on record before its first byte is sent.
Clients send again until they have an answer; some posts come again later.
Does not: use the service's code to read files or dead letters.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pyarrow.parquet as pq
from asyncpg import Record

from loadgen.proof.letter_sources import Local
from tests.faults.server import Server
from tests.system.service import Reply, Service

Row = tuple[int, str, str, float]  # ts in Unix microseconds, device_id, metric, value

DAY_US = 86_400_000_000
PREFIX = "years-"
DAYS = range(4, 10)  # before today; `keep_hot` of a YearsWorld is 2 days
ACKS = ("durable", "durable", "durable", "committed")  # of each client: some wait for the table
ANSWER_S_MAX = 15.0  # then a client gives up its try
STAYS_S = (0.3, 1.2)  # how long posts are about one day
PAUSES, PAUSE_S = 0.4, (0.8, 2.0)  # sometimes nobody posts: with rollups, days leave then
AGAIN = 0.05  # the share of posts that come again
KEPT_CODES = frozenset({"no_partition"})  # named in an answer, and they come back by themselves
_ROWS = "select (extract(epoch from ts) * 1000000)::int8, device_id, metric, value from {}"


class OldDays:
    """Posts to `services()`, from `start` to `stop`. `accepted` are readings with a 2xx."""

    def __init__(
        self, draw: random.Random, today_us: int, services: Callable[[], Sequence[Service]]
    ) -> None:
        self.sent: set[Row] = set()
        self.accepted: set[Row] = set()
        self.named: Counter[str] = Counter()  # valid items that an answer called bad, by code
        self.wrong: list[str] = []  # answers that no valid reading may get
        self.longest_s = 0.0
        self._draw = draw
        self._today_us = today_us
        self._services = services
        self._day = DAYS[0]
        self._pausing = False
        self._number = 0
        self._earlier: list[list[Row]] = []
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._go(ack)) for ack in ACKS]
        self._tasks.append(asyncio.create_task(self._change_day()))

    async def stop(self, within_s: float = 60.0) -> None:
        """End when each post has its answer. May be called again."""
        self._stopping.set()
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        _, left = await asyncio.wait(tasks, timeout=within_s)
        for each in left:
            each.cancel()
        for each in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await each

    async def _change_day(self) -> None:
        while not self._stopping.is_set():
            self._day = self._draw.choice(DAYS)
            await self._sleep(STAYS_S)
            if self._draw.random() < PAUSES:
                self._pausing = True
                await self._sleep(PAUSE_S)
                self._pausing = False

    async def _sleep(self, between_s: tuple[float, float]) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self._draw.uniform(*between_s))

    async def _go(self, ack: str) -> None:
        while not self._stopping.is_set():
            if self._earlier and self._draw.random() < AGAIN:
                rows = self._draw.choice(self._earlier)
            else:
                rows = self.rows(self._day, self._draw.choice((1, 10, 40)))
            if not self._pausing:
                await self.post(rows, ack)
            await asyncio.sleep(self._draw.uniform(0.02, 0.1))

    async def post_to_all(self) -> None:
        """Post new readings to each of the old days."""
        for each in DAYS:
            await self.post(self.rows(each, 5))

    def rows(self, days_back: int, count: int) -> list[Row]:
        """Draw new readings of a day."""
        draw = self._draw
        begin_us = self._today_us - days_back * DAY_US
        rows: list[Row] = []
        for _ in range(count):
            self._number += 1
            ts_us = begin_us + draw.randrange(DAY_US)
            device = f"{PREFIX}{draw.randrange(20)}"
            value = draw.choice((draw.uniform(-1e6, 1e6), round(draw.uniform(0, 40), 2)))
            rows.append((ts_us, device, f"m{self._number}", value))
        self._earlier.append(rows)
        return rows

    async def post(self, rows: Sequence[Row], ack: str = "durable") -> None:
        """Post readings, again and again until there is an answer."""
        items = [
            {"device_id": device, "metric": metric, "ts": ts, "value": value}
            for ts, device, metric, value in rows
        ]
        self.sent.update(rows)
        loop = asyncio.get_running_loop()
        while True:
            services = [each for each in self._services() if each.running and each.url]
            began_s = loop.time()
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    if not services:
                        raise OSError("nobody is there")
                    reply = await self._draw.choice(services).post(items, ack=ack)
            except (aiohttp.ClientError, OSError, TimeoutError, AssertionError, ValueError):
                await asyncio.sleep(0.1)
                continue
            if reply.status == 503:
                await asyncio.sleep(0.1)
                continue
            if ack == "durable":
                self.longest_s = max(self.longest_s, loop.time() - began_s)
            self._note(rows, reply)
            return

    def _note(self, rows: Sequence[Row], reply: Reply) -> None:
        if not 200 <= reply.status < 300:
            self.wrong.append(f"{reply.status}: {reply.text[:200]}")
            return
        errors = {each["index"]: each["code"] for each in reply.document["errors"]}
        self.named.update(errors.values())
        bad = {index for index, code in errors.items() if code not in KEPT_CODES}
        self.accepted.update(row for at, row in enumerate(rows) if at not in bad)


class Places(NamedTuple):
    """Where readings of old days are: how often each is in a place.

    `beside` are tables that were detached and not dropped. `waiting` are open dead letters that
    come back by themselves, `letters` all others.
    """

    table: Counter[Row]
    files: Counter[Row]
    beside: Counter[Row]
    waiting: Counter[Row]
    letters: Counter[Row]

    @property
    def kept(self) -> set[Row]:
        """All readings that are in some place."""
        return {row for place in self for row in place}

    @property
    def stored(self) -> Counter[Row]:
        """The readings that are where users look: in the table and in the files."""
        return self.table + self.files


async def look(server: Server, cold: Path, states: Iterable[Path]) -> Places:
    """Look into all places, the dead letters first: a reading leaves them for the table."""
    waiting, letters = Counter[Row](), Counter[Row]()
    for state in states:
        found = await asyncio.to_thread(Local(state).read, PREFIX)
        for each in found.letters:
            if each.row is not None:
                comes_back = each.reason in ("retries_exhausted", "drained")
                (waiting if comes_back else letters)[each.row] += 1
    table = Counter(map(_row, await server.ask(_ROWS.format("readings") + _OURS)))
    beside = Counter[Row]()
    for name in await detached(server):
        beside.update(map(_row, await server.ask(_ROWS.format(name) + _OURS)))
    return Places(table, await asyncio.to_thread(_in_files, cold), beside, waiting, letters)


_OURS = f" where device_id like '{PREFIX}%'"


def _row(record: Record) -> Row:
    return record[0], record[1], record[2], record[3]


async def detached(server: Server) -> list[str]:
    """Return the tables that were partitions and are none now."""
    rows = await server.ask(
        "select relname::text from pg_class where relkind = 'r' and not relispartition "
        r"and relname ~ '^readings_p\d+' order by 1"
    )
    return [each[0] for each in rows]


def _in_files(cold: Path) -> Counter[Row]:
    found = Counter[Row]()
    for path in sorted(cold.glob("[!.]*.parquet")):
        columns = pq.read_table(path).to_pydict()
        times = [round(each.timestamp() * 1_000_000) for each in columns["ts"]]
        rows = zip(times, columns["device_id"], columns["metric"], columns["value"], strict=True)
        found.update(rows)
    return found
