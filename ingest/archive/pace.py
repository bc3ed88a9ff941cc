"""The pace of the archive: it rests as long as others need the processors.

Work on rows takes as much time as CPU, if a processor is free for it. If it takes longer, others
work too: live posts, or the database. Then the thread rests after that piece of work. So nobody has
to say how busy the machine is, and on an idle one the archive is as fast as without a pace. The
server's work for the archive rests too: COPY waits until its rows are taken, and `rest_s` is for
statements.
Promises: a rest has a bound, so the archive goes on however busy the machine is.
Does not: know who needs the processors. Waiting for the disk counts as if others needed them.
"""

from __future__ import annotations

from collections.abc import Callable

from ingest.system import clock

FREE_TIMES = 1.15  # of its CPU time, what a piece takes on an idle machine
REST_TIMES = 4.0  # of the time that a piece has waited
REST_TIMES_MAX = 3.0  # of the time that it took
REST_S_MAX = 0.5  # a stop waits for it


class Pace:
    """Of one thread. `begin` before its work, `rest` after each piece, both in that thread."""

    def __init__(
        self,
        now_s: Callable[[], float] = clock.monotonic_s,
        cpu_s: Callable[[], float] = clock.thread_cpu_s,
        sleep: Callable[[float], None] = clock.sleep,
    ) -> None:
        self._now_s = now_s
        self._cpu_s = cpu_s
        self._sleep = sleep
        self._from_s = self._from_cpu_s = 0.0
        self._rest_times = 0.0

    def begin(self) -> None:
        """Count from now on: the time before was no work."""
        self._from_s, self._from_cpu_s = self._now_s(), self._cpu_s()

    def rest(self) -> None:
        """Rest after a piece of work, as long as is needed; then the next one begins. Blocks."""
        took_s = self._now_s() - self._from_s
        waited_s = took_s - FREE_TIMES * (self._cpu_s() - self._from_cpu_s)
        self._rest_times = 0.0
        if waited_s > 0:
            self._rest_times = min(REST_TIMES_MAX, REST_TIMES * waited_s / took_s)
            self._sleep(self.rest_s(took_s))
        self.begin()

    def rest_s(self, took_s: float) -> float:
        """Return how long to rest after work that took so long, as after the thread's last piece.

        May be called from any thread.
        """
        return min(REST_S_MAX, self._rest_times * took_s)
