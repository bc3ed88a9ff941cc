"""The options of `loadgen run`, and the plan that they make."""

from __future__ import annotations

import argparse
from typing import Any

from loadgen.cli import values
from loadgen.cli.options import ACKS, Option, add_all, picked
from loadgen.cli.parser import Parser
from loadgen.cli.service_options import (
    ADMIN_URL,
    CA,
    FORMAT,
    NEW_CONNECTIONS,
    STATE_DIR,
    TOKEN,
    URLS,
    admin_urls_for,
    targets_for,
)
from loadgen.driver.retry import Retry
from loadgen.measure.load import LoadPlan
from loadgen.proof.local_service import LocalService
from loadgen.traffic.traffic import Recipe

DURATION_S = 10.0
RATE_PER_S = 1000.0
DEVICES_MAX = 100_000  # each has its own random state: 3 KiB
BEHIND_S = 30.0
CONNECTIONS, STORM_CONNECTIONS_MAX = 64, 1000
# Shares of faulty posts or readings, by field of the recipe.
ODD = {
    "duplicates": "of the posts are sent a second time, byte for byte",
    "late": "of the readings are hours to a week old",
    "future": "of the readings lie days ahead, which the service refuses",
    "poison": "of the readings are JSON, but impossible: NUL in a name, text as a value, year 9999",
    "broken": "of the posts are cut off, not UTF-8, or half a gzip",
}
OPTIONS = {
    "": (
        URLS,
        CA,
        ADMIN_URL,
        TOKEN,
        STATE_DIR,
        Option(
            "--ack",
            "wait until each post is so safe; default: what the service does by itself",
            ACKS,
        ),
        Option(
            "--connections",
            f"connections, each with one post at a time ({CONNECTIONS}; storm: one a device, at "
            f"most {STORM_CONNECTIONS_MAX:,})",
            values.count(1, 100_000),
            shows="N",
        ),
        NEW_CONNECTIONS,
        Option(
            "--give-up-s",
            "after 429, 5xx or no answer send the same bytes again for so long (%(default)g)",
            values.above_zero,
            30.0,
            "S",
        ),
        Option("--no-retry", "never send a post again"),
        Option(
            "--answer-s",
            "an answer that takes longer counts as none (%(default)g)",
            values.above_zero,
            30.0,
            "S",
            into="answer_s_max",
        ),
        Option(
            "--behind-s",
            "open loop: a post that found no connection for so long after it was due is skipped, "
            f"so that a run ends though the service cannot keep up ({BEHIND_S:g})",
            values.above_zero,
            shows="S",
        ),
    ),
    "how much, when": (
        Option("--rate", f"posts a second, open loop ({RATE_PER_S:g})", values.rate, shows="R"),
        Option("--closed", "closed loop: each connection posts again as soon as it has its answer"),
        Option(
            "--arrivals",
            "evenly spaced, or as devices that know nothing of each other send (%(default)s)",
            ("constant", "poisson"),
            "constant",
        ),
        Option(
            "--shape",
            "of the rate over time: constant; ramp:100..2000; steps:100,500,1000:10 (10 s each); "
            "burst:100,5000,20,2 (from 100 to 5000 every 20 s for 2 s); storm:30 (all devices "
            "come back at once, each with 30 minutes of readings in one post, then go on at "
            "--rate)",
            values.shape,
            "constant",
            "SHAPE",
        ),
        Option(
            "--duration-s",
            f"how long ({DURATION_S:g}, or as long as the steps or --posts last)",
            values.above_zero,
            shows="S",
        ),
        Option("--posts", "end after so many posts", values.count(), shows="N", into="posts_max"),
    ),
    "what is sent": (
        Option(
            "--devices",
            "rooms, meters and doors, with two metrics each (%(default)s)",
            values.count(1, DEVICES_MAX),
            1000,
            "N",
        ),
        Option(
            "--seed",
            "the same seed sends the same fleet, oddities and Poisson times (%(default)s)",
            int,
            1,
        ),
        Option(
            "--batch",
            "readings a post: 1, 100, or sizes with weights: 1x80,100x20 (%(default)s)",
            values.mix,
            "1",
            "MIX",
            into="mix",
        ),
        *(
            Option(f"--{name}", f"so many (1%% or 0.01) {what}", values.share, 0.0, "SHARE")
            for name, what in ODD.items()
        ),
        FORMAT,
        Option("--gzip", "gzip the bodies, which costs the generator more"),
    ),
    "report": (
        Option(
            "--json",
            "write all figures, with settings and seed, as JSON",
            values.file_to_write,
            shows="FILE",
        ),
    ),
    "searching the highest rate": (
        Option(
            "--find-max",
            "search the highest rate at which p99 stays under --p99-ms and nothing is refused, "
            "tried again, lost or not sent; starts at --rate (default 100)",
        ),
        Option("--p99-ms", "the bound (%(default)g)", values.above_zero, 50.0, "MS"),
        Option(
            "--step-s",
            "how long each rate is tried, after 1 s to warm up (%(default)g)",
            values.above_zero,
            5.0,
            "S",
        ),
    ),
}


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command `run` with its options."""
    run = commands.add_parser(
        "run",
        help="send the load of a simulated fleet, and measure",
        usage="loadgen run [options]",
        description="Sends the posts of a simulated fleet and measures. By default an open loop:\n"
        "posts are due at a given rate whatever the service does, and latency counts\n"
        "from the moment a post was due.",
        examples=(
            "loadgen run --rate 2000 --duration-s 30 --json report.json",
            "loadgen run --find-max --p99-ms 20",
        ),
        epilog="exit codes:\n"
        "  0    every post got the answer that was right for it (a refusal for wrong data)\n"
        "  1    something was refused for good, lost or not sent\n"
        "  2    wrong use, or no service there\n"
        "  130  ended by Ctrl-C: the first one lets posts in flight finish, and reports",
    )
    run.set_defaults(options=OPTIONS)
    add_all(run, OPTIONS)


def plan_of(chosen: argparse.Namespace, local: LocalService | None = None) -> LoadPlan:
    """Return the plan. Raises ValueError that names the options that do not go together."""
    _check_together(chosen)
    wanted: values.ShapeChoice = chosen.shape
    duration_s = chosen.duration_s or wanted.duration_s()
    if duration_s is None and chosen.posts_max is None:
        duration_s = DURATION_S
    try:
        shape = None if chosen.closed else wanted.make(chosen.rate or RATE_PER_S, duration_s)
    except ValueError as error:
        raise ValueError(f"--shape {wanted.text}: {error}") from error
    targets = targets_for(chosen, local)
    return LoadPlan(
        **picked(chosen, LoadPlan)
        | {
            "target": targets[0],
            "others": tuple(targets[1:]),
            "recipe": Recipe(backlog_minutes=wanted.backlog_minutes, **picked(chosen, Recipe)),
            "shape": shape,
            "connections": chosen.connections or _connections(chosen),
            "duration_s": duration_s,
            "retry": None if chosen.no_retry else Retry(give_up_s=chosen.give_up_s),
            "behind_s_max": chosen.behind_s or BEHIND_S,
            "metrics_urls": tuple(
                f"{each}/metrics" for each in admin_urls_for(chosen, local, targets)
            ),
        }
    )


def _check_together(chosen: argparse.Namespace) -> None:
    wanted: values.ShapeChoice = chosen.shape
    is_shaped = wanted.name != "constant"
    pace, find_max = "the answers set the pace", chosen.find_max
    for is_so, why in (
        (chosen.closed and chosen.rate, f"--closed goes without --rate: {pace}"),
        (chosen.closed and find_max, f"--closed goes without --find-max: {pace}"),
        (chosen.closed and chosen.behind_s, f"--closed goes without --behind-s: {pace}"),
        (
            chosen.closed and (is_shaped or chosen.arrivals != "constant"),
            "--closed goes without --shape and --arrivals: there is no schedule",
        ),
        (
            wanted.rates_given and chosen.rate,
            f"--shape {wanted.text} says the rates: leave out --rate",
        ),
        (find_max and is_shaped, "--find-max tries constant rates: leave out --shape"),
        (find_max and chosen.posts_max, "--find-max goes without --posts"),
        (find_max and chosen.duration_s, "--find-max goes without --duration-s"),
        (find_max and chosen.no_retry, "--find-max goes without --no-retry"),
        (find_max and chosen.behind_s, "--find-max goes without --behind-s"),
    ):
        if is_so:
            raise ValueError(why)


def _connections(chosen: argparse.Namespace) -> int:
    if chosen.shape.name == "storm":
        return min(int(chosen.devices), STORM_CONNECTIONS_MAX)
    return CONNECTIONS


def settings_of(chosen: argparse.Namespace, plan: LoadPlan) -> dict[str, Any]:
    """Return the chosen settings, with defaults, as a report shows them."""
    return {
        "url": plan.target.url,
        "other_urls": [each.url for each in plan.others],
        "ack": plan.ack,
        "connections": plan.connections,
        "new_connections": plan.recipe.new_connections,
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
        "format": plan.recipe.format,
        "retry": plan.retry is not None,
        "give_up_s": plan.retry.give_up_s if plan.retry else None,
        "answer_s": plan.answer_s_max,
        "behind_s": None if plan.shape is None else plan.behind_s_max,
        "metrics_url": ", ".join(plan.metrics_urls) or None,
    }
