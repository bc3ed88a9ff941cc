"""What one process needs of the limits that the system sets."""

from __future__ import annotations

# Descriptors beside connections_max: the admin port may have 256, and 128 are for database, files
# and libraries.
SPARE_FILES = 256 + 128
