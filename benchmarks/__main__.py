"""`./run bench`: the parts by pytest-benchmark, then the whole service side by side.

All options are those of side_by_side.py (`--help`). With `--only` the parts are left out.
`--against COMMIT` is a command of its own: it only compares this working tree with a commit
(against.py). So is `--roles`: it compares `ingest up`, and roles with three brokers, with `ingest
serve` (roles.py).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from benchmarks import against, roles, side_by_side


def main() -> int:
    """Run one of the three commands; return its exit code."""
    words = sys.argv[1:]
    command: Callable[[list[str]], int] = side_by_side.main
    if "--roles" in words:
        command = roles.main
    elif any(each.partition("=")[0] == "--against" for each in words):
        command = against.main
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so all programs end
    try:
        return command(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
