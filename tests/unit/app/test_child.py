"""A child of `ingest up`: what it says may be wrong, and its end is seen all the same."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from structlog.testing import capture_logs

from ingest.roles.supervisor.child import Child

SAYS = """
import os, sys
fd = int(sys.argv[sys.argv.index("--control-fd") + 1])
os.write(fd, b'{"status":{},"ready":true}\\n')
"""


async def test_child_whose_status_cannot_be_taken_still_ends() -> None:
    """Else its slot would wait for it for ever."""
    ended: list[Child] = []

    def fail(_: Mapping[str, Any]) -> None:
        raise ZeroDivisionError

    with capture_logs() as logs:
        child = await Child.start(
            [], [], fail, lambda: None, ended.append, program=(sys.executable, "-c", SAYS)
        )
        async with asyncio.timeout(10):
            await child.ended.wait()
    assert ended == [child]
    assert [(each["event"], each["why"]) for each in logs] == [
        ("control_broken", "ZeroDivisionError()")
    ]
