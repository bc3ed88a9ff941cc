"""Posts of line protocol as Telegraf sends its batches: 1,000 lines of several fields.

Each line is another series, host after host; each round of all of them has a time of its own. The
bodies of telegraf.lua are made once, for all contenders.
"""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from loadgen.traffic.post import compress

HOSTS_MANY, LINES = 200, 1_000  # of a run of wrk, of a post
CONNECTIONS = 8  # more posts than these would be more readings than a buffer in memory has room for
POSTS_PER_S_MAX = 180  # faster than all contenders; after the last body the run ends
LEVEL = 6  # of gzip
PLUGINS = ("cpu", "net", "disk", "diskio", "mem")


class Hosts(NamedTuple):
    """Hosts of one kind: each sends all of `keys`, which have a place for its number."""

    keys: tuple[str, ...]
    fields: tuple[str, ...]
    gzip: bool
    media_type: str = "text/plain"

    @property
    def rows(self) -> int:
        """The readings of a post."""
        return LINES * len(self.fields)

    def body(self, hosts: int, number: int, first_us: int) -> bytes:
        """Return post `number` of so many hosts; the first round has the time `first_us`."""
        keys, values = self.keys, _values(self.fields)
        lines = []
        for line in range(number * LINES, (number + 1) * LINES):
            before, key = divmod(line, len(keys))
            rounds, host = divmod(before, hosts)
            lines.append(f"{keys[key] % host} {values[line % len(values)]} {first_us + rounds}\n")
        text = "".join(lines).encode()
        return compress(text, LEVEL) if self.gzip else text


@cache
def _values(fields: tuple[str, ...]) -> list[str]:
    """Return what stands for all fields of a line, some dozens of it."""
    return [
        ",".join(
            f"usage_{name}={(number * 37 + at * 911) % 10_000 / 100:.2f}"
            for at, name in enumerate(fields)
        )
        for number in range(97)
    ]


TELEGRAF, FLEET = "telegraf", "fleet"
HOSTS = {
    TELEGRAF: Hosts(
        tuple(f"cpu,cpu=cpu{number},host=host-%03d" for number in range(5)),
        (
            *("user", "system", "idle", "nice", "iowait", "irq", "softirq", "steal"),
            *("guest", "active"),
        ),
        gzip=True,
    ),
    FLEET: Hosts(
        tuple(
            f"{PLUGINS[number % 5]},part=x{number},host=web%06d.example.com,region=eu"
            for number in range(20)
        ),
        ("aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh"),
        gzip=False,
    ),
}
ROWS = HOSTS[TELEGRAF].rows


@cache
def bodies(first_us: int, seconds: float) -> Path:
    """Return the file with all bodies of a run: of each, its size in 8 digits, and its bytes."""
    file = tempfile.NamedTemporaryFile(prefix="iot-ingest-telegraf-", delete=False)  # noqa: SIM115
    path = Path(file.name)
    atexit.register(path.unlink, missing_ok=True)
    with file:
        for number in range(int(seconds * POSTS_PER_S_MAX)):
            packed = HOSTS[TELEGRAF].body(HOSTS_MANY, number, first_us)
            file.write(b"%08d%b" % (len(packed), packed))
    return path
