"""How many examples Hypothesis tries: few in `./run test`, all of them in `./run test-long`.

`./run test` runs often, each time with other examples.
"""

from __future__ import annotations

import os

from hypothesis import settings

SWITCH = "INGEST_TEST_EXAMPLES"  # `many`: all
USUAL = 100
FEWER = 4  # times


def number(of_all: int) -> int:
    """Return how many of so many examples are tried in this run."""
    return of_all if os.environ.get(SWITCH) == "many" else of_all // FEWER


def examples(of_all: int) -> settings:
    """Return the mark of a test that needs another number than the usual one."""
    return settings(max_examples=number(of_all))
