"""The options of `loadgen run`, and the plan that they make."""

from __future__ import annotations

import argparse
from typing import Any

from loadgen import cli_values as values
from loadgen.driver import Retry
from loadgen.load import Plan
from loadgen.traffic import Recipe

DURATION_S = 10.0
RATE_PER_S = 1000.0
DEVICES_MAX = 100_000  # each remembers its own chances: 3 KiB
BEHIND_S = 30.0
CONNECTIONS, STORM_CONNECTIONS_MAX = 64, 1000
DATA_PORT, ADMIN_PORT = 8080, 8081
ODD = {
    "duplicates": "of the posts are sent a second time, byte for byte",
    "late": "of the readings are hours to a week old",
    "future": "of the readings lie days ahead, which the service refuses",
    "poison": "of the readings are JSON, but impossible: NUL in a name, text as a value, year 9999",
    "broken": "of the posts are cut off, not UTF-8, or half a gzip",
}


def add_parser(words: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the word `run` with its options."""
    run = words.add_parser(
        "run",
        help="send the load of a simulated fleet, and measure",
        description="Sends the posts of a simulated fleet and measures. By default an open loop: "
        "posts are due at a given rate whatever the service does, and latency counts from the "
        "moment a post was due.",
        epilog="Exit code 0: every post got the answer that was right for it (a refusal for what "
        "is poison, broken or too far ahead); 1: something was refused for good, lost or not "
        "sent; 2: wrong use, or no service there; 130: interrupted. The first Ctrl-C lets posts "
        "in flight finish and reports, the second one ends at once.",
    )
    _add_where(run)
    _add_when(run.add_argument_group("how much, when"))
    _add_what(run.add_argument_group("what is sent"))
    _add_report(run.add_argument_group("reports"))
    _add_search(run.add_argument_group("searching the highest rate"))


def _add_where(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--url",
        type=values.url,
        default="http://127.0.0.1:8080",
        help="of the service (default: %(default)s)",
    )
    run.add_argument(
        "--ack",
        choices=("buffered", "durable", "committed"),
        help="wait until each post is so safe; default: what the service does by itself",
    )
    run.add_argument(
        "--connections",
        type=values.count(1, 100_000),
        metavar="N",
        help=f"connections, each with one post at a time ({CONNECTIONS}; storm: one a device, "
        f"at most {STORM_CONNECTIONS_MAX:,})",
    )
    run.add_argument(
        "--give-up-s",
        type=values.above_zero,
        default=30.0,
        metavar="S",
        help="after 429, 5xx or no answer send the same bytes again for so long (%(default)g)",
    )
    run.add_argument("--no-retry", action="store_true", help="never send a post again")
    run.add_argument(
        "--answer-s",
        type=values.above_zero,
        default=30.0,
        metavar="S",
        help="an answer that takes longer counts as none (%(default)g)",
    )
    run.add_argument(
        "--behind-s",
        type=values.above_zero,
        metavar="S",
        help="open loop: a post that found no connection for so long after it was due is skipped, "
        f"so that a run ends though the service cannot keep up ({BEHIND_S:g})",
    )


def _add_when(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--rate",
        type=values.rate,
        metavar="R",
        help=f"posts a second, open loop ({RATE_PER_S:g})",
    )
    group.add_argument(
        "--closed",
        action="store_true",
        help="closed loop: each connection posts again as soon as it has its answer",
    )
    group.add_argument(
        "--arrivals",
        choices=("constant", "poisson"),
        default="constant",
        help="evenly spaced, or as devices that know nothing of each other send (%(default)s)",
    )
    group.add_argument(
        "--shape",
        type=values.shape,
        default="constant",
        metavar="SHAPE",
        help="of the rate over time: constant; ramp:100..2000; steps:100,500,1000:10 (10 s "
        "each); burst:100,5000,20,2 (from 100 to 5000 every 20 s for 2 s); storm:30 (all devices "
        "come back at once, each with 30 minutes of readings in one post, then go on at --rate)",
    )
    group.add_argument(
        "--duration-s",
        type=values.above_zero,
        metavar="S",
        help=f"how long ({DURATION_S:g}, or as long as the steps or --posts last)",
    )
    group.add_argument("--posts", type=values.count(), metavar="N", help="end after so many posts")


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--devices",
        type=values.count(1, DEVICES_MAX),
        default=1000,
        metavar="N",
        help="rooms, meters and doors, with two metrics each (%(default)s)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=1,
        help="the same seed sends the same fleet, oddities and Poisson times (%(default)s)",
    )
    group.add_argument(
        "--batch",
        type=values.mix,
        default="1",
        metavar="MIX",
        help="readings a post: 1, 100, or sizes with weights: 1x80,100x20 (%(default)s)",
    )
    for name, help_text in ODD.items():
        group.add_argument(
            f"--{name}",
            type=values.share,
            default=0.0,
            metavar="SHARE",
            help=f"so many (1%% or 0.01) {help_text}",
        )
    group.add_argument(
        "--gzip", action="store_true", help="gzip the bodies, which costs the generator more"
    )


def _add_report(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--json",
        type=values.file_to_write,
        metavar="FILE",
        help="write all figures, with settings and seed, as JSON",
    )
    group.add_argument(
        "--html",
        type=values.file_to_write,
        metavar="FILE",
        help="write a report with charts as one HTML file",
    )
    group.add_argument(
        "--metrics-url",
        metavar="URL",
        help="the service's /metrics, read once a second for the rate of commits; default: that "
        f"of port {ADMIN_PORT} if the service's is {DATA_PORT}",
    )


def _add_search(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--find-max",
        action="store_true",
        help="search the highest rate at which p99 stays under --p99-ms and nothing is refused, "
        "tried again, lost or not sent; starts at --rate (default 100)",
    )
    group.add_argument(
        "--p99-ms",
        type=values.above_zero,
        default=50.0,
        metavar="MS",
        help="the bound (%(default)g)",
    )
    group.add_argument(
        "--step-s",
        type=values.above_zero,
        default=5.0,
        metavar="S",
        help="how long each rate is tried, after 1 s to warm up (%(default)g)",
    )


def plan_of(chosen: argparse.Namespace) -> Plan:
    """Return the plan. Raises ValueError that names the options that do not go together."""
    _check_together(chosen)
    wanted: values.ShapeWanted = chosen.shape
    duration_s = chosen.duration_s or wanted.duration_s()
    if duration_s is None and chosen.posts is None:
        duration_s = DURATION_S
    rate = chosen.rate or RATE_PER_S
    recipe = Recipe(
        devices=chosen.devices,
        seed=chosen.seed,
        mix=chosen.batch,
        gzip=chosen.gzip,
        backlog_minutes=wanted.backlog_minutes,
        posts_max=chosen.posts,
        **{name: getattr(chosen, name) for name in ODD},
    )
    try:
        shape = None if chosen.closed else wanted.make(rate, duration_s)
    except ValueError as error:
        raise ValueError(f"--shape {wanted.text}: {error}") from error
    return Plan(
        target=chosen.url,
        recipe=recipe,
        shape=shape,
        arrivals=chosen.arrivals,
        connections=chosen.connections or _connections(chosen),
        duration_s=duration_s,
        ack=chosen.ack,
        retry=None if chosen.no_retry else Retry(give_up_s=chosen.give_up_s),
        answer_s_max=chosen.answer_s,
        behind_s_max=chosen.behind_s or BEHIND_S,
        metrics_url=chosen.metrics_url or _usual_metrics_url(chosen),
    )


def _check_together(chosen: argparse.Namespace) -> None:
    wanted: values.ShapeWanted = chosen.shape
    if chosen.closed:
        for name in ("rate", "find_max", "behind_s"):
            if getattr(chosen, name):
                option = name.replace("_", "-")
                raise ValueError(f"--closed goes without --{option}: the answers set the pace")
        if wanted.name != "constant" or chosen.arrivals != "constant":
            raise ValueError("--closed goes without --shape and --arrivals: there is no schedule")
    if wanted.rates_given and chosen.rate:
        raise ValueError(f"--shape {wanted.text} says the rates: leave out --rate")
    if chosen.find_max:
        if wanted.name != "constant":
            raise ValueError("--find-max tries constant rates: leave out --shape")
        for name in ("posts", "duration_s", "html", "no_retry", "behind_s"):
            if getattr(chosen, name):
                raise ValueError(f"--find-max goes without --{name.replace('_', '-')}")
    if chosen.metrics_url and not chosen.metrics_url.startswith(("http://", "https://")):
        raise ValueError(f"--metrics-url {chosen.metrics_url} does not begin with http://")


def _connections(chosen: argparse.Namespace) -> int:
    if chosen.shape.name == "storm":
        return min(int(chosen.devices), STORM_CONNECTIONS_MAX)
    return CONNECTIONS


def _usual_metrics_url(chosen: argparse.Namespace) -> str | None:
    """Return where the admin port is by default; another service's must not be taken for it."""
    if chosen.url.port != DATA_PORT:
        return None
    host = chosen.url.host
    return f"http://{f'[{host}]' if ':' in host else host}:{ADMIN_PORT}/metrics"


def settings_of(chosen: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Return what was chosen, defaults included, as a report shows it."""
    return {
        "url": f"http://{plan.target.authority}{plan.target.path}",
        "ack": plan.ack,
        "connections": plan.connections,
        "loop": "closed" if plan.shape is None else "open",
        "rate_posts_per_s": None
        if plan.shape is None or chosen.shape.rates_given
        else chosen.rate or RATE_PER_S,
        "shape": None if plan.shape is None else chosen.shape.text,
        "arrivals": None if plan.shape is None else plan.arrivals,
        "duration_s": plan.duration_s,
        "posts": plan.recipe.posts_max,
        "devices": plan.recipe.devices,
        "seed": plan.recipe.seed,
        "batch": ",".join(f"{size}x{weight:g}" for size, weight in plan.recipe.mix),
        **{name: getattr(plan.recipe, name) for name in ODD},
        "gzip": plan.recipe.gzip,
        "retry": plan.retry is not None,
        "give_up_s": plan.retry.give_up_s if plan.retry else None,
        "answer_s": plan.answer_s_max,
        "behind_s": None if plan.shape is None else plan.behind_s_max,
        "metrics_url": plan.metrics_url,
    }
