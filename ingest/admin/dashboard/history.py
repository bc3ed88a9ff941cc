"""The curves of the page: figures of the last half hour, and the feed that adds one row a second.

The history reads the same ledger as /metrics, so both agree. It keeps one number per column and
second, 350 kB in all. A second without a measurement is a gap, not a 0.
The feed sends one event a second to every open page, as server-sent events. Each event is rendered
once for all pages. A page that does not read gets no more events until it reads again. After
SLOW_S_MAX its connection is closed. The page then connects again and asks for what it missed.
"""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ingest.admin.dashboard.assets import HEADERS, NO_STORE
from ingest.http.request_and_answer import Answer, Request
from ingest.model.errors import Refused
from ingest.model.ledger import Histogram, Ledger
from ingest.model.ports import STATES
from ingest.model.reading import REASONS
from ingest.system.clock import monotonic_s, unix_us

SECONDS_KEPT = 1_800
# The columns are the curves, or parts of them. A rate is the mean over the last second.
COLUMNS = (
    "posts",  # answers to requests to the data port, 1/s
    "received",  # readings/s, as in the columns up to `dead_..`
    "committed",
    "duplicate",
    "rejected",
    *(f"dead_{reason}" for reason in REASONS),
    "commit_p50_ms",  # of the posts committed in this second
    "commit_p99_ms",
    "flush_rows",  # mean of the batches of this second
    "flush_ms",
    "flushes",  # 1/s
    "buffer_used_pct",  # of the space that decides whether posts wait: the journal's, else memory's
    "buffer_rows",
    "disk_rows",  # those of them that are only in the journal; gaps if there is no journal
    "oldest_s",  # age of the oldest post in the buffer
    "retries",  # failed writes/s
    "held",
    "imbalance",
    "dlq_readings",
    "journal_bytes",  # gaps as in `disk_rows`
    "stream_bytes",  # of the broker; gaps without one
    "stream_waiting",  # messages in it that no writer has acknowledged; gaps as in `stream_bytes`
    "state",  # of /readyz: index into STATES
    "level",  # how bad it is: index into LEVELS
)
# All posts are taken and written; writes wait for the database or an operator; posts are refused;
# it starts or stops.
LEVELS = ("ok", "warn", "bad", "off")
DATA_ROUTE = "/v1/readings"
CLIENTS_MAX = 64  # a quarter of the port's connections, so that probes and scrapes have enough
UNREAD_BYTES_MAX = 64 * 1024
SLOW_S_MAX = 20.0
RETRY_MS = 1_000
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
    b"X-Accel-Buffering: no\r\n" + HEADERS + NO_STORE + b"\r\nretry: %d\n\n" % RETRY_MS
)


class _Counts(NamedTuple):
    """All counters at one moment."""

    at_s: float
    rates: tuple[float, ...]  # of the columns up to the dead letters, as totals
    commits: list[int]
    flush_rows: tuple[int, float]
    flush_s: tuple[int, float]
    retries: int


class History:
    """The rows of the last half hour. `look` returns one of STATES, and an index into LEVELS."""

    def __init__(self, ledger: Ledger, *, look: Callable[[], tuple[str, int]]) -> None:
        self._ledger = ledger
        self._look = look
        self._ring = {name: array("d", [math.nan]) * SECONDS_KEPT for name in COLUMNS}
        self.second = 0  # Unix time of the newest row; 0 before the first
        self._begun = 0  # Unix time of the oldest row
        self._before: _Counts | None = None

    def sample(self, second: int | None = None) -> bool:
        """Add the row of `second` (default: now); False if it exists already. Takes some 50 us."""
        second = unix_us() // 1_000_000 if second is None else second
        if second <= self.second:
            if second > self.second - 5:
                return False
            self.second = 0  # the wall clock was set back: begin anew
        if not self.second:
            self._begun = second
        since = second - self.second if self.second else SECONDS_KEPT
        for missed in range(min(since, SECONDS_KEPT)):
            for column in self._ring.values():
                column[(second - missed) % SECONDS_KEPT] = math.nan
        now = self._counts()
        if self._before is not None:
            for name, value in zip(COLUMNS, self._row(self._before, now), strict=True):
                self._ring[name][second % SECONDS_KEPT] = value
        self._before, self.second = now, second
        return True

    def _counts(self) -> _Counts:
        m = self._ledger
        answered = sum(count for (route, _), count in m.requests.items() if route == DATA_ROUTE)
        totals = (answered, m.received, m.committed, m.duplicate, sum(m.rejected.values()))
        dead = tuple(m.dead_lettered[reason] for reason in REASONS)
        flushes = list(m.flush_s.values())
        return _Counts(
            monotonic_s(),
            (*totals, *dead),
            list(m.commit_s.counts),
            (sum(m.flush_rows.counts), m.flush_rows.total),
            (sum(sum(each.counts) for each in flushes), sum(each.total for each in flushes)),
            sum(m.retries.values()),
        )

    def _row(self, before: _Counts, now: _Counts) -> tuple[float, ...]:
        took_s = max(now.at_s - before.at_s, 1e-3)
        m = self._ledger
        commits = [b - a for a, b in zip(before.commits, now.commits, strict=True)]
        batches, rows = (b - a for a, b in zip(before.flush_rows, now.flush_rows, strict=True))
        flushes, flush_s = (b - a for a, b in zip(before.flush_s, now.flush_s, strict=True))
        state, level = self._look()
        used = rows_held = oldest_s = dlq = 0.0
        disk_rows = journal_bytes = math.nan
        if m.gauges is not None:
            stats = m.gauges.buffer()
            used, rows_held, dlq = stats.used, stats.rows, m.gauges.dead_letters().live
            if stats.oldest_received_s is not None:
                oldest_s = now.at_s - stats.oldest_received_s
            if stats.disk_used is not None:
                disk_rows, journal_bytes = stats.rows_kept, m.gauges.journal().size_bytes
        return (
            *((b - a) / took_s for a, b in zip(before.rates, now.rates, strict=True)),
            1000 * quantile_s(m.commit_s, commits, 0.5),
            1000 * quantile_s(m.commit_s, commits, 0.99),
            rows / batches if batches else math.nan,
            1000 * flush_s / flushes if flushes else math.nan,
            flushes / took_s,
            100 * used,
            rows_held,
            disk_rows,
            max(0.0, oldest_s),
            (now.retries - before.retries) / took_s,
            m.held,
            m.imbalance,
            dlq,
            journal_bytes,
            *_of_stream(m),
            STATES.index(state) if state in STATES else math.nan,
            level,
        )

    def newest(self) -> list[float | int | None]:
        """Return the newest row, one number or None for each of COLUMNS."""
        place = self.second % SECONDS_KEPT
        return [_short(column[place]) for column in self._ring.values()]

    def since(self, second: int) -> tuple[int, dict[str, list[float | int | None]]]:
        """Return the Unix second of the first row after `second`, and the columns from it on.

        The columns are empty if there is no later row.
        """
        first = max(second + 1, self.second - SECONDS_KEPT + 1, self._begun)
        places = [each % SECONDS_KEPT for each in range(first, self.second + 1)]
        return first, {
            name: [_short(column[place]) for place in places] for name, column in self._ring.items()
        }


