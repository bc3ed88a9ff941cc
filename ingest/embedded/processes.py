"""What the launchers of both servers do with a process: they watch it, end it, and read its log."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path


async def ended_or_set(
    process: asyncio.subprocess.Process, event: asyncio.Event, *, within_s: float
) -> bool:
    """Wait for the end of the process or for the event; return whether one of them came."""
    ends = [asyncio.create_task(process.wait()), asyncio.create_task(event.wait())]
    try:
        done, _ = await asyncio.wait(ends, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in ends:
            each.cancel()
    return bool(done)


async def end_process(
    process: asyncio.subprocess.Process, *steps: tuple[signal.Signals, float]
) -> None:
    """Send one signal after the other, each with its patience in seconds, until it has ended."""
    for number, patience_s in steps:
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await process.wait()


def tail_of(path: Path, start: int = 0) -> str:
    """Return the end of a log, from `start` on at the earliest; nothing if there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()[-600:].decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
