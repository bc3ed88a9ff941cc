"""InfluxDB 1.x and VictoriaMetrics from Debian's packages, unpacked to a cache, never installed.

Each runs on the loopback with its default settings but for paths, ports, retention and the log of
requests. Each has a data folder of its own, and is stopped by its pid. The meaning of their
answers: InfluxDB has written the post to its WAL and called fsync (`wal-fsync-delay` is 0 by
default). VictoriaMetrics has it in memory for up to some seconds; a crash loses those.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import Broken, Child, Missing, answers, fetch, free_port, serving

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
    # Unpacked beside its place and moved: after a broken download the cache has no such folder.
    with tempfile.TemporaryDirectory(dir=cache) as beside:
        _run(package, ["apt-get", "download", "-qq", package], Path(beside))
        packages = list(Path(beside).glob("*.deb"))
        if len(packages) != 1:
            raise Missing(f"apt-get download {package} gave no package")
        unpacked = Path(beside) / "unpacked"
        _run(package, ["dpkg", "-x", str(packages[0]), str(unpacked)], Path(beside))
        if not (unpacked / "usr" / "bin" / name).exists():
            raise Missing(f"the package {package} has no {name}")
        shutil.rmtree(cache / package, ignore_errors=True)
        unpacked.rename(cache / package)
    return found


def _run(package: str, command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = done.stderr.strip().splitlines() or [str(done.returncode)]
        raise Missing(
            f"{package} could not be fetched ({why[-1]}); is there a network? try apt-get update"
        )


class Peer(NamedTuple):
    """Another server that takes the same readings, at `target` of its port.

    `stored` returns how many readings it has stored since its start, by its own words.
    """

    child: Child
    port: int
    target: str
    stored: Callable[[], int]


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
INFLUX_COUNT = {"db": "bench", "q": "select count(*) from /.*/"}  # a column for each field


@contextmanager
def influx(folder: Path) -> Iterator[Peer]:
    """Run InfluxDB 1.x: `/write` of line protocol with microseconds."""
    binary, port = program("influxdb", "influxd"), free_port()
    url = f"http://127.0.0.1:{port}"
    settings = folder / "influxdb.conf"
    settings.write_text(INFLUX_SETTINGS.format(folder=folder, port=port, rpc_port=free_port()))

    def count() -> int:
        found = json.loads(fetch(f"{url}/query?{urllib.parse.urlencode(INFLUX_COUNT)}"))
        series = found["results"][0].get("series", [])
        rows = (row for each in series for row in each["values"])
        return sum(of or 0 for row in rows for of in row[1:])  # None: a field of other measurements

    child = Child("influxdb", [binary, "-config", settings], folder)
    with serving(child, lambda: answers(f"{url}/ping")):
        fetch(f"{url}/query", urllib.parse.urlencode({"q": "create database bench"}).encode())
        yield Peer(child, port, "/write?db=bench&precision=u", count)


@contextmanager
def victoria(folder: Path) -> Iterator[Peer]:
    """Run VictoriaMetrics: `/write` of line protocol. It stores milliseconds."""
    binary, port = program("victoria-metrics", "victoria-metrics"), free_port()
    url = f"http://127.0.0.1:{port}"
    command: list[str | Path] = [
        binary,
        f"-storageDataPath={folder}/data",
        f"-httpListenAddr=127.0.0.1:{port}",
        "-retentionPeriod=100y",  # by default it drops samples that are older than a month
        "-loggerLevel=ERROR",
    ]

    def count() -> int:
        for line in fetch(f"{url}/metrics").splitlines():
            if line.startswith("vm_rows_added_to_storage_total"):
                return int(float(line.split()[-1]))
        raise Broken("VictoriaMetrics has no vm_rows_added_to_storage_total")

    child = Child("victoria-metrics", command, folder)
    with serving(child, lambda: answers(f"{url}/health")):
        yield Peer(child, port, "/write?precision=u", count)


def check_count(peer: Peer, expected: int, unanswered: int) -> None:
    """Raise Broken unless a peer has stored the readings that it has taken.

    `unanswered` readings had no answer when the driver ended: they may be stored too.
    """
    end_s = time.monotonic() + COUNT_S_MAX
    while (there := peer.stored()) < expected and time.monotonic() < end_s:
        time.sleep(0.1)
    if not expected <= there <= expected + unanswered:
        raise Broken(f"{peer.child.name} took {expected} readings and has {there}")
