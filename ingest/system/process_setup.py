"""What a process sets for itself at its start: open files, memory, the interpreter lock, signals.

The first signal that ends the service starts the drain, the next one shortens it. SIGHUP asks
`ingest up` for a restart of its processes, one after the other.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from ingest.system.logs import get_logger

OWN_CGROUPS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Descriptors beside connections_max: the admin port may have 256, and 128 are for database, files
# and libraries.
SPARE_FILES = 256 + 128
# Less than a busy round of the event loop takes. A thread that has work asks for the interpreter
# lock after the switch interval; Python's is 5 ms. But the event loop gives the lock back in each
# round, for a moment that is too short for another thread to wake up, and the 5 ms begin anew. So
# beside a loop that always has something to do, a thread waits for 5 to 15 ms each time that a
# system call of it ends (measured).
SWITCH_S = 0.0005

_ENDING = (signal.SIGTERM, signal.SIGINT)
_usual_s = 0.0  # the interval without them
_busy = 0  # contexts of `sharing_soon` that have been entered


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files to the hard one; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def memory_bytes() -> int:
    """Return the memory of this machine, or the smallest limit of our cgroups (version 1 or 2)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError):  # no Linux
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            own = CGROUPS / controllers / path.lstrip("/")
            # A container may see its own cgroup at the top, and a path that is not there.
            for folder in (own, *own.parents):
                with suppress(OSError, ValueError):  # not there, or `max`
                    limits.append(int((folder / name).read_text()))
    return min(limits)


@contextmanager
def sharing_soon() -> Iterator[None]:
    """Until the context ends, other threads get the interpreter within SWITCH_S.

    For one thread, the event loop's. Several contexts may be open; they may end in any order.
    """
    global _busy, _usual_s  # noqa: PLW0603  so is the interpreter's own interval
    if not _busy:
        _usual_s = sys.getswitchinterval()
    _busy += 1
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        _busy -= 1
        if not _busy:
            sys.setswitchinterval(_usual_s)


def handle_signals(stopping: asyncio.Event, halted: asyncio.Event) -> None:
    """From now on set `stopping` at the first signal, and `halted` at those that follow."""
    for number in _ENDING:
        asyncio.get_running_loop().add_signal_handler(
            number, partial(_received, number, stopping, halted)
        )


def _received(number: signal.Signals, stopping: asyncio.Event, halted: asyncio.Event) -> None:
    log = get_logger("service")
    if stopping.is_set():
        log.warning("hastened", signal=number.name)
        halted.set()
    else:
        log.info("stopping", signal=number.name)
        stopping.set()


def handle_hangup(restart: asyncio.Event, stopping: asyncio.Event) -> None:
    """From now on set `restart` at SIGHUP; or `stopping`, if it says that our terminal is gone."""
    had_terminal = _has_terminal()

    def received() -> None:
        log = get_logger("service")
        if had_terminal and not _has_terminal():
            log.info("stopping", signal="SIGHUP")
            stopping.set()
        else:
            restart.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, received)


def _has_terminal() -> bool:
    """Whether this process has a terminal, from which Ctrl-C comes."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def ignore_signals() -> None:
    """Ignore these signals from now on, because the drain is over.

    The loop removes its handlers when it is closed. A signal after that would kill the process, and
    its exit code would say failure although nothing was lost.
    """
    for number in (*_ENDING, signal.SIGHUP):
        if not asyncio.get_running_loop().remove_signal_handler(number):
            continue  # it was not handled
        signal.signal(number, signal.SIG_IGN)
