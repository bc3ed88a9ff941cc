"""`ingest stream`: makes the streams of the broker, checks them, shows or rewinds them.

One has the readings, the other one the dead letters.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ingest.cli.arguments import time_text
from ingest.cli.parser import Command, Parser, SettingsFlags, add_group, add_json_flag
from ingest.cli.terminal import print_answer
from ingest.config.loading import Loaded

if TYPE_CHECKING:
    from ingest.broker.connection import BrokerConnection
    from ingest.broker.manage import Found, Info, StreamFault
    from ingest.broker.streams import Names, Wanted

TAKES = "COMMAND [options]"
EXAMPLES = ("ingest stream apply", "ingest stream check --broker-url nats://admin:..@nats1:4222")
EPILOG = "exit codes: 0 done, 1 something is not as it must be, 2 the broker is out of reach"


def add_arguments(parser: Parser, settings: SettingsFlags) -> None:
    """Add the commands."""
    apply = Command(
        "apply",
        "make the streams and their consumers, or change what differs; removes nothing",
        (
            "ingest stream apply --stream-bytes-max 20GiB",
            "ingest stream apply --stream-replicas 3 --broker-url nats://admin:..@nats1:4222",
        ),
        add_json_flag,
    )
    check = Command(
        "check",
        "compare them, and how the servers sync to the disk, with what is needed",
        (
            "ingest stream check",
            "ingest stream check --json --broker-monitor-url http://nats1:8222,http://nats2:8222",
        ),
        add_json_flag,
    )
    show = Command(
        "show",
        "print what the streams hold, and what their consumers have done",
        ("ingest stream show", "ingest stream show --json"),
        add_json_flag,
    )
    rewind = Command(
        "rewind",
        "let the writers write again what the stream still has; for a restored database",
        ("ingest stream rewind --since 2026-11-27T05:00:00Z", "ingest stream rewind"),
        _add_rewind_flags,
    )
    add_group(parser, "stream_command", (apply, check, show, rewind), settings)


def _add_rewind_flags(parser: argparse.ArgumentParser) -> None:
    add_json_flag(parser)
    parser.add_argument(
        "--since",
        metavar="TIME",
        type=time_text,
        help="only what was received since then, RFC 3339",
    )


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Do one of them; return 0, or 1 if `check` or `show` found something wrong."""
    import asyncio  # noqa: PLC0415

    return asyncio.run(_run(args, loaded))


async def _run(args: argparse.Namespace, loaded: Loaded) -> int:
    from ingest.app.broker import wanted_dead_letters, wanted_stream  # noqa: PLC0415
    from ingest.broker import manage, monitor  # noqa: PLC0415
    from ingest.cli.find_broker import broker  # noqa: PLC0415

    settings = loaded.settings
    wanted: list[Wanted] = [wanted_stream(settings), wanted_dead_letters(settings)]
    async with broker(settings, may_make=args.stream_command == "apply") as reached:
        if args.stream_command == "apply":
            done = [
                line for each in wanted for line in await manage.apply(reached.connection, each)
            ]
            print_answer({"done": done}, "\n".join(done), as_json=args.json)
            return 0
        if args.stream_command == "rewind":
            return await _rewind(reached.connection, args)
        found = [await manage.look(reached.connection, each.names) for each in wanted]
        if args.stream_command == "show":
            document = {**found[0]._asdict(), "dead_letters": found[1]._asdict()}
            texts = [as_text(its, each.names) for its, each in zip(found, wanted, strict=True)]
            print_answer(document, "\n\n".join(texts), as_json=args.json)
            all_there = all(None not in (each.stream, *_consumers(each)) for each in found)
            return 0 if all_there else 1
        faults = [
            fault
            for its, each in zip(found, wanted, strict=True)
            for fault in manage.faults(its, each)
        ]
        unsafe = [] if settings.broker_unsafe else monitor.monitor_faults(reached.monitors)
    named = {"stream": faults, "broker_unsafe": unsafe}
    listed = [{"what": what, **each._asdict()} for what, some in named.items() for each in some]
    document = {"fits": not listed, "findings": listed}
    print_answer(document, _checked(faults, unsafe), as_json=args.json)
    return 1 if faults or unsafe else 0


async def _rewind(connection: BrokerConnection, args: argparse.Namespace) -> int:
    from ingest.broker import manage  # noqa: PLC0415

    first = await manage.rewind(connection, args.since or "")
    since = f" that came since {args.since}" if args.since else ""
    text = f"the stream has no messages{since}"
    if first is not None:
        text = f"writers write again all messages{since}: those from {first} on. Start the writers"
    print_answer({"first": first}, text, as_json=args.json)
    return 0


def _checked(faults: list[StreamFault], unsafe: list[StreamFault]) -> str:
    """Return what `check` has found; `broker_unsafe` is the name of a server that may lose data."""
    lines = [str(each) for each in faults]
    lines += [f"broker_unsafe: {each}" for each in unsafe]
    if faults:
        lines.append("`ingest stream apply` makes what is missing, and changes what differs")
    return "\n".join(lines) or "the streams and their consumers are as they must be"


def as_text(found: Found, names: Names) -> str:
    """Return the state of a stream as lines for a person."""
    if found.stream is None:
        return f"there is no stream {names.stream}: `ingest stream apply` makes it"
    state, config = found.stream["state"], found.stream["config"]
    copies = "1 copy" if config["num_replicas"] == 1 else f"{config['num_replicas']} copies"
    lines = {
        "stream": f"{config['name']}, {copies}{_cluster(found.stream)}",
        "messages": f"{state['messages']:,}, sequence {state['first_seq']} to {state['last_seq']}",
        "size": f"{state['bytes'] / 2**20:,.1f} of {config['max_bytes'] / 2**20:,.1f} MiB",
        "oldest": state["first_ts"] if state["messages"] else "-",
    }
    of_consumers = map(_consumer_lines, (names.consumer, *names.others), _consumers(found))
    parts = [lines, *of_consumers]
    return "\n".join(f"{name + ':':<10} {text}" for part in parts for name, text in part.items())


def _consumers(found: Found) -> list[Info]:
    return [found.consumer, *found.others.values()]


def _consumer_lines(name: str, found: Info) -> dict[str, str]:
    if found is None:
        return {"consumer": f"{name} is missing: `ingest stream apply` makes it"}
    return {
        "consumer": name,
        "waiting": f"{found['num_pending']:,} messages not delivered yet",
        "pending": f"{found['num_ack_pending']:,} delivered and not done",
        "again": f"{found['num_redelivered']:,} of these delivered more than once",
        "done": f"all up to sequence {found['ack_floor']['stream_seq']}",
    }


def _cluster(stream: Mapping[str, Any]) -> str:
    cluster = stream.get("cluster") or {}
    return f", leader {cluster.get('leader') or 'none'}" if cluster.get("replicas") else ""