class Feed:
    """All open pages."""

    def __init__(self) -> None:
        self.clients = 0
        self._next: asyncio.Future[bytes] | None = None
        self._closed = False

    def send(self, event: bytes) -> None:
        """Send an event (its data, one line) to every open page."""
        self._wake(_data(event))

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._wake(b"")

    def _wake(self, event: bytes) -> None:
        waiting, self._next = self._next, None
        if waiting is not None and not waiting.done():
            waiting.set_result(event)

    async def stream(self, request: Request, first: bytes, own: Callable[[], bytes]) -> Answer:
        """Send events to a page until it is gone or the feed is closed. Raises Refused.

        `first` is an event that the page gets at once, if it is not empty. `own` returns whole
        events for this page alone, or nothing; they are sent after each common event.
        """
        if self.clients >= CLIENTS_MAX:
            raise Refused("busy", f"{CLIENTS_MAX} pages are open already", retry_after_s=10)
        began_s = monotonic_s()
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        transport.write(_HEAD + (_data(first) if first else b""))
        self.clients += 1
        try:
            read_s = monotonic_s()
            while not self._closed:
                if self._next is None:
                    self._next = asyncio.get_running_loop().create_future()
                event = await asyncio.shield(self._next)
                if transport.is_closing():
                    break
                if transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
                    if monotonic_s() - read_s > SLOW_S_MAX:
                        transport.abort()
                        break
                    continue
                read_s = monotonic_s()
                transport.write(event + own())
        finally:
            self.clients -= 1
        return AlreadySent(began_s)


class AlreadySent(Answer):
    """An answer of which everything has been written already."""

    def __init__(self, began_s: float) -> None:
        super().__init__(200, b"", close=True)
        self.began_s = began_s

    def rendered(self, connection: bytes = b"", *, with_body: bool = True) -> bytes:
        """Return nothing: it is the last answer, and nothing is missing."""
        return b""


def _of_stream(ledger: Ledger) -> tuple[float, float]:
    figures = ledger.gauges.figures() if ledger.gauges else {}
    size = figures.get("stream_bytes", math.nan)
    names = ("consumer_pending", "consumer_ack_pending")
    counts = [each for name in names if isinstance(each := figures.get(name), Mapping)]
    waiting = sum(sum(each.values()) for each in counts) if counts else math.nan
    return size if isinstance(size, int | float) else math.nan, waiting


def quantile_s(histogram: Histogram, counts: Sequence[int], share: float) -> float:
    """Return a quantile of some counts of a histogram, linear within a bucket; NaN if none.

    Beyond the last bound it is that bound, as in histogram_quantile of Prometheus.
    """
    total = sum(counts)
    if not total:
        return math.nan
    rank = share * total
    below, lower = 0.0, 0.0
    for bound, count in zip(histogram.bounds, counts, strict=False):
        if count and below + count >= rank:
            return lower + (bound - lower) * (rank - below) / count
        below += count
        lower = bound
    return histogram.bounds[-1]


def _short(value: float) -> float | int | None:
    """Return a number with few digits, to keep the feed short."""
    if math.isnan(value):
        return None
    if value.is_integer() or abs(value) >= 1000:
        return round(value)
    return round(value, 2)


def _data(event: bytes) -> bytes:
    return b"data: " + event + b"\n\n"
