"""`ingest stream`: makes the streams of the broker, checks them, shows or rewinds them.

One has the readings, the other one the dead letters.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ingest.cli.parser import JSON, Command, Ending, flag
from ingest.config.loading import Loaded
from ingest.config.settings import Settings
from ingest.formats.timestamp import text_us
from ingest.roles.commands.broker import Reached, broker
from ingest.roles.nats import streams, watch
from ingest.roles.nats.streams import Found, Info, Names, StreamFault, WantedStream
from ingest.roles.role import wanted_streams
from ingest.system.clock import rfc3339

Do = Callable[[Reached, Sequence[WantedStream], argparse.Namespace, Settings], Awaitable[Ending]]


def time_text(text: str) -> str:
    """Return an RFC 3339 time in UTC. Raises ArgumentTypeError."""
    found = text_us(text)
    if not isinstance(found, int):
        raise argparse.ArgumentTypeError(found[1])
    return rfc3339(found)


async def _run(do: Do, args: argparse.Namespace, loaded: Loaded) -> Ending:
    settings = loaded.settings
    async with broker(settings, may_make=do is _apply) as reached:
        return await do(reached, wanted_streams(settings), args, settings)


async def _apply(reached: Reached, wanted: Sequence[WantedStream], *_: object) -> Ending:
    done = [line for each in wanted for line in await streams.apply(reached.connection, each)]
    return Ending({"done": done}, "\n".join(done))


async def _show(reached: Reached, wanted: Sequence[WantedStream], *_: object) -> Ending:
    found = [await streams.look(reached.connection, each.names) for each in wanted]
    document = {**found[0]._asdict(), "dead_letters": found[1]._asdict()}
    texts = [as_text(its, each.names) for its, each in zip(found, wanted, strict=True)]
    all_there = all(None not in (each.stream, *_consumers(each)) for each in found)
    return Ending(document, "\n\n".join(texts), 0 if all_there else 1)


async def _rewind(
    reached: Reached,
    _: Sequence[WantedStream],
    args: argparse.Namespace,
    _settings: Settings,
) -> Ending:
    first = await streams.rewind(reached.connection, args.since or "")
    since = f" that came since {args.since}" if args.since else ""
    text = f"the stream has no messages{since}"
    if first is not None:
        text = f"writers write again all messages{since}: those from {first} on. Start the writers"
    return Ending({"first": first}, text)


async def _check(
    reached: Reached,
    wanted: Sequence[WantedStream],
    _: argparse.Namespace,
    settings: Settings,
) -> Ending:
    faults = [
        fault
        for each in wanted
        for fault in streams.faults(await streams.look(reached.connection, each.names), each)
    ]
    unsafe = [] if settings.broker_unsafe else watch.monitor_faults(reached.monitors)
    named = {"stream": faults, "broker_unsafe": unsafe}
    listed = [{"what": what, **each._asdict()} for what, some in named.items() for each in some]
    document = {"fits": not listed, "findings": listed}
    return Ending(document, _checked(faults, unsafe), 1 if listed else 0)


def _checked(faults: list[StreamFault], unsafe: list[StreamFault]) -> str:
    """Return what `check` has found; `broker_unsafe` is the name of a server that may lose data."""
    lines = [str(each) for each in faults]
    lines += [
        str(each) if each.fault.startswith(watch.SILENT) else f"broker_unsafe: {each}"
        for each in unsafe
    ]
    if not all(each.fault.startswith(streams.NOT_BY_APPLY) for each in faults):
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


COMMAND = Command(
    examples=(
        "ingest stream apply",
        "ingest stream check --broker-url nats://admin:..@nats1:4222",
    ),
    usage="COMMAND [options]",
    epilog="exit codes: 0 done, 1 something is not as it must be, 2 the broker is out of reach",
    commands={
        "apply": Command(
            "make the streams and their consumers, or change what differs; removes nothing",
            (
                "ingest stream apply --stream-bytes-max 20GiB",
                "ingest stream apply --stream-replicas 3 --broker-url nats://admin:..@nats1:4222",
            ),
            partial(_run, _apply),
            flags=(JSON,),
        ),
        "check": Command(
            "compare them, and how the servers sync to the disk, with what is needed",
            (
                "ingest stream check",
                "ingest stream check --json --broker-monitor-url "
                "http://nats1:8222,http://nats2:8222",
            ),
            partial(_run, _check),
            flags=(JSON,),
        ),
        "show": Command(
            "print what the streams hold, and what their consumers have done",
            ("ingest stream show", "ingest stream show --json"),
            partial(_run, _show),
            flags=(JSON,),
        ),
        "rewind": Command(
            "let the writers write again what the stream still has; for a restored database",
            ("ingest stream rewind --since 2026-11-27T05:00:00Z", "ingest stream rewind"),
            partial(_run, _rewind),
            flags=(
                JSON,
                flag(
                    "--since",
                    metavar="TIME",
                    type=time_text,
                    help="only what was received since then, RFC 3339",
                ),
            ),
        ),
    },
)
