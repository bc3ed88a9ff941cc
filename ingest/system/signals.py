"""The signals that end the service: the first one drains, the next hastens, then none matters."""

from __future__ import annotations

import asyncio
import signal
from functools import partial

from ingest.system.logs import get_logger

_ENDING = (signal.SIGTERM, signal.SIGINT)


def obey(stopping: asyncio.Event, halted: asyncio.Event) -> None:
    """From now on set `stopping` at the first signal, and `halted` at those that follow."""
    for number in _ENDING:
        asyncio.get_running_loop().add_signal_handler(
            number, partial(_came, number, stopping, halted)
        )


def ignore() -> None:
    """Let no signal change how the process ends, now that the drain is over.

    The loop takes its handlers away when it is closed: one that came then killed the process, and
    who had read that nothing was lost saw it fail.
    """
    for number in _ENDING:
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def _came(number: signal.Signals, stopping: asyncio.Event, halted: asyncio.Event) -> None:
    log = get_logger("service")
    if stopping.is_set():
        log.warning("hastened", signal=number.name)
        halted.set()
    else:
        log.info("stopping", signal=number.name)
        stopping.set()
