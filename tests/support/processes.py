"""The end of a child process, which a test waits for and does not leave behind."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def killed_after(process: Process) -> AsyncIterator[Process]:
    """Kill the process at the end of the block, if it is still there."""
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def output_of(process: Process, within_s: float) -> tuple[bytes, bytes]:
    """Wait for its end; return what it printed, of the pipes that it has, and its errors.

    If that takes longer, or the test is cancelled, the process is killed: raises TimeoutError.
    """
    async with killed_after(process), asyncio.timeout(within_s):
        output, errors = await process.communicate()
    return output or b"", errors or b""
