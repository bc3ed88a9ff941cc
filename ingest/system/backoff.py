"""How long to wait before the next try.

`backoff_s` is for tries at a server that others use too: exponential ceiling, full jitter. Full
jitter, not equal jitter. After a failover every writer of every instance tries again at the same
moment. Random delays over the whole window spread these reconnects best.
`Backoff` is for something of our own that has to be started again: each pause is twice the last.
"""

from __future__ import annotations

import random

from ingest.system.clock import monotonic_s

STEADY_S = 60.0  # what has run for so long after a pause was good: pauses begin anew


def backoff_s(attempt: int, *, first_s: float, cap_s: float) -> float:
    """Return a random delay in seconds below min(cap_s, first_s * 2**attempt); attempt from 0.

    At least a tenth of the ceiling: several delays near zero would flood a server that is down.
    """
    ceiling_s = min(cap_s, first_s * 2.0 ** min(attempt, 40))
    return random.uniform(ceiling_s / 10, ceiling_s)


class Backoff:
    """Pauses in seconds between starts of one thing: `first_s`, then twice the last, to `cap_s`."""

    def __init__(self, first_s: float, cap_s: float) -> None:
        self._first_s = self._next_s = first_s
        self._cap_s = cap_s
        self._steady_at_s = 0.0

    def next_s(self) -> float:
        """Return how long to wait before the next start. Call it when one has ended or failed."""
        now_s = monotonic_s()
        pause_s = self._first_s if now_s > self._steady_at_s else self._next_s
        self._next_s = min(2 * pause_s, self._cap_s)
        self._steady_at_s = now_s + pause_s + STEADY_S
        return pause_s
