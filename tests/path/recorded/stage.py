"""Starts the services for the recorded requests, and brings them into situations.

    working    no fault; the table refuses the value 666
    settled    the same service, once all posts have been written
    starting   no database answers, and there is no journal
    disk_low   less disk is free than the setting asks for
    locked     the table is locked, and there is little memory
    on_hold    then one of its columns has another name
    draining   then it has got a SIGTERM

Sends the requests of each situation, after the service itself has reported that situation.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.path.recorded.exchange import Case, exchange
from tests.path.recorded.service import Running, run_sql
from tests.support.locks import table_locked

BODY_BYTES_MAX, POST_ROWS_MAX = 20_000, 120
HELD_ROWS_MAX = 40  # of the service that cannot write
AT_ONCE = 16  # requests under way to one service
WORKING, STARTING, DISK_LOW, STUCK = "working", "starting", "disk_low", "stuck"
ALONE = STARTING, DISK_LOW  # no other request changes what these answer
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"
ROWS_SQL = """
    select device_id, count(*) as rows, left(md5(string_agg(
        (extract(epoch from ts) * 1000000)::bigint || ' ' || metric || ' ' || value,
        ';' order by ts, metric, value) filter (where ts < '2025-07-01')), 8) as digest
    from readings where device_id ~ '^[dq]' group by device_id order by device_id
"""
SETTINGS: dict[str, dict[str, Any]] = {
    WORKING: {
        "body_bytes_max": BODY_BYTES_MAX,
        "inflated_bytes_max": 262_144,
        "post_rows_max": POST_ROWS_MAX,
        "body_s_max": 2,
    },
    STARTING: {"body_bytes_max": BODY_BYTES_MAX, "buffer": "memory"},
    DISK_LOW: {"body_bytes_max": BODY_BYTES_MAX, "disk_free_bytes_min": 1 << 44},
    STUCK: {
        "buffer": "memory",
        "buffer_rows_max": HELD_ROWS_MAX,
        "post_rows_max": HELD_ROWS_MAX,
        "batch_rows": 1,
        "batch_rows_max": HELD_ROWS_MAX,
        "writers": 1,
        "body_bytes_max": BODY_BYTES_MAX,
        "put_wait_s_max": 0.05,
        "full_s_min": 60,
        "ack_wait_s_max": 0.3,
        "wait_s_max": 0.4,
        "command_s_max": 7,
        "drain_s_max": 8,
        "dlq_bytes_max": 1 << 22,
        "dlq_invalid_parts": 1 << 7,
        "dlq_segment_bytes": 1 << 14,
    },
}


class Stage:
    """The services. `play` sends requests; `take` gets each one with its answers."""

    def __init__(self, services: Mapping[str, Running], urls: Mapping[str, str]) -> None:
        self._services = services
        self._urls = urls
        self.results: dict[str, tuple[list[Any], str]] = {}

    async def play(self, cases: list[Case]) -> dict[str, Any]:
        """Send all requests; return the readings that the working service has kept."""
        working = asyncio.create_task(self._work(cases))
        await asyncio.gather(
            working,
            *(self._alone(self._services[at], found) for at in ALONE if (found := _at(cases, at))),
            self._get_stuck(cases),
        )
        return working.result()

    async def _send(self, service: Running, case: Case) -> None:
        self.results[case.name] = await exchange(service.address(case.port), case)

    async def _alone(self, service: Running, cases: list[Case]) -> None:
        for case in cases:
            await self._send(service, case)

    async def _work(self, cases: list[Case]) -> dict[str, Any]:
        service = self._services[WORKING]
        refuse = "alter table readings add constraint sane check (value <> 666)"
        await run_sql(self._urls[WORKING], refuse)
        free = asyncio.Semaphore(AT_ONCE)
        slow = asyncio.Semaphore(AT_ONCE)

        async def send(case: Case) -> None:
            async with slow if case.answers == 0 or "never" in case.name else free:
                await self._send(service, case)

        # A late reading whose day has no partition yet must not share a batch with a row that the
        # table refuses: then it is set aside, and comes back by itself a little later.
        first = [case for case in _at(cases, WORKING) if "666" not in str(case.send)]
        await asyncio.gather(*map(send, first))
        await asyncio.gather(*(send(case) for case in _at(cases, WORKING) if case not in first))
        samples = await service.wait_quiet()
        await self._alone(service, _at(cases, "settled"))
        rows = await run_sql(self._urls[WORKING], ROWS_SQL)
        return {
            "counters": {name: value for name, value in samples.items() if _is_kept(name)},
            "rows": {row["device_id"]: [row["rows"], row["digest"]] for row in rows},
        }

    async def _get_stuck(self, cases: list[Case]) -> None:
        service = self._services[STUCK]
        async with table_locked(self._urls[STUCK], "access exclusive") as connection:
            await self._alone(service, _at(cases, "locked"))
            await connection.execute("alter table readings rename metric to metrik")
        await service.wait_state("on_hold")
        await self._alone(service, _at(cases, "on_hold"))
        service.signal(signal.SIGTERM)
        await service.wait_state("draining")
        await self._alone(service, _at(cases, "draining"))


def _at(cases: list[Case], at: str) -> list[Case]:
    return [case for case in cases if case.at == at]


def _is_kept(sample: str) -> bool:
    return sample.startswith("ingest_readings_") or sample in {
        "ingest_ledger_imbalance_rows",
        "ingest_dlq_readings",
    }


@contextlib.asynccontextmanager
async def stage(
    checkout: Path,
    folder: Path,
    urls: Mapping[str, str],
    running: type[Running] = Running,
    first: Sequence[str] = (WORKING, STUCK, STARTING),
) -> AsyncIterator[Stage]:
    """Start all services on fresh folders; `urls` are of two fresh databases, WORKING and STUCK.

    The `first` ones are started before DISK_LOW: one of them makes the table.
    """
    databases = {WORKING: urls[WORKING], DISK_LOW: urls[WORKING], STUCK: urls[STUCK]}
    services = {
        name: running(checkout, folder / name, databases.get(name, NO_DATABASE), SETTINGS[name])
        for name in (*first, DISK_LOW)
    }
    async with contextlib.AsyncExitStack() as stack:
        for name in first:
            stack.callback(services[name].kill)
        await asyncio.gather(*(services[name].start() for name in first))
        stack.callback(services[DISK_LOW].kill)
        await asyncio.gather(
            services[DISK_LOW].start(),
            services[WORKING].wait_state("accepting"),
            services[STUCK].wait_state("accepting"),
        )
        await services[DISK_LOW].wait_state("disk_low")
        yield Stage(services, urls)
