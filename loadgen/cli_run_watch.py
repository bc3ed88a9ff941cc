"""Shows how a load goes while it runs: three live lines on a terminal, else a line now and then."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadgen.load import Load
from loadgen.report_json import duration

PLAIN_LINE_S = 5.0
# Drawing takes 1 ms, in which no post is sent: twice a second that is too little for the p99.
LIVE_S = 0.5
BAR_COLUMNS = 24


class _Moment(NamedTuple):
    at_s: float
    offered: float
    through: int
    refused: int
    accepted: int


class Watch:
    """The figures of a load since the last look at it."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._before = _Moment(0.0, 0, 0, 0, 0)
        self._rates = (0.0, 0.0, 0.0, 0.0)

    def look(self) -> None:
        """Take the rates since the last look."""
        load, before = self._load, self._before
        now = _Moment(
            load.elapsed_s,
            load.due_posts(),
            load.tally.through,
            sum(n for status, n in load.tally.statuses.items() if status >= 400),
            load.tally.accepted_readings,
        )
        span_s = max(now.at_s - before.at_s, 1e-9)
        counts = zip(now[1:], before[1:], strict=True)
        offered, through, refused, accepted = ((b - a) / span_s for b, a in counts)
        self._rates = (offered, through, refused, accepted)
        self._before = now

    def line(self) -> str:
        """Return it all in one line."""
        return " | ".join([f"{self._load.elapsed_s:.0f} s", *self._rate_words(), *self._words()])

    def picture(self) -> Table:
        """Return it as lines for a terminal."""
        plan, elapsed_s = self._load.plan, self._load.elapsed_s
        grid = Table.grid(padding=(0, 1))
        head = Table.grid(padding=(0, 1))
        share = None
        until = ""
        if plan.duration_s is not None:
            share, until = elapsed_s / plan.duration_s, f" of {plan.duration_s:g} s"
        elif plan.recipe.posts_max:
            share = self._load.driver.taken / plan.recipe.posts_max
            until = f" s, {plan.recipe.posts_max:,} posts"
        bar = ProgressBar(
            total=1.0,
            completed=min(share or 0.0, 1.0),
            width=BAR_COLUMNS,
            complete_style="cyan",
            finished_style="cyan",
        )
        head.add_row(Text(plan.target.authority, style="bold"), bar, f"{elapsed_s:.0f}{until}")
        grid.add_row(head)
        grid.add_row(Text(" | ".join(self._rate_words()), no_wrap=True, overflow="ellipsis"))
        grid.add_row(Text(" | ".join(self._words()), no_wrap=True, overflow="ellipsis"))
        return grid

    def _rate_words(self) -> Iterator[str]:
        offered, through, refused, accepted = self._rates
        yield f"posts/s: {offered:,.0f} offered, {through:,.0f} through, {refused:,.0f} refused"
        yield f"{accepted:,.0f} readings/s accepted"

    def _words(self) -> Iterator[str]:
        load = self._load
        latency, driver = load.tally.latency, load.driver
        p50_s, p99_s = (latency.quantile(share) for share in (0.5, 0.99))
        yield f"p50 {duration(p50_s * 1e3)}, p99 {duration(p99_s * 1e3)}"
        yield f"{driver.in_flight} in flight"
        if driver.waiting:
            yield f"{driver.waiting} wait to be tried again"
        if load.tally.given_up:
            yield f"{load.tally.given_up} lost"
        if driver.skipped:
            yield f"{driver.skipped} not sent"
        if driver.behind_s > 1:
            yield f"{driver.behind_s:.0f} s behind"
        if load.scraper and load.scraper.seen:
            yield f"{load.scraper.held:,.0f} readings held"


@contextmanager
def shown(load: Load) -> Iterator[None]:
    """Show the load on stderr while the block runs."""
    console = Console(stderr=True)
    watch = Watch(load)
    if not console.is_terminal:
        task = asyncio.create_task(_print(watch))
        try:
            yield
        finally:
            task.cancel()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        task = asyncio.create_task(_draw(watch, live))
        try:
            yield
        finally:
            task.cancel()


async def _print(watch: Watch) -> None:
    while True:
        await asyncio.sleep(PLAIN_LINE_S)
        watch.look()
        print(watch.line(), file=sys.stderr, flush=True)


async def _draw(watch: Watch, live: Live) -> None:
    while True:
        await asyncio.sleep(LIVE_S)
        watch.look()
        live.update(watch.picture(), refresh=True)
