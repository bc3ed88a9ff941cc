"""Run `ingest ..` as a process of its own, or, which is quicker, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ingest.cli.main import main
from tests.system.service import Done, run_command


async def ingest(*words: object) -> Done:
    """Run `ingest ..` to its end, as a process of its own."""
    return await run_command("ingest", *words)


class Here:
    """Runs commands in this process, which is quicker; only for commands that start no process.

    Those of `ingest`, unless another command line is given.
    """

    def __init__(
        self, capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int] = main
    ) -> None:
        self._capsys = capsys
        self._main = main

    async def __call__(self, *words: object) -> Done:
        """Run a command to its end, in a thread, since it has an event loop of its own."""
        return await asyncio.to_thread(self.ended, *words)

    def ended(self, *words: object) -> Done:
        """Run a command to its end in this thread."""
        self._capsys.readouterr()
        try:
            code = self._main([str(each) for each in words])
        except SystemExit as ended:  # by its parser
            code = int(ended.code or 0)
        return Done(code, *self._capsys.readouterr())


def with_user(url: str, role: str) -> str:
    """Return a database's URL for another role."""
    return url.replace("postgres@", f"{role}@", 1)
