"""A process: its signals and tasks, its start and its stop, its first and last lines.

The first signal sets `stopping`: the drain begins. The next one sets `halted`, as does the end of
the drain: what is left stays as it is.
Promises: what was started is closed, whatever happens. No task ends unseen: an unexpected error in
one stops the process in order. The last line says what became of all readings.

`serve` and `up` do not read what the other one keeps, files or a broker. So neither starts while
the other may have left something there. Who has run the embedded broker notes at its end what is
left. Without a note, as after a kill, something may be left.
Does not: move it. The old kind, run once more, writes it to the table.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ingest import __version__
from ingest.app.annexes import check_settings
from ingest.buffers.journal.segments import has_blocks
from ingest.config.declared_tables import make_tables
from ingest.config.named_files import state_dir
from ingest.config.settings import Settings
from ingest.dead_letters.folder.segments import live_letters
from ingest.model.errors import StartError
from ingest.model.tables import ALL_READINGS
from ingest.sinks.postgres.schema import TargetTable
from ingest.system import logs
from ingest.system.clock import sleep_unless
from ingest.system.files import replace_private
from ingest.system.process_setup import handle_signals, ignore_signals, raise_open_files_limit
from ingest.system.service_manager import Notifier
from ingest.system.state_folder import EMBEDDED, StateFolder
from ingest.system.waiting import unless
from ingest.system.words import command_words

EXIT_OK, EXIT_BROKEN, EXIT_LOST = 0, 1, 3  # of all that run until a signal
TASKS_S_MAX = 5.0  # until all tasks have ended


class Tasks:
    """Tasks that end together, in the running event loop, and the two events that end them.

    `name`: of the log. An unexpected error in one of them ends all.
    """

    def __init__(self, name: str) -> None:
        self.stopping = asyncio.Event()
        self.halted = asyncio.Event()
        self.broken = False  # a part has died
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logs.get_logger(name)

    def guard(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task, which its owner ends. An unexpected error in it sets `stopping`."""
        return asyncio.create_task(self._root(work))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that ends by one of the two events: `wait_tasks` waits for it."""
        task = self.guard(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _root(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            self._log.critical("task_died", task=getattr(work, "__qualname__", ""), exc_info=True)
            self.broken = True
            self.stopping.set()

    async def halt(self, within_s: float, abort: Callable[[], None] = lambda: None) -> None:
        """Wait until somebody hastens the stop, at most so long; then set `halted`, and abort."""
        await sleep_unless(self.halted, within_s)
        self.halted.set()
        abort()

    async def wait_tasks(self) -> None:
        """Wait until all tasks have ended, at most TASKS_S_MAX."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TASKS_S_MAX)


class Process(Tasks):
    """One process. Make it in the running event loop; then `run` it once.

    `announce` gets lines for a person. `told` gets the sums of the last line before it is said.
    """

    def __init__(self, name: str, announce: Callable[[str], None], notifier: Notifier) -> None:
        super().__init__(name)
        self.announce = announce
        self.notifier = notifier
        self.told: Callable[[Mapping[str, int]], None] = lambda _sums: None

    async def run(
        self,
        start: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], Awaitable[Mapping[str, int]]],
        close: Callable[[], Coroutine[Any, Any, None]],
        *,
        in_words: Callable[[], str],
    ) -> int:
        """Start, wait until somebody stops it, stop, close; return the exit code.

        If it is stopped before it has started, the start is cancelled. `stop` returns the sums of
        the last line; if it has `lost`, that must be 0. `close` is called in any case, when both
        events are set. `in_words` is the state as a text for a process manager.
        """
        handle_signals(self.stopping, self.halted)
        async with self.notifier.reporting(in_words):
            try:
                await unless(self.stopping, start())
                await self.stopping.wait()
                self.notifier.stopping()
                sums = await stop()
                ignore_signals()  # before the message: its reader may send another signal
                self.told(sums)
                said = " ".join(f"{name}={count}" for name, count in sums.items())
                self.announce(f"drained: {said}")
            finally:
                self.stopping.set()
                self.halted.set()
                await self._root(close())  # its errors do not replace what is known by now
        if sums.get("lost"):
            return EXIT_LOST
        return EXIT_BROKEN if self.broken else EXIT_OK


