"""A process: an error in a task or in the close is seen, and changes nothing that is known."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Mapping

import pytest
from structlog.testing import capture_logs

from ingest.app.process import EXIT_BROKEN, EXIT_LOST, EXIT_OK, Process
from ingest.system.service_manager import Notifier


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Undo what a process does to the signals of this one."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


async def fail() -> None:
    """Have a bug."""
    raise ZeroDivisionError


async def nothing() -> None:
    """Do nothing."""


async def ran(process: Process, *, lost: int = 0, close_fails: bool = False) -> int:
    """Run it until it stops; return the exit code."""

    async def stop() -> Mapping[str, int]:
        return {"lost": lost}

    close = fail if close_fails else nothing
    return await process.run(nothing, stop, close, in_words=lambda: "")


@pytest.mark.parametrize(
    ("lost", "close_fails", "code"),
    [(0, False, EXIT_OK), (0, True, EXIT_BROKEN), (3, True, EXIT_LOST), (3, False, EXIT_LOST)],
)
async def test_error_in_the_close_does_not_replace_the_exit_code(
    lost: int, close_fails: bool, code: int
) -> None:
    """It is in the log; a loss is still told as one."""
    lines: list[str] = []
    process = Process("up", lines.append, Notifier())
    process.stopping.set()
    with capture_logs() as logs:
        assert await ran(process, lost=lost, close_fails=close_fails) == code
    assert lines == [f"drained: lost={lost}"]
    assert [each["event"] for each in logs] == (["task_died"] if close_fails else [])


async def test_task_of_others_that_dies_ends_the_process() -> None:
    """Its owner sees no error when it waits for the task, and can end the rest."""
    process = Process("up", lambda _: None, Notifier())
    with capture_logs() as logs:
        task = process.guard(fail())
        async with asyncio.timeout(5):
            assert await ran(process) == EXIT_BROKEN
        await task
    assert [each["event"] for each in logs] == ["task_died"]
