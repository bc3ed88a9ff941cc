"""The readings of benchmarks/years.py: 10,000 devices for 30 days, how they are posted, their sum.

`python -m benchmarks.years_readings PORT ROWS FIRST_US` posts them as line protocol with
`ack=committed`, POST_ROWS lines at once, over CONNECTIONS in a closed loop. A post has the lines of
POST_ROWS devices within one second. The lines are ready patterns in which only the second is new,
so the sender needs little of the CPU. All of it follows from SEED: so `checksum` is that of what
was to be sent, without a list of it. A value is one of PATTERNS of its device, drawn anew each
time.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
import uvloop

from benchmarks.processes import raise_open_files_limit
from ingest.archive.copied_rows import SCHEMA
from ingest.archive.postgres_hash import NOTHING, Checksum, checksum_of
from loadgen.driver.driver import Driver
from loadgen.driver.ports import Loss
from loadgen.traffic.post import Post, finish, head_of

SEED = 1
DEVICES, METRIC, DAYS = 10_000, "temperature", 30
DAY_S = 86_400
POST_ROWS, PATTERNS = 1_000, 97
GROUPS = DEVICES // POST_ROWS
CONNECTIONS = 64
TARGET = "/write?precision=u&ack=committed"
_SUMMED_ROWS = 100_000


def device_name(number: int) -> str:
    """Return the name of a device."""
    return f"device-{number:05d}"


class Plan:
    """What is sent: `rounds` rounds from `first_us` on, in which each device measures once."""

    def __init__(self, rows: int, first_us: int) -> None:
        self.rounds = rows // DEVICES
        self.rows = self.rounds * DEVICES
        self.first_s = first_us // 1_000_000
        draw = random.Random(SEED)
        step_s = DAYS * DAY_S // self.rounds
        # Of each group of devices, round by round.
        self.seconds = [
            [self.first_s + at * step_s + draw.randrange(step_s) for at in range(self.rounds)]
            for _ in range(GROUPS)
        ]
        self.patterns = [draw.choices(range(PATTERNS), k=self.rounds) for _ in range(GROUPS)]
        self.phases_us = [draw.randrange(1_000_000) for _ in range(DEVICES)]
        self.values = [
            [round(draw.gauss(mean, 1.5), 2) for _ in range(PATTERNS)]
            for mean in (draw.uniform(15, 25) for _ in range(DEVICES))
        ]

    @cached_property
    def _bodies(self) -> list[list[bytes]]:
        return [
            [self._body(group, pattern) for pattern in range(PATTERNS)] for group in range(GROUPS)
        ]

    def _body(self, group: int, pattern: int) -> bytes:
        devices = range(group * POST_ROWS, (group + 1) * POST_ROWS)
        return "".join(
            f"{METRIC},device_id={device_name(at)} value={self.values[at][pattern]:.2f} "
            f"@{self.phases_us[at]:06d}\n"
            for at in devices
        ).encode()

    def bodies(self) -> Iterator[bytes]:
        """Yield the body of each post."""
        for number in range(self.rounds):
            for group in range(GROUPS):
                body = self._bodies[group][self.patterns[group][number]]
                yield body.replace(b"@", b"%d" % self.seconds[group][number])

    def checksum(self) -> Checksum:
        """Return the checksum of all readings. Blocks: some 100 ns a reading."""
        found = NOTHING
        at_once = max(1, _SUMMED_ROWS // self.rounds)
        for group in range(GROUPS):
            seconds = pa.array(self.seconds[group], pa.int64())
            patterns = pa.array(self.patterns[group], pa.int64())
            for first in range(0, POST_ROWS, at_once):
                numbers = range(first, min(first + at_once, POST_ROWS))
                devices = [group * POST_ROWS + each for each in numbers]
                found = found.plus(self._checksum(devices, seconds, patterns))
        return found

    def _checksum(self, devices: Sequence[int], seconds: pa.Array, which: pa.Array) -> Checksum:
        times = [_times(seconds, self.phases_us[each]) for each in devices]
        values = [pa.array(self.values[each], pa.float64()).take(which) for each in devices]
        numbers = [pa.repeat(pa.scalar(at, pa.int32()), self.rounds) for at in range(len(devices))]
        return checksum_of(
            rows_of(
                pa.concat_arrays(times),
                [device_name(each) for each in devices],
                pa.concat_arrays(numbers),
                pa.concat_arrays(values),
            )
        )


def _times(seconds: pa.Array, phase_us: int) -> pa.Array:
    million, phase = pa.scalar(1_000_000, pa.int64()), pa.scalar(phase_us, pa.int64())
    return pa.compute.add(pa.compute.multiply(seconds, million), phase)


def rows_of(
    times_us: pa.Array, names: Sequence[str], numbers: pa.Array, values: pa.Array
) -> pa.RecordBatch:
    """Return rows with the columns of the archive; `numbers` are the places in `names`."""
    return pa.record_batch(
        [
            times_us.view(SCHEMA.field("ts").type),
            pa.DictionaryArray.from_arrays(numbers, pa.array(names)),
            pa.DictionaryArray.from_arrays(
                pa.repeat(pa.scalar(0, pa.int32()), len(times_us)), pa.array([METRIC])
            ),
            values,
        ],
        schema=SCHEMA,
    )


class Sent(NamedTuple):
    """What came of the posts: `statuses` counts all answers, `lost` tries without one."""

    statuses: dict[str, int]
    lost: int


class _Sending:
    """The source of the driver, and its observer."""

    def __init__(self, plan: Plan, port: int) -> None:
        self._bodies = plan.bodies()
        self._head = head_of(TARGET, f"127.0.0.1:{port}", media_type="text/plain")
        self._number = 0
        self.statuses: Counter[int] = Counter()
        self.lost_tries = 0

    def take(self) -> Post | None:
        """Return the next post."""
        body = next(self._bodies, None)
        if body is None:
            return None
        self._number += 1
        return Post(finish(self._head, body), POST_ROWS, "old", self._number)

    def sending(self, post: Post) -> None:
        """Do nothing."""

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Count an answer."""
        self.statuses[status] += 1

    def lost(self, loss: Loss) -> None:
        """Count a try without an answer."""
        self.lost_tries += 1


def main() -> None:
    """Post all readings; print what came of them."""
    port, rows, first_us = map(int, sys.argv[1:])
    raise_open_files_limit()
    sending = _Sending(Plan(rows, first_us), port)

    async def send() -> None:
        await Driver("127.0.0.1", port, sending, sending, connections=CONNECTIONS).run()

    uvloop.run(send())
    statuses = {str(status): count for status, count in sorted(sending.statuses.items())}
    print(json.dumps(Sent(statuses, sending.lost_tries)._asdict()))


if __name__ == "__main__":
    main()
