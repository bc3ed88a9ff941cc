"""`python -m ingest`, and the script `ingest`."""

from __future__ import annotations

import sys

from ingest.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
