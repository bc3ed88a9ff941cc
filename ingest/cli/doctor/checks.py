"""What `ingest doctor` finds: about the database, about who may post and how, about the partitions.

The access is that of tokens, certificate and sources; of the partitions it says whether they last.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ingest.access.token_file import SOON_US
from ingest.access.tokens import is_open
from ingest.app.database import housekeeping_url, make_target, timeouts
from ingest.app.housekeeping import TableJobs, ends_soon
from ingest.app.post_rules import make_sources, open_tokens
from ingest.config.declared_tables import make_tables
from ingest.config.settings import Settings, split_address
from ingest.http.clients import is_loopback
from ingest.http.tls import Certificate
from ingest.model.errors import ConfigError, StartError
from ingest.model.moments import form_of_table
from ingest.sinks.postgres import column_tables
from ingest.sinks.postgres.connection import Connection
from ingest.sinks.postgres.durability import Finding
from ingest.sinks.postgres.housekeeping import runs
from ingest.sinks.postgres.housekeeping.table_state import PARTITIONED, View
from ingest.sinks.postgres.schema import ColumnTarget, look, not_granted
from ingest.system.clock import rfc3339_s, unix_us
from ingest.system.state_folder import ServiceInfo
from ingest.system.words import command_words, counted

OK, WARN, FAIL = "ok", "warn", "FAIL"
VERSION_MIN = 13
CLOCK_S_MAX = 1.0
_PARTITIONS = "partitions"
_OLDER = (
    "readings of older days wait as dead letters until `ingest housekeeping run --from DAY` was "
    "run with that role"
)
_ACCESS = "access"
_TABLES = "tables"
DAYS_MIN = 14  # as the alert IngestCertificateEnds


class Check(NamedTuple):
    """One finding: what was checked, `ok`, `warn` or `FAIL`, and a sentence."""

    name: str
    state: str
    detail: str


def judged(name: str, good: str, *faults: tuple[object, str, str]) -> Check:
    """Return the first fault that is there, else OK. Of each: whether it is there, state, words."""
    found = (Check(name, state, words) for is_there, state, words in faults if is_there)
    return next(found, Check(name, OK, good))


def database_checks(
    found: dict[str, Any], settings: Settings, *, service_runs: bool
) -> list[Check]:
    """Return a finding for each property that `examination.examine` found."""
    return [
        _version(found),
        _writable(found),
        *_durable(found["durability"], settings),
        *_standby(found),
        _table(found, settings),
        _privileges(found),
        _clock(found),
        _connections(found, settings, service_runs=service_runs),
    ]


def _version(found: dict[str, Any]) -> Check:
    said = f"PostgreSQL {found['version']}, database {found['database']}, role {found['role']}"
    needed = f"{said}; version {VERSION_MIN} or later is needed: upgrade it"
    return judged("version", said, (found["major"] < VERSION_MIN, FAIL, needed))


def _writable(found: dict[str, Any]) -> Check:
    read_only = "default_transaction_read_only is on; turn it off for the role"
    return judged(
        "writable",
        "a primary that accepts writes",
        (found["standby"], FAIL, "this is a standby; point database_url to the primary"),
        (found["read_only"], FAIL, read_only),
    )


def _durable(kept: list[Finding], settings: Settings) -> Iterator[Check]:
    for name, value, risk, refuses, fix in kept:
        said = f"{value}: {risk}; {fix}" if risk else value
        if refuses and settings.database_unsafe:
            said += " (accepted by database_unsafe)"
        refused = refuses and not settings.database_unsafe
        yield Check(name, FAIL if refused else WARN if risk else OK, said)


def _standby(found: dict[str, Any]) -> Iterator[Check]:
    if number := found["standby_waits"]:
        said = f"{number} commits of this role wait for a synchronous standby "
        yield Check(
            "standby", FAIL, f"{said}; start the standby, or correct synchronous_standby_names"
        )


def _table(found: dict[str, Any], settings: Settings) -> Check:
    will_make = not found["there"] and settings.schema_apply and found["may_create"]
    advice = "" if found["there"] else "; a role that may create tables must run it"
    absent = f"{found['table']} does not exist yet; `ingest serve` creates it at start"
    return judged(
        "table",
        absent if found["difference"] else f"{found['table']} is correct",
        (found["difference"] and not will_make, FAIL, f"{found['difference']}{advice}"),
    )


def _privileges(found: dict[str, Any]) -> Check:
    named = {
        "INSERT": found["may_insert"] or not found["there"],
        "SELECT": found["may_select"] or not found["there"],
        "TEMP on the database": found["may_temp"],
    }
    missing = [name for name, granted in named.items() if not granted]
    lacks = (
        f"role {found['role']} lacks {', '.join(missing)}; let the table's owner run "
        f"`ingest schema apply --database-url OWNER_URL --role {found['role']}`"
    )
    return judged("privileges", "INSERT, SELECT and TEMP", (missing, FAIL, lacks))


def _clock(found: dict[str, Any]) -> Check:
    ahead_s, doubt_s = found["ahead_s"], found["doubt_s"]
    said = f"the clock of the database differs by {ahead_s:+.3f} s (measured to {doubt_s:.3f} s)"
    differs = f"{said}; readings without ts get the time of this machine: run NTP on both"
    return judged("clock", said, (abs(ahead_s) - doubt_s > CLOCK_S_MAX, WARN, differs))


def _connections(found: dict[str, Any], settings: Settings, *, service_runs: bool) -> Check:
    free = found["connections_max"] - found["connections"]
    limit, bound = found["role_connections_max"], "max_connections"
    if limit is not None and 0 <= limit < free:
        free, bound = limit, "the role's CONNECTION LIMIT"
    said = f"{free} of {found['connections_max']} are free, writers = {settings.writers}"
    too_few = free < settings.writers and not service_runs
    return judged(
        "connections",
        said,
        (too_few, FAIL, f"{said}; raise {bound} or lower writers"),
        (free < settings.writers + 2, WARN, f"{said}; only few are left: raise {bound}"),
    )


def access_check(settings: Settings, service: ServiceInfo | None = None) -> Check:
    """Check what a start would check, whether a token ends soon, and how the service was started.

    `access` is decided at its start, so tokens that were made since do not count yet.
    """
    try:
        tokens = open_tokens(settings).tokens
        senders = [each for each in tokens.entries.by_digest.values() if not each.admin]
        loopback = _is_private(settings.listen)
        is_free = is_open(
            settings.access,
            private=loopback and not settings.trusted_proxies,
            tokens=len(senders),
            address=settings.listen,
            run=command_words()["run"],
        )
    except StartError as error:
        return Check(_ACCESS, FAIL, str(error))
    if is_free or (service is not None and service.is_open):
        where = "this machine" if loopback else "the network"
        restart = f" until the running service is restarted: `{command_words()['restart']}`"
        level, until = (OK if loopback else WARN, "") if is_free else (FAIL, restart)
        return Check(_ACCESS, level, f"everybody on {where} may post{until}")
    live = [each for each in senders if each.ends_us > unix_us()]
    told = f"a token is needed to post; {counted(len(live), 'token')}"
    certificates = [each.name for each in live if each.certificate]
    named = ", ".join(certificates[:1])
    ends_us = tokens.next_end_us if tokens.next_end_us < unix_us() + SOON_US else 0
    until = rfc3339_s(int(ends_us))
    no_header = f"{named} has a certificate, which counts only with client_certificate_header"
    return judged(
        _ACCESS,
        told,
        (not live, WARN, "nobody may post: make a token with `ingest token new NAME`"),
        (named and not settings.client_certificate_header, WARN, no_header),
        (ends_us, WARN, f"{told}; one ends at {until} (`ingest token rotate NAME`)"),
    )


def _is_private(listen: str) -> bool:
    """Whether all addresses of HOST:PORT are on the loopback; False if that is not known."""
    host, _ = split_address(listen)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(is_loopback(f"{each[4][0]}:0") for each in found)


def certificate_check(settings: Settings) -> Check:
    """Check that the files can be used, and for how long. Blocks for some ms."""
    name = "certificate"
    try:
        found = Certificate(Path(settings.tls_cert_file), Path(settings.tls_key_file))
    except StartError as error:
        return Check(name, FAIL, str(error))
    if math.isnan(found.ends_s):
        return Check(name, WARN, f"no client would accept {settings.tls_cert_file}; make a new one")
    left_days = (found.ends_s - unix_us() / 1e6) / 86_400
    until = rfc3339_s(round(found.ends_s * 1e6))
    said = f"valid until {until}, {left_days:.0f} days"
    return judged(
        name,
        said,
        (left_days < 0, FAIL, f"has ended at {until}: clients refuse it; put a new one there"),
        (left_days < DAYS_MIN, WARN, f"{said}; put a new one there, a restart is not needed"),
    )


def listed_checks(settings: Settings) -> Iterator[Check]:
    """Check that the files of sources and tables can be used; the service would not start else."""
    for name, file, make in (
        ("sources", settings.sources_file, make_sources),
        (_TABLES, settings.tables_file, lambda of: [each.name for each in make_tables(of).all]),
    ):
        if file:
            try:
                found = [*make(settings)]
                yield Check(name, OK, f"{counted(len(found), name[:-1])}: {', '.join(found)}")
            except ConfigError as error:
                yield Check(name, FAIL, str(error))


async def column_checks(connection: Connection, settings: Settings) -> list[Check]:
    """Check declared tables in the database: whether each is there and fits, and its `since`."""
    try:
        tables = make_tables(settings).all
    except ConfigError:  # listed_checks tells it
        return []
    readings = make_target(settings)
    readings = readings._replace(schema=(await look(connection, readings)).target.schema)
    found = []
    for table in tables:
        seen = await look(connection, ColumnTarget(readings.schema, form_of_table(table)))
        lacks = await not_granted(connection, seen.target) if seen.oid else None
        makes = f"{seen.difference}, or let `ingest serve` do it at its start"
        found.append(
            judged(
                f"table {table.name}",
                f"{seen.target.name} is correct",
                (seen.sql, FAIL, str(seen.difference)),
                (seen.difference, WARN if settings.schema_apply else FAIL, makes),
                (lacks, FAIL, str(lacks)),
            )
        )
    if fault := await column_tables.fault(connection, readings, tables):
        found.append(Check(_TABLES, FAIL, fault))
    return found


async def partition_checks(settings: Settings, url: str) -> list[Check]:
    """Look with the role that makes partitions; return nothing for tables that have none."""
    own_url = housekeeping_url(settings, lambda: url)()
    found: list[Check] = []
    try:
        tables = TableJobs(settings)
        for target, jobs in tables:
            where = (own_url, timeouts(settings), settings.partition_span, jobs)
            report = await runs.look(*where, target=target)
            tables.found(report.view)
            found += _table_checks(report, settings)
    except ConfigError:  # listed_checks tells it
        return []
    except StartError as error:
        found.append(Check(_PARTITIONS, FAIL if settings.housekeeping_url else WARN, str(error)))
    return found


def _table_checks(report: runs.Report, settings: Settings) -> list[Check]:
    job, leaves, view = not settings.housekeeping, bool(settings.keep_hot), report.view
    found = [_check(view, by_job=job, leaves=leaves)] if view.kind == PARTITIONED else []
    if report.hidden:
        found.append(Check(_PARTITIONS, WARN, report.hidden_words))
    if report.schema.needs:
        found.append(Check("schema", FAIL if report.schema.refuses else WARN, report.schema.needs))
    if view.name == settings.table_name:
        return found
    return [each._replace(detail=f"{view.name}: {each.detail}") for each in found]


def _check(view: View, *, by_job: bool, leaves: bool) -> Check:
    """Judge how long the partitions last. `by_job`: the setting `housekeeping` is false.

    `leaves`: old ones are to leave the table.
    """
    left = f"{counted(view.spans_ahead, view.span)} after the present one have a partition"
    if view.has_default:
        return Check(_PARTITIONS, OK, "there is a default partition, so the service makes none")
    ends, level = ends_soon(view), WARN if view.spans_ahead else FAIL
    if view.cannot_make and by_job and view.spans_ahead:
        more = f"{left}; a job with the owner's role must make more; {_OLDER}"
        no_job = f"only {left}: does the job run `ingest housekeeping run`?"
        return judged(_PARTITIONS, more, (ends, WARN, no_job))
    who = "" if view.ours else "; another tool made them: see `ingest schema adopt`"
    no_more = f"{left}, and no more can be made: {view.cannot_make}; {_OLDER}"
    return judged(
        _PARTITIONS,
        left,
        (view.cannot_make, level, no_more),
        (leaves and view.not_ours, level, f"{left}; {view.not_ours}"),
        (ends, level, f"only {left}{who}"),
    )
