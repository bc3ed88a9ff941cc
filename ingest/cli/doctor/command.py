"""`ingest doctor`: checks the machine, the state folder, the ports and the database.

A finding is `ok`, `warn` (the service runs, but something is not good) or `FAIL` (it will not run,
or cannot keep its promises). It says what to do. The doctor changes nothing: it may run as root,
and makes no folder that the user of the service could not write to.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import socket
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from pathlib import Path

from ingest import __version__
from ingest.app.annexes import annexes, lacking
from ingest.app.database import make_target, timeouts
from ingest.app.metrics_and_causes import advice, next_step
from ingest.app.space import WRITES_FAIL
from ingest.buffers.journal.segments import segment_files
from ingest.cli.context import ask_service, database
from ingest.cli.doctor.checks import (
    FAIL,
    OK,
    WARN,
    Check,
    access_check,
    certificate_check,
    column_checks,
    database_checks,
    judged,
    listed_checks,
    partition_checks,
)
from ingest.cli.parser import AMBER, GREEN, JSON, RED, Command, Ending, as_typed, coloured
from ingest.config.loading import Loaded
from ingest.config.named_files import state_dir
from ingest.config.settings import Settings, split_address
from ingest.config.values import flag_name, shown
from ingest.dead_letters.folder.segments import segments, undone_lines
from ingest.dead_letters.queue import CAUSES, INVALID_FULL, SHARE_USED, Room
from ingest.dead_letters.store import Tally
from ingest.model.errors import IngestError, StartError
from ingest.system.files import filesystem_of, is_remote, is_volatile, size_bytes
from ingest.system.process_setup import SPARE_FILES
from ingest.system.state_folder import ServiceInfo, StateFolder, running_service
from ingest.system.words import counted

LIBRARIES = ("aiohttp", "asyncpg", "msgspec", "orjson", "prometheus-client", "structlog", "uvloop")
COMPILED = ("aiohttp._http_parser", "aiohttp._http_writer", "uvloop.loop", "msgspec._core")
READYZ_S_MAX = 3.0
_COLOURS = {OK: GREEN, WARN: AMBER, FAIL: RED}
NO_DATABASE = (
    "none: no service with an embedded database has run on the state folder {}. Give --state-dir "
    "or --database-url as the service has it; if this will be its first start, all is well"
)


async def _run(_args: argparse.Namespace, loaded: Loaded) -> Ending:
    settings = loaded.settings
    checks = [*machine_checks(settings), *folder_checks(settings)]
    service = None
    if not any(each.name == "state folder" and each.state == FAIL for each in checks):
        service = running_service(state_dir(settings))
        checks += [*port_checks(settings, service), access_check(settings, service)]
        checks.append(dead_letters_check(settings))
        for annex in annexes():
            if annex.checks is not None:
                checks += [Check(*each) for each in await annex.checks(settings)]
    checks += await _database(loaded, service)
    checks = [each._replace(detail=as_typed(each.detail)) for each in checks]
    has_failed = any(each.state == FAIL for each in checks)
    return Ending([each._asdict() for each in checks], as_text(checks), 1 if has_failed else 0)


def as_text(checks: Sequence[Check]) -> str:
    """Return a line for each finding, what fails last, and a line that counts the problems."""
    width = max(len(each.name) for each in checks)
    lines = [
        f"{coloured(f'{each.state:<4}', _COLOURS[each.state])}  {each.name:<{width}}  {each.detail}"
        for each in sorted(checks, key=lambda each: (OK, WARN, FAIL).index(each.state))
    ]
    warnings, failures = (sum(each.state == state for each in checks) for state in (WARN, FAIL))
    problems = [
        coloured(counted(count, what), colour)
        for count, what, colour in ((warnings, "warning", AMBER), (failures, "failure", RED))
        if count
    ]
    return "\n".join([*lines, "", ", ".join(problems) or coloured("all is well", GREEN)])


def machine_checks(settings: Settings) -> Iterator[Check]:
    """Check Python, the libraries and the limits of the process."""
    python = f"Python {platform.python_version()}, iot-ingest {__version__}"
    yield Check("python", OK, f"{python}, {platform.system()} {platform.machine()}")
    yield _libraries(settings)
    yield _c_parsers()
    yield _open_files(settings)
    if settings.tls_cert_file:
        yield certificate_check(settings)
    yield from listed_checks(settings)


def _libraries(settings: Settings) -> Check:
    versions, missing = list[str](), list[str]()
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    lacks = f"missing: {', '.join(missing)}; install the project again"
    needed = lacking(settings)
    return judged("libraries", ", ".join(versions), (missing, FAIL, lacks), (needed, FAIL, needed))


def _c_parsers() -> Check:
    slow = [name for name in COMPILED if not _loads(name)]
    said = f"not compiled here: {', '.join(slow)}; posts take several times as long"
    fast = "compiled HTTP parser, event loop and JSON decoder"
    return judged("fast parts", fast, (slow, WARN, said))


def _loads(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True


def _open_files(settings: Settings) -> Check:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = settings.connections_max + SPARE_FILES
    low = (
        f"the hard limit is {hard:,}, connections_max needs {needed:,}: with fewer devices "
        "lower connections_max, else raise the limit (ulimit -Hn, LimitNOFILE)"
    )
    is_low = hard != resource.RLIM_INFINITY and hard < needed
    return judged(
        "open files", "no limit" if hard < 0 else f"hard limit {hard:,}", (is_low, WARN, low)
    )


def folder_checks(settings: Settings) -> Iterator[Check]:
    """Check the state folder: whether it can be used, its file system, its free space."""
    folder = StateFolder(state_dir(settings))
    parts = [_nearest(part) for part in (folder.path, folder.journal, folder.dead_letters)]
    for part in parts:
        if not (part.is_dir() and os.access(part, os.W_OK | os.X_OK)):
            told = f"cannot write to {part}; choose another folder with --state-dir"
            yield Check("state folder", FAIL, told)
            return
    told, others = str(folder.path), ""
    if parts[0] == folder.path:
        others = folder.other_writers()
    else:
        told += " is missing: the first start makes it"
    yield judged("state folder", told, (others, WARN, f"{told}: {others}"))
    yield _file_system(folder, settings)
    yield _free_space(StateFolder(parts[0]), settings)
    yield _journal(folder.journal, settings)


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest folder above it that this user can see."""
    return next(each for each in (path, *path.parents) if os.access(each, os.F_OK))


