"""Programs that a benchmark starts: their start, their CPU and memory, their end.

Promises: a program started here ends with this process, even if this process is killed. It is
stopped by its own pid. Its data is in a folder of its own, which is removed afterwards.
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
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

START_S_MAX = 60.0
STOP_S_MAX = 60.0
DRIVER_S_MAX = 60.0
OUTPUT_BYTES_MAX = 2_000
SAMPLES_PER_S = 20
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ON_DISK = Path("/var/tmp")  # noqa: S108  folders below it have names of mkdtemp
END_WITH_PARENT = partial(ctypes.CDLL(None).prctl, 1, signal.SIGTERM)  # PR_SET_PDEATHSIG
REPOSITORY = Path(__file__).resolve().parent.parent


class Broken(Exception):
    """A program did not start, ended early or did not do its work; the text says which."""


class Missing(Exception):
    """This machine lacks something; the text says what to do. The contender is left out."""


class Sample(NamedTuple):
    """A number, and when it was read by time.monotonic."""

    at_s: float
    value: float


class Child:
    """One program, in a session of its own: Ctrl-C reaches this process only, which stops it.

    Its output goes to `folder`/NAME.log.
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
                preexec_fn=END_WITH_PARENT,  # noqa: PLW1509  one prctl, no allocation
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def output(self) -> str:
        """Return the end of its output."""
        return self._log.read_bytes()[-OUTPUT_BYTES_MAX:].decode(errors="replace").strip()

    def wait_until(self, is_ready: Callable[[], bool], *, poll_s: float = 0.02) -> None:
        """Wait until `is_ready`. Raises Broken if it ends before, or after START_S_MAX."""
        end_s = time.monotonic() + START_S_MAX
        while not is_ready():
            if not self.running:
                raise Broken(f"{self.name} ended while starting: {self.output()}")
            if time.monotonic() > end_s:
                raise Broken(f"{self.name} is not ready after {START_S_MAX:g} s: {self.output()}")
            time.sleep(poll_s)

    def wait(self) -> int:
        """Wait until it ends by itself; return its exit code."""
        return self._process.wait(START_S_MAX)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end and wait; kill it after STOP_S_MAX. Return its exit code."""
        self._process.send_signal(number)  # nothing, if it has ended
        try:
            return self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def cpu_s(self) -> float:
        """Return the CPU seconds of its own process so far. Raises Broken if it has ended."""
        return cpu_clock_s(self.pid)

    def rss_mib(self) -> float:
        """Return the memory of its own process now."""
        return rss_mib(self.pid)

    def rss_peak_mib(self) -> float:
        """Return the most memory that its own process has had."""
        return rss_mib(self.pid, "VmHWM")


@contextmanager
def serving(child: Child, is_ready: Callable[[], bool], *, poll_s: float = 0.02) -> Iterator[Child]:
    """Give a program once it is ready; stop it afterwards."""
    try:
        child.wait_until(is_ready, poll_s=poll_s)
        yield child
    finally:
        child.stop()


@contextmanager
def own_server(folder: Path, module: str, *words: str) -> Iterator[tuple[Child, int]]:
    """Run `python -m benchmarks.MODULE PORT WORDS..`; give it and its port once it listens."""
    port = free_port()
    command = [sys.executable, "-m", f"benchmarks.{module}", str(port), *words]
    with serving(Child(module, command, folder), partial(accepts, port)) as child:
        yield child, port


def cpu_clock_s(pid: int) -> float:
    """Return the CPU seconds of one process, to the microsecond: /proc counts in ticks of 10 ms.

    It is the kernel's CPU clock of the process (POSIX, clock_getcpuclockid): user and system, all
    threads, also ended ones; no children. Raises Broken if the process has ended.
    """
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
        raise Broken(f"process {pid} has ended")
    return time.clock_gettime(clock.value)


def descendants(pid: int) -> list[int]:
    """Return all processes below one that exist now."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def cpu_by_process_s(pid: int) -> dict[int, float]:
    """Return the CPU seconds of each process below one, to the microsecond."""
    found = {}
    for each in descendants(pid):
        with contextlib.suppress(Broken):
            found[each] = cpu_clock_s(each)
    return found


def cpu_below_s(pid: int) -> float:
    """Return the CPU seconds of all processes below one, and of their children that have ended."""
    ticks = 0
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_PER_S


@contextmanager
def sampled(read: Callable[[], float]) -> Iterator[list[Sample]]:
    """Give a list that grows by SAMPLES_PER_S samples a second until the end; at least one."""
    samples: list[Sample] = []
    over = threading.Event()

    def watch() -> None:
        while True:
            value = read()
            samples.append(Sample(time.monotonic(), value))
            if over.wait(1 / SAMPLES_PER_S):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def rss_mib(pid: int, name: str = "VmRSS") -> float:
    """Return the memory of one process. Raises Broken if the process has ended."""
    found = re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise Broken(f"process {pid} has ended")
    return int(found[1]) / 1024


def free_port() -> int:
    """Return a port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str, text: str = "") -> bool:
    """Whether a server answers with a 2xx that contains `text`."""
    try:
        return text in fetch(url)
    except OSError:
        return False


def accepts(port: int) -> bool:
    """Whether a program listens on a port of the loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def fetch(url: str, body: bytes | None = None, *, within_s: float = 60.0) -> str:
    """Return the answer to a GET, or to a POST of `body`. Raises OSError, also after `within_s`."""
    with urllib.request.urlopen(url, body, timeout=within_s) as answer:
        return str(answer.read().decode())


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder on a disk (in /tmp an fsync may cost nothing), removed afterwards.

    It is below TMPDIR, if that is set. Other users may pass it: the embedded server has its own
    user.
    """
    parent = os.environ.get("TMPDIR") or (ON_DISK if ON_DISK.is_dir() else None)
    folder = Path(tempfile.mkdtemp(prefix="ingest-bench-", dir=parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate (ECDSA, P-256) for the loopback and its key; return both files."""
    cert_file, key_file = folder / "bench.crt", folder / "bench.key"
    if not cert_file.exists():
        words: list[str | Path] = [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "30", "-subj", "/CN=bench"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key_file, "-out", cert_file),
        ]
        subprocess.run(words, check=True, capture_output=True)
    return cert_file, key_file


def raise_open_files_limit() -> None:
    """Let this process have as many open files as the machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def print_whole(text: str) -> None:
    """Print a text of any size.

    With PYTHONUNBUFFERED, Python's own `print` loses the rest of a text if its write to a pipe is
    interrupted, and says nothing.
    """
    sys.stdout.flush()
    with open(sys.stdout.fileno(), "w", closefd=False) as out:
        print(text, file=out)


def _children_cpu_s() -> float:
    """Return the CPU seconds of all children that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_driver(command: Sequence[str | Path], seconds: float) -> tuple[str, float]:
    """Run a load driver, which takes `seconds`; return its output and its CPU seconds.

    Raises Broken if it fails, or takes DRIVER_S_MAX longer. No other child may end meanwhile: its
    CPU would count too.
    """
    before_s = _children_cpu_s()
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
        output = (done.stdout + done.stderr)[-OUTPUT_BYTES_MAX:].strip()
        raise Broken(f"{words[0]} ended with code {done.returncode}: {output}")
    return done.stdout, _children_cpu_s() - before_s
