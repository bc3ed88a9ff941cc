"""The embedded PostgreSQL server: it is started, watched and stopped. It has a private socket.

Promises: its data survives a restart or a kill of the server or of this process. The server ends
when this process ends, even by SIGKILL (on Linux). If only the server dies, or somebody removes its
socket, it is started again. By default it keeps what it has committed (fsync is on).
Does not: upgrade data between major versions, or listen on the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from ingest.embedded.data import (
    PORT,
    PREVIOUS_S_MAX,
    SOCKET,
    Home,
    await_previous,
    locked_by,
    make_data,
    make_private,
    make_socket_folder,
    pid_file_lines,
    prepare,
    publish_url,
    published_url,
    remove_socket_folder,
    sockets_of,
    status_of,
    sweep_left_overs,
    try_lock,
    url_of,
    write_access_rules,
)
from ingest.embedded.programs import clean_environment, command
from ingest.embedded.server_process import (
    START_S_MAX,
    Launched,
    Server,
    end_process,
    tail_of,
)
from ingest.model.errors import StartError
from ingest.system import clock
from ingest.system.logs import get_logger
from ingest.system.process_setup import memory_bytes
from ingest.system.waiting import first_of

SETTINGS: dict[str, str] = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # The kernel gathers pages for 30 s and then writes them at once. Meanwhile others wait for the
    # same disk (the journal: 50 to 190 ms). So pages are written early. Keys come in the order of
    # time, so few pages are written twice because of this.
    "backend_flush_after": "256kB",
    "wal_buffers": "4MB",
    "max_wal_size": "1GB",
    "wal_compression": "on",
    "max_connections": "40",
    # A query over all partitions locks each of them, and each of its indexes. With the default (64)
    # there is room for 4,000 of such locks, of all sessions together; this is for 30,000.
    "max_locks_per_transaction": "512",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",
    # The service itself reports rows that the database refuses. Here they would flood the log.
    "log_min_messages": "log",
    "log_checkpoints": "off",
}

# Old readings come at random places of the index: with 512 MB they are stored twice as fast as with
# 64 MB. With 2 GB they are hardly faster, and readings of now are not.
BUFFERS_MIB_MIN, BUFFERS_MIB_MAX = 64, 1024

LOOK_S = 0.2  # between two looks whether the socket, or the process that we share with, is there

_log = get_logger("embedded")


class EmbeddedPostgres(Server):
    """One PostgreSQL server on `folder`/data. `settings` add to SETTINGS or replace them.

    Start it from the main thread: it ends with the thread that started it. `start` makes the data
    if there is none. It waits for an earlier server on the same data that is shutting down, and for
    the recovery after a crash. If another process runs a server on the folder (a command such as
    `psql`), that server is used until the process ends; then this one starts its own.
    """

    program, what = "PostgreSQL", "a database"
    # The children of a server that was killed end by themselves, a moment later.
    in_use, in_use_s_max = "pre-existing shared memory block", PREVIOUS_S_MAX
    # A fast shutdown, which rolls open transactions back; then an immediate one.
    end_steps = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        folder = folder.resolve()
        super().__init__(folder, folder / "postgres.log")
        self._settings = {**SETTINGS, "shared_buffers": shared_buffers(), **(settings or {})}
        self._url = ""
        self._home: Home | None = None

    @property
    def url(self) -> str:
        """The URL of the server now. It changes if the folder of its socket has to be made anew."""
        assert self._url, "start it first"
        return self._url

    async def begin(self) -> None:
        """Lock the folder, and launch the server; see Server."""
        await self._take_or_share()
        if self.lock is not None:
            await self._run()

    async def _take_or_share(self) -> None:
        """Lock the folder, or find the server of the process that has locked it."""
        started_s = clock.monotonic_s()
        while not self._take():
            self._url = published_url(self.folder)
            sockets = sockets_of(self._url)
            if sockets is not None and (sockets / SOCKET).exists():
                _log.info("database_shared", pid=locked_by(self.folder))
                return
            if clock.monotonic_s() - started_s > START_S_MAX:
                raise StartError(
                    f"the process {locked_by(self.folder)} has locked the database "
                    f"in {self.folder} and does not start it: stop that process, or choose "
                    "another folder with --state-dir"
                )
            await asyncio.sleep(0.02)

    def _take(self) -> bool:
        """Lock the folder; return whether we have the lock."""
        self.lock = try_lock(self.folder)
        return self.lock is not None

    async def _run(self) -> None:
        """Start the server in the folder, which is locked. Raises StartError and OSError."""
        preparing = asyncio.ensure_future(asyncio.to_thread(prepare, self.folder))
        try:
            self._home = home = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            await asyncio.wait([preparing])  # a thread goes on: the folder stays locked until then
            raise
        await await_previous(home.data)
        last = sockets_of(published_url(self.folder))
        if last is not None and last != home.sockets:
            remove_socket_folder(last)
        await make_data(home)
        major = int((home.data / "PG_VERSION").read_text())
        write_access_rules(home.data, home.user, major)
        sweep_left_overs(home.user)
        await self.launch()

    async def is_ready(self, process: asyncio.subprocess.Process) -> bool:
        """Whether the server can be used."""
        assert self._home is not None
        lines = pid_file_lines(self._home.data)
        ours = bool(lines) and lines[0] == str(process.pid)
        return ours and status_of(lines) == "ready"

    def publish(self) -> None:
        """Tell other processes where the server is."""
        assert self._home is not None
        self._url = url_of(self._home.sockets)
        publish_url(self.folder, self._url)

    def _with_sockets(self) -> Home:
        """Make the folder of the socket anew if somebody has removed it; else empty it.

        A server that was killed leaves files. The process id in them may be used again.
        """
        assert self._home is not None
        home = self._home
        remove_socket_folder(home.sockets)
        if not make_private(home.sockets, home.user):
            home = home._replace(sockets=make_socket_folder(self.folder, home.user, None))
        self._home = home
        return home

    async def spawn(self) -> Launched:
        """Start the program."""
        home = self._with_sockets()
        arguments = ["-D", str(home.data), "-h", "", "-k", str(home.sockets), "-p", str(PORT)]
        for name, value in self._settings.items():
            arguments += ["-c", f"{name}={value}"]
        log_fd = os.open(home.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            log_start = os.fstat(log_fd).st_size
            process = await asyncio.create_subprocess_exec(
                *command(home.user, home.binaries / "postgres", *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                env=clean_environment(),
            )
        finally:
            os.close(log_fd)
        return Launched(process, lambda: tail_of(home.log, log_start))

    async def has_turn(self) -> bool:
        """Wait until the process whose server we use has ended. Return False at a `stop`."""
        if self.lock is not None:
            return True
        while not await clock.sleep_unless(self.stopping, LOOK_S):
            try:
                if self._take():
                    return True
                self._url = published_url(self.folder) or self._url
            except (StartError, OSError) as error:
                _log.error("database_not_taken_over", reason=str(error))
        return False

    async def launch_again(self) -> None:
        """Start the server again, or the first one if another process had it."""
        await (self._run() if self._home is None else self.launch())

    async def watch(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the end of the server or a stop. End one whose socket has been removed."""
        while not await first_of(process.wait(), self.stopping.wait(), within_s=LOOK_S):
            if self._home is not None and not (self._home.sockets / SOCKET).exists():
                _log.warning("database_socket_removed", folder=str(self._home.sockets))
                await end_process(process, self.end_steps)

    async def end(self) -> None:
        """End the server, and remove what others could find it by."""
        ran = self.process is not None
        await super().end()
        if self._home is not None and ran:
            remove_socket_folder(self._home.sockets)
        elif self._home is not None:  # not started: files in there belong to another server
            with contextlib.suppress(OSError):
                self._home.sockets.rmdir()
        self._home = None


def shared_buffers() -> str:
    """Return what the server uses for pages: an eighth of the memory, within the bounds."""
    eighth_mib = memory_bytes() // 8 >> 20
    return f"{min(max(eighth_mib, BUFFERS_MIB_MIN), BUFFERS_MIB_MAX)}MB"
