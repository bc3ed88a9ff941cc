"""What the streams and their consumers must be; makes, changes and checks them by JetStream's API.

The promise of an acknowledged message depends on their settings: another retention, `discard old`,
a largest age or a memory storage lose messages without an error. So all of them are compared, not
only those that we would set.
Promises: `apply` never removes a stream, a consumer or a message. A setting that cannot be changed,
or that says that the stream is somebody else's, is an error that names it.
Does not: know what the server does with its disk; watch.py does.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from ingest.model.errors import BrokerAway, BrokerRefused
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import (
    DEAD_LETTER_SUBJECT,
    DEAD_LETTERS,
    NO_CONSUMER,
    NO_MESSAGE,
    NOT_FOUND,
    REPLAY,
    REPLAYED_SUBJECTS,
    STREAM,
    SUBJECT,
    TABLES_SUBJECT,
    WRITER,
    Meaning,
    api_fault,
)

ACK_WAIT_S = 30.0  # a delivery that is not acknowledged after this comes again
ACKS_PENDING_MAX = 1_000  # deliveries without an acknowledgement; then the broker waits
WINDOW_S = 30.0  # in which a message id is known; must be longer than a message is tried
API_S_MAX = 5.0

Config = Mapping[str, Any]
Info = Mapping[str, Any] | None  # what the broker says; None if there is none
# A setting that is missing in a reply has one of these values.
_STREAM_DEFAULTS: dict[str, Any] = {
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
    "max_msg_size": -1,
    "max_consumers": -1,
    "max_age": 0,
    "no_ack": False,
    "sealed": False,
    "deny_purge": False,
    "allow_rollup_hdrs": False,  # a message with such a header removes all others
    "discard_new_per_subject": False,
    "persist_mode": "",  # `async` answers before the disk has the message
    "mirror": None,
    "sources": None,
    "subject_transform": None,
}
_CONSUMER_DEFAULTS: dict[str, Any] = {
    "max_deliver": -1,  # a message is delivered until it is done
    "replay_policy": "instant",
    "filter_subject": "",
    "filter_subjects": None,
    "deliver_subject": "",
    "headers_only": False,
    "num_replicas": 0,  # as many as the stream
    "mem_storage": False,
    "inactive_threshold": 0,  # it is not removed if nobody pulls
    "pause_until": None,
    "backoff": None,  # it would replace ack_wait
}
_FALSE = {"deny_delete": False, "allow_direct": False}
# What JetStream cannot change, and what would make another stream's messages ours.
_FIXED_STREAM = ("subjects", "retention", "storage", "max_consumers", "persist_mode", "mirror")
_FIXED_CONSUMER = ("deliver_policy", "ack_policy", "replay_policy", "deliver_subject")
FIXED = frozenset((*_FIXED_STREAM, *_FIXED_CONSUMER, "sources", "sealed", "deny_purge"))


UNDECLARED = (
    f"has the subject {TABLES_SUBJECT}: others have declared tables, and tables_file is not set "
    "here. So readings may be stored twice"
)


class Names(NamedTuple):
    """A stream, its consumer, and consumers that it has for others, as those of forwarders."""

    stream: str
    consumer: str
    others: tuple[str, ...] = ()


READINGS = Names(STREAM, WRITER)


class WantedStream(NamedTuple):
    """The settings that a stream needs, and those of its consumers by name, the main one first."""

    stream: Config
    consumers: Mapping[str, Config]

    @property
    def names(self) -> Names:
        """The stream and its consumers."""
        main, *others = self.consumers
        return Names(self.stream["name"], main, tuple(others))


def wanted_readings(replicas: int, bytes_max: int, forwards: tuple[str, ...] = ()) -> WantedStream:
    """Return what the stream of the readings needs: so many copies on servers, so many bytes.

    Its consumers are the one of all writers, and one for each name of `forwards`.
    """
    stream = {
        "name": STREAM,
        "subjects": [SUBJECT],
        "retention": "limits",  # the others lose messages if a consumer is missing
        "storage": "file",
        "discard": "new",  # a full stream refuses; it must not remove old messages
        "num_replicas": replicas,
        "max_bytes": bytes_max,
        "duplicate_window": _nanoseconds(WINDOW_S),
        "deny_delete": True,  # nobody removes single messages; a purge of what is done may
        **_STREAM_DEFAULTS,
    }
    return WantedStream(stream, {name: _consumer(name) for name in (WRITER, *forwards)})


def for_tables(readings: WantedStream) -> WantedStream:
    """Return what that stream must be if tables are declared."""
    return readings._replace(
        stream={**readings.stream, "subjects": [SUBJECT, TABLES_SUBJECT]},
    )


def wanted_letters(replicas: int, bytes_max: int) -> WantedStream:
    """Return what the dead letters need. A letter is live while its message is there."""
    stream = {
        **wanted_readings(replicas, bytes_max).stream,
        "name": DEAD_LETTERS,
        "subjects": [f"{DEAD_LETTER_SUBJECT}*"],
        "deny_delete": False,  # what is replayed or discarded is deleted
        "allow_direct": True,  # many messages with one request
    }
    replay = _consumer(REPLAY) | {
        "max_ack_pending": 1,  # so only one writer replays at a time
        "filter_subjects": list(REPLAYED_SUBJECTS),
    }
    return WantedStream(stream, {REPLAY: replay})


def _consumer(name: str) -> dict[str, Any]:
    return {
        "durable_name": name,
        "name": name,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": _nanoseconds(ACK_WAIT_S),
        "max_ack_pending": ACKS_PENDING_MAX,
        **_CONSUMER_DEFAULTS,
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000_000)


class Difference(NamedTuple):
    """A setting that is not as it must be. `fixed`: `apply` cannot change it."""

    name: str
    wanted: Any
    found: Any

    @property
    def fixed(self) -> bool:
        """Whether only an operator can change it."""
        return self.name in FIXED and (self.name, self.found) != ("subjects", [SUBJECT])

    def __str__(self) -> str:
        return f"{self.name} is {_shown(self.found)}, not {_shown(self.wanted)}"


def differences(wanted: Config, found: Config) -> Iterator[Difference]:
    """Yield the settings of `wanted` that are others in `found`."""
    defaults = _STREAM_DEFAULTS | _CONSUMER_DEFAULTS | _FALSE
    for name, value in wanted.items():
        have = found.get(name, defaults.get(name))
        if name == "persist_mode" and have == "default":
            have = ""
        if name == "pause_until" and str(have).startswith("0001-"):
            have = None
        if have != value and not _is_for_tables(name, value, have):
            yield Difference(name, value, have)


def changed(wanted: Config, found: Config) -> dict[str, Any]:
    """Return the settings to send for an update: those found, with the wanted ones."""
    kept = {n: found[n] for n, value in wanted.items() if _is_for_tables(n, value, found.get(n))}
    return {n: value for n, value in {**found, **wanted, **kept}.items() if value is not None}


def _is_for_tables(name: str, wanted: Any, found: Any) -> bool:
    """Whether these are the subjects of a stream that may hold rows of declared tables, too.

    Who declares none leaves them: others do, or did.
    """
    return name == "subjects" and found == [*wanted, TABLES_SUBJECT]


def _shown(value: Any) -> str:
    return "(none)" if value in (None, "") else str(value)


class StreamFault(NamedTuple):
    """What is not as it must be: where, and how."""

    where: str
    fault: str

    def __str__(self) -> str:
        return f"{self.where}: {self.fault}"


class Found(NamedTuple):
    """What the broker says of a stream, of its consumer, and of the others by name."""

    stream: Info
    consumer: Info
    others: Mapping[str, Info] = {}


async def look(connection: BrokerConnection, names: Names = READINGS) -> Found:
    """Ask for a stream and its consumers. Raises BrokerAway, and BrokerRefused."""
    stream = await look_at_stream(connection, names.stream)
    if stream is None:
        return Found(None, None)
    found = {
        name: await look_at_consumer(connection, name, names.stream)
        for name in (names.consumer, *names.others)
    }
    return Found(stream, found.pop(names.consumer), found)


async def look_at_stream(connection: BrokerConnection, name: str = STREAM) -> Info:
    """Ask for a stream. Raises BrokerAway, and BrokerRefused."""
    return await ask(connection, f"STREAM.INFO.{name}", None, NOT_FOUND)


async def look_at_consumer(connection: BrokerConnection, name: str, stream: str = STREAM) -> Info:
    """Ask for a consumer. Raises BrokerAway, and BrokerRefused."""
    return await ask(connection, f"CONSUMER.INFO.{stream}.{name}", None, NO_CONSUMER)


async def message(connection: BrokerConnection, place: int) -> bytes | None:
    """Return a message of the stream; None if the leader's copy of the stream cannot give it.

    Raises BrokerAway, and BrokerRefused.
    """
    found = await ask(connection, f"STREAM.MSG.GET.{STREAM}", {"seq": place}, NO_MESSAGE)
    return None if found is None else base64.b64decode(found["message"].get("data", ""))


async def lead_from(connection: BrokerConnection, server: str) -> None:
    """Let another server lead the stream. Raises BrokerAway, and BrokerRefused.

    Messages that are published meanwhile wait for some tenths of a second.
    """
    wish = {"placement": {"preferred": server}}
    await ask(connection, f"STREAM.LEADER.STEPDOWN.{STREAM}", wish)


async def purge(connection: BrokerConnection, to: int) -> None:
    """Remove all messages up to a place, included. Raises BrokerAway, and BrokerRefused."""
    await ask(connection, f"STREAM.PURGE.{STREAM}", {"seq": to + 1})


async def rewind(connection: BrokerConnection, since: str = "") -> int | None:
    """Let the writers get all messages again that came since then (RFC 3339); without, all.

    Return the first place; None if there is no such message. Raises BrokerAway, and BrokerRefused,
    also if a writer runs: what it has in work would count as done.
    """
    consumer = await look_at_consumer(connection, WRITER)
    if consumer is None:
        raise BrokerRefused("there is no consumer of the writers: `ingest stream apply` makes it")
    if consumer["num_waiting"]:
        raise BrokerRefused(
            "a writer runs. Stop all writers, and try again after some seconds; nothing was changed"
        )
    begin = {"start_time": since} if since else {"seq": 1}
    asked = begin | {"next_by_subj": SUBJECT}
    found = await ask(connection, f"STREAM.MSG.GET.{STREAM}", asked, NO_MESSAGE)
    seconds = len("2026-11-27T05:00:00")
    if found is None or found["message"]["time"][:seconds] < since[:seconds]:
        return None  # after the last message the server begins anew
    place = int(found["message"]["seq"])
    await give_again(connection, place)
    return place


async def give_again(connection: BrokerConnection, first: int) -> None:
    """Let the writers get all messages from a place on again. Raises BrokerAway, BrokerRefused."""
    await ask(connection, f"CONSUMER.RESET.{STREAM}.{WRITER}", {"seq": max(1, first)})


def faults(found: Found, wanted: WantedStream) -> list[StreamFault]:
    """Return what is missing, what differs, and copies that are behind."""
    return [*altered(found, wanted), *degraded(found, wanted)]


def altered(found: Found, wanted: WantedStream) -> list[StreamFault]:
    """Return what is missing, and what differs: messages may be lost by it."""
    names = wanted.names
    where = _stream(names)
    if found.stream is None:
        return [StreamFault(where, "is missing")]
    of_stream = differences(wanted.stream, found.stream["config"])
    listed = [StreamFault(where, str(each)) for each in of_stream if not _is_size(each)]
    for name, config in wanted.consumers.items():
        there = _there(found, names, name)
        if there is None:
            listed.append(StreamFault(_consumer_words(names, name), "is missing"))
        else:
            of_consumer = differences(config, there["config"])
            listed += [StreamFault(_consumer_words(names, name), str(each)) for each in of_consumer]
    return listed


NOT_BY_APPLY = ("its copy on ", "has no leader")  # so begin faults that only a server can mend


def degraded(found: Found, wanted: WantedStream) -> list[StreamFault]:
    """Return copies that are behind: one more server less, and the stream stands still.

    Another size is told here too. A full stream refuses, so nothing is lost by it. So are declared
    tables of others: without them a reading may be stored in its table, and here in `readings`.
    """
    if found.stream is None:
        return []
    where = _stream(wanted.names)
    of_stream = differences(wanted.stream, found.stream["config"])
    listed = [StreamFault(where, str(each)) for each in of_stream if _is_size(each)]
    subjects = found.stream["config"].get("subjects")
    if _is_for_tables("subjects", wanted.stream["subjects"], subjects):
        listed.append(StreamFault(where, UNDECLARED))
    cluster = found.stream.get("cluster") or {}
    if wanted.stream["num_replicas"] > 1 and not cluster.get("leader"):
        return [*listed, StreamFault(where, "has no leader")]
    return listed + [
        StreamFault(
            where,
            f"its copy on {each['name']} is behind"
            if each.get("active")
            else f"its copy on {each['name']} is out of reach: start that server. Posts are taken "
            "while most servers run",
        )
        for each in cluster.get("replicas") or ()
        if not each.get("current")
    ]


def _is_size(difference: Difference) -> bool:
    """Whether the stream has another bound. No bound at all would fill the disk."""
    return difference.name == "max_bytes" and difference.found > 0


def _stream(names: Names) -> str:
    return f"the stream {names.stream}"


def _consumer_words(names: Names, name: str) -> str:
    return f"the consumer {name} of {names.stream}"


def _there(found: Found, names: Names, name: str) -> Info:
    return found.consumer if name == names.consumer else found.others.get(name)


async def apply(connection: BrokerConnection, wanted: WantedStream) -> list[str]:
    """Make what is missing, change what differs; return what was done, as sentences.

    Raises BrokerRefused, with what an operator has to do, and BrokerAway.
    """
    names = wanted.names
    found = await look(connection, names)
    request = partial(_of_stream, names)
    done = [await _apply_one(connection, _stream(names), wanted.stream, found.stream, request)]
    for name, config in wanted.consumers.items():
        there, request = _there(found, names, name), partial(_of_consumer, names, name)
        where = _consumer_words(names, name)
        done.append(await _apply_one(connection, where, config, there, request))
    if left := [str(each) for each in altered(await look(connection, names), wanted)]:
        raise BrokerRefused(f"the broker did not change all of it: {'; '.join(left)}")
    return done


def _of_stream(names: Names, action: str, config: Config) -> tuple[str, Config]:
    return f"STREAM.{action}.{names.stream}", config


def _of_consumer(names: Names, name: str, action: str, config: Config) -> tuple[str, Config]:
    body = {"stream_name": names.stream, "config": config, "action": action.lower()}
    return f"CONSUMER.CREATE.{names.stream}.{name}", body


async def _apply_one(
    connection: BrokerConnection,
    where: str,
    wanted: Config,
    found: Info,
    request: Callable[[str, Config], tuple[str, Config]],
) -> str:
    """Make or change a stream or a consumer. `request` returns what to send, and where to."""
    if found is None:
        await ask(connection, *request("CREATE", changed(wanted, {})))
        return f"made {where}"
    listed = list(differences(wanted, found["config"]))
    if not listed:
        return f"{where} was there, and fits"
    if fixed := [str(each) for each in listed if each.fixed]:
        raise BrokerRefused(
            f"{where} cannot be used: {'; '.join(fixed)}. Nothing was changed. Save what it holds, "
            "then delete or rename it, and apply again"
        )
    await ask(connection, *request("UPDATE", changed(wanted, found["config"])))
    changes = (f"{each.name} {each.found} -> {each.wanted}" for each in listed)
    return f"changed {where}: {', '.join(changes)}"


async def ask(
    connection: BrokerConnection,
    subject: str,
    payload: Mapping[str, Any] | None = None,
    *missing: int,
) -> Mapping[str, Any] | None:
    """Ask JetStream; return its reply, None if it is one of the errors `missing`.

    Raises BrokerAway and BrokerRefused.
    """
    body = b"" if payload is None else json.dumps(payload).encode()
    reply = await connection.request(f"$JS.API.{subject}", body, API_S_MAX)
    fault = api_fault(reply.data)
    if fault is not None and fault.code in missing:
        return None
    if fault is not None and fault.meaning is Meaning.AGAIN:
        raise BrokerAway(f"the broker cannot answer {subject} now: {fault.text}")
    if fault is not None:
        raise BrokerRefused(f"the broker refuses {subject}: {fault.text}")
    answer: Mapping[str, Any] = json.loads(reply.data)
    return answer
