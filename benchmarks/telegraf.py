"""The bodies of telegraf.lua: as Telegraf sends its batches, 1,000 lines of ten fields, gzip.

Each of a post's lines is another series; its posts differ by their one time. So a body is made from
a pattern, once for all contenders.
"""

from __future__ import annotations

import atexit
import gzip
import tempfile
from functools import cache
from pathlib import Path

HOSTS, CPUS = 200, 5
FIELDS = ("user", "system", "idle", "nice", "iowait", "irq", "softirq", "steal", "guest", "active")
LINES = HOSTS * CPUS
ROWS = LINES * len(FIELDS)
CONNECTIONS = 8  # more posts than these would be more readings than a buffer in memory has room for
POSTS_PER_S_MAX = 180  # faster than all contenders; after the last body the run ends
LEVEL = 6  # of gzip


def body(at_us: int) -> bytes:
    """Return the lines of a post, all of one time."""
    return _pattern().replace(b"@", b"%d" % at_us)


@cache
def _pattern() -> bytes:
    lines = []
    for number in range(LINES):
        fields = ",".join(
            f"usage_{name}={(number * 37 + at * 911) % 10_000 / 100:.2f}"
            for at, name in enumerate(FIELDS)
        )
        lines.append(f"cpu,cpu=cpu{number % CPUS},host=host-{number // CPUS:03d} {fields} @\n")
    return "".join(lines).encode()


@cache
def bodies(first_us: int, seconds: float) -> Path:
    """Return the file with all bodies of a run: of each, its size in 8 digits, and its bytes."""
    file = tempfile.NamedTemporaryFile(prefix="iot-ingest-telegraf-", delete=False)  # noqa: SIM115
    path = Path(file.name)
    atexit.register(path.unlink, missing_ok=True)
    with file:
        for number in range(int(seconds * POSTS_PER_S_MAX)):
            packed = gzip.compress(body(first_us + number), LEVEL)
            file.write(b"%08d%b" % (len(packed), packed))
    return path
