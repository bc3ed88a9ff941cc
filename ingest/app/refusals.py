"""What was refused lately: counts of the last minute for /readyz, and a log line a minute a cause.

It compares the ledger's counters second by second, so a refused post costs nothing here, however
many there are.
Does not: log who sent what. receiver/refused_posts.py keeps that, for those who may see it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from ingest.model.codes import PROBLEMS
from ingest.model.ledger import Ledger
from ingest.system.clock import monotonic_s
from ingest.system.logs import get_logger

LATELY_S = 60.0
SAMPLE_S = 5.0
LOG_S = 60.0  # between two lines of one cause

_log = get_logger("receiver")


class Lately:
    """The growth of some counters, by label, over the last minute."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts
        self._before: deque[tuple[float, dict[str, int]]] = deque([(monotonic_s(), dict(counts))])

    def tick(self, now_s: float) -> None:
        """Remember the counters, at most once in SAMPLE_S."""
        if now_s - self._before[-1][0] >= SAMPLE_S:
            self._before.append((now_s, dict(self._counts)))
        while len(self._before) > 1 and now_s - self._before[1][0] >= LATELY_S:
            self._before.popleft()

    def grown(self) -> dict[str, int]:
        """Return by how much each label has grown; labels that have not are left out."""
        return _growth(self._counts, self._before[0][1])


class Refusals:
    """Posts refused and connections closed. `tick` once a second."""

    def __init__(self, ledger: Ledger) -> None:
        self._counts: dict[str, Mapping[str, int]] = {
            "posts_refused": ledger.posts_refused,
            "connections_closed": ledger.connections_closed,
        }
        self.posts = Lately(ledger.posts_refused)
        self.connections = Lately(ledger.connections_closed)
        self._logged: dict[str, dict[str, int]] = {event: {} for event in self._counts}
        self._logged_s: dict[tuple[str, str], float] = {}

    def tick(self) -> None:
        """Take the counts of the last minute; log the causes that are due."""
        now_s = monotonic_s()
        self.posts.tick(now_s)
        self.connections.tick(now_s)
        for event, counts in self._counts.items():
            for cause, count in _growth(counts, self._logged[event]).items():
                if now_s - self._logged_s.get((event, cause), float("-inf")) >= LOG_S:
                    self._logged_s[event, cause] = now_s
                    self._logged[event][cause] = counts[cause]
                    _tell(event, cause, count)


def _tell(event: str, cause: str, count: int) -> None:
    """Log it. What the client must correct is only information; the rest is a warning.

    So is a wrong token: many clients drop their readings then, and nobody hears of it. And
    `not_kept`: its lines are lost, though the post got a 2xx.
    """
    status = PROBLEMS[cause].status if cause in PROBLEMS else 0
    if event == "connections_closed":
        _log.warning("connections_closed", cause=cause, count=count)
    elif status >= 500 or cause in ("unauthorized", "not_kept"):
        _log.warning("posts_refused", code=cause, status=status, count=count)
    else:
        _log.info("posts_refused", code=cause, status=status, count=count)


def _growth(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {
        label: count - before.get(label, 0)
        for label, count in now.items()
        if count > before.get(label, 0)
    }
