"""The circuit breaker: it pauses writes when the database refuses many rows of many devices.

The cause is then a fault of ours or of the operator, such as a wrong constraint. Without the
breaker such a fault would move the readings of a whole fleet into the dead letters.
It decides for each batch, before any row of it is dead-lettered. It looks at each window of
`window_rows` consecutive rows. Writes are paused if in a window more than `rows_max` rows would be
isolated, and these come from more than a fifth of the window's devices.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ingest.model.ports import BadRow
from ingest.model.rows import device_ids
from ingest.model.verdict import Verdict, WriteFailed

BREAKER = "breaker"  # the reason of a pause by the circuit breaker


class _Written(NamedTuple):
    """One past write. Its rows stay encoded, and are decoded only if a decision needs devices."""

    tuples: Sequence[bytes]
    rows: int
    bad: frozenset[int]


class _DeviceWindow:
    """Counts the different devices in a part of `devices`. The part only moves forward."""

    def __init__(self, devices: Sequence[bytes]) -> None:
        self._devices = devices
        self._counts: dict[bytes, int] = {}
        self._start = self._end = 0

    def move(self, start: int, end: int) -> int:
        """Return how many are in devices[start:end]. Neither bound may be less than before."""
        counts = self._counts
        for device in self._devices[self._end : end]:
            counts[device] = counts.get(device, 0) + 1
        for device in self._devices[self._start : start]:
            counts[device] -= 1
            if not counts[device]:
                del counts[device]
        self._start, self._end = start, end
        return len(counts)


class CircuitBreaker:
    """Remembers the last `window_rows` rows that were written or isolated."""

    def __init__(self, *, window_rows: int, rows_max: int) -> None:
        self._window_rows = window_rows
        self._rows_max = rows_max
        self._past: deque[_Written] = deque()
        self._past_rows = 0
        self._pass_until_s = float("-inf")

    def written(self, tuples: Sequence[bytes], rows: int, bad: Iterable[int] = ()) -> None:
        """Remember a committed write. `bad` are its isolated rows. The cost is O(1)."""
        self._past.append(_Written(tuples, rows, frozenset(bad)))
        self._past_rows += rows
        while self._past_rows - self._past[0].rows >= self._window_rows:
            self._past_rows -= self._past.popleft().rows

    def judge(
        self, tuples: Sequence[bytes], rows: int, bad: Sequence[BadRow], *, received_s: float
    ) -> None:
        """Raise WriteFailed(HOLD, reason `breaker`) if these are too many bad rows.

        `received_s` is the monotonic time at which the first of the rows was received.
        """
        if received_s <= self._pass_until_s:
            return
        writes = [*self._past, _Written(tuples, rows, frozenset(each.row for each in bad))]
        if sum(len(write.bad) for write in writes) <= self._rows_max:
            return
        devices: list[bytes] = []
        bad_at: list[int] = []
        for write in writes:
            start = len(devices)
            bad_at += sorted(start + row for row in write.bad)
            for part in write.tuples:
                devices += device_ids(part)
        seen = _DeviceWindow(devices)
        refused = _DeviceWindow([devices[at] for at in bad_at])
        past_bad = len(bad_at) - len(bad)  # an earlier call has judged these
        for last in range(max(past_bad, self._rows_max), len(bad_at)):
            first = last - self._rows_max
            if bad_at[last] - bad_at[first] >= self._window_rows:
                continue
            end = min(len(devices), bad_at[first] + self._window_rows)
            start = max(0, end - self._window_rows)
            seen_count = seen.move(start, end)
            refused_count = refused.move(bisect_left(bad_at, start), bisect_left(bad_at, end))
            if refused_count * 5 > seen_count:
                raise WriteFailed(
                    Verdict.HOLD,
                    f"more than {self._rows_max} of {self._window_rows} rows refused, from "
                    f"{refused_count} of {seen_count} devices; the last: {bad[-1].message}",
                    sqlstate=bad[-1].sqlstate,
                    reason=BREAKER,
                )

    def forget(self) -> None:
        """Forget past writes: refusals of before do not count any more."""
        self._past.clear()
        self._past_rows = 0

    def release(self, *, received_until_s: float) -> None:
        """Forget past writes, and judge no row that was received until then.

        The limit is a time and not a number of rows. Otherwise posts that come meanwhile, and are
        written first, would use up that number.
        """
        self.forget()
        self._pass_until_s = received_until_s
