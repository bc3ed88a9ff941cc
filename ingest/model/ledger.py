"""The ledger: the counters of the path of a reading, and their balance. What a metric is.

The counters are plain integers on one event loop: an increment costs 30 ns, the counter of a client
library 300. admin/exposition.py shows them. They start at 0 with each process.

The balance is this rule. While a reading is on its way from one counter to another, it can be
wrong for a moment. A process that has no broker has no `delivered`, `published` and `returned`.
received + recovered + replayed + delivered
    = committed + duplicate + published + rejected + dead_lettered + returned + held

Metrics beside these counters: a part that has some lists them as METRICS in its file.
app/metrics_and_causes.py collects the lists. /metrics and the tables of the documents come from
them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeVar

from ingest.model.ports import BufferStats, JournalStats
from ingest.model.reading import REASONS

Part = TypeVar("Part")
# Of gauges that are read with the part that has them; those of several processes travel as JSON.
Figures = Mapping[str, float | Mapping[str, float]]

_SECONDS_HTTP = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SECONDS_COMMIT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SECONDS_SYNC = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_SECONDS_LAG = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 21_600, 86_400, 604_800)
_ROWS_FLUSH = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000)

# Why a batch is closed: see writer/batch.py. `commit`: a post waits for its commit.
TRIGGERS = ("count", "time", "commit", "backlog", "drain")
LINE_FIELDS = ("text_ignored", "integer_rounded")
POSTS, READINGS, REFUSED = range(3)  # of the counts of a sender
SENDERS_MAX = 100  # that are counted one by one
OTHER_SENDERS = "all others"
UNNAMED = "clients of a proxy"  # which does not say whose post it brings: their sender is ""
CLOSED_BY = ("connections_full", "header_late")  # limits that close connections


class Ledger:
    """The counters of one service."""

    def __init__(self) -> None:
        # The balance, in readings.
        self.received = 0
        self.accepted = 0
        self.committed = 0
        self.duplicate = 0
        self.recovered = 0
        self.replayed = 0
        self.published = 0  # the stream of the broker has them
        self.delivered = 0  # they came from the stream; each delivery counts
        self.returned = 0  # given back to the stream
        self.dropped = 0
        self.rejected: defaultdict[str, int] = defaultdict(int)  # by problem code; not kept
        # On the disk in the dead-letter queue, by reason.
        self.dead_lettered: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.at_receiver = 0  # decoded, and neither in the buffer nor answered yet
        # Fields of line protocol that are not stored as they came.
        self.line_fields: dict[str, int] = dict.fromkeys(LINE_FIELDS, 0)
        # Events that a mapping leaves out, by source.
        self.events_ignored: defaultdict[str, int] = defaultdict(int)
        # Requests and writes.
        self.requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.request_s: defaultdict[str, Histogram] = defaultdict(partial(Histogram, _SECONDS_HTTP))
        self.flushes: dict[str, int] = dict.fromkeys(TRIGGERS, 0)
        self.flush_rows = Histogram(_ROWS_FLUSH)
        self.flush_s: defaultdict[str, Histogram] = defaultdict(partial(Histogram, SECONDS_COMMIT))
        self.commit_s = Histogram(SECONDS_COMMIT)
        self.lag_s = Histogram(_SECONDS_LAG)
        self.journal_sync_s = Histogram(_SECONDS_SYNC)
        self.retries: defaultdict[str, int] = defaultdict(int)
        # Requests to the data port, by problem code; connections that a limit closed, by cause.
        self.posts_refused: defaultdict[str, int] = defaultdict(int)
        # The causes are there from the start: Prometheus cannot see the first step of a new series.
        self.connections_closed = defaultdict[str, int](int, dict.fromkeys(CLOSED_BY, 0))
        # Posts, readings and refused posts of each sender; see `sent_by`.
        self.senders = defaultdict[str, list[int]](lambda: [0, 0, 0])
        self.gauges: Gauges | None = None

    def sent_by(self, sender: str) -> list[int]:
        """Return the counts of a sender (as in Block), to count on; see POSTS, READINGS, REFUSED.

        The first senders have their own, all others have theirs together.
        """
        own = sender in self.senders or len(self.senders) < SENDERS_MAX
        return self.senders[sender if own else OTHER_SENDERS]

    def listed_senders(self) -> list[dict[str, Any]]:
        """Return the counts of all senders for JSON, since the start."""
        return [
            {"sender": name or UNNAMED, "posts": posts, "readings": readings, "refused": refused}
            for name, (posts, readings, refused) in self.senders.items()
        ]

    def request_answered(self, route: str, status: int, took_s: float) -> None:
        """Count one answered HTTP request; `route` is one of a closed set."""
        self.requests[route, status] += 1
        self.request_s[route].observe(took_s)

    def requests_answered(self, route: str, status: int, took_s: Sequence[float]) -> None:
        """Count requests that were answered at the same time, the oldest first."""
        self.requests[route, status] += len(took_s)
        self.request_s[route].observe_all(took_s)

    def connection_closed(self, cause: str) -> None:
        """Count one connection that was closed or refused because of a limit."""
        self.connections_closed[cause] += 1

    def batch_gathered(self, trigger: str, rows: int) -> None:
        """Count one batch that is written to the database for the first time."""
        self.flushes[trigger] += 1
        self.flush_rows.observe(rows)

    def batch_stored(self, method: str, took_s: float, committed: int, duplicate: int) -> None:
        """Count one committed write."""
        self.flush_s[method].observe(took_s)
        self.committed += committed
        self.duplicate += duplicate

    def snapshot(self) -> dict[str, Any]:
        """Return all counters as JSON can hold them, without the gauges. New fields are included.

        A number is itself, a histogram [counts, total], and a dict a list of [key, value].
        """
        return {name: _plain(each) for name, each in vars(self).items() if name != "gauges"}

    @classmethod
    def from_snapshot(cls, snapshot: Mapping[str, Any]) -> Ledger:
        """Return a ledger with these counters. Raises ValueError if they are not a snapshot.

        Counters that this version does not know are left out: it may be that of a newer process.
        """
        ledger = cls()
        ledger.add(snapshot)
        return ledger

    def add(self, snapshot: Mapping[str, Any]) -> None:
        """Add the counters of a snapshot to these. Raises ValueError; some are added then."""
        try:
            for name, value in snapshot.items():
                if name in vars(self) and name != "gauges":
                    setattr(self, name, _sum(getattr(self, name), value))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no counters of a ledger: {error}") from error

    def become(self, other: Ledger) -> None:
        """Take over all counters of another ledger, and keep the gauges. `other` is used up."""
        vars(self).update({**vars(other), "gauges": self.gauges})

    @property
    def held(self) -> int:
        """Readings that are neither in the table, dead-lettered nor refused yet."""
        return (self.gauges.buffer().rows if self.gauges else 0) + self.at_receiver

    @property
    def set_aside(self) -> int:
        """Readings that became dead letters; one that was sent again and came back is one."""
        return max(0, sum(self.dead_lettered.values()) - self.replayed)

    @property
    def imbalance(self) -> int:
        """The balance check: 0, or readings were lost (> 0) or counted twice (< 0)."""
        came = self.received + self.recovered + self.replayed + self.delivered
        went = self.committed + self.duplicate + self.published + self.returned
        refused = sum(self.rejected.values()) + sum(self.dead_lettered.values())
        return came - went - refused - self.held


class DeadLetterStats(NamedTuple):
    """State of the dead-letter folder: bytes of all files, live readings, age of the oldest.

    `invalid_full`: there is no space for invalid items, so each post with one is refused.
    `share_used_by`: a sender whose posts with one are refused, as in Block; "and 2 others".
    """

    size_bytes: int = 0
    live: int = 0
    oldest_age_s: float = 0.0
    invalid_full: bool = False
    share_used_by: str = ""


class Gauges(NamedTuple):
    """Functions that read the state of the running service, called at each scrape.

    `database_up` returns None in a process that knows no database. `figures` returns the gauges
    that other parts have listed, by their names.
    """

    buffer: Callable[[], BufferStats]
    dead_letters: Callable[[], DeadLetterStats]
    database_up: Callable[[], bool | None]
    hold_reason: Callable[[], str | None]
    journal: Callable[[], JournalStats] = JournalStats  # an empty one, with a buffer in memory
    state: Callable[[], str] = lambda: "starting"  # one of STATES
    figures: Callable[[], Figures] = dict


def _plain(value: Any) -> Any:
    if isinstance(value, Histogram):
        return [list(value.counts), value.total]
    if isinstance(value, dict):
        return [[key, _plain(each)] for key, each in value.items()]
    return value


def _sum(ours: Any, plain: Any) -> Any:
    """Return the sum of one counter, dict or histogram, and of its form in a snapshot."""
    if isinstance(ours, Histogram):
        ours.add(*plain)
    elif isinstance(ours, dict):
        for name, value in plain:
            key = tuple(name) if isinstance(name, list) else name
            known = key in ours or isinstance(ours, defaultdict)  # that makes a 0, or a histogram
            ours[key] = _sum(ours[key] if known else 0, value)
    elif isinstance(ours, list):
        return [_sum(one, other) for one, other in zip(ours, plain, strict=True)]
    elif type(plain) is int:
        return ours + plain
    else:
        raise ValueError(f"{plain!r:.50} is not a counter")
    return ours


class Histogram:
    """Counts of observations per bucket; `bounds` are inclusive upper bounds, ascending."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count one observation, or several of the same value."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def observe_all(self, values: Sequence[float]) -> None:
        """Count some observations. They must be sorted, the largest first."""
        most, least = bisect_left(self.bounds, values[0]), bisect_left(self.bounds, values[-1])
        if most == least:  # nearly always: all are in one bucket
            self.counts[most] += len(values)
            self.total += sum(values)
        else:
            for value in values:
                self.observe(value)

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add the counts of another histogram with the same bounds. Raises ValueError."""
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.total += total

    def cumulative(self) -> list[tuple[str, float]]:
        """Return pairs (upper bound, count up to it), the form that Prometheus expects."""
        bounds = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))


class Metric(NamedTuple, Generic[Part]):
    """One metric. `ingest_` is put before its name, whose end is the unit; `_total`: a counter.

    `read` returns the value that the part has now. With labels that is a dict: a value by label, or
    by a tuple of them. None: there is none now. `of_all`: it is the same for all processes, so of
    several only the first one shows it.
    """

    name: str
    meaning: str
    read: Callable[[Part], Any]
    labels: tuple[str, ...] = ()
    buckets: bool = False  # its values are histograms
    of_all: bool = False

    @property
    def kind(self) -> str:
        """Its type, as Prometheus calls it."""
        if self.buckets:
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"


Metrics = Sequence[Metric[Part]]
Values = Iterable[tuple[Metric[Any], Any]]


def read(metrics: Metrics[Part], part: Part | None) -> Iterator[tuple[Metric[Any], Any]]:
    """Yield the values that a part has now; nothing if there is no part yet."""
    for each in metrics if part is not None else ():
        if (value := each.read(part)) is not None:  # type: ignore[arg-type]  # it is not None here
            yield each, value


def figures_of(*sources: tuple[Metrics[Any], Callable[[], Any]]) -> Callable[[], Figures]:
    """Return what reads some gauges by name; of each part that a source has, or None."""
    return lambda: {
        each.name: value for metrics, part in sources for each, value in read(metrics, part())
    }
