"""The live posts of benchmarks/years.py: single readings of now, and the checksum of all taken."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa

from benchmarks import machine
from benchmarks.open_loop import Load, OpenLoop, drive_openly
from benchmarks.service import Service
from benchmarks.wrk import READINGS
from benchmarks.years_readings import rows_of
from ingest.archive.postgres_hash import NOTHING, Checksum, checksum_of

LIVE_DEVICES = 200  # of open_loop


class Live:
    """Posts of single readings of now, phase by phase. `sent` is the sum of what was taken.

    `stolen` has the share of the processors' time that the host took away, for each phase: such a
    phase says nothing about the service.
    """

    def __init__(self, service: Service, rate_per_s: float, seconds: float) -> None:
        first_us = int(time.time() * 1e6)
        self._step_us = int(2 * rate_per_s * (seconds + 1))
        self._load = Load(
            service.port,
            rate_per_s,
            seconds,
            first_us,
            target=f"{READINGS}?ack=durable",
            lists_taken=True,
        )
        self.sent = NOTHING
        self.stolen: list[float] = []

    def phase(self) -> OpenLoop:
        """Drive once."""
        before = machine.processors()
        found = drive_openly(self._load)
        self.stolen.append(round(machine.processors().stolen_since(before), 3))
        self.sent = self.sent.plus(_live_checksum(found.taken_us, self._load.first_us))
        self._load = self._load._replace(first_us=self._load.first_us + self._step_us)
        return found._replace(taken_us=[])


def _live_checksum(taken_us: Sequence[int], first_us: int) -> Checksum:
    """Return the checksum of posts of open_loop, which all have one reading."""
    if not taken_us:
        return NOTHING
    kinds = [(each - first_us) % LIVE_DEVICES for each in taken_us]
    names = [f"device-{each * 7 % LIVE_DEVICES:03d}" for each in range(LIVE_DEVICES)]
    values = [float(f"{20 + each % 5}.{each % 100:02d}") for each in range(LIVE_DEVICES)]
    return checksum_of(
        rows_of(
            pa.array(taken_us, pa.int64()),
            names,
            pa.array(kinds, pa.int32()),
            pa.array([values[each] for each in kinds], pa.float64()),
        )
    )
