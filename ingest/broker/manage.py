"""Makes, changes, checks and shows a stream and its consumer, by JetStream's API.

Promises: `apply` never removes a stream, a consumer or a message. A setting that cannot be changed,
or that says that the stream is somebody else's, is an error that names it.
Does not: know what the server does with its disk; monitor.py does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ingest.broker.connection import BrokerConnection
from ingest.broker.replies import NO_CONSUMER, NOT_FOUND, api_fault
from ingest.broker.streams import (
    READINGS,
    Config,
    Difference,
    Names,
    Wanted,
    changed,
    differences,
)
from ingest.model.errors import BrokerRefused

API_S_MAX = 5.0


class StreamFault(NamedTuple):
    """What is not as it must be: where, and how."""

    where: str
    fault: str

    def __str__(self) -> str:
        return f"{self.where}: {self.fault}"


class Found(NamedTuple):
    """What the broker says of the stream and of its consumer; None if there is none."""

    stream: Mapping[str, Any] | None
    consumer: Mapping[str, Any] | None


def _stream(names: Names) -> str:
    return f"the stream {names.stream}"


def _consumer(names: Names) -> str:
    return f"the consumer {names.consumer} of {names.stream}"


async def look(connection: BrokerConnection, names: Names = READINGS) -> Found:
    """Ask for stream and consumer. Raises BrokerAway, and BrokerRefused."""
    stream = await _api(connection, f"STREAM.INFO.{names.stream}", missing=NOT_FOUND)
    if stream is None:
        return Found(None, None)
    named = f"CONSUMER.INFO.{names.stream}.{names.consumer}"
    consumer = await _api(connection, named, missing=NO_CONSUMER)
    return Found(stream, consumer)


def faults(found: Found, wanted: Wanted) -> list[StreamFault]:
    """Return what is missing, what differs, and replicas that are behind."""
    stream, consumer = _stream(wanted.names), _consumer(wanted.names)
    if found.stream is None:
        return [StreamFault(stream, "is missing")]
    of_stream = differences(wanted.stream(), found.stream["config"])
    listed = [StreamFault(stream, str(each)) for each in of_stream]
    listed += [StreamFault(stream, each) for each in _replica_faults(found.stream, wanted.replicas)]
    if found.consumer is None:
        return [*listed, StreamFault(consumer, "is missing")]
    of_consumer = differences(wanted.consumer(), found.consumer["config"])
    return [*listed, *(StreamFault(consumer, str(each)) for each in of_consumer)]


def _replica_faults(stream: Mapping[str, Any], replicas: int) -> list[str]:
    cluster = stream.get("cluster") or {}
    if replicas > 1 and not cluster.get("leader"):
        return ["has no leader"]
    return [
        f"its copy on {each['name']} is {'behind' if each.get('active') else 'out of reach'}"
        for each in cluster.get("replicas") or ()
        if not each.get("current")
    ]


async def apply(connection: BrokerConnection, wanted: Wanted) -> list[str]:
    """Make what is missing, change what differs; return what was done, as sentences.

    Raises BrokerRefused, with what an operator has to do, and BrokerAway.
    """
    names = wanted.names
    found = await look(connection, names)
    done = [await _apply_stream(connection, names, wanted.stream(), found.stream)]
    done.append(await _apply_consumer(connection, names, wanted.consumer(), found.consumer))
    left = faults(await look(connection, names), wanted)
    if serious := [str(each) for each in left if "its copy" not in each.fault]:
        raise BrokerRefused(f"the broker did not change all of it: {'; '.join(serious)}")
    return done


async def _apply_stream(
    connection: BrokerConnection, names: Names, wanted: Config, found: Mapping[str, Any] | None
) -> str:
    stream = _stream(names)
    if found is None:
        await _api(connection, f"STREAM.CREATE.{names.stream}", changed(wanted, {}))
        return f"made {stream}"
    listed = list(differences(wanted, found["config"]))
    if not listed:
        return f"{stream} was there, and fits"
    _refuse_fixed(stream, listed)
    await _api(connection, f"STREAM.UPDATE.{names.stream}", changed(wanted, found["config"]))
    return f"changed {stream}: {_listed(listed)}"


async def _apply_consumer(
    connection: BrokerConnection, names: Names, wanted: Config, found: Mapping[str, Any] | None
) -> str:
    consumer = _consumer(names)
    subject = f"CONSUMER.CREATE.{names.stream}.{names.consumer}"
    body = {"stream_name": names.stream}
    if found is None:
        config = changed(wanted, {})
        await _api(connection, subject, {**body, "config": config, "action": "create"})
        return f"made {consumer}"
    listed = list(differences(wanted, found["config"]))
    if not listed:
        return f"{consumer} was there, and fits"
    _refuse_fixed(consumer, listed)
    config = changed(wanted, found["config"])
    await _api(connection, subject, {**body, "config": config, "action": "update"})
    return f"changed {consumer}: {_listed(listed)}"


def _refuse_fixed(where: str, listed: list[Difference]) -> None:
    fixed = [str(each) for each in listed if each.fixed]
    if fixed:
        raise BrokerRefused(
            f"{where} cannot be used: {'; '.join(fixed)}. Nothing was changed. Save what it holds, "
            "then delete or rename it, and apply again"
        )


def _listed(listed: list[Difference]) -> str:
    return ", ".join(f"{each.name} {each.found} -> {each.wanted}" for each in listed)


async def _api(
    connection: BrokerConnection,
    subject: str,
    payload: Mapping[str, Any] | None = None,
    *,
    missing: int | None = None,
) -> Mapping[str, Any] | None:
    """Return the reply; None if its error is `missing`. Raises BrokerAway and BrokerRefused."""
    body = b"" if payload is None else json.dumps(payload).encode()
    reply = await connection.request(f"$JS.API.{subject}", body, API_S_MAX)
    fault = api_fault(reply.data)
    if fault is not None and fault.code == missing:
        return None
    if fault is not None:
        raise BrokerRefused(f"the broker refuses {subject}: {fault.text}")
    answer: Mapping[str, Any] = json.loads(reply.data)
    return answer
