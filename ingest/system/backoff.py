"""How long to wait before trying again: exponential ceiling, full jitter.

Full jitter, not equal jitter: after a failover every writer of every instance wakes at once, and
spreading over the whole window flattens the peak of reconnects.
"""

from __future__ import annotations

import random


def backoff_s(attempt: int, *, first_s: float, cap_s: float) -> float:
    """Return a random delay in seconds below min(cap_s, first_s * 2**attempt); attempt from 0.

    Never less than a tenth of the ceiling: a string of zeros would hammer a server that is down.
    """
    ceiling_s = min(cap_s, first_s * 2.0 ** min(attempt, 40))
    return random.uniform(ceiling_s / 10, ceiling_s)
