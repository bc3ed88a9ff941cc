"""The progress of a load for people: all figures in one line."""

from __future__ import annotations

from collections.abc import Iterator

from loadgen.measure.load import Load
from loadgen.measure.pace import Pace
from loadgen.report.json import duration


class Watch:
    """The figures of a load since the last call."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._pace = Pace(load)

    def line(self) -> str:
        """Return all figures in one line."""
        until_s = self._load.plan.duration_s
        of = f" of {until_s:g}" if until_s else ""
        return " | ".join([f"{self._load.elapsed_s:.0f}{of} s", *self._rates(), *self._state()])

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
