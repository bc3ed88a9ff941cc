"""A PostgreSQL of our own: made, started, watched, stopped; reached through a private socket.

Promises: its data survives restarts and kills of either side; it ends when we end, even by
SIGKILL (Linux); killed alone, it is started again. Durable by default (fsync on).
Does not upgrade data between major versions, and does not listen on the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import structlog

from ingest import clock
from ingest.errors import StartError
from ingest.postgres_binaries import (
    DatabaseUser,
    clean_environment,
    command,
    database_user,
    find_binaries,
    major_of,
    may_enter,
    place,
)

SETTINGS: dict[str, str] = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "wal_compression": "on",
    "max_connections": "40",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",
    # what the database refuses is reported by the service itself; here it would flood the log
    "log_min_messages": "log",
    "log_checkpoints": "off",
    "unix_socket_permissions": "0700",
}

START_S_MAX = 120.0  # crash recovery reads up to max_wal_size again
PREVIOUS_S_MAX = 20.0  # an earlier server on the same data that is shutting down
UNMARKED_S_MAX = 2.0  # from its parent's death to its mark in the pid file that it stops
STOP_S_MAX = 20.0
RESTART_S_MIN, RESTART_S_MAX = 0.1, 10.0
LOG_BYTES_MAX = 8 * 1024**2
_PORT = 5432  # only names the socket file
_IN_USE = "pre-existing shared memory block"

_log = structlog.get_logger("ingest.postgres_embedded")


class EmbeddedPostgres:
    """One PostgreSQL on `folder`/data; `settings` add to or replace SETTINGS.

    Start it from the main thread: it ends with the thread that started it.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._folder = folder.absolute()
        self._data = self._folder / "data"
        self._log_path = self._folder / "postgres.log"
        self._settings = {**SETTINGS, **(settings or {})}
        self._lock_fd: int | None = None
        self._user = DatabaseUser(-1, -1, "")
        self._binaries = Path()
        self._sockets = Path()
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._supervision: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """The file the server writes its log to."""
        return self._log_path

    async def start(self) -> str:
        """Make the data if there is none, start the server, return its database URL.

        Waits for an earlier server on the same data that is shutting down. Raises StartError.
        """
        assert self._supervision is None, "started once, until stopped"
        self._stopping.clear()
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._end)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            await asyncio.to_thread(self._prepare)
            await self._await_previous()
            await self._make_data()
            self._process = await self._launch()
            undo.pop_all()
        self._supervision = asyncio.create_task(self._supervise(), name="postgres")
        query = f"host={quote(str(self._sockets))}&port={_PORT}"
        return f"postgresql://postgres@/postgres?{query}"

    async def stop(self) -> None:
        """Shut the server down (fast: open transactions are rolled back); it leaves clean data."""
        if self._supervision is None:
            return
        self._stopping.set()
        await asyncio.shield(self._supervision)
        self._supervision = None

    # What must be right before a server can start

    def _lock(self) -> None:
        fd = os.open(self._folder / "postgres.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise StartError(
                f"another service already runs the database in {self._folder}: stop it, or choose "
                "another folder with --state-dir"
            ) from error
        self._lock_fd = fd

    def _prepare(self) -> None:
        self._user = database_user(self._data)
        if self._user.uid >= 0 and not may_enter(self._user, self._folder):
            raise StartError(
                f"{self._folder} is inside a folder that the user {self._user.name} may not enter, "
                "and PostgreSQL does not run as root: choose another folder with --state-dir, "
                "for example /var/lib/iot-ingest"
            )
        self._binaries = place(self._user, find_binaries(), self._folder)
        self._check_data()
        self._sockets = self._make_socket_folder()
        if self._log_path.exists() and self._log_path.stat().st_size > LOG_BYTES_MAX:
            self._log_path.replace(self._log_path.with_suffix(".log.1"))

    def _check_data(self) -> None:
        version = self._data / "PG_VERSION"
        if not self._data.exists():
            return
        try:
            have = version.read_text().strip()
        except OSError as error:
            raise StartError(
                f"{self._data} exists but is not a PostgreSQL data folder: move it away, or choose "
                "another folder with --state-dir"
            ) from error
        ours = major_of(self._binaries)
        if have != str(ours):
            raise StartError(
                f"{self._data} was made by PostgreSQL {have}, but the programs in "
                f"{self._binaries} are version {ours}: set INGEST_PG_BIN to the programs of "
                f"version {have}, or dump the data with them (pg_dump) and restore it into a new "
                "--state-dir"
            )

    def _make_socket_folder(self) -> Path:
        # The path of a socket has at most 104 bytes, so it cannot lie in the state folder.
        name = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:12]
        folder = Path("/tmp") / f"iot-ingest-{self._user.owner_uid}-{name}"  # noqa: S108  checked
        try:
            folder.mkdir(mode=0o700)
            if self._user.uid >= 0:
                os.chown(folder, self._user.uid, self._user.gid)
        except FileExistsError:
            pass
        except OSError as error:
            raise StartError(f"cannot make {folder} for sockets: {error.strerror}") from error
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
        if not private or found.st_uid != self._user.owner_uid:
            raise StartError(
                f"{folder}, where the database's socket belongs, is somebody else's: remove it"
            )
        return folder

    async def _await_previous(self) -> None:
        """Wait for a server whose service died a moment ago; clear away a pid file of nobody."""
        deadline_s = clock.monotonic_s() + PREVIOUS_S_MAX
        unmarked_s = clock.monotonic_s() + UNMARKED_S_MAX
        pid_file = self._data / "postmaster.pid"
        while (lines := _lines(pid_file)) and lines[0].isdecimal():
            pid = int(lines[0])
            if not _is_postgres_on(pid, self._data):
                pid_file.unlink(missing_ok=True)
                return
            stopping = len(lines) > 7 and lines[7].strip() == "stopping"
            now_s = clock.monotonic_s()
            if now_s > deadline_s or (now_s > unmarked_s and not stopping):
                raise StartError(
                    f"another PostgreSQL (pid {pid}) runs on {self._data}: stop it "
                    f"(kill -INT {pid}), or choose another folder with --state-dir"
                )
            await asyncio.sleep(0.02)

    async def _make_data(self) -> None:
        if self._data.exists():
            return
        new = self._folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self._user.uid >= 0:
            os.chown(new, self._user.uid, self._user.gid)
        # PostgreSQL 17 and later bring a UTF-8 locale of their own; C is everywhere
        locale = ["--locale=C"]
        if major_of(self._binaries) >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options = ["--auth=trust", "--encoding=UTF8", "--data-checksums", "--no-instructions"]
        process = await asyncio.create_subprocess_exec(
            *command(self._user, self._binaries / "initdb", "-D", str(new), "-U", "postgres"),
            *options,
            *locale,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=clean_environment(),
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            shown = output.decode(errors="replace").strip()[-600:]
            raise StartError(f"cannot make a database in {self._folder}: {shown}")
        new.rename(self._data)  # only now: what was killed half-way is never mistaken for a whole
        _fsync_folder(self._folder)

    # The server's life

    async def _launch(self) -> asyncio.subprocess.Process:
        """Start the server and wait until it is ready. Raises StartError with its last words."""
        deadline_s = clock.monotonic_s() + START_S_MAX
        previous_s = clock.monotonic_s() + PREVIOUS_S_MAX
        while True:
            with self._log_path.open("ab") as log:
                said_from = log.tell()
                process = await asyncio.create_subprocess_exec(
                    *command(self._user, self._binaries / "postgres", *self._arguments()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=clean_environment(),
                )
            self._process = process
            while process.returncode is None and not self._is_ready(process.pid):
                if clock.monotonic_s() > deadline_s or self._stopping.is_set():
                    await _terminate(process)
                    raise StartError(f"PostgreSQL was not ready in time: see {self._log_path}")
                await asyncio.sleep(0.01)
            if process.returncode is None:
                return process
            said = _tail(self._log_path, said_from)
            # processes of a killed server end by themselves, a moment later
            if _IN_USE not in said or clock.monotonic_s() > previous_s:
                raise StartError(f"PostgreSQL did not start ({self._log_path}): {said}")
            await asyncio.sleep(0.1)

    def _arguments(self) -> list[str]:
        arguments = ["-D", str(self._data), "-h", "", "-k", str(self._sockets), "-p", str(_PORT)]
        for name, value in self._settings.items():
            arguments += ["-c", f"{name}={value}"]
        return arguments

    def _is_ready(self, pid: int) -> bool:
        lines = _lines(self._data / "postmaster.pid")
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    async def _supervise(self) -> None:
        """Keep a server running until told to stop, then stop it."""
        pause_s = RESTART_S_MIN
        while True:
            if self._process is not None:
                code = await self._exited_or_stopping(self._process)
                if self._stopping.is_set():
                    break
                _log.warning("database_exited", code=code, restart_in_s=round(pause_s, 2))
            if await clock.sleep_unless(self._stopping, pause_s):
                break
            pause_s = min(2 * pause_s, RESTART_S_MAX)
            started_s = clock.monotonic_s()
            self._process = None
            try:
                self._process = await self._launch()
            except (StartError, OSError) as error:
                _log.error("database_not_restarted", reason=str(error))
            else:
                took_s = clock.monotonic_s() - started_s
                _log.info("database_restarted", took_s=round(took_s, 3))
        await self._end()

    async def _exited_or_stopping(self, process: asyncio.subprocess.Process) -> int | None:
        exited = asyncio.ensure_future(process.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((exited, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            exited.cancel()
            stopping.cancel()
        return process.returncode

    async def _end(self) -> None:
        try:
            if self._process is not None:
                await _terminate(self._process)
                self._process = None
            if self._sockets != Path():
                shutil.rmtree(self._sockets, ignore_errors=True)
        finally:
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None


async def _terminate(process: asyncio.subprocess.Process) -> None:
    """Ask for a fast shutdown, then an immediate one, then kill."""
    for number, patience_s in (
        (signal.SIGINT, STOP_S_MAX),
        (signal.SIGQUIT, 5.0),
        (signal.SIGKILL, 5.0),
    ):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await process.wait()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _tail(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return file.read()[-600:].decode(errors="replace").strip()


def _is_postgres_on(pid: int, data: Path) -> bool:
    """Whether the process is a server of this data; where that cannot be seen, whether it lives."""
    command_line = Path(f"/proc/{pid}/cmdline")
    if command_line.parent.parent.joinpath("self").exists():
        try:
            return os.fsencode(data) in command_line.read_bytes().split(b"\0")
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
