"""The two ways of a post into the buffer, at once or with a reservation: tests say which they mean.

A test with one of the marks fails if its posts went another way. `goes` counts them; a conftest.py
imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import wraps
from typing import Any

import pytest

from ingest.buffers.journal.buffer import JournalBuffer
from ingest.buffers.memory import MemoryBuffer
from tests.support.fakes import FakeInlet

INLETS: tuple[type[Any], ...] = (FakeInlet, MemoryBuffer, JournalBuffer)
AT_ONCE, RESERVED, NEVER_AT_ONCE = "at once", "reserved", "never at once"
FREE, DECLINED = "free", "declined"

# Runs the test twice: some of its posts are taken in at once, or none of them can be.
both_ways = pytest.mark.parametrize("goes", [AT_ONCE, RESERVED], indirect=True)
# Runs the test twice too, if it may be that none of its posts is taken in at once.
each_way = pytest.mark.parametrize("goes", [FREE, DECLINED], indirect=True)
# No post of the test may be taken in at once.
reserves = pytest.mark.parametrize("goes", [NEVER_AT_ONCE], indirect=True)


class Ways:
    """Counts the posts of each way. With `declines` no post is taken in at once."""

    def __init__(self, *, declines: bool) -> None:
        self.declines = declines
        self.at_once = self.reserved = 0

    def watch(self, inlet: type[Any], patch: pytest.MonkeyPatch) -> None:
        """Count what all inlets of a class do."""
        take_in, reserve = inlet.take_in, inlet.reserve

        @wraps(take_in)
        def counted(*args: Any, **named: Any) -> bool:
            taken = not self.declines and bool(take_in(*args, **named))
            self.at_once += taken
            return taken

        @wraps(reserve)
        async def reserving(*args: Any, **named: Any) -> Any:
            self.reserved += 1
            return await reserve(*args, **named)

        patch.setattr(inlet, "take_in", counted)
        patch.setattr(inlet, "reserve", reserving)


@pytest.fixture(autouse=True)
def goes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ways]:
    """Count which way the posts of a test go; check it if the test has a mark."""
    meant = getattr(request, "param", None)
    ways = Ways(declines=meant in {RESERVED, DECLINED})
    for inlet in INLETS:
        ways.watch(inlet, monkeypatch)
    yield ways
    if meant == AT_ONCE:
        assert ways.at_once, "no post was taken in at once"
    elif meant in {RESERVED, NEVER_AT_ONCE}:
        assert ways.reserved, "no post has reserved room"
        assert not ways.at_once, "a post was taken in at once"
