"""Any sequence of posts, kills and declarations: each fact stands once over all tables.

Everything is real. What must be there is known by who writes the posts (support/moments.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

from ingest.system.clock import rfc3339, unix_us
from tests.support.commands import Here
from tests.support.moments import SOURCE, Fact, Moment, Post, a_moment, a_post, altered, uniform
from tests.system.database import Database
from tests.system.service import Service
from tests.system.test_kill_9 import QUICK

# What is declared from one run of the service to the next one. The first has nothing.
DECLARED = (
    'name = "climate"\nmetrics = ["temperature", "humidity", "co2"]',
    'name = "cpu"\nmeasurement = "cpu"\nfields = ["idle", "user"]',
    'name = "climate"\nmetrics = ["noise"]',
    'name = "power"\nmeasurement = "power"\nfields = ["peak", "value"]',
    'name = "cpu"\nmeasurement = "cpu"\nfields = ["steal"]',
)
AGE_US = 50_000_000  # the times of an age; what is declared in it begins in its middle
UNWANTED = 7.0  # a value of VALUES: constraints of the user may refuse it
# The tables of readings, and their columns of values.
COLUMNS = """
select c.relname::text, array_agg(a.attname::text) from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.atttypid = 'float8'::regtype
where c.relkind in ('r', 'p') and not c.relispartition
  and c.relnamespace = 'public'::regnamespace
group by 1"""
FACTS = "select (extract(epoch from ts) * 1000000)::int8, device_id, metric, value from {}"


class World:
    """A service that is posted to, and what was acknowledged."""

    def __init__(self, folder: Path, seed: int, database: Database) -> None:
        self.draw = random.Random(seed)
        self.folder = folder
        self.database = database
        self.begin_us = unix_us() // 1_000_000 * 1_000_000 - 3_600_000_000
        self.age = 0
        self.facts: set[Fact] = set()
        self.posts: list[Post] = []
        self.moments: list[Moment] = []
        self.file = folder / "tables.toml"
        (folder / "sources.toml").write_text(SOURCE)

    def service(self) -> Service:
        """Return the service with what is declared by now; there is one at a time."""
        settings: dict[str, Any] = {**QUICK, "sources_file": self.folder / "sources.toml"}
        if self.file.exists():
            settings["tables_file"] = self.file
        return Service(
            self.folder / "state",
            database_url=self.database.url,
            ack_default="durable",
            **settings,
        )

    def declare(self, declared: str) -> None:
        """Begin a new age of times; in its middle these columns begin."""
        self.age += 1
        since = rfc3339(self.begin_us + self.age * AGE_US + AGE_US // 2)
        with self.file.open("a") as file:
            file.write(f"[[table]]\n{declared}\nsince = {since}\n")

    def times_us(self) -> list[int]:
        """Draw some times of all ages."""
        ends = [self.begin_us + age * AGE_US for age in range(1, self.age + 2)]
        return [end - self.draw.choice((1, AGE_US // 2, AGE_US // 2 + 1)) for end in ends]

    def a_post(self) -> Post:
        """Draw a post: a new one, one that was sent before, or with moments that were sent."""
        if self.posts and self.draw.random() < 0.2:
            return self.draw.choice(self.posts)
        if self.draw.random() < 0.15:
            moments = uniform(self.draw, self.draw.choice(self.times_us()) - 50, 200)
        else:
            times_us, moments = self.times_us(), []
            for _ in range(self.draw.choice((1, 1, 4, 12))):
                if self.moments and self.draw.random() < 0.5:
                    moments.append(altered(self.draw, self.draw.choice(self.moments)))
                else:
                    moments.append(a_moment(self.draw, times_us))
            self.moments += moments
        self.posts.append(a_post(self.draw, moments))
        return self.posts[-1]

    async def send(self, service: Service, count: int) -> None:
        """Send posts; each must be kept."""
        for _ in range(count):
            post = self.a_post()
            answer = await service.request(
                "POST",
                service.url + post.path,
                body=post.body,
                headers={"Content-Type": post.media_type},
            )
            assert answer.status in (200, 202, 204), (answer.text, post.body)
            self.facts |= post.facts

    async def set_constraints(self, *, there: bool) -> None:
        """Let the declared tables and `readings` refuse a value, or no longer."""
        for table, columns in await self.database.run(COLUMNS):
            wanted = " and ".join(f'"{each}" is distinct from {UNWANTED}' for each in columns)
            await self.database.run(
                f"alter table {table} add constraint wanted check ({wanted}) not valid"
                if there
                else f"alter table {table} drop constraint if exists wanted"
            )

    async def check(self, service: Service) -> None:
        """Compare all tables with what was acknowledged.

        A service that has just started is quiet before it has read its journal.
        """
        view = "all_readings" if self.file.exists() else "readings"
        rows, found = list[Fact](), set[Fact]()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                while not self.facts <= found:
                    await service.wait_quiet()
                    rows = [tuple(row) for row in await self.database.run(FACTS.format(view))]
                    found = set(rows)
        assert not self.facts - found, "lost"
        assert not found - self.facts, "never sent"
        assert len(rows) == len(found), "twice"


async def run(folder: Path, port: int, here: Here, *, seed: int, ages: int) -> None:
    """Run one sequence; the seed decides all but the moments of the kills."""
    async with Database(folder / "db", port) as database:
        world = World(folder, seed, database)
        draw = world.draw
        for age in range(ages):
            if age:
                world.declare(DECLARED[age - 1])
            async with world.service() as service:
                await service.wait_state("accepting")
                for _ in range(draw.randint(1, 2)):
                    await world.send(service, draw.randint(5, 20))
                    await _harm(world, service)
                await world.check(service)
                refuses = draw.random() < 0.5
                if refuses:
                    await world.set_constraints(there=True)
                    await world.send(service, 8)
                    await service.wait_quiet()
                    await world.set_constraints(there=False)
                await world.send(service, 3)
                samples = await service.wait_quiet()
                assert samples["ingest_ledger_imbalance_rows"] == 0
                assert samples["ingest_readings_dropped_total"] == 0
                if refuses:
                    words = ("--state-dir", folder / "state", "--database-url", database.url)
                    tables = ("--tables-file", world.file) if world.file.exists() else ()
                    done = await here("dlq", "replay", *words, *tables)
                    assert done.code == 0, done
                await world.check(service)


async def _harm(world: World, service: Service) -> None:
    """Kill the service, or the database and the service, with posts that are not stored yet."""
    how = world.draw.randrange(3)
    if how == 2:
        return
    if how == 1:
        await world.database.kill()
        await world.send(service, 10)
    await service.kill()
    if how == 1:
        await world.database.start()
    await service.start()
    await service.wait_state("accepting")


async def test_each_fact_is_once_in_all_tables(
    open_tmp_path: Path, free_port: int, here: Here
) -> None:
    """Two tables are declared on the way. The seed of a failure is in its output."""
    seed = unix_us()
    print("seed", seed)  # noqa: T201
    await run(open_tmp_path, free_port, here, seed=seed, ages=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(12))
async def test_each_fact_is_once_after_many_more_steps(
    open_tmp_path: Path, free_port: int, here: Here, seed: int
) -> None:
    """The same, with all that is declared, and the same choices each time."""
    await run(open_tmp_path, free_port, here, seed=seed, ages=len(DECLARED) + 1)
