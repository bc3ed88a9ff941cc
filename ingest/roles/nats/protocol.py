"""What is said between our roles and the broker: subjects, who may use them, messages and errors.

One table has the error codes. After a code that it does not have, a message may be stored or not:
an unknown error is never the reason for a definite answer.
Promises: a role can publish, pull and purge only what its work needs, and sees no inbox of another
role. Only the admin changes streams. There is no role without a password.
Does not: know the NATS library; session.py does.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

import msgspec

from ingest.model.reading import DRAINED, EXHAUSTED

PULL = "pull."  # in the reply subject of pull requests
# Of nats-server 2.10 to 2.15.
NOT_FOUND = 10059  # stream
NO_CONSUMER = 10014
NO_MESSAGE = 10037
NOTHING_TO_DELETE = (10043, 10057)  # between other messages, or not
STORE_FAILED = 10077
_OF_BOUNDS = "exceeded"  # in the text of STORE_FAILED: the stream is full, and its disk is well
_REPLY_PARTS = 9  # of the subject of a reply, without a domain
STREAM = "INGEST"
SUBJECT = "ingest.in.0"  # of all blocks; one, since the order of readings does not matter
# No message has it. A stream that has it may hold rows of declared tables (model/moments.py), which
# earlier versions cannot read: they find that its subjects differ, and refuse posts or the start.
TABLES_SUBJECT = "ingest.in.tables"
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


class Address(NamedTuple):
    """Where the broker is, and how to log in. `servers` are URLs without user and password.

    `ours`: an embedded server, which must run as our user.
    """

    servers: tuple[str, ...]
    user: str
    password: str
    ca_file: str = ""
    ours: bool = False


class Message(NamedTuple):
    """What came in: a reply, or a message that was asked for."""

    reply_to: str
    data: bytes
    headers: Mapping[str, str]

    @property
    def status(self) -> str:
        """The status of the broker, as `503`, or nothing if this is no status."""
        return self.headers.get("Status", "")


class Meaning(Enum):
    """What to do after an error."""

    AGAIN = "not possible now; nothing was stored"
    UNSURE = "may be stored or not; ask again"
    FULL = "the stream has no room"
    WRONG = "an operator must change something"


_MEANINGS = {
    10158: Meaning.UNSURE,  # an earlier try of the same message is being stored
    10008: Meaning.AGAIN,  # no leader yet, or the server has just started
    10002: Meaning.FULL,  # of the account
    10023: Meaning.FULL,  # of the server
    10047: Meaning.FULL,  # of the server, at the creation of a stream
    10054: Meaning.WRONG,  # larger than the stream's largest message
    10060: Meaning.WRONG,  # the subject is of another stream
    10109: Meaning.WRONG,  # the stream is sealed
    10039: Meaning.WRONG,  # the account has no JetStream
    10076: Meaning.WRONG,  # the server has no JetStream
    10058: Meaning.WRONG,  # a stream of this name with other settings
    10065: Meaning.WRONG,  # its subjects are of another stream
    10052: Meaning.WRONG,  # a setting that cannot be changed
    10025: Meaning.WRONG,  # a setting that is not possible
    10012: Meaning.WRONG,  # a setting of a consumer that is not possible
}


def delivered_as(reply_to: str) -> tuple[int, int, int]:
    """Return how often a message was given, its place, and the number of this delivery.

    The subject is $JS.ACK.[domain.account.]stream.consumer.tries.place.delivery.time.pending, and
    with a domain it has a random part behind that.
    """
    parts = reply_to.split(".")
    at = 4 if len(parts) == _REPLY_PARTS else 6
    tries, place, delivery = map(int, parts[at : at + 3])
    return tries, place, delivery


class PubAck(NamedTuple):
    """The stream has the message. `duplicate`: it had it already, by its message id."""

    sequence: int
    duplicate: bool


class ApiFault(NamedTuple):
    """An error of JetStream."""

    code: int
    text: str
    meaning: Meaning


class _Error(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Reply(msgspec.Struct):
    error: _Error | None = None
    seq: int = 0
    duplicate: bool = False


_decode = msgspec.json.Decoder(_Reply).decode


def pub_ack(message: Message) -> PubAck | ApiFault:
    """Return what a reply to a published message says."""
    if message.status:
        return ApiFault(
            int(message.status), "no stream, or a stream without a leader", Meaning.AGAIN
        )
    try:
        reply = _decode(message.data)
    except msgspec.DecodeError:
        return ApiFault(0, f"an answer that is none: {message.data[:80]!r}", Meaning.UNSURE)
    if reply.error is None and reply.seq > 0:
        return PubAck(reply.seq, reply.duplicate)
    return _fault_of(reply.error or _Error(description="an answer without a sequence"))


def api_fault(data: bytes) -> ApiFault | None:
    """Return the error of a reply of JetStream's API, or None if it is none."""
    reply = _decode(data)
    return None if reply.error is None else _fault_of(reply.error)


def _fault_of(error: _Error) -> ApiFault:
    """Return the meaning of an error."""
    text = f"{error.description} (code {error.err_code})"
    meaning = _MEANINGS.get(error.err_code, Meaning.UNSURE)
    if error.err_code == STORE_FAILED and _OF_BOUNDS in error.description:
        meaning = Meaning.FULL
    return ApiFault(error.err_code, text, meaning)


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
