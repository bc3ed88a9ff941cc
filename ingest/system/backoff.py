"""How long to wait before the next try: exponential ceiling, full jitter.

Full jitter, not equal jitter. After a failover every writer of every instance tries again at the
same moment. Random delays over the whole window spread these reconnects best.
"""

from __future__ import annotations

import random


def backoff_s(attempt: int, *, first_s: float, cap_s: float) -> float:
    """Return a random delay in seconds below min(cap_s, first_s * 2**attempt); attempt from 0.

    At least a tenth of the ceiling: several delays near zero would flood a server that is down.
    """
    ceiling_s = min(cap_s, first_s * 2.0 ** min(attempt, 40))
    return random.uniform(ceiling_s / 10, ceiling_s)