def _file_system(folder: StateFolder, settings: Settings) -> Check:
    with_journal = settings.buffer == "journal"
    parts = folder.durable_parts(embedded=not settings.database_url)
    kinds = {part: filesystem_of(part) for part in parts if part != folder.journal or with_journal}
    for part, kind in kinds.items():
        if is_volatile(kind):
            promised = with_journal and not settings.journal_unsafe
            advice = ", --buffer memory or --journal-unsafe true" if promised else ""
            said = f"{kind} ({part.name}) loses all data at a restart; choose another --state-dir"
            return Check("file system", FAIL if promised else WARN, said + advice)
    for part, kind in kinds.items():
        if is_remote(kind):
            said = f"{kind} ({part.name}): locks and fsync may not work; use a local disk"
            return Check("file system", WARN, said)
    return Check("file system", OK, ", ".join(sorted(set(kinds.values()))) or "unknown")


def _journal(folder: Path, settings: Settings) -> Check:
    files = segment_files(folder)
    size = sum(size_bytes(each.path) for each in files)
    said = f"{counted(len(files), 'file')}, {size / 2**20:,.1f} MiB"
    damaged = sorted(each.name for each in folder.glob("journal-*.damaged"))
    look = f"{said}; damaged files: {', '.join(damaged)}; look at them, then remove them"
    unread = (
        f"{said} of an earlier run; buffer=memory does not read them: "
        "start once with --buffer journal"
    )
    in_memory = settings.buffer == "memory"
    return judged(
        "journal",
        "none: buffer=memory" if in_memory else said,
        (damaged, WARN, look),
        (files and in_memory, WARN, unread),
    )


def _free_space(folder: StateFolder, settings: Settings) -> Check:
    free, where = folder.room()
    said = f"{free / 2**30:,.2f} GiB free in {where}"
    least, wanted, names = settings.disk_free_bytes_min, settings.dlq_bytes_max, "dlq_bytes_max"
    if settings.buffer == "journal":
        wanted += settings.journal_bytes_max
        names += " and journal_bytes_max"
    refuses = (
        f"{said}: less than disk_free_bytes_min ({shown('disk_free_bytes_min', least)}): "
        "posts are refused; free some space"
    )
    little = f"{said}: less than {names} ({shown('dlq_bytes_max', wanted)})"
    return judged("free space", said, (free < least, FAIL, refuses), (free < wanted, WARN, little))


def port_checks(settings: Settings, service: ServiceInfo | None) -> Iterator[Check]:
    """Check the service that runs here; if there is none, check whether its ports are free."""
    if service is not None:
        yield _running(service)
        return
    for name in ("listen", "admin_listen"):
        address = getattr(settings, name)
        reason = _bind_fault(*split_address(address))
        taken = f"{address}: {reason}; choose another with {flag_name(name)} HOST:PORT"
        # Gateways and writers do not tell here that they run: two of them may share the folder.
        is_right = f"{taken}. If a gateway or a writer that runs here has it, that is right"
        may_be = settings.broker_url and (reason or "").endswith("in use")
        yield judged(name, f"{address} is free", (may_be, WARN, is_right), (reason, FAIL, taken))


