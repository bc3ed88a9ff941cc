"""Why posts are refused, or readings are not stored: each cause in words, with its next step.

/readyz, its readers (`ingest hold show`, the dashboard) and `ingest doctor` take both from here.
The runbook has the section that is named. So all of them say the same.
Does not: know how the service runs; `{run}`, `{restart}` and the like are filled in later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ingest.model.verdict import (
    CONFIGURATION,
    LETTERS_FULL,
    NO_STANDBY,
    NO_SUCH_HOST,
    NOT_DURABLE,
    PERMISSION,
    SCHEMA,
    TOO_MANY_CONNECTIONS,
    UNREACHABLE,
)


class Trouble(NamedTuple):
    """What a part of the service finds wrong now: a key of CAUSES, or nothing.

    `words` say it with figures. `details` name what only an operator may see, such as paths of this
    machine or processes of the database.
    """

    cause: str = ""
    words: str = ""
    details: str = ""


class Cause(NamedTuple):
    """What is wrong, what to do next, and the section of deploy/RUNBOOK.md.

    Commands of `next_step` are in backticks. It may have the fields of FIELDS.
    """

    words: str
    next_step: str
    runbook: str


FIELDS = (
    "run",  # the program, as in `{run} doctor`
    "restart",  # the command that restarts the service
    "log",  # the command that shows its log
    "fix_url",  # how to correct the database's URL: which setting or file, and whether to restart
)

JOURNAL_BROKEN, INVALID_FULL = "journal_broken", "invalid_full"
SHARE_USED = "sender_share_used"  # of the space for invalid items
# Of the broker.
BROKER_AWAY, BROKER_UNSAFE, BROKER_DISK = "broker_away", "broker_unsafe", "broker_disk"
STREAM_MISSING, STREAM_ALTERED, STREAM_FULL = "stream_missing", "stream_altered", "stream_full"
STREAM_LOST = "stream_lost"
INSTANCE_AWAY = "instance_away"  # of `up`
WRITES_FAIL, BEHIND = "writes_fail", "behind"  # of readings that wait
SENDER_NOT_STORED = "sender_not_stored"
PARTITIONS_END, RETENTION_WAITS = "partitions_end", "retention_waits"
HOUSEKEEPING_FAILS, PARTITION_MISSING = "housekeeping_fails", "partition_missing"

_READ_MESSAGE = "`{run} hold show` prints the message of the server."
_MAKE_SPACE = (
    "`{run} dlq stats` counts the entries by reason. Fix what they have in common and replay them, "
    "such as `{run} dlq replay --where reason=refused_by_database`. Or discard them, such as "
    "`{run} dlq discard --where reason=invalid`. If the disk has space, you can also raise "
    "dlq_bytes_max."
)

# Of several causes the one that stands first here is told.
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
        "`{run} schema show` prints the difference. Undo that change.",
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
    WRITES_FAIL: Cause(
        "no write goes through, though the database answers",
        "If the reason names a process of the database: see what it does, then end it, with a role "
        "that may: `{run} psql -c 'select pg_terminate_backend(PID)'`. If it names none, look at "
        "the log and the disk of the database. The service continues by itself.",
        "ingestwritesfail",
    ),
    STREAM_LOST: Cause(
        "acknowledged readings are gone from the stream",
        "The log line `stream_messages_removed` or `stream_messages_skipped` says how many. Check "
        "the disk of the broker. If the devices can, let them send the readings of that time "
        "again. Then restart: {restart}.",
        "ingeststreamskipped",
    ),
    INSTANCE_AWAY: Cause(
        "a process of the service does not report its state",
        "It is started again by itself. If this lasts: `{log}`.",
        "ingestinstancedown",
    ),
    INVALID_FULL: Cause(
        "posts with an invalid item are refused: the dead letters are half full, and the rest is "
        "kept for valid readings",
        _MAKE_SPACE,
        "ingestinvaliditemsrefused",
    ),
    SHARE_USED: Cause(
        "posts of a sender are refused if one item is invalid: it has used its share of the space "
        "for such items",
        "`{run} dlq list --where reason=invalid` shows what is wrong with its items. Fix the "
        "sender. Then replay or discard them.",
        "ingestsendershareused",
    ),
    BEHIND: Cause(
        "readings wait long until they are written",
        "After an outage this is over by itself. If they do not become fewer, the database is too "
        "slow for this load: find out why, or send less.",
        "ingestreadingswaitlong",
    ),
    LETTERS_FULL: Cause("dead letters are full", _MAKE_SPACE, "ingestdeadlettersfilling"),
    "dead_letters_broken": Cause(
        "dead letters cannot be written",
        "Check the disk of the state folder: `{run} doctor`.",
        "ingestonhold",
    ),
    "disk_low": Cause(
        "the disk of the state folder is nearly full",
        "Free some space on the disk that the reason names. The service continues by itself.",
        "ingestnoposttaken",
    ),
    JOURNAL_BROKEN: Cause(
        "the journal cannot be written to the disk",
        "Is the disk of the state folder full, read-only or failing? The service tries a new file "
        "every 2 s. `{run} doctor` checks more.",
        "ingestnoposttaken",
    ),
    BROKER_AWAY: Cause(
        "the broker does not answer",
        "Start the broker, or repair the network to it: `{run} stream check` says more. The "
        "service continues by itself. A broker that `ingest up` has started is started again.",
        "ingestbrokeraway",
    ),
    BROKER_DISK: Cause(
        "the broker cannot write to its disk",
        "Free some space on the disk of the broker, or repair it. Then restart nats-server: it "
        "does not recover by itself.",
        "ingestbrokeraway",
    ),
    BROKER_UNSAFE: Cause(
        "the broker may lose acknowledged readings in a power cut",
        "Set `sync_interval: always` in the block jetstream of each nats-server. "
        "`{run} stream check` says which server differs.",
        "ingestbrokeraway",
    ),
    STREAM_MISSING: Cause(
        "the stream is missing",
        "Was it deleted? What it held is gone, except what is in the table. "
        "`{run} stream apply` makes a new one.",
        "ingeststreamaltered",
    ),
    STREAM_ALTERED: Cause(
        "the stream is not as the service needs it",
        "`{run} stream check` prints what differs. Undo that change, or use `{run} stream apply`.",
        "ingeststreamaltered",
    ),
    STREAM_FULL: Cause(
        "the stream is full",
        "Writers are slower than the posts come in, or the database is away: find out why, or "
        "raise stream_bytes_max if the disk of the broker has space, then `{run} stream apply`.",
        "ingeststreamfilling",
    ),
    RETENTION_WAITS: Cause(
        "old readings stay in the table until a person confirms that they are removed",
        "Give these commands the settings of the service. `{run} housekeeping plan` prints what "
        "would be dropped, and why it waits. If that is right: `{run} housekeeping run --yes`. If "
        "not, correct keep_hot.",
        "ingestretentionwaits",
    ),
    HOUSEKEEPING_FAILS: Cause(
        "the housekeeping of the table could not do a step; readings are written as before",
        "Fix what the reason names, here or in `{log}` (housekeeping_step_failed, "
        "housekeeping_failed). Then the next run goes on by itself. To run it at once: "
        "`{run} housekeeping run`.",
        "ingesthousekeepingfails",
    ),
    PARTITION_MISSING: Cause(
        "readings of days without a partition wait as dead letters, and the service makes none",
        "If the role of the service may not make partitions: run `{run} housekeeping run --from "
        "DAY` with the URL of the role that owns the table (DAY is the oldest of these days), or "
        "set housekeeping_url. If partitions_max leaves no more, now or within a day: see whether "
        "a device has a wrong clock (ts_min refuses its readings); if not, raise it. If another "
        "tool makes the partitions: let it make these. Then the readings come back by themselves.",
        "ingestpartitionsend",
    ),
    PARTITIONS_END: Cause(
        "few partitions are left after the present one; when the last one is over, new readings "
        "become dead letters",
        "`{run} housekeeping status` says how many are left, and why no more are made. Set "
        "housekeeping_url to the role that owns the table, or run `{run} housekeeping run` as it.",
        "ingestpartitionsend",
    ),
    SENDER_NOT_STORED: Cause(
        "of a sender no reading is stored",
        "All become dead letters. The sender gets 2xx, and does not know it. `{run} dlq show "
        "--where reason=invalid` shows them, with a code. no_device, of line protocol: add the tag "
        "that names the device to line_device_tags, or let the sender write one (Telegraf: no "
        "omit_hostname). After a restart with that setting, `{run} dlq replay --where "
        "reason=invalid` stores them.",
        "ingestsendernotstored",
    ),
    "full": Cause(
        "there is no space for posts",
        "The database is slower than the posts come in: find out why, or send less.",
        "ingestnoposttaken",
    ),
    "slowed": Cause(
        "posts wait for space",
        "If this lasts, the database is too slow for this load.",
        "ingestbufferfilling",
    ),
    "starting": Cause(
        "the table has not been checked yet",
        "Wait some seconds. If this lasts: `{log}`.",
        "ingestnoposttaken",
    ),
    "draining": Cause("the service is stopping", "", ""),
}

_RANKS = {name: at for at, name in enumerate([*CAUSES, ""])}
_UNKNOWN = Cause(
    "the database reports an error that the service does not know",
    f"{_READ_MESSAGE} Read the log of the database too.",
    "ingestonhold",
)


def cause_of(name: str) -> Cause:
    """Return the entry of a cause; of a name such as `sqlstate_12345`, the entry for all those."""
    if name in CAUSES:
        return CAUSES[name]
    return _UNKNOWN._replace(words=f"{_UNKNOWN.words} ({name})")


def trouble_of(name: str, details: str = "") -> Trouble:
    """Return a cause with its own words as a trouble; of no cause, none."""
    return Trouble(name, cause_of(name).words, details) if name else Trouble()


def rank_of(name: str) -> int:
    """Return a place in the order of importance: the most important cause has the least."""
    return _RANKS.get(name, -1)  # -1: an error of the database that we do not know


def may_be_url(name: str) -> bool:
    """Whether a wrong URL of the database may be the cause."""
    return bool(name) and "{fix_url}" in cause_of(name).next_step


def next_step(name: str, fields: Mapping[str, str]) -> str:
    """Return what to do about a cause, in the words of `fields`."""
    return cause_of(name).next_step.format_map(fields)
