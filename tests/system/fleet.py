"""A small fleet that posts all the time and keeps every answer, for system tests.

Each reading is `acknowledged`, `refused` (503, nothing kept) or `unknown` (no answer, or 503
`outcome_unknown`). Every reading is sent once, so the table can be compared exactly.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from types import TracebackType
from typing import Any, Self

import aiohttp

FIRST_US = 1_760_000_000_000_000


class Fleet:
    """Posts `rows` readings at a time over `connections` connections until the block is left."""

    def __init__(
        self,
        url: str,
        *,
        connections: int = 4,
        rows: int = 10,
        pause_s: float = 0.01,
        ack: str = "buffered",
        first_us: int = FIRST_US,
    ) -> None:
        self._url = f"{url}/v1/readings?ack={ack}"
        self._connections = connections
        self._rows = rows
        self._pause_s = pause_s
        self._next_us = first_us
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.acknowledged: set[int] = set()
        self.refused: set[int] = set()
        self.unknown: set[int] = set()
        self.answers: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=40))
        self._tasks = [asyncio.create_task(self._post()) for _ in range(self._connections)]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        await self._session.close()

    async def _post(self) -> None:
        while not self._stopping.is_set():
            facts = range(self._next_us, self._next_us + self._rows)
            self._next_us += self._rows
            body = json.dumps([reading(ts_us) for ts_us in facts]).encode()
            await self._send(body, facts)
            await asyncio.sleep(self._pause_s)

    async def _send(self, body: bytes, facts: range) -> None:
        try:
            async with self._session.post(
                self._url, data=body, headers={"Content-Type": "application/json"}
            ) as answer:
                document = await answer.json(content_type=None)
        except (aiohttp.ClientError, OSError, TimeoutError):
            self.answers["none"] += 1
            self.unknown.update(facts)
            return
        code = document.get("code", "")
        self.answers[f"{answer.status} {code}".strip()] += 1
        if answer.status in (200, 202):
            assert document["accepted"] == len(facts), document
            self.acknowledged.update(facts)
        elif code in ("outcome_unknown", "database_on_hold"):
            self.unknown.update(facts)
        else:
            self.refused.update(facts)

    def statuses(self) -> set[str]:
        """Return the statuses met so far."""
        return {answer.split()[0] for answer in self.answers}


def reading(ts_us: int) -> dict[str, Any]:
    """Return the reading of this timestamp; the timestamp decides its value."""
    return {
        "device_id": f"device-{ts_us % 50}",
        "metric": "temperature",
        "ts": ts_us,
        "value": value_of(ts_us),
    }


def value_of(ts_us: int) -> float:
    """Return the value that belongs to a timestamp; never a whole number."""
    return (ts_us % 100_000) / 8 + 0.0625


def check_table(fleet: Fleet, rows: list[Any], *, elsewhere: set[int] | None = None) -> None:
    """Compare the table (`rows` of ts in us and value) with the promises.

    `elsewhere` are readings that are known to be dead letters.
    """
    stored = Counter(row["ts_us"] for row in rows)
    doubled = {ts_us for ts_us, count in stored.items() if count > 1}
    assert not doubled, f"{len(doubled)} facts are there twice"
    missing = fleet.acknowledged - stored.keys() - (elsewhere or set())
    assert not missing, f"{len(missing)} acknowledged readings are lost"
    left_behind = fleet.refused & stored.keys()
    assert not left_behind, f"{len(left_behind)} refused readings were stored"
    altered = [row for row in rows if row["value"] != value_of(row["ts_us"])]
    assert not altered, f"{len(altered)} values are wrong: {altered[:3]}"


TABLE_SQL = (
    "select (extract(epoch from ts) * 1000000)::int8 as ts_us, value::float8 as value from readings"
)
