"""What one process needs of the limits that the system sets."""

from __future__ import annotations

SPARE_FILES = 128  # descriptors beside connections_max: database, files, libraries, the admin port
