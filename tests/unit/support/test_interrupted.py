"""An interrupted run of tests says what hangs, also a process that cannot say it itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.interrupted import descendants, process_line
from tests.system.service import REPOSITORY, environment

HANGS = """
import os, re, signal, pytest

@pytest.mark.timeout(1)
def test_stopped():
    os.kill(os.getpid(), signal.SIGSTOP)

@pytest.mark.timeout(1)
def test_holds_the_lock_of_the_interpreter():
    open("began", "w").close()
    re.match("(a+)+b", "a" * 60)
"""


@pytest.mark.slow
@pytest.mark.timeout(150)  # of a busy machine, with its core dumps
def test_interrupted_run_names_what_has_not_ended(tmp_path: Path) -> None:
    """The tests, the states of their processes, and the stack of the one that can print it."""
    for number in (1, 2):
        (tmp_path / f"test_{number}.py").write_text(HANGS)
    words = ("-n", "2", "-p", "tests.support.interrupted", "-p", "no:cacheprovider")
    tests = ("test_1.py::test_stopped", "test_2.py::test_holds_the_lock_of_the_interpreter")
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--timeout-method=thread", *words, *tests],
        cwd=tmp_path,
        env=environment(measured=False) | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    try:
        for _ in range(600):
            if (tmp_path / "began").exists() and "T" in _states(run.pid):
                break
            time.sleep(0.05)
        time.sleep(1)  # for what the test processes tell the other one
        run.send_signal(signal.SIGINT)
        late = threading.Timer(90, run.kill)
        late.start()
        said, _ = run.communicate()
        late.cancel()
    finally:
        run.kill()
    assert all(f"s: {each}" in said for each in tests), said
    assert ": T " in said
    assert ": R " in said
    assert "in test_holds_the_lock_of_the_interpreter" in said


def _states(pid: int) -> str:
    return "".join(process_line(each).split()[2] for each in descendants(pid))
