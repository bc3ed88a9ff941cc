"""Reads the service's own counters from /metrics of its admin port.

Promises: a port that does not answer with metrics is no error.
"""

from __future__ import annotations

from collections import defaultdict

import aiohttp


async def read_metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float] | None:
    """Return the metrics by name, each summed over its labels; None if none could be read."""
    sums: defaultdict[str, float] = defaultdict(float)
    try:
        async with session.get(url) as response:
            text = await response.text() if response.status == 200 else ""
        for line in text.splitlines():
            if line[:1] not in ("#", ""):
                name, _, value = line.rpartition(" ")
                sums[name.partition("{")[0]] += float(value)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    return sums or None
