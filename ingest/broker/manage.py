"""Makes, changes, checks and shows the stream and its consumer, by JetStream's API.

Promises: `apply` never removes a stream, a consumer or a message. A setting that cannot be changed,
or that says that the stream is somebody else's, is an error that names it.
Does not: know what the server does with its disk; monitor.py does.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ingest.broker.connection import BrokerConnection
from ingest.broker.replies import NO_CONSUMER, NO_MESSAGE, NOT_FOUND, Meaning, api_fault
from ingest.broker.roles import STREAM, WRITER
from ingest.broker.streams import Config, Difference, WantedStream, changed, differences
from ingest.model.errors import BrokerAway, BrokerRefused

API_S_MAX = 5.0

_STREAM = f"the stream {STREAM}"


class StreamFault(NamedTuple):
    """What is not as it must be: where, and how."""

    where: str
    fault: str

    def __str__(self) -> str:
        return f"{self.where}: {self.fault}"


class Found(NamedTuple):
    """What the broker says of the stream and of its consumers; None if there is none.

    `consumer` is that of the writers, `others` are those of forwarders, by name.
    """

    stream: Mapping[str, Any] | None
    consumer: Mapping[str, Any] | None
    others: Mapping[str, Mapping[str, Any] | None] = {}


async def look(connection: BrokerConnection, others: Iterable[str] = ()) -> Found:
    """Ask for the stream, the writers' consumer, and others. Raises BrokerAway, BrokerRefused."""
    stream = await look_at_stream(connection)
    if stream is None:
        return Found(None, None)
    found = {name: await look_at_consumer(connection, name) for name in (WRITER, *others)}
    return Found(stream, found.pop(WRITER), found)


async def look_at_stream(connection: BrokerConnection) -> Mapping[str, Any] | None:
    """Ask for the stream; None if there is none. Raises BrokerAway, and BrokerRefused."""
    return await _api(connection, f"STREAM.INFO.{STREAM}", missing=NOT_FOUND)


async def look_at_consumer(connection: BrokerConnection, name: str) -> Mapping[str, Any] | None:
    """Ask for a consumer; None if there is none. Raises BrokerAway, and BrokerRefused."""
    return await _api(connection, f"CONSUMER.INFO.{STREAM}.{name}", missing=NO_CONSUMER)


async def message(connection: BrokerConnection, place: int) -> bytes | None:
    """Return a message of the stream; None if the leader's copy of the stream cannot give it.

    Raises BrokerAway, and BrokerRefused.
    """
    found = await _api(connection, f"STREAM.MSG.GET.{STREAM}", {"seq": place}, missing=NO_MESSAGE)
    return None if found is None else base64.b64decode(found["message"].get("data", ""))


async def lead_from(connection: BrokerConnection, server: str) -> None:
    """Let another server lead the stream. Raises BrokerAway, and BrokerRefused.

    Messages that are published meanwhile wait for some tenths of a second.
    """
    wish = {"placement": {"preferred": server}}
    await _api(connection, f"STREAM.LEADER.STEPDOWN.{STREAM}", wish)


async def purge(connection: BrokerConnection, to: int) -> None:
    """Remove all messages up to a place, included. Raises BrokerAway, and BrokerRefused."""
    await _api(connection, f"STREAM.PURGE.{STREAM}", {"seq": to + 1})


def faults(found: Found, wanted: WantedStream) -> list[StreamFault]:
    """Return what is missing, what differs, and copies that are behind."""
    return [*altered(found, wanted), *degraded(found, wanted)]


def altered(found: Found, wanted: WantedStream) -> list[StreamFault]:
    """Return what is missing, and what differs: messages may be lost by it."""
    if found.stream is None:
        return [StreamFault(_STREAM, "is missing")]
    of_stream = differences(wanted.stream(), found.stream["config"])
    listed = [StreamFault(_STREAM, str(each)) for each in of_stream]
    for name, config in wanted.consumers().items():
        there = found.consumer if name == WRITER else found.others.get(name)
        if there is None:
            listed.append(StreamFault(_consumer(name), "is missing"))
        else:
            of_consumer = differences(config, there["config"])
            listed += [StreamFault(_consumer(name), str(each)) for each in of_consumer]
    return listed


def _consumer(name: str) -> str:
    return f"the consumer {name} of {STREAM}"


def degraded(found: Found, wanted: WantedStream) -> list[StreamFault]:
    """Return copies that are behind. One more server less, and the stream stands still."""
    cluster = (found.stream or {}).get("cluster") or {}
    if found.stream is not None and wanted.replicas > 1 and not cluster.get("leader"):
        return [StreamFault(_STREAM, "has no leader")]
    return [
        StreamFault(
            _STREAM,
            f"its copy on {each['name']} is {'behind' if each.get('active') else 'out of reach'}",
        )
        for each in cluster.get("replicas") or ()
        if not each.get("current")
    ]


async def apply(connection: BrokerConnection, wanted: WantedStream) -> list[str]:
    """Make what is missing, change what differs; return what was done, as sentences.

    Raises BrokerRefused, with what an operator has to do, and BrokerAway.
    """
    found = await look(connection, wanted.forwards)
    done = [await _apply_stream(connection, wanted.stream(), found.stream)]
    for name, config in wanted.consumers().items():
        there = found.consumer if name == WRITER else found.others.get(name)
        done.append(await _apply_consumer(connection, name, config, there))
    left = altered(await look(connection, wanted.forwards), wanted)
    if left:
        raise BrokerRefused(f"the broker did not change all of it: {'; '.join(map(str, left))}")
    return done


async def _apply_stream(
    connection: BrokerConnection, wanted: Config, found: Mapping[str, Any] | None
) -> str:
    if found is None:
        await _api(connection, f"STREAM.CREATE.{STREAM}", changed(wanted, {}))
        return f"made {_STREAM}"
    listed = list(differences(wanted, found["config"]))
    if not listed:
        return f"{_STREAM} was there, and fits"
    _refuse_fixed(_STREAM, listed)
    await _api(connection, f"STREAM.UPDATE.{STREAM}", changed(wanted, found["config"]))
    return f"changed {_STREAM}: {_listed(listed)}"


async def _apply_consumer(
    connection: BrokerConnection, name: str, wanted: Config, found: Mapping[str, Any] | None
) -> str:
    where = _consumer(name)
    subject = f"CONSUMER.CREATE.{STREAM}.{name}"
    if found is None:
        config = changed(wanted, {})
        body = {"stream_name": STREAM, "config": config, "action": "create"}
        await _api(connection, subject, body)
        return f"made {where}"
    listed = list(differences(wanted, found["config"]))
    if not listed:
        return f"{where} was there, and fits"
    _refuse_fixed(where, listed)
    config = changed(wanted, found["config"])
    await _api(connection, subject, {"stream_name": STREAM, "config": config, "action": "update"})
    return f"changed {where}: {_listed(listed)}"


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
    if fault is not None and fault.meaning is Meaning.AGAIN:
        raise BrokerAway(f"the broker cannot answer {subject} now: {fault.text}")
    if fault is not None:
        raise BrokerRefused(f"the broker refuses {subject}: {fault.text}")
    answer: Mapping[str, Any] = json.loads(reply.data)
    return answer
