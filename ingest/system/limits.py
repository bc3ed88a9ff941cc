"""What one process needs of the limits that the system sets."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

OWN_CGROUPS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Descriptors beside connections_max: the admin port may have 256, and 128 are for database, files
# and libraries.
SPARE_FILES = 256 + 128


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files to the hard one; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def memory_bytes() -> int:
    """Return the memory of this machine, or the smallest limit of our cgroups (version 1 or 2)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError):  # no Linux
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            own = CGROUPS / controllers / path.lstrip("/")
            # A container may see its own cgroup at the top, and a path that is not there.
            for folder in (own, *own.parents):
                with suppress(OSError, ValueError):  # not there, or `max`
                    limits.append(int((folder / name).read_text()))
    return min(limits)
