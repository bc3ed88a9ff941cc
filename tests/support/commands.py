"""Run `ingest ..` as a process of its own, or, which is quicker, in this process."""

from __future__ import annotations

import asyncio
import io
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from unittest.mock import patch

import pytest

from ingest.cli.commands import main
from tests.system.service import Done, run_command


async def ingest(*words: object) -> Done:
    """Run `ingest ..` to its end, as a process of its own."""
    return await run_command("ingest", *words)


class Step(NamedTuple):
    """A command line and what it tells: its exit code, and what is in its output and its errors.

    `lines` are those of its output. `body` is its input.
    """

    words: str
    code: int = 0
    out: Sequence[str] = ()
    err: Sequence[str] = ()
    lines: int | None = None
    body: bytes = b""


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

    def faults(self, steps: Iterable[Step], *flags: object, **places: object) -> list[str]:
        """Run steps, each with further flags; return what none has told.

        `places` are put into the words, as in `{folder}/x`. No output has a control character.
        """
        told = []
        for step in steps:
            words = shlex.split(step.words.format(**places))
            with patch("sys.stdin", io.TextIOWrapper(io.BytesIO(step.body))):
                done = self.ended(*words, *flags)
            missing = [each for each in step.out if each not in done.stdout]
            missing += [each for each in step.err if each not in done.stderr]
            is_good = done.code == step.code and done.stdout.replace("\n", "").isprintable()
            is_good = is_good and step.lines in (None, len(done.stdout.splitlines()))
            if missing or not is_good or "Traceback" in done.stderr:
                told.append(f"{step.words}: {done}, without {missing}")
        return told


def with_user(url: str, role: str) -> str:
    """Return a database's URL for another role."""
    return url.replace("postgres@", f"{role}@", 1)
