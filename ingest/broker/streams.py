"""What the streams and their consumers must be, and how those that are there differ. No I/O.

The promise of an acknowledged message depends on these settings: another retention, `discard old`,
a largest age or a memory storage lose messages without an error. So all of them are compared, not
only those that we would set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ingest.broker.roles import (
    DEAD_LETTER_SUBJECT,
    DEAD_LETTERS,
    REPLAY,
    REPLAYED_SUBJECTS,
    STREAM,
    SUBJECT,
    WRITER,
)

ACK_WAIT_S = 30.0  # a delivery that is not acknowledged after this comes again
ACKS_PENDING_MAX = 1_000  # deliveries without an acknowledgement; then the broker waits
WINDOW_S = 30.0  # in which a message id is known; must be longer than a message is tried

Config = Mapping[str, Any]


class Names(NamedTuple):
    """A stream, its consumer, and consumers that it has for others, as those of forwarders."""

    stream: str
    consumer: str
    others: tuple[str, ...] = ()


READINGS = Names(STREAM, WRITER)
LETTERS = Names(DEAD_LETTERS, REPLAY)


class WantedStream(NamedTuple):
    """What `ingest.in.0` needs: how many copies on servers, how many bytes, which consumers.

    `forwards` are the names of the forwarders' consumers.
    """

    replicas: int
    bytes_max: int
    forwards: tuple[str, ...] = ()

    @property
    def names(self) -> Names:
        """The stream and its consumers."""
        return READINGS._replace(others=self.forwards)

    def stream(self) -> dict[str, Any]:
        """Return the settings of the stream."""
        return {
            "name": STREAM,
            "subjects": [SUBJECT],
            "retention": "limits",  # the others lose messages if a consumer is missing
            "storage": "file",
            "discard": "new",  # a full stream refuses; it must not remove old messages
            "num_replicas": self.replicas,
            "max_bytes": self.bytes_max,
            "duplicate_window": _nanoseconds(WINDOW_S),
            "deny_delete": True,  # nobody removes single messages; a purge of what is done may
            **_STREAM_DEFAULTS,
        }

    def consumers(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each consumer: the one of all writers, one for each forwarder."""
        return {name: _consumer(name) for name in (WRITER, *self.forwards)}


class WantedDeadLetters(NamedTuple):
    """What the dead letters need. A letter is live while its message is there."""

    replicas: int
    bytes_max: int

    @property
    def names(self) -> Names:
        """The stream and its consumer."""
        return LETTERS

    def stream(self) -> dict[str, Any]:
        """Return the settings of the stream."""
        readings = WantedStream(self.replicas, self.bytes_max).stream()
        return readings | {
            "name": DEAD_LETTERS,
            "subjects": [f"{DEAD_LETTER_SUBJECT}*"],
            "deny_delete": False,  # what is replayed or discarded is deleted
            "allow_direct": True,  # many messages with one request
        }

    def consumers(self) -> dict[str, dict[str, Any]]:
        """Return the settings of the consumer of the automatic replay."""
        replay = _consumer(REPLAY) | {
            "max_ack_pending": 1,  # so only one writer replays at a time
            "filter_subjects": list(REPLAYED_SUBJECTS),
        }
        return {REPLAY: replay}


Wanted = WantedStream | WantedDeadLetters


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


class Difference(NamedTuple):
    """A setting that is not as it must be. `fixed`: `apply` cannot change it."""

    name: str
    wanted: Any
    found: Any

    @property
    def fixed(self) -> bool:
        """Whether only an operator can change it."""
        return self.name in FIXED

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
        if have != value:
            yield Difference(name, value, have)


def changed(wanted: Config, found: Config) -> dict[str, Any]:
    """Return the settings to send for an update: those found, with the wanted ones."""
    return {name: value for name, value in {**found, **wanted}.items() if value is not None}


def _shown(value: Any) -> str:
    return "(none)" if value in (None, "") else str(value)