@contextlib.contextmanager
def begun(settings: Settings, name: str) -> Iterator[StateFolder]:
    """Give the state folder, locked. Raises StartError if it cannot be used. `name`: of the log.

    Also if a setting needs an annex that is not there.
    """
    check_settings(settings)
    logs.configure(settings.log_level, form=settings.log_format)
    raise_open_files_limit()
    folder = StateFolder.open(state_dir(settings))
    if os.geteuid() == 0:
        logs.get_logger(name).warning(
            "started_as_root", why="whoever breaks into the service is root: use a user of its own"
        )
    with folder.lock():
        yield folder


class LeftInBroker(msgspec.Struct, frozen=True):
    """What a broker holds that is not done: messages with readings, and dead letters."""

    messages: int
    dead_letters: int


def note_left(folder: StateFolder, left: LeftInBroker) -> None:
    """Note what the embedded broker holds, before it is stopped. Raises OSError.

    The broker removes the note when it starts.
    """
    replace_private(folder.broker_left, msgspec.json.encode(left), sync=True)


def _left_in_broker(folder: StateFolder) -> str:
    """Say what `up` has left in its embedded broker, or may have; "" if it has left nothing."""
    if not any((folder.broker / "store" / "jetstream").glob("*/streams/*")):
        return ""
    what = "may have left readings (`ingest stream show` finds out, and notes it)"
    with contextlib.suppress(OSError, msgspec.DecodeError):
        left = msgspec.json.decode(folder.broker_left.read_bytes(), type=LeftInBroker)
        if not (left.messages or left.dead_letters):
            return ""
        what = (
            f"has left {left.messages:,} messages with readings, {left.dead_letters:,} dead letters"
        )
    return f"`ingest up` {what} in its broker ({folder.broker})"


def refuse_left_stream(folder: StateFolder, who: str = "ingest serve") -> None:
    """Raise StartError for `who`, if `up` may have left something in its embedded broker."""
    if left := _left_in_broker(folder):
        raise StartError(
            f"{left}, and `{who}` does not read them: start `ingest up` again, replay or discard "
            "its dead letters (`ingest dlq list`), and stop it when its readings are written "
            f"(`ingest stream show`); then start `{who}`"
        )


def refuse_left_files(folder: StateFolder) -> None:
    """Raise StartError for `up`, if `serve` has left something in its files. Blocks."""
    left = []
    try:
        if has_blocks(folder.journal):
            left.append(f"readings in its journal ({folder.journal})")
        if next(live_letters(folder.dead_letters), None) is not None:
            left.append(f"dead letters ({folder.dead_letters})")
    except OSError as error:
        raise StartError(f"cannot read {error.filename}: {error.strerror}") from error
    if left:
        raise StartError(
            f"`ingest serve` has left {' and '.join(left)}, and `ingest up` does not read them: "
            "start `ingest serve` again, replay or discard its dead letters (`ingest dlq list`), "
            "and stop it when its readings are written (its last line says held=0); then start "
            "`ingest up`"
        )


def refuse_other_database(folder: StateFolder, settings: Settings) -> None:
    """Raise StartError if readings that wait for another database would go to the embedded one.

    They wait in the journal, or in the embedded broker. Blocks. Whoever forgets the URL at a start
    must not find out when the readings are there.
    """
    other = "" if settings.database_url else folder.remembered_database()
    if other in ("", EMBEDDED):
        return
    in_journal = settings.buffer == "journal" and has_blocks(folder.journal)
    words = f"`ingest serve` has left readings in its journal ({folder.journal})"
    if left := words if in_journal else _left_in_broker(folder):
        raise StartError(
            f"{left}. They are for the database {other}, and no "
            "database_url is set: they would be written to the embedded database. Give the same "
            "--database-url (or INGEST_DATABASE_URL) as before. If you want them in the embedded "
            f"database, first remove the file {folder.checked_database}"
        )


