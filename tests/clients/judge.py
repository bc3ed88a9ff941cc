"""Compares what a client was told with what is in the table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from tests.clients.points import Point, Row, row_of

# What the service says of it. A client has to show it.
_SAYS_SO = re.compile(r"the token is wrong[\w, ]*")


class Verdict(NamedTuple):
    """The numbers of one client. All but the first three must be 0."""

    points: int
    told: int  # points of which the client was told that they are kept
    in_table: int  # rows
    lost: int = 0  # told, but not in the table
    doubled: int = 0  # rows more than one for a point
    altered: int = 0  # rows that no point explains
    from_wrong_token: int = 0  # rows that a wrong token has brought

    @property
    def faults(self) -> list[str]:
        """Return what is not as it must be."""
        names = ("lost", "doubled", "altered", "from_wrong_token")
        found = [f"{getattr(self, name):,} {name}" for name in names if getattr(self, name)]
        if self.told != self.points:
            found.append(f"{self.points - self.told:,} points are not told as kept")
        return found


def judge(
    points: Sequence[Point], told: Collection[int], rows: Sequence[Row], measurement: str
) -> Verdict:
    """Compare. `told` are indexes of points; `rows` are all rows of the client."""
    due = {row_of(point, measurement): at for at, point in enumerate(points)}
    assert len(due) == len(points), "each point has a row of its own"
    found = Counter(rows)
    kept = {due[row] for row in found if row in due}
    return Verdict(
        points=len(points),
        told=len(set(told)),
        in_table=len(rows),
        lost=len(set(told) - kept),
        doubled=sum(times - 1 for row, times in found.items() if row in due),
        altered=sum(times for row, times in found.items() if row not in due),
    )


def says_so(text: str) -> str:
    """Return the words in a client's error which say that its token is wrong; or nothing."""
    found = _SAYS_SO.search(text)
    return found[0] if found else ""
