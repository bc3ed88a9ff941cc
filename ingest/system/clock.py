"""The only place that asks the machine what time it is.

Durations use the monotonic clock, in seconds; wall time is Unix time in whole microseconds (UTC)
and is only for values that are stored or shown.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

monotonic_s = time.monotonic


def process_cpu_s() -> float:
    """CPU seconds of this process so far, of all its threads."""
    return time.process_time()


def unix_us() -> int:
    """Return the wall time as Unix microseconds."""
    return time.time_ns() // 1000


def rfc3339(ts_us: int) -> str:
    """Write Unix microseconds as RFC 3339 in UTC, with microseconds only where there are any.

    Years 1 to 9999; outside of them raises OverflowError.
    """
    return (_EPOCH + timedelta(microseconds=ts_us)).isoformat().replace("+00:00", "Z")


async def sleep_unless(event: asyncio.Event, delay_s: float) -> bool:
    """Sleep `delay_s` seconds, or less if `event` is set before; return whether it is set."""
    if delay_s > 0 and not event.is_set():
        try:
            async with asyncio.timeout(delay_s):
                await event.wait()
        except TimeoutError:
            pass
    return event.is_set()
