"""Reads the service's own counters, once a second, from its admin port.

Promises: the counts go on over a restart of the service, whose counters begin at 0 again; a port
that does not answer is no error, then `seen` stays False.
Does not: know which readings are ours; those of other clients are counted, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import aiohttp

from loadgen.measure.timeline import Timeline
from loadgen.wire.metrics import read_metrics

PERIOD_S = 1.0
SETTLE_POLL_S = 0.1
ANSWER_S_MAX = 2.0
COMMITTED = "ingest_readings_committed_total"
HELD = "ingest_readings_held"
IMBALANCE = "ingest_ledger_imbalance_rows"


class Scraper:
    """The service's counts since `begin`; `committed` goes into the timeline as well.

    `held` and `imbalance` are the values of the last reading, at `at_s`; `elapsed_s` must return
    the seconds since the start of the load.
    """

    def __init__(self, url: str, timeline: Timeline, elapsed_s: Callable[[], float]) -> None:
        self.url = url
        self.seen = False
        self.committed = 0.0
        self.held = 0.0
        self.imbalance = 0.0
        self.at_s = 0.0
        self._timeline = timeline
        self._elapsed_s = elapsed_s
        self._total = 0.0

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
                        if await self._step(session) and not self.held:
                            return
                        await asyncio.sleep(SETTLE_POLL_S)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S_MAX))

    async def _step(self, session: aiohttp.ClientSession) -> bool:
        samples = await self._read(session)
        if samples is None:
            return False
        before_s, self.at_s = self.at_s, self._elapsed_s()
        total = samples[COMMITTED]
        new = total - self._total if total >= self._total else total  # restarted: from 0 again
        self.committed += new
        self._timeline.commit(before_s, self.at_s, new)
        self._note(samples)
        return True

    def _note(self, samples: dict[str, float]) -> None:
        self._total = samples[COMMITTED]
        self.held, self.imbalance = samples.get(HELD, 0.0), samples.get(IMBALANCE, 0.0)

    async def _read(self, session: aiohttp.ClientSession) -> dict[str, float] | None:
        samples = await read_metrics(session, self.url)
        return samples if samples is not None and COMMITTED in samples else None
