"""What one process needs of the limits that the system sets."""

from __future__ import annotations

import resource

# Descriptors beside connections_max: the admin port may have 256, and 128 are for database, files
# and libraries.
SPARE_FILES = 256 + 128


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files to the hard one; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
