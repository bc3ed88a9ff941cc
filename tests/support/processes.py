"""The end of a child process, which a test waits for and does not leave behind."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process


async def output_of(process: Process, within_s: float) -> tuple[bytes, bytes]:
    """Wait for its end; return what it printed, of the pipes that it has, and its errors.

    If that takes longer, or the test is cancelled, the process is killed: raises TimeoutError.
    """
    try:
        async with asyncio.timeout(within_s):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output or b"", errors or b""
