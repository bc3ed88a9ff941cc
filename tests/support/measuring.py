"""Which child processes are measured for coverage: those that a test names.

Python starts in 0.02 s, and in 0.2 s if it measures. A run of all tests starts hundreds of
processes, and most of them run what the tests themselves run, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_PREFIX = "COVERAGE_"
_hidden: dict[str, str] = {}


@contextmanager
def hidden() -> Iterator[None]:
    """Keep the variables of coverage out of the environment that children inherit."""
    for name in [name for name in os.environ if name.startswith(_PREFIX)]:
        _hidden[name] = os.environ.pop(name)
    yield
    os.environ.update(_hidden)
    _hidden.clear()


def variables() -> dict[str, str]:
    """Return what a child needs so that it is measured; nothing if nobody measures."""
    return dict(_hidden)
