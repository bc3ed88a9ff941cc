"""The roles that log in to the broker, and what each of them may do there.

Promises: a role can publish, pull and purge only what its work needs, and sees no inbox of another
role. Only the admin changes streams. There is no role without a password.
"""

from __future__ import annotations

from typing import NamedTuple

from ingest.model.reading import DRAINED, EXHAUSTED

STREAM = "INGEST"
SUBJECT = "ingest.in.0"  # of all blocks; one, since the order of readings does not matter
WRITER = "writer"  # the consumer that all writers share
GIVEN = "ingest.given"  # writers tell each other here which messages they were given
STATUS = "ingest.status"  # gateways and writers tell their states here, for the pages of writers
COMMIT = "ingest.commit"  # gateways ask here whether a writer stores now; one of them answers
COMMITTERS = "writers"  # their queue group
FORWARD = "forward-"  # begins the name of a forwarder's own consumer
DEAD_LETTERS = "INGEST_DLQ"
DEAD_LETTER_SUBJECT = "ingest.dlq."  # and the reason
REPLAY = "replay"  # its consumer; who has its one message is the only one who replays
AWAITED = "Ingest-Awaited"  # the header of a message whose gateway waits for the outcome
REPLAYED_SUBJECTS = tuple(DEAD_LETTER_SUBJECT + each for each in (EXHAUSTED, DRAINED))
_LOOK = (f"$JS.API.STREAM.INFO.{STREAM}", f"$JS.API.CONSUMER.INFO.{STREAM}.*")
# To see to a stream that gives places again; see watch.py.
_WATCH = (*_LOOK, f"$JS.API.CONSUMER.RESET.{STREAM}.{WRITER}")
_APPEND = (
    f"{DEAD_LETTER_SUBJECT}>",
    f"$JS.API.STREAM.INFO.{DEAD_LETTERS}",
    # To see whether a dead letter that the stream had before is still there.
    f"$JS.API.STREAM.MSG.GET.{DEAD_LETTERS}",
)


class Permissions(NamedTuple):
    """What a role may publish, and what it may hear beside its inbox."""

    publish: tuple[str, ...]
    never: tuple[str, ...] = ()  # although `publish` has it
    hear: tuple[str, ...] = ()


def inbox_of(role: str, name: str) -> str:
    """Return the subject that begins all reply subjects of one connection of a role."""
    return f"_INBOX.{role}.{name}"


def outcomes_for(message_id: str) -> str:
    """Return the subject on which a gateway waits for the outcome of a message; "" if it is none.

    The id begins with the life of the gateway.
    """
    life = message_id.rpartition("-")[0]
    return inbox_of("gateway", f"outcomes-{life}") if life.isalnum() else ""


def inboxes_of(role: str) -> str:
    """Return the subjects that a role may subscribe to."""
    return f"_INBOX.{role}.>"


ROLES: dict[str, Permissions] = {
    "gateway": Permissions(("ingest.in.>", COMMIT, STATUS, *_WATCH, *_APPEND)),
    "writer": Permissions(
        (
            *_WATCH,
            f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{WRITER}",
            f"$JS.ACK.{STREAM}.{WRITER}.>",
            f"$JS.API.STREAM.MSG.GET.{STREAM}",
            f"$JS.API.STREAM.PURGE.{STREAM}",
            f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}",
            GIVEN,
            STATUS,
            *_APPEND,
            f"$JS.API.DIRECT.GET.{DEAD_LETTERS}",
            f"$JS.API.STREAM.MSG.DELETE.{DEAD_LETTERS}",
            f"$JS.API.CONSUMER.INFO.{DEAD_LETTERS}.*",
            f"$JS.API.CONSUMER.MSG.NEXT.{DEAD_LETTERS}.{REPLAY}",
            f"$JS.ACK.{DEAD_LETTERS}.{REPLAY}.>",
            inboxes_of("gateway"),  # answers to COMMIT, and the outcomes of messages
        ),
        hear=(GIVEN, COMMIT, STATUS),
    ),
    "forward": Permissions(
        (*_LOOK, f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.*", f"$JS.ACK.{STREAM}.>"),
        never=(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{WRITER}", f"$JS.ACK.{STREAM}.{WRITER}.>"),
    ),
    "admin": Permissions(("$JS.API.>",)),
}
