"""Reads the service's own counters from /metrics of its admin ports.

One port may show several processes of a service: its series have the label `instance`. A service of
several processes may also have several ports. So the counters are kept apart by process.
Promises: a port that does not answer with metrics is no error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import aiohttp

_INSTANCE = re.compile(r'[{,]instance="((?:[^"\\]|\\.)*)"')
_CONSUMER = re.compile(r'[{,]consumer="((?:[^"\\]|\\.)*)"')

# By process (the port's URL, and the instance that it names or ""), then by name, summed over the
# other labels. Series with a consumer have its name behind a colon: `ingest_consumer_pending:a`.
Processes = Mapping[tuple[str, str], Mapping[str, float]]


async def read_processes(session: aiohttp.ClientSession, urls: Sequence[str]) -> Processes | None:
    """Return the metrics of all ports; None if one of them could not be read.

    `urls` are those of the ports, with or without `/metrics`.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for url in urls:
        port = url.removesuffix("/").removesuffix("/metrics")
        text = await _text(session, f"{port}/metrics")
        before = len(found)
        try:
            _add(found, port, text)
        except ValueError:
            return None
        if len(found) == before:
            return None
    return found or None


async def _text(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(url) as response:
            return await response.text() if response.status == 200 else ""
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return ""


def _add(found: dict[tuple[str, str], dict[str, float]], port: str, text: str) -> None:
    """Add the samples of one port. Raises ValueError if a value is no number."""
    for line in text.splitlines():
        if line[:1] in ("#", ""):
            continue
        series, _, value = line.rpartition(" ")
        name, _, labels = series.partition("{")
        instance = ""
        if labels:
            labels = "{" + labels
            if match := _INSTANCE.search(labels):
                instance = match[1]
            if match := _CONSUMER.search(labels):
                name = f"{name}:{match[1]}"
        samples = found.setdefault((port, instance), {})
        samples[name] = samples.get(name, 0.0) + float(value)
