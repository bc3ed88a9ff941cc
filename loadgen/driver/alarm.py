"""Calls back at a moment: within about 0.1 ms by a timerfd (Linux, Python 3.13).

Elsewhere by the event loop's timers, which have whole milliseconds: up to 1.5 ms late.
Promises: never early.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable
from typing import Protocol


class Alarm(Protocol):
    """One moment at a time. Moments are of `time.monotonic`."""

    def set(self, at_s: float) -> None:
        """Call back once at this moment, or at once if it is past; it replaces the one before."""

    def close(self) -> None:
        """Cancel the callback."""


class Waker:
    """Wakes at the earliest of several moments, but not twice within `grain_s`.

    At high rates this joins many wake-ups. `next_s` is the moment that is set, or infinite.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        call: Callable[[], None],
        grain_s: float,
    ) -> None:
        self.next_s = math.inf
        self._call = call
        self._grain_s = grain_s
        self._rung_s = -math.inf
        self._alarm = make_alarm(loop, self._ring)

    def wake_by(self, at_s: float) -> None:
        """Call back at this moment, unless an earlier one is set."""
        at_s = max(at_s, self._rung_s + self._grain_s)
        if at_s < self.next_s:
            self.next_s = at_s
            self._alarm.set(at_s)

    def close(self) -> None:
        """Call back no more."""
        self._alarm.close()

    def _ring(self) -> None:
        self.next_s = math.inf
        self._rung_s = time.monotonic()
        self._call()


def make_alarm(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Alarm:
    """Return the best alarm of this platform."""
    if sys.platform == "linux" and sys.version_info >= (3, 13):
        return TimerfdAlarm(loop, call)
    return LoopAlarm(loop, call)


class LoopAlarm:
    """An alarm by the event loop's timers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._at_s = math.inf
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at_s: float) -> None:
        """Set the moment."""
        self.close()
        self._at_s = at_s
        # Rounded up: uvloop rounds to the nearest millisecond, so it would often be early.
        delay_s = max(0, math.ceil((at_s - time.monotonic()) * 1000)) / 1000
        self._handle = self._loop.call_later(delay_s, self._ring)

    def close(self) -> None:
        """Forget the moment."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self) -> None:
        # The event loop counts from the start of its round, so it may still be a little early.
        if time.monotonic() < self._at_s:
            self._handle = self._loop.call_later(0.001, self._ring)
            return
        self._handle = None
        self._call()


if sys.platform == "linux" and sys.version_info >= (3, 13):
    import os

    class TimerfdAlarm:
        """An alarm by a timer of the kernel; the event loop waits for it as for a socket."""

        def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
            self._loop = loop
            self._call = call
            # `time.monotonic` is this clock on Linux.
            self._fd = os.timerfd_create(
                time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC
            )
            loop.add_reader(self._fd, self._ring)

        def set(self, at_s: float) -> None:
            """Set the moment."""
            # Zero would switch it off. A new setting also cancels an expiry that was not read yet.
            at_ns = max(1, math.ceil(at_s * 1e9))
            os.timerfd_settime_ns(self._fd, flags=os.TFD_TIMER_ABSTIME, initial=at_ns)

        def close(self) -> None:
            """Give the timer back."""
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)
                os.close(self._fd)
                self._fd = -1

        def _ring(self) -> None:
            try:
                os.read(self._fd, 8)
            except BlockingIOError:
                return  # it was set again meanwhile
            self._call()
