"""What went wrong, named for what the caller does next.

Holds every exception this service raises on purpose. Foreign exceptions (driver, sockets, files)
are turned into one of these at the adapter that met them, with the cause kept.
"""

from __future__ import annotations


class IngestError(Exception):
    """Anything this service raises on purpose; its text is fit for a user to read."""


class ConfigError(IngestError):
    """Mend the named setting and start again."""


class StartError(IngestError):
    """The service cannot start; the text says what is in the way and what to do about it."""


class Refused(IngestError):
    """Nothing of the post is kept; tell the client so with a stable code.

    `code` is a key of `codes.PROBLEMS`; `fields` are further members of the problem document
    (JSON values); `retry_after_s` asks for a Retry-After header of about that many seconds.
    """

    def __init__(
        self, code: str, detail: str, *, retry_after_s: float | None = None, **fields: object
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.fields = fields


class BufferFull(IngestError):
    """No room came free in time; the client should come back after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the buffer has no room for this post")
        self.retry_after_s = retry_after_s


class DeadLettersFull(IngestError):
    """The dead-letter folder has reached its share of `dlq_bytes_max`; nothing was appended."""


class DeadLettersBroken(IngestError):
    """The dead-letter file could not be written (disk full, fsync failed); nothing is promised."""


class JournalBroken(IngestError):
    """The journal could not be written (disk full, fsync failed); nothing of the block is kept."""


class Stopping(IngestError):
    """The service is shutting down and this wait will not be finished; nothing was changed."""


class ReplayStopped(IngestError):
    """The database cannot take letters now; what was done before is done."""
