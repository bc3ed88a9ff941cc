"""Some cases of `--against` as contenders, driven on this tree's service only.

Those of tables with columns are beside InfluxDB, which gets the same readings.
"""

from __future__ import annotations

from functools import partial

import uvloop

from benchmarks import peers
from benchmarks.alternating import COLUMNS, COLUMNS_HOSTS, MORE_WAYS, Way, two_services
from benchmarks.columns import VALUES
from benchmarks.contenders import CPU_US, FIRST_US, WARM_S, WARM_US, Contender, Figures, Plan
from benchmarks.open_loop import Load, send
from benchmarks.processes import REPOSITORY, Broken, raise_open_files_limit, scratch

HOSTS = {f"fleet_lines_{hosts}": f"{hosts:,} hosts" for hosts in (25, 1_000, 10_000)}
MANY, MIXED, QUIET = "fleet_lines_1000", "fleet_mixed", "fleet_quiet"
TITLES = {
    **HOSTS,
    **{name: f"tables, {hosts:,} hosts" for name, hosts in COLUMNS_HOSTS.items()},
    **dict.fromkeys((MIXED, QUIET), "journal, ack=durable"),
}
ENDS = {"": "", "_twice": ", all sent twice"}
COLUMNS_TITLES = {
    f"columns_{name}{end}": f"tables, journal, ack=durable{title}"
    for name in COLUMNS
    for end, title in ENDS.items()
}


def measure_way(plan: Plan, way: Way) -> Figures:
    """Measure one way; as long before that it warms up, so that most series have been posted."""
    raise_open_files_limit()
    with two_services(REPOSITORY, plan.seconds) as two:
        return two.alone(way)


def measure_influx(plan: Plan, load: Load) -> Figures:
    """Measure InfluxDB with the same readings as line protocol."""
    if load.form in VALUES:
        load = load._replace(form=f"{load.form}_lines")
    with scratch() as folder, peers.influx(folder) as peer:
        load = load._replace(port=peer.port, target=peer.target, seconds=plan.seconds)
        _, warm = uvloop.run(send(load._replace(seconds=WARM_S, first_us=WARM_US)))
        cpu_s = peer.child.cpu_s()
        _, tally = uvloop.run(send(load._replace(first_us=FIRST_US)))
        used_s = peer.child.cpu_s() - cpu_s
        taken = tally.taken_rows
        if not taken or tally.lost_posts:
            raise Broken(f"answers {dict(tally.statuses)}, {tally.lost_posts} posts lost")
        least = (warm.taken_rows + taken) // (1 + load.twice)
        peers.check_count(peer, least, unanswered=load.twice * least)
    return {
        CPU_US: used_s / taken * 1e6,
        "readings_per_s": taken / tally.took_s,
        "p50_ms": tally.latencies.quantile(0.5) * 1e3,
        "p99_ms": tally.latencies.quantile(0.99) * 1e3,
    }


FLEETS = tuple(
    Contender(
        way.name,
        f"iot-ingest, {titles[way.name]}",
        partial(measure_way, way=way),
        by_wrk=False,
    )
    for titles in (TITLES, COLUMNS_TITLES)
    for way in MORE_WAYS
    if way.name in titles
) + tuple(
    Contender(
        f"{way.name}_influx",
        f"InfluxDB 1.x{ENDS[end]}",
        partial(measure_influx, load=way.load),
        by_wrk=False,
    )
    for way in MORE_WAYS
    for end in ["_twice" if way.load.twice else ""]
    if way.name in (MANY, *COLUMNS_TITLES)
)
