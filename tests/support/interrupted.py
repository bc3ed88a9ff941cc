"""What is told when a run of tests hangs: the tests that had not ended, and why.

A test that hangs in Python is ended by its time-out. Two kinds are not. After a failure pytest
cancels the time-out (for a debugger), so the fixtures' ends have none: here they get one. A process
that is stopped, that waits for the kernel, or that never gives up the interpreter's lock: .ci/run
interrupts the run after its time, and what is printed then is what there is to find the cause with.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

TEARDOWN_S_MAX = 120.0
STACKS_S = 2.0  # for the test processes, to print their stacks


class Unfinished:
    """A plugin of the process that gives out the tests: it knows which ones run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._began_s: dict[str, float] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note a test that begins."""
        self._began_s[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Forget a test that has ended."""
        self._began_s.pop(nodeid, None)

    def pytest_keyboard_interrupt(self) -> None:
        """Print what has not ended, and let the test processes print their stacks and end."""
        writer = self._config.get_terminal_writer()
        for nodeid, began_s in self._began_s.items():
            writer.line(f"\nnot ended after {time.monotonic() - began_s:.0f} s: {nodeid}")
        children = descendants(os.getpid())
        for pid in children:
            writer.line(process_line(pid))
        writer.flush()
        tests = [pid for pid in children if "sys.stdin.readline" in _read(pid, "cmdline")]
        for number in (signal.SIGABRT, signal.SIGKILL):  # ABRT: the stacks of all threads
            for pid in tests:  # those that xdist has started
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(STACKS_S)


def descendants(pid: int) -> list[int]:
    """Return the processes below this one, each before its children."""
    found = []
    for each in map(int, _read(pid, f"task/{pid}/children").split()):
        found += [each, *descendants(each)]
    return found


def process_line(pid: int) -> str:
    """Return its number, its state, what it waits for in the kernel, and its command."""
    state = _read(pid, "stat").rpartition(") ")[2][:1]
    command = _read(pid, "cmdline").replace("\0", " ")
    return f"process {pid}: {state or '?'} {_read(pid, 'wchan') or '-'} {command[:120]}"


def _read(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    return ""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Print the stacks of all threads and end the process if the fixtures of a test do not end."""
    stderr = item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(TEARDOWN_S_MAX, exit=True, file=stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_configure(config: pytest.Config) -> None:
    """Watch the tests, unless this is one of the processes that xdist has started."""
    if not hasattr(config, "workerinput"):
        # A shell lets what it starts in the background ignore it; Python leaves it so.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        config.pluginmanager.register(Unfinished(config), "unfinished")
