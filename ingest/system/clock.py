"""The clock: the only file that reads the time of the machine.

Durations use the monotonic clock, in seconds. Wall time is Unix time in whole microseconds (UTC).
It is only for values that are stored or shown.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

monotonic_s = time.monotonic
sleep = time.sleep  # of a thread that is no event loop
thread_cpu_s = time.thread_time  # CPU seconds of the calling thread
process_cpu_s = time.process_time  # of all threads of this process
unix_s = time.time  # for what is shown; a call of `unix_us` costs twice as much


def unix_us() -> int:
    """Return the wall time as Unix microseconds."""
    return time.time_ns() // 1000


def rfc3339(ts_us: int) -> str:
    """Write Unix microseconds as RFC 3339 in UTC; without a fraction if it is a whole second.

    Raises OverflowError outside of the years 1 to 9999.
    """
    return (_EPOCH + timedelta(microseconds=ts_us)).isoformat().replace("+00:00", "Z")


def rfc3339_s(ts_us: int) -> str:
    """Write Unix microseconds as RFC 3339 in whole seconds, rounded down.

    Raises OverflowError as `rfc3339` does.
    """
    return rfc3339(ts_us - ts_us % 1_000_000)


def rfc3339_or_us(ts_us: int) -> str | int:
    """Return RFC 3339; for a year that it cannot write, the Unix microseconds as they are.

    A table may accept such a year, so a stored reading can have one.
    """
    try:
        return rfc3339(ts_us)
    except OverflowError:
        return ts_us


async def sleep_unless(event: asyncio.Event, delay_s: float) -> bool:
    """Sleep `delay_s` seconds, or until `event` is set; return whether it is set."""
    if delay_s > 0 and not event.is_set():
        try:
            async with asyncio.timeout(delay_s):
                await event.wait()
        except TimeoutError:
            pass
    return event.is_set()
