"""The signals that end the service: the first one starts the drain, the next one shortens it."""

from __future__ import annotations

import asyncio
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


def ignore() -> None:
    """Ignore both signals from now on, because the drain is over.

    The loop removes its handlers when it is closed. A signal after that would kill the process, and
    its exit code would say failure although nothing was lost.
    """
    for number in _ENDING:
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def _received(number: signal.Signals, stopping: asyncio.Event, halted: asyncio.Event) -> None:
    log = get_logger("service")
    if stopping.is_set():
        log.warning("hastened", signal=number.name)
        halted.set()
    else:
        log.info("stopping", signal=number.name)
        stopping.set()