def _running(service: ServiceInfo) -> Check:
    scheme = "https" if service.cert_file else "http"
    said = (
        f"runs: pid {service.pid}, version {service.version}, {scheme}://{service.listen}, "
        f"admin http://{service.admin_listen}"
    )
    try:
        status, ready = ask_service(service, "GET", "/readyz", within_s=READYZ_S_MAX)
    except StartError as error:
        return Check("service", FAIL, f"{error}; look at its log")
    state, reason = ready.get("state", "no state"), ready.get("reason")
    why = f"{state}: {reason}" if reason else f"{state}"
    counts = ", ".join(f"{code} {count}" for code, count in ready.get("refused_60s", {}).items())
    refused = f"Refused in the last minute: {counts}" if counts else ""
    told = ". ".join(each.rstrip(".") for each in (why, ready.get("next"), refused) if each)
    must_act = state == "on_hold" or ready.get("cause") in {INVALID_FULL, SHARE_USED, WRITES_FAIL}
    is_well = not reason and state == "accepting" and not refused
    return judged(
        "service",
        f"{said}, {state}",
        (status != 200, FAIL, f"{said}; it takes no posts: {told}"),
        (not is_well, FAIL if must_act else WARN, f"{said}; {told}"),
    )


def _bind_fault(host: str, port: int) -> str | None:
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def dead_letters_check(settings: Settings) -> Check:
    """Count the dead-letter entries that are neither replayed nor discarded."""
    folder = StateFolder(state_dir(settings)).dead_letters
    size, half = sum(size_bytes(each) for each in folder.glob("*")), settings.dlq_bytes_max // 2
    room = Room(settings.dlq_bytes_max, auto_replay=settings.dlq_auto_replay)
    tally = Tally()
    live = sum(1 for each in segments(folder) for _ in undone_lines(each, tally=tally))
    # Files without live or damaged lines are removed as soon as their space is needed.
    is_full = room.is_full_for_invalid(size) and (live or tally.damaged)
    full = (
        f"{CAUSES[INVALID_FULL].words} ({size / 1024:,.1f} of {half / 1024:,.1f} KiB); "
        f"replay or discard entries (`ingest dlq stats`), or raise dlq_bytes_max"
    )
    skipped = (
        f"{live:,} waiting; skipped {tally.torn} torn and {tally.altered} altered lines, "
        f"{counted(len(tally.unreadable), 'file')}; see `ingest dlq stats`"
    )
    return judged(
        "dead letters",
        "none",
        (is_full, FAIL, full),
        (tally.damaged, WARN, skipped),
        (live, WARN, f"{live:,} waiting; see `ingest dlq list`"),
    )


async def _database(loaded: Loaded, service: ServiceInfo | None) -> list[Check]:
    settings = loaded.settings
    from ingest.sinks.postgres.connection import DatabaseRefused, as_start_error, connected  # noqa: PLC0415
    from ingest.sinks.postgres.durability import examine  # noqa: PLC0415

    folder = state_dir(settings)
    if not (settings.database_url or service or any(folder.glob("postgres"))):
        return [
            judged(
                "database",
                "none here: a gateway needs none; a writer needs database_url",
                (not settings.broker_url, WARN, NO_DATABASE.format(folder)),
            )
        ]
    try:
        async with (
            database(settings) as url,
            connected(url, timeouts(settings)) as opened,
        ):
            with as_start_error(url):
                found = await examine(opened, make_target(settings))
                columns = await column_checks(opened, settings)
            partitions = await partition_checks(settings, url)
    except DatabaseRefused as error:
        words = advice(settings, loaded.origins["database_url"])
        if service is not None and not settings.database_url:
            words["fix_url"] = service.fix_url
        return [Check("database", FAIL, f"{error}. {next_step(error.reason, words)}")]
    except IngestError as error:  # of the embedded database: it says what to do
        return [Check("database", FAIL, str(error))]
    of_other = "embedded" if service is None else "of the running service"
    return [
        Check("database", OK, f"answers ({'configured' if settings.database_url else of_other})"),
        *database_checks(found, settings, service_runs=service is not None),
        *columns,
        *partitions,
    ]


COMMAND = Command(
    examples=("ingest doctor", "ingest doctor --json"),
    run=_run,
    flags=(JSON,),
    epilog="exit codes: 0 nothing fails (warnings may be there), 1 something fails",
)
