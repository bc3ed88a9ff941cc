"""The figures behind `ingest size`, each with its source, and what follows from them.

Pure: numbers in, numbers out. All figures are of machines with two cores that also ran PostgreSQL
and the load generator (benchmarks/RESULTS.md, docs/scaling.md, 2026-11-27).
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Cost(NamedTuple):
    """CPU of one process: `post_us` for each post, and `reading_us` for each reading in it.

    Calculated from two measured points: a reading alone, and a reading in a post of 100.
    """

    post_us: float
    reading_us: float

    def cores(self, posts_per_s: float, readings_per_s: float) -> float:
        """Return the busy cores at these rates."""
        return (self.post_us * posts_per_s + self.reading_us * readings_per_s) / 1e6


def _cost(alone_us: float, in_hundreds_us: float) -> Cost:
    """Return the cost that gives both measured values."""
    reading_us = (in_hundreds_us * 100 - alone_us) / 99
    return Cost(alone_us - reading_us, reading_us)


# README.md, "Performance": journal, ack=durable.
SERVE = {"serve": _cost(33.1, 1.55), "PostgreSQL": _cost(5.06, 1.91)}
# docs/scaling.md, "The CPU of every role": `up` with one gateway.
ROLES = {
    "gateways": _cost(33.1, 1.79),
    "nats-server": _cost(14.1, 0.52),
    "writer": _cost(9.66, 0.39),
    "PostgreSQL": _cost(6.89, 2.60),
}
BUSY_MAX = 0.5  # of one core: above it, bursts and slow moments make posts wait
DATABASE_CORES_MAX = 4.0  # nothing above it was measured with one table
WAL_BYTES = 155.0  # a reading; docs/scaling.md, "Large rates"
TABLE_BYTES = 140.0  # a reading; heap 67 and primary key 74, names of 9 and 11 characters
ARCHIVE_BYTES = 2.9  # a reading; random walks. Noisy values take up to three times as much
# A reading in the journal: a row of binary COPY (42 bytes and both names) and its share of a frame.
JOURNAL_BYTES = 64.0
POST_BYTES = 240.0  # request line and headers, and the TCP and IP headers of request and ACK
ITEM_BYTES = 96.0  # a reading as JSON, with ts, and names of 9 and 11 characters
CONNECTION_BYTES = 3.08 * 1024  # README.md, "Performance"


class Fleet(NamedTuple):
    """What posts: `metrics` readings of each device every `every_s`, `batch` readings in a post."""

    devices: int
    every_s: float
    metrics: int
    batch: int


class Need(NamedTuple):
    """What the fleet needs. MB and GB are 10**6 and 10**9 bytes."""

    readings_per_s: float
    readings_per_day: float
    posts_per_s: float
    network_mb_per_s: float
    command: str
    why: str
    cores: dict[str, float]
    wal_mb_per_s: float
    hot_gb_per_day: float
    cold_gb_per_day: float
    journal_minutes: float
    connections_mb: float
    warnings: list[str]


def need_of(fleet: Fleet, journal_bytes_max: int) -> Need:
    """Return what the fleet needs, with a journal (or a stream) of at most so many bytes."""
    rate = fleet.devices * fleet.metrics / fleet.every_s
    posts = rate / fleet.batch
    serve_cores = SERVE["serve"].cores(posts, rate)
    alone = serve_cores <= BUSY_MAX
    costs = SERVE if alone else ROLES
    cores = {role: cost.cores(posts, rate) for role, cost in costs.items()}
    gateways = 0 if alone else math.ceil(cores["gateways"] / BUSY_MAX)
    writers = 0 if alone else math.ceil(cores["writer"] / BUSY_MAX)
    return Need(
        readings_per_s=rate,
        readings_per_day=rate * 86_400,
        posts_per_s=posts,
        network_mb_per_s=(posts * POST_BYTES + rate * ITEM_BYTES) / 1e6,
        command="ingest serve" if alone else _up(gateways, writers),
        why=f"one process would be busy for {serve_cores:.0%} of a core",
        cores=cores,
        wal_mb_per_s=rate * WAL_BYTES / 1e6,
        hot_gb_per_day=rate * 86_400 * TABLE_BYTES / 1e9,
        cold_gb_per_day=rate * 86_400 * ARCHIVE_BYTES / 1e9,
        journal_minutes=journal_bytes_max / (rate * JOURNAL_BYTES) / 60,
        connections_mb=fleet.devices * CONNECTION_BYTES / 1e6,
        warnings=_warnings(fleet, cores["PostgreSQL"], alone=alone),
    )


def _up(gateways: int, writers: int) -> str:
    return f"ingest up --gateways {gateways}" + (f" --writers {writers}" if writers > 1 else "")


def _warnings(fleet: Fleet, database_cores: float, *, alone: bool) -> list[str]:
    found = []
    if database_cores > DATABASE_CORES_MAX:
        found.append(
            f"PostgreSQL would need {database_cores:.0f} busy cores for one table. Nobody has "
            "measured that: spread the devices over several installations."
        )
    if not alone and fleet.batch < 100:
        cheaper = fleet._replace(batch=100)
        posts = cheaper.devices * cheaper.metrics / cheaper.every_s / cheaper.batch
        cores = SERVE["serve"].cores(posts, posts * cheaper.batch)
        found.append(
            f"In posts of 100 readings, one process would be busy for {cores:.0%} of a core: "
            "post more readings at once before you add processes."
        )
    return found
