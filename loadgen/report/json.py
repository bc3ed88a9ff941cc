"""The report of a run as one document: `--json` writes it, the other reports show it.

The document is versioned: fields are only ever added within a `schema_version`. Times are in
seconds (`_s`) or milliseconds (`_ms`), rates a second (`_per_s`), shares 0 to 1.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadgen.measure.histogram import in_ms, latency_ms
from loadgen.measure.load import BUSY_CPU_SHARE, Load

SCHEMA, SCHEMA_VERSION = "iot-ingest/loadgen-run", 1
# In an ordinary run the last answer comes sooner than this.
BEHIND_S_MIN = 1.0
# From here on the generator's own delays reach the p99.
LAGGED_SHARE_MIN = 0.005

Document = dict[str, Any]


def document(load: Load, settings: Mapping[str, Any], *, interrupted: bool = False) -> Document:
    """Return the report of a run that has ended."""
    tally, driver, seconds = load.tally, load.driver, max(load.took_s, 1e-9)
    scraper = load.scraper if load.scraper and load.scraper.seen else None
    end_s = max(load.took_s, scraper.at_s if scraper else 0.0)
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "started_at": datetime.fromtimestamp(load.started_us / 1e6, UTC).isoformat(),
        "seed": load.plan.recipe.seed,
        "settings": dict(settings),
        "machine": {
            "cpus": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "interrupted": interrupted,
        "took_s": round(load.took_s, 3),
        "posts": _posts(load),
        "readings": {
            "offered": tally.offered_readings + round(load.skipped_readings),
            "accepted": tally.accepted_readings,
            "dead_lettered": tally.dead_lettered_readings,
            "committed": round(scraper.committed) if scraper else None,
        },
        "rates": {
            "offered_posts_per_s": _offered_per_s(load),
            "right_posts_per_s": tally.right / seconds,
            "accepted_readings_per_s": tally.accepted_readings / seconds,
            "committed_readings_per_s": scraper.committed / max(end_s, 1e-9) if scraper else None,
        },
        "latency_ms": latency_ms(tally.latency),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "refusals": dict(tally.codes.most_common()),
        "lost_why": dict(tally.whys.most_common()),
        "mixed_in": dict(sorted(load.traffic.made.items())),
        "generator": {
            "cpu_share": load.cpu_share,
            "lag_ms_max": driver.lag_s_max * 1e3,
            "lagged_posts": driver.lagged,
            "late_ms_max": driver.late_s_max * 1e3,
            "was_bottleneck": load.cpu_share >= BUSY_CPU_SHARE,
            "says": _says(load),
        },
        "remarks": [said for said in (_says(load), _behind(load), _unmeasured(load)) if said],
        "service": {"held": scraper.held, "imbalance": scraper.imbalance} if scraper else None,
        "timeline": _timeline(load, end_s, is_scraped=scraper is not None),
        "all_right": all_right(load),
    }


def _offered_per_s(load: Load) -> float:
    """Return the rate over the time in which posts were due (a slow service answers longer)."""
    due_s = load.tally.last_due_s
    # These may have been due after the last post that was sent.
    if load.driver.skipped or load.driver.unsent:
        due_s = max(due_s, min(load.took_s, load.plan.duration_s or load.took_s))
    return (load.offered_posts - 1) / due_s if due_s > 0 else load.offered_posts / load.took_s


def _posts(load: Load) -> Document:
    tally, driver = load.tally, load.driver
    return {
        "offered": load.offered_posts,
        "taken": driver.taken,
        "right": tally.right,
        "refused": tally.refused,
        "not_whole": tally.not_whole,
        "undeserved": tally.undeserved,
        "lost": tally.given_up,
        "lost_may_be_stored": tally.given_up_written,
        "skipped": driver.skipped,
        "unsent": driver.unsent,
        "tries": driver.tries,
        "retries": driver.retries,
    }


def _timeline(load: Load, end_s: float, *, is_scraped: bool) -> Document:
    return {
        "width_s": load.tally.timeline.width_s,
        "points": [
            {
                "at_s": round(at_s, 3),
                "span_s": round(span_s, 3),
                "offered_readings_per_s": cell.offered / span_s,
                "accepted_readings_per_s": cell.accepted / span_s,
                "committed_readings_per_s": cell.committed / span_s if is_scraped else None,
                "p50_ms": in_ms(cell.quantile_s(0.5)),
                "p99_ms": in_ms(cell.quantile_s(0.99)),
                "answers_per_s": {str(n): cell.statuses[n] / span_s for n in sorted(cell.statuses)},
            }
            for at_s, span_s, cell in load.tally.timeline.points(end_s)
        ],
    }


def all_right(load: Load) -> bool:
    """Whether every due post was sent and got the right answer."""
    driver = load.driver
    return not load.tally.wrong and not driver.skipped and load.tally.right > 0


def _says(load: Load) -> str:
    """Return a warning if the generator itself has changed the figures, else an empty text."""
    driver, cpu_share = load.driver, load.cpu_share
    if cpu_share >= BUSY_CPU_SHARE:
        return (
            f"The load generator itself was the bottleneck: it used {cpu_share:.0%} of a core. "
            "The service may do better than these figures."
        )
    if driver.lagged > LAGGED_SHARE_MIN * driver.taken:
        return (
            f"The load generator itself was late with {driver.lagged / driver.taken:.1%} of the "
            f"posts, by up to {duration(driver.lag_s_max * 1e3)}: the machine had no core free for "
            "it, and the longer latencies may be its own."
        )
    return ""


def _behind(load: Load) -> str:
    """Return a remark if the answers did not keep up with the schedule of an open loop."""
    after_s = load.took_s - load.tally.last_due_s
    if load.plan.shape is None or after_s < BEHIND_S_MIN or not load.tally.latency.count:
        return ""
    return (
        f"The answers did not keep up: {_offered_per_s(load):,.0f} posts a second were due, "
        f"{load.tally.right / load.took_s:,.0f} were answered as they should; the last answer came "
        f"{after_s:.1f} s after the last post was due."
    )


def _unmeasured(load: Load) -> str:
    """Return a remark if posts without an answer are missing in the latencies."""
    posts = load.tally.given_up + load.driver.skipped
    if not posts:
        return ""
    return f"The latencies are of posts with an answer: {posts:,} that had none are not in them."


def duration(ms: float | None) -> str:
    """Return a duration with three digits, in a suitable unit."""
    if ms is None:
        return "-"
    if ms < 1:
        return f"{ms * 1e3:.0f} us"
    if ms < 1e3:
        return f"{ms:.2f} ms" if ms < 10 else f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"
    return f"{ms / 1e3:.2f} s"


def write_whole(path: Path, text: str) -> None:
    """Write a file as a whole, so that no reader gets half of it. Raises OSError.

    A device or a pipe is written to, and a link is followed; none is replaced by a file.
    """
    if path.exists() and not path.is_file():
        path.write_text(text)
        return
    path = path.resolve()
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(text)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
