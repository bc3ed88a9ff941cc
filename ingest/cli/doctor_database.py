"""The findings of `ingest doctor` about the database, one for each property."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ingest.config.settings import Settings
from ingest.sinks.postgres.durability import Finding

OK, WARN, FAIL = "ok", "warn", "FAIL"
VERSION_MIN = 13
CLOCK_S_MAX = 1.0


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
    named = {"INSERT": found["may_insert"], "SELECT": found["may_select"]}
    missing = [name for name, granted in named.items() if found["there"] and not granted]
    if not found["may_temp"]:
        missing.append("TEMP on the database")
    lacks = (
        f"role {found['role']} lacks {', '.join(missing)}; let the table's owner run "
        f"`ingest schema apply --role {found['role']}`"
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
