"""What one process needs of the system's limits. Its neighbours are given what is left."""

from __future__ import annotations

SPARE_FILES = 128  # descriptors beside connections_max: database, files, libraries, the admin port
