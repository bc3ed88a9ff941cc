"""A fleet as contenders: some cases of `--against`, driven on this tree's service only."""

from __future__ import annotations

from functools import partial

from benchmarks.alternating import MORE_WAYS, Way, two_services
from benchmarks.contenders import Contender, Figures, Plan
from benchmarks.processes import REPOSITORY, raise_open_files_limit

HOSTS = {f"fleet_lines_{hosts}": f"{hosts:,} hosts" for hosts in (25, 1_000, 10_000)}
MIXED, QUIET = "fleet_mixed", "fleet_quiet"
TITLES = {**HOSTS, **dict.fromkeys((MIXED, QUIET), "journal, ack=durable")}


def measure_way(plan: Plan, way: Way) -> Figures:
    """Measure one way; as long before that it warms up, so that most series have been posted."""
    raise_open_files_limit()
    with two_services(REPOSITORY, plan.seconds) as two:
        return two.alone(way)


FLEETS = tuple(
    Contender(
        way.name,
        f"iot-ingest, {TITLES[way.name]}",
        partial(measure_way, way=way),
        by_wrk=False,
    )
    for way in MORE_WAYS
    if way.name in TITLES
)
