"""InfluxDB 1.x and VictoriaMetrics from Debian's packages, unpacked to a cache, never installed.

Each runs on the loopback with its default settings but for paths, ports, retention and the log of
requests, with a data folder of its own, and is stopped by its pid. What each promises when it has
answered: InfluxDB has written the post to its WAL and called fsync (`wal-fsync-delay` is 0 by
default). VictoriaMetrics holds it in memory, up to some seconds; a crash loses those.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from benchmarks.processes import Broken, Child, Missing, free_port

COUNT_S_MAX = 30.0


def program(package: str, name: str) -> Path:
    """Return a program of a Debian package, downloaded once to the cache. Raises Missing."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cache = Path(base) / "iot-ingest" / "peers"
    found = cache / package / "usr" / "bin" / name
    if found.exists():
        return found
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Missing(f"{package} comes from Debian's packages, and there is no {tool} here")
    cache.mkdir(parents=True, exist_ok=True)
    # Unpacked beside its place and moved: a broken download leaves nothing that looks whole.
    with tempfile.TemporaryDirectory(dir=cache) as beside:
        _run(package, ["apt-get", "download", "-qq", package], Path(beside))
        packages = list(Path(beside).glob("*.deb"))
        if len(packages) != 1:
            raise Missing(f"apt-get download {package} gave no package")
        unpacked = Path(beside) / "unpacked"
        _run(package, ["dpkg", "-x", str(packages[0]), str(unpacked)], Path(beside))
        if not (unpacked / "usr" / "bin" / name).exists():
            raise Missing(f"the package {package} holds no {name}")
        shutil.rmtree(cache / package, ignore_errors=True)
        unpacked.rename(cache / package)
    return found


def _run(package: str, command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()
        raise Missing(
            f"{package} could not be fetched ({why[-1] if why else done.returncode}); "
            "is there a network? try apt-get update"
        )


class Peer(Protocol):
    """Another server that takes the same readings. `with Influx(folder) as peer:`."""

    child: Child
    port: int
    target: str

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def count(self) -> int:
        """Return how many readings it says that it has stored since its start."""


class _Started(ABC):
    """What both have in common: a child, a port, and an end."""

    child: Child
    port: int

    @abstractmethod
    def _health(self) -> str:
        """Return a URL that answers once it serves."""

    def __enter__(self) -> Self:
        try:
            self.child.wait_until(self._answers)
        except BaseException:
            self.child.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.child.stop()

    def _answers(self) -> bool:
        try:
            self.ask(self._health())
        except OSError:
            return False
        return True

    def ask(self, path: str, body: bytes | None = None) -> str:
        """Return what it answers; a body is posted."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())


INFLUX_SETTINGS = """reporting-disabled = true
bind-address = "127.0.0.1:{rpc_port}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
"""


class Influx(_Started):
    """InfluxDB 1.x, `/write` of line protocol with microseconds."""

    target = "/write?db=bench&precision=u"

    def __init__(self, folder: Path) -> None:
        binary = program("influxdb", "influxd")
        self.port = free_port()
        settings = folder / "influxdb.conf"
        settings.write_text(
            INFLUX_SETTINGS.format(folder=folder, port=self.port, rpc_port=free_port())
        )
        self.child = Child("influxdb", [binary, "-config", settings], folder)

    def _health(self) -> str:
        return "/ping"

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.ask("/query", urllib.parse.urlencode({"q": "create database bench"}).encode())
        except BaseException:
            self.child.stop()
            raise
        return self

    def count(self) -> int:
        """Return how many readings a query finds."""
        query = urllib.parse.urlencode(
            {"db": "bench", "q": 'select count("value") from "temperature"', "format": "csv"}
        )
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/query?{query}", headers={"Accept": "application/csv"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            lines = answer.read().decode().split()
        return int(lines[-1].split(",")[-1]) if lines else 0


class Victoria(_Started):
    """VictoriaMetrics, `/write` of line protocol. It stores milliseconds."""

    target = "/write?precision=u"

    def __init__(self, folder: Path) -> None:
        binary = program("victoria-metrics", "victoria-metrics")
        self.port = free_port()
        self.child = Child(
            "victoria-metrics",
            [
                binary,
                f"-storageDataPath={folder}/data",
                f"-httpListenAddr=127.0.0.1:{self.port}",
                "-retentionPeriod=100y",  # by default what is older than a month is thrown away
                "-loggerLevel=ERROR",
            ],
            folder,
        )

    def _health(self) -> str:
        return "/health"

    def count(self) -> int:
        """Return how many samples its storage has taken in."""
        for line in self.ask("/metrics").splitlines():
            if line.startswith("vm_rows_added_to_storage_total"):
                return int(float(line.split()[-1]))
        raise Broken("VictoriaMetrics has no vm_rows_added_to_storage_total")


def check_count(peer: Peer, expected: int, unanswered: int) -> None:
    """Raise Broken unless a peer has stored what it has taken.

    `unanswered` readings were under way when the driver ended: they may be there too.
    """
    end_s = time.monotonic() + COUNT_S_MAX
    while (there := peer.count()) < expected and time.monotonic() < end_s:
        time.sleep(0.1)
    if not expected <= there <= expected + unanswered:
        raise Broken(f"{peer.child.name} took {expected} readings and has {there}")
