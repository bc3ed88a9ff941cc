"""Programs that a benchmark starts, what they cost, and their end.

Promises: a program started here ends with us, even if we are killed (Linux); it is stopped by its
own pid; its data lies in a folder of its own that is removed afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_S_MAX = 60.0
STOP_S_MAX = 60.0
DRIVER_S_MAX = 60.0
SAID_BYTES_MAX = 2_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ON_DISK = Path("/var/tmp")  # noqa: S108  folders below it have names of mkdtemp
REPOSITORY = Path(__file__).resolve().parent.parent


class Broken(Exception):
    """A program did not start, ended early or did not do what it is measured for; says which."""


class Missing(Exception):
    """Something that this machine lacks; the text says what to do. What needs it is left out."""


class Child:
    """One program, started in a session of its own: Ctrl-C reaches it through us only.

    What it prints goes to `folder`/NAME.log, and `said()` is the end of that.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(each) for each in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=_end_with_parent(),  # noqa: PLW1509  one prctl, no allocation
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def said(self, bytes_max: int = SAID_BYTES_MAX) -> str:
        """Return the end of what it printed."""
        return self._log.read_bytes()[-bytes_max:].decode(errors="replace").strip()

    def wait_until(self, is_ready: Callable[[], bool], *, poll_s: float = 0.02) -> None:
        """Wait until `is_ready`. Raises Broken if it ends before, or after START_S_MAX."""
        end_s = time.monotonic() + START_S_MAX
        while not is_ready():
            if not self.running:
                raise Broken(f"{self.name} ended while starting: {self.said()}")
            if time.monotonic() > end_s:
                raise Broken(f"{self.name} is not ready after {START_S_MAX:g} s: {self.said()}")
            time.sleep(poll_s)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end and wait; kill it after STOP_S_MAX. Return its exit code."""
        if self.running:
            self._process.send_signal(number)
        try:
            return self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def cpu_s(self) -> float:
        """Return the CPU seconds of its own process so far."""
        return cpu_s(self.pid)

    def rss_mib(self) -> float:
        """Return the memory of its own process now."""
        return _status_kib(self.pid, "VmRSS") / 1024

    def rss_peak_mib(self) -> float:
        """Return the most memory that its own process has had."""
        return _status_kib(self.pid, "VmHWM") / 1024


def _end_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    return ask


def cpu_s(pid: int, *, with_ended: bool = False) -> float:
    """Return the CPU seconds of one process; 0 if it is gone.

    `with_ended` adds those of its children that have ended, but not of those that are there.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 : 15 if with_ended else 13])) / _TICKS_PER_S


def cpu_clock_s(pid: int) -> float:
    """Return the CPU seconds of one process, to the microsecond: /proc counts in ticks of 10 ms.

    It is the kernel's CPU clock of the process (POSIX, clock_getcpuclockid): user and system, all
    threads, those that have ended too; no children. Raises Broken if the process is gone.
    """
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
        raise Broken(f"process {pid} has ended")
    return time.clock_gettime(clock.value)


def descendants(pid: int) -> list[int]:
    """Return all processes below one, as far as they are there now."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def cpu_below_s(pid: int) -> float:
    """Return the CPU seconds of all processes below one, of their ended children too."""
    return sum(cpu_s(each, with_ended=True) for each in descendants(pid))


def _status_kib(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise Broken(f"process {pid} has ended")
    return int(found[1])


def free_port() -> int:
    """Return a port of the loopback that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether somebody listens on a port of the loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder on a disk (in /tmp an fsync may cost nothing), removed afterwards.

    TMPDIR, where it is set, says where. Others may pass: the embedded server has its own user.
    """
    parent = os.environ.get("TMPDIR")
    if parent is None and ON_DISK.is_dir():
        parent = str(ON_DISK)
    folder = Path(tempfile.mkdtemp(prefix="ingest-bench-", dir=parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def raise_open_files_limit() -> None:
    """Let this process have as many open files as the machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def children_cpu_s() -> float:
    """Return the CPU seconds of all children that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_driver(command: Sequence[str | Path], seconds: float) -> tuple[str, float]:
    """Run a load driver, which takes `seconds`; return what it printed and its CPU seconds.

    Raises Broken if it fails, or takes DRIVER_S_MAX longer. Nothing else of ours may end meanwhile:
    its CPU would count too.
    """
    before_s = children_cpu_s()
    words = [str(each) for each in command]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            check=False,
            timeout=seconds + DRIVER_S_MAX,
        )
    except subprocess.TimeoutExpired as error:
        raise Broken(f"{shlex.join(words)} did not end in time") from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-SAID_BYTES_MAX:].strip()
        raise Broken(f"{words[0]} ended with code {done.returncode}: {said}")
    return done.stdout, children_cpu_s() - before_s
