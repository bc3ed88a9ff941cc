"""Run `ingest ..` as a process of its own, or, which is quicker, in this process."""

from __future__ import annotations

import asyncio

import pytest

from ingest.cli.main import main
from tests.system.service import Done, run_command


async def ingest(*words: object) -> Done:
    """Run `ingest ..` to its end, as a process of its own."""
    return await run_command("ingest", *words)


class Here:
    """Runs commands in this process, which is quicker; only for commands that start no process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *words: object) -> Done:
        """Run `ingest ..` to its end, in a thread, since it has an event loop of its own."""
        self._capsys.readouterr()
        code = await asyncio.to_thread(main, [str(each) for each in words])
        return Done(code, *self._capsys.readouterr())


def with_user(url: str, role: str) -> str:
    """Return a database's URL for another role."""
    return url.replace("postgres@", f"{role}@", 1)
