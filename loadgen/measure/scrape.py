"""Reads the service's own counters, once a second, from its admin port.

Promises: the counts go on over a restart of the service, whose counters begin at 0 again; a port
that does not answer is no error, then `seen` stays False.
Does not: know which readings are ours; those of other clients are counted, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import aiohttp

from loadgen.measure.timeline import Timeline
from loadgen.wire.metrics import Processes, read_processes

PERIOD_S = 1.0
SETTLE_POLL_S = 0.1
ANSWER_S_MAX = 2.0
COMMITTED = "ingest_readings_committed_total"
HELD = "ingest_readings_held"
IMBALANCE = "ingest_ledger_imbalance_rows"
WAITING = ("ingest_consumer_pending:writer", "ingest_consumer_ack_pending:writer")


class Scraper:
    """The service's counts since `begin`; `committed` goes into the timeline as well.

    `held` and `imbalance` are the values of the last reading, at `at_s`; `waiting`: the stream of a
    service with a broker has messages that are not done, as its processes saw it some seconds ago.
    `elapsed_s` must return the seconds since the start of the load. `urls` are of all its ports.
    """

    def __init__(
        self, urls: Sequence[str], timeline: Timeline, elapsed_s: Callable[[], float]
    ) -> None:
        self.urls = urls
        self.seen = False
        self.committed = 0.0
        self.held = 0.0
        self.imbalance = 0.0
        self.waiting = False
        self.at_s = 0.0
        self._timeline = timeline
        self._elapsed_s = elapsed_s
        self._totals: dict[tuple[str, str], float] = {}  # by process

    async def begin(self) -> None:
        """Read the counters as they are before the load."""
        async with self._session() as session:
            samples = await self._read(session)
        if samples is not None:
            self.seen = True
            self._note(samples)

    async def watch(self) -> None:
        """Read once a second until cancelled."""
        async with self._session() as session:
            while True:
                await asyncio.sleep(PERIOD_S)
                await self._step(session)

    async def settle(self, settle_s_max: float) -> None:
        """Read until the service holds nothing, or the time is up."""
        async with self._session() as session:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settle_s_max):
                    while True:
                        if await self._step(session) and not (self.held or self.waiting):
                            return
                        await asyncio.sleep(SETTLE_POLL_S)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S_MAX))

    async def _step(self, session: aiohttp.ClientSession) -> bool:
        samples = await self._read(session)
        if samples is None:
            return False
        before_s, self.at_s = self.at_s, self._elapsed_s()
        new = 0.0
        for process, each in samples.items():
            total, before = each.get(COMMITTED, 0.0), self._totals.get(process, 0.0)
            new += total - before if total >= before else total  # restarted: from 0 again
        self.committed += new
        self._timeline.commit(before_s, self.at_s, new)
        self._note(samples)
        return True

    def _note(self, samples: Processes) -> None:
        all_ = samples.values()
        self._totals |= {process: each.get(COMMITTED, 0.0) for process, each in samples.items()}
        self.held = sum(each.get(HELD, 0.0) for each in all_)
        self.waiting = any(each.get(name) for each in all_ for name in WAITING)
        # Of several processes the magnitudes count, so that they cannot cancel out.
        parts = [each.get(IMBALANCE, 0.0) for each in all_]
        self.imbalance = parts[0] if len(parts) == 1 else sum(map(abs, parts))

    async def _read(self, session: aiohttp.ClientSession) -> Processes | None:
        samples = await read_processes(session, self.urls)
        return samples if samples and any(COMMITTED in each for each in samples.values()) else None