_ALL = ("0.0.0.0", "[::]")  # noqa: S104  a port that is bound to all addresses
_ELSEWHERE = ("192.0.2.1", "2001:db8::1")  # addresses that no machine has
_EXAMPLE = '{"device_id":"d1","metric":"temperature","value":21.5}'


def greeting_lines(
    settings: Settings,
    *,
    folder: Path,
    listen: str,
    needs_token: bool,
    admin_listen: str,
    page: str,
    target: TargetTable,
    sources: Iterable[str] = (),
    waiting: str = "",
) -> Iterator[str]:
    """Yield the first lines: where to post, and where to see the result.

    The image sets INGEST_PUBLISHED_AT: the host by which people reach the ports of a container.
    `folder` is the state folder, `page` the address of the dashboard. `target` is the table.
    `sources` are paths of sources that are shown.
    `waiting` is why the database does not answer yet, or empty.
    """
    run = command_words()["run"]
    published = os.environ.get("INGEST_PUBLISHED_AT", "")
    if published:  # addresses of a container, which nobody can open, become those of its host
        listen, given = _published(listen, published), admin_listen
        admin_listen = _published(given, published)
        page = page.replace(given, admin_listen)
    yield f"iot-ingest {__version__}, state folder: {folder}"
    scheme, trust = "http", ""
    if settings.tls_cert_file:
        scheme, trust = "https", f"--cacert {shlex.quote(settings.tls_cert_file)} "
    token = "-H 'authorization: Bearer TOKEN' " if needs_token else ""
    yield (
        f"post readings: curl {trust}{token}-H 'content-type: application/json' -d '{_EXAMPLE}' "
        f"{scheme}://{listen}/v1/readings"
    )
    host = _from_network(listen)
    origin = f"{scheme}://{host or listen}"
    # A command finds the default folder itself.
    flag = f" --state-dir {shlex.quote(str(folder))}" if settings.state_dir else ""
    if host and needs_token:
        yield (
            f"devices:       {origin}/v1/readings, each with a token (`{run} token new{flag} NAME`)"
        )
    for path in sources:
        yield f"source:        {origin}{path}"
    once = "  (the first browser that opens it may act)" if "/login/" in page else ""
    yield f"dashboard:     {page}{once}"
    yield f"metrics:       http://{admin_listen}/metrics  (state: /readyz)"
    if not settings.database_url:
        if make_tables(settings):
            target = target._replace(table=ALL_READINGS)
        look = f"{run} psql{flag} -c {shlex.quote(f'table {target.name}')}"
        yield f"database:      embedded; to look into it: {look}"
    else:
        file = settings.database_url_file
        yield f"database:      as set by {f'the file {file}' if file else 'database_url'}"
    if waiting:
        yield f"waiting for the database: {waiting}"


def _from_network(listen: str) -> str:
    """Return where devices reach a port that is bound to all addresses; "" if that is not known."""
    host, _, port = listen.rpartition(":")
    if host not in _ALL:
        return ""
    with socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
    ) as ask:
        try:
            ask.connect((_ELSEWHERE[":" in host], 9))  # sends nothing: the kernel looks up the way
        except OSError:  # no network
            return ""
        found = ask.getsockname()[0]
    return f"[{found}]:{port}" if ":" in found else f"{found}:{port}"


def _published(listen: str, host: str) -> str:
    """Return a port that is bound to all addresses as one of `host`."""
    address, _, port = listen.rpartition(":")
    return f"{host}:{port}" if address in _ALL else listen
