"""A driver's result comes whole, however large it is."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import termios
import time
from array import array
from pathlib import Path
from typing import IO

import pytest

REPOSITORY = Path(__file__).parents[3]
FULL = 60_000
SIZE = 1_000_000  # several times what a pipe holds
CHILD = """
import signal, sys
from benchmarks.processes import print_whole
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
{way}("x" * {size})
"""


def _waiting(pipe: IO[bytes]) -> int:
    """Return how many bytes are in a pipe."""
    count = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def printed(way: str) -> int:
    """Return how much comes from a child without a buffer whose writes are interrupted."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(way=way, size=SIZE)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert child.stdout is not None
    with child:
        until_s = time.monotonic() + 20
        while _waiting(child.stdout) < FULL and time.monotonic() < until_s:
            time.sleep(0.02)  # on a busy machine the start of the child takes long
        time.sleep(0.3)  # the pipe is full: signals interrupt the write
        return len(child.stdout.read())


def test_text_of_any_size_comes_whole() -> None:
    """Though a signal interrupts the write."""
    assert printed("print_whole") == SIZE + 1


def test_the_test_can_fail() -> None:
    """Python's own way loses the rest. If it does not any more, ours is not needed."""
    if printed("print") == SIZE + 1:
        pytest.fail("this Python prints it whole")
