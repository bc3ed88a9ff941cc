"""A driver's result comes whole, however large it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SIZE = 1_000_000  # several times what a pipe holds
CHILD = """
import signal, sys
from benchmarks.processes import print_whole
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
{way}("x" * {size})
"""


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
        time.sleep(0.5)  # the pipe is full, and the child waits in its write
        return len(child.stdout.read())


def test_text_of_any_size_comes_whole() -> None:
    """Though a signal interrupts the write."""
    assert printed("print_whole") == SIZE + 1


def test_the_test_can_fail() -> None:
    """Python's own way loses the rest. If it does not any more, ours is not needed."""
    if printed("print") == SIZE + 1:
        pytest.fail("this Python prints it whole")
