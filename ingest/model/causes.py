"""Why a write failed, why readings are not stored, why posts are refused: verdicts and causes.

A sink fails with a verdict, which says what the writer does, and a reason, which is a label of a
metric. How each sink maps the errors of its driver is in its own folder.

A cause is a reason in words for people, with its next step and the section of the runbook. /readyz,
its readers (`ingest hold show`, the dashboard) and `ingest doctor` take both from the same lists,
so all of them say the same. Here are the causes of the database. Each other part lists its own as
CAUSES; ingest/app/metrics_and_causes.py collects them.
Does not: know how the service runs; `{run}`, `{restart}` and the like are filled in later.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from ingest.model.errors import IngestError

# Why a write failed. These are labels of a metric, so a closed set (except for unknown codes).
UNREACHABLE = "unreachable"
NO_SUCH_HOST = "no_such_host"  # the name of the host is not known
SCHEMA = "schema"
PERMISSION = "permission"
CONFIGURATION = "configuration"
NOT_DURABLE = "not_durable"
TABLES = "tables"  # those of the settings are not those of the database
LETTERS_FULL = "dead_letters_full"
TOO_MANY_CONNECTIONS = "too_many_connections"  # of the server, of the role, or of ours
NO_STANDBY = "standby_missing"  # each commit waits for a synchronous standby


class Verdict(Enum):
    """What the writer does with a batch whose write failed."""

    WAIT = "wait"  # the server does not answer; the failure does not count against the batch
    RETRY = "retry"  # the server answers, and failed this batch
    ISOLATE = "isolate"  # one row is the cause
    NO_PARTITION = "no_partition"  # as ISOLATE: the table has no partition for one row
    HOLD = "hold"  # an operator must fix the cause; everything is kept
    UNKNOWN = "unknown"  # an unknown code: a few tries, then writes are paused
    DUPLICATE = "duplicate"  # a plain COPY cannot store it, the idempotent path can


OF_ONE_ROW = frozenset({Verdict.ISOLATE, Verdict.NO_PARTITION})


class WriteFailed(IngestError):
    """A write ended, and no commit of it is known. `verdict` says what to do.

    `sqlstate` is None if no server answered (socket, time-out); `reason` is UNREACHABLE then.
    `doubtful` means that the rows may be in the table. `row` is the index of the row that the
    server named as the cause, `constraint` and `table` the constraint and the table that it named.
    `may_be_row`: with HOLD, that some rows may be the cause, and not an operator. `known_rows`: the
    sink knows which rows are the cause, without trying them.
    """

    def __init__(
        self,
        verdict: Verdict,
        message: str,
        *,
        sqlstate: str | None = None,
        doubtful: bool = False,
        row: int | None = None,
        constraint: str | None = None,
        may_be_row: bool = False,
        reason: str = UNREACHABLE,
        table: str = "",
    ) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.message = message
        self.sqlstate = sqlstate
        self.doubtful = doubtful
        self.row = row
        self.constraint = constraint
        self.may_be_row = may_be_row
        self.known_rows = False
        self.reason = reason
        self.table = table


class Cause(NamedTuple):
    """What is wrong, what to do next, and the section of deploy/RUNBOOK.md.

    Commands of `next_step` are in backticks. It may have the fields of FIELDS. Of several causes
    the one with the least `rank` is told.
    """

    words: str
    next_step: str
    runbook: str
    rank: int = 0


FIELDS = (
    "run",  # the program, as in `{run} doctor`
    "restart",  # the command that restarts the service
    "log",  # the command that shows its log
    "psql",  # psql with a role that may end processes of the database
    "fix_url",  # how to correct the database's URL: which setting or file, and whether to restart
)


class Trouble(NamedTuple):
    """What a part of the service finds wrong now: a key of its CAUSES, or nothing.

    `state` is one of STATES, if the part decides that: then it stands above causes without one.
    `words` say it with figures. `details` name what only an operator may see, such as paths of this
    machine or processes of the database.
    """

    cause: str = ""
    words: str = ""
    details: str = ""
    state: str = ""


def trouble_of(causes: Mapping[str, Cause], name: str, details: str = "") -> Trouble:
    """Return a cause of a list with its own words; of no cause, nothing."""
    return Trouble(name, causes[name].words, details) if name else Trouble()


_READ_MESSAGE = "Read `said` in `{run} hold show`."
MAKE_SPACE = (
    "`{run} dlq stats` counts the entries by reason. Fix what they have in common and replay them, "
    "such as `{run} dlq replay --where reason=refused_by_database`. Or discard them, such as "
    "`{run} dlq discard --where reason=invalid --yes`. If the disk has space, you can also raise "
    "dlq_bytes_max."
)


CAUSES: dict[str, Cause] = {
    UNREACHABLE: Cause(
        "the database is away",
        "Start the database, or repair the network to it. The service continues by itself. Is the "
        "address wrong? {fix_url}",
        "ingestdatabasedown",
    ),
    NO_SUCH_HOST: Cause(
        "no name server knows the host of the database",
        "Correct the name, or repair the name service. Is it a container? Start it: while it does "
        "not run, its name is unknown. {fix_url}",
        "ingestdatabasedown",
    ),
    TOO_MANY_CONNECTIONS: Cause(
        "the database has no free connection, or connections of ours hang there",
        f"{_READ_MESSAGE} Close connections that nobody needs, or raise max_connections or the "
        "limit of the role.",
        "ingestdatabasedown",
    ),
    NO_STANDBY: Cause(
        "commits wait for a synchronous standby",
        "Start the standby. Or correct synchronous_standby_names on the server, then "
        "`select pg_reload_conf()`.",
        "ingestdatabasedown",
    ),
    "sqlstate_53100": Cause(
        "the disk of the database is full",
        "Make space on the disk of the database. The service continues by itself.",
        "ingestdatabasedown",
    ),
    "sqlstate_25006": Cause(
        "the database is read-only",
        "Is it a standby, or was another server promoted? {fix_url}",
        "ingestdatabasedown",
    ),
    SCHEMA: Cause(
        "the table is not as the service needs it",
        "`{run} schema show` prints the SQL that ends the differences. The owner runs it.",
        "ingestonhold",
    ),
    TABLES: Cause(
        "the declared tables are not those that the database has readings of",
        f"{_READ_MESSAGE} Correct the file of tables (tables_file), then restart.",
        "ingestonhold",
    ),
    PERMISSION: Cause(
        "the role lacks a right (INSERT or SELECT on the table, or TEMP), or a policy refuses the "
        "rows",
        "As an administrator of the database: `{run} schema apply --database-url URL --role ROLE`.",
        "ingestonhold",
    ),
    "authentication": Cause(
        "the database refuses the password or the role",
        "{fix_url} Or correct the role in the database.",
        "ingestonhold",
    ),
    "database_missing": Cause(
        "there is no such database",
        "Create the database. Or is its name wrong? {fix_url}",
        "ingestonhold",
    ),
    NOT_DURABLE: Cause(
        "the database can lose what it has committed",
        "`{run} doctor` says what to set.",
        "ingestonhold",
    ),
    CONFIGURATION: Cause(
        "the URL or the certificate of the database is wrong, or a pooler is not set up for this",
        f"{_READ_MESSAGE} {{fix_url}}",
        "ingestonhold",
    ),
    "protocol": Cause(
        "the server answers in a way that the service does not understand",
        f"Is a proxy or a pooler between them? {_READ_MESSAGE}",
        "ingestonhold",
    ),
    "internal": Cause(
        "the database reports damage or a fault of its own",
        f"Read the log of the database. {_READ_MESSAGE}",
        "ingestonhold",
    ),
    "breaker": Cause(
        "the database refuses many rows of many posts",
        "Fix the constraint or the trigger. If the rows really are bad, move them to the dead "
        "letters: `{run} hold release --dead-letter`.",
        "ingestonhold",
    ),
    LETTERS_FULL: Cause("dead letters are full", MAKE_SPACE, "ingestdeadlettersfilling"),
    "dead_letters_broken": Cause(
        "dead letters cannot be written",
        "Check the disk of the state folder: `{run} doctor`.",
        "ingestonhold",
    ),
}
UNKNOWN = Cause(
    "the database reports an error that the service does not know",
    f"{_READ_MESSAGE} Read the log of the database too.",
    "ingestonhold",
)
