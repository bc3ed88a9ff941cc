"""How soon threads get the interpreter: shorter while somebody says so, and then as before."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ingest.system.process_setup import SWITCH_S, sharing_soon

USUAL_S = 0.005


@pytest.fixture(autouse=True)
def _interval() -> Iterator[None]:
    """Begin with Python's own interval, and leave what was set."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(USUAL_S)
    yield
    sys.setswitchinterval(before_s)


@pytest.mark.parametrize("ends_first", [0, 1])
def test_interval_is_short_until_the_last_context_ends(ends_first: int) -> None:
    """Two large posts may end in any order."""
    stacks = [ExitStack(), ExitStack()]
    for each in stacks:
        each.enter_context(sharing_soon())
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    stacks[ends_first].close()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    stacks[1 - ends_first].close()
    assert sys.getswitchinterval() == pytest.approx(USUAL_S)
