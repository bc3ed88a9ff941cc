"""Signals: the first one that ends the service starts the drain, the next one shortens it.

SIGHUP asks `ingest up` for a restart of its processes, one after the other.
"""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

from ingest.system.logs import get_logger

_ENDING = (signal.SIGTERM, signal.SIGINT)


def handle(stopping: asyncio.Event, halted: asyncio.Event) -> None:
    """From now on set `stopping` at the first signal, and `halted` at those that follow."""
    for number in _ENDING:
        asyncio.get_running_loop().add_signal_handler(
            number, partial(_received, number, stopping, halted)
        )


def handle_hangup(restart: asyncio.Event, stopping: asyncio.Event) -> None:
    """From now on set `restart` at SIGHUP; or `stopping`, if it says that our terminal is gone."""
    had_terminal = has_terminal()

    def received() -> None:
        log = get_logger("service")
        if had_terminal and not has_terminal():
            log.info("stopping", signal="SIGHUP")
            stopping.set()
        else:
            restart.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, received)


def has_terminal() -> bool:
    """Whether this process has a terminal, from which Ctrl-C comes."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def ignore() -> None:
    """Ignore these signals from now on, because the drain is over.

    The loop removes its handlers when it is closed. A signal after that would kill the process, and
    its exit code would say failure although nothing was lost.
    """
    for number in (*_ENDING, signal.SIGHUP):
        if not asyncio.get_running_loop().remove_signal_handler(number):
            continue  # it was not handled
        signal.signal(number, signal.SIG_IGN)


def _received(number: signal.Signals, stopping: asyncio.Event, halted: asyncio.Event) -> None:
    log = get_logger("service")
    if stopping.is_set():
        log.warning("hastened", signal=number.name)
        halted.set()
    else:
        log.info("stopping", signal=number.name)
        stopping.set()
