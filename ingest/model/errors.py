"""The exceptions that this service raises on purpose. Each is named for what its caller does next.

The part that meets a foreign exception (driver, socket, file) raises one of these instead, with
the foreign one as its cause.
"""

from __future__ import annotations

from ingest.model.codes import PROBLEMS


class IngestError(Exception):
    """Base of all exceptions that this service raises on purpose. Users may read its text."""


class ConfigError(IngestError):
    """A setting is wrong. The text names the setting that the operator has to correct."""


class KeyFault(ValueError):
    """A key of an entry in a file of lists is wrong: `key`, and what to do about it."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class StartError(IngestError):
    """The service cannot start. The text says why, and what to do."""


class Refused(IngestError):
    """Nothing of the post is kept; the client gets a problem document.

    `code` is a key of `codes.PROBLEMS`. `fields` are further members of the problem document (JSON
    values). `retry_after_s` asks for a Retry-After header of about that many seconds. `body_start`
    is the begin of the body, or of its first invalid item, where it is known.
    """

    body_start: bytes = b""

    def __init__(
        self, code: str, detail: str, *, retry_after_s: float | None = None, **fields: object
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.fields = fields

    @property
    def status(self) -> int:
        """The HTTP status of the problem."""
        return PROBLEMS[self.code].status


class BufferFull(IngestError):
    """No room became free in time. The client should try again after `retry_after_s` seconds.

    The room is the buffer's, unless `why` says another one.
    """

    def __init__(
        self, retry_after_s: float, why: str = "the buffer has no room for this post"
    ) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class DeadLettersFull(IngestError):
    """The dead-letter folder has used its share of `dlq_bytes_max`. Nothing was appended."""


class ShareUsed(DeadLettersFull):
    """The sender has used its share of the room for invalid items. Nothing was appended."""


class DeadLettersBroken(IngestError):
    """The dead-letter file could not be written (disk full, fsync failed). Nothing is promised."""


class NotKept(IngestError):
    """A buffer could not keep a block. What its client gets: `code`, `detail`, `retry_after_s`.

    `code` is a key of `codes.PROBLEMS`. The text of the exception is for operators.
    """

    code = "internal"
    detail = ""
    retry_after_s = 4.0


class JournalBroken(NotKept):
    """The journal could not be written (disk full, fsync failed). Nothing of the block is kept."""

    # The journal tries the disk every 2 s. A disk that stays full is refused before.
    code = "disk_low"
    detail = "the journal could not be written to the disk"


class BrokerAway(NotKept):
    """The broker is out of reach, or cannot answer now. Nothing of what was asked for is kept."""

    code = "broker_away"
    detail = "the broker did not take the post in time; nothing of it is kept"


class BrokerFull(NotKept):
    """The stream has no room for this message. Nothing of it is kept."""

    code = "buffer_full"
    detail = "the stream has no room for this post"
    retry_after_s = 10.0


class BrokerRefused(NotKept):
    """The broker refuses for good, until an operator changes something. Nothing is kept."""

    code = "broker_away"
    detail = "the broker refuses the post until an operator changes something; nothing is kept"
    retry_after_s = 30.0


class BrokerOutcomeUnknown(NotKept):
    """The broker did not answer in time. The message may be kept, or may still be."""

    code = "outcome_unknown"
    detail = "the broker did not answer in time; sending again is safe for readings with a `ts`"


class NoReply(IngestError):
    """A server of others did not answer. It may have done all of what it was asked for."""


class MqttAway(IngestError):
    """There is no connection to the MQTT broker, or no more. The text says why."""


class CommitRefused(NotKept):
    """No writer takes a post with `ack=committed` now. Nothing of it is kept."""

    retry_after_s = 5.0

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Stopping(IngestError):
    """The service is stopping, so this wait has ended early. Nothing was changed."""


class Broken(IngestError):
    """A part of the pipeline has died; the log says which. What was acknowledged is kept."""


class ReplayStopped(IngestError):
    """The database cannot take dead letters now. Those replayed before stay replayed."""
