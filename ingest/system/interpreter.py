"""The interpreter lock: how soon another thread gets it from a thread that is busy.

A thread that has work waits for the lock, and asks for it after the switch interval. Python's is 5
ms. But the event loop gives the lock back in each round, for a moment that is too short for another
thread to wake up, and the 5 ms begin anew. So beside a loop that always has something to do, a
thread waits for 5 to 15 ms each time that a system call of it ends (measured).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_S = 0.0005  # less than a busy round of the event loop takes

_usual_s = sys.getswitchinterval()
_busy = 0  # contexts that have been entered


@contextmanager
def sharing_soon() -> Iterator[None]:
    """Until the context ends, other threads get the interpreter within SWITCH_S.

    For one thread, the event loop's. Several contexts may be open; they may end in any order.
    """
    global _busy, _usual_s  # noqa: PLW0603  so is the interpreter's own
    if not _busy:
        _usual_s = sys.getswitchinterval()
        sys.setswitchinterval(min(SWITCH_S, _usual_s))
    _busy += 1
    try:
        yield
    finally:
        _busy -= 1
        if not _busy:
            sys.setswitchinterval(_usual_s)
