"""The progress of a load for people: one line, or three lines with a bar on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadgen.measure.load import Load
from loadgen.measure.pace import Pace
from loadgen.report.json import duration

BAR_COLUMNS = 24


class Watch:
    """The figures of a load since the last call."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._pace = Pace(load)

    def line(self) -> str:
        """Return all figures in one line."""
        return " | ".join([f"{self._load.elapsed_s:.0f} s", *self._rates(), *self._state()])

    def picture(self) -> Table:
        """Return the figures as lines for a terminal."""
        grid, head = Table.grid(padding=(0, 1)), Table.grid(padding=(0, 1))
        share, until = self._done()
        bar = ProgressBar(
            total=1.0,
            completed=min(share, 1.0),
            width=BAR_COLUMNS,
            complete_style="cyan",
            finished_style="cyan",
        )
        name = Text(self._load.plan.target.authority, style="bold")
        head.add_row(name, bar, f"{self._load.elapsed_s:.0f}{until}")
        grid.add_row(head)
        for words in (self._rates(), self._state()):
            grid.add_row(Text(" | ".join(words), no_wrap=True, overflow="ellipsis"))
        return grid

    def _done(self) -> tuple[float, str]:
        """Return the share that is done, and a text of the whole."""
        load, plan = self._load, self._load.plan
        if plan.duration_s is not None:
            return load.elapsed_s / plan.duration_s, f" of {plan.duration_s:g} s"
        if plan.recipe.posts_max:
            done = load.driver.taken / plan.recipe.posts_max
            return done, f" s, {plan.recipe.posts_max:,} posts"
        return 0.0, ""

    def _rates(self) -> Iterator[str]:
        offered, through, refused, accepted = self._pace.since_last()
        yield f"posts/s: {offered:,.0f} offered, {through:,.0f} through, {refused:,.0f} refused"
        yield f"{accepted:,.0f} readings/s accepted"

    def _state(self) -> Iterator[str]:
        load = self._load
        latency, driver = load.tally.latency, load.driver
        p50_s, p99_s = (latency.quantile(share) for share in (0.5, 0.99))
        yield f"p50 {duration(p50_s * 1e3)}, p99 {duration(p99_s * 1e3)}"
        yield f"{driver.in_flight} in flight"
        for count, shown in (
            (driver.waiting, f"{driver.waiting} wait to be tried again"),
            (load.tally.given_up, f"{load.tally.given_up} lost"),
            (driver.skipped, f"{driver.skipped} not sent"),
            (driver.behind_s > 1, f"{driver.behind_s:.0f} s behind"),
        ):
            if count:
                yield shown
        if load.scraper and load.scraper.seen:
            yield f"{load.scraper.held:,.0f} readings held"
