"""One process of `ingest up`: how it is started, what it says, how it ends, and who is left of it.

It is led by a control channel: JSON lines over a pair of sockets. A child inherits one end, and no
other process can open it, so it may carry passwords.
Promises: a child gets its configuration by its channel alone: nothing secret is in its environment
or on its command line. Its terminal's Ctrl-C does not reach it: only the supervisor stops it. A
line is bounded, and so are the lines that wait for an end that does not read. A side whose other
end is gone, or sends what is no JSON object, gets None from `receive`, and no error.
Children of a killed process are found by a locked file that they have inherited: they have it open
until they end, whatever becomes of their parent.
Does not: decide when a child is started or ended; children.py does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

import ingest
from ingest.config.values import ENV_PREFIX
from ingest.model.errors import IngestError, StartError
from ingest.system.clock import monotonic_s
from ingest.system.files import Lock
from ingest.system.logs import get_logger
from ingest.system.waiting import first_of
from ingest.system.words import WORD_VARIABLES

LINE_BYTES_MAX = 4 * 1024**2
WAITING_BYTES_MAX = 8 * 1024**2  # the other end is frozen: a status that is not sent is no loss
CLOSE_S_MAX = 1.0
FAILED = "failed"  # a child's last words, if it cannot start

Message = dict[str, Any]
PROGRAM = (sys.executable, "-P", "-m", "ingest")
DEAF_S_MAX = 5.0  # from the end of its channel to its own end
PATIENCE_S, KILL_S_MAX = 3.0, 5.0  # what they have, nobody was promised
LOOK_S = 0.05


class ControlChannel:
    """One end. A child uses `async with`: then an error of the block is told to the supervisor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Use this end; it is closed together with the channel."""
        end.setblocking(False)
        # The limit is that of a line; the reader holds at most twice as much.
        return cls(*await asyncio.open_unix_connection(sock=end, limit=LINE_BYTES_MAX))

    @classmethod
    async def inherited(cls, fd: int) -> Self:
        """Use the end that the supervisor has passed. Raises IngestError if `fd` is none.

        Processes that this one starts do not get it.
        """
        try:
            os.set_inheritable(fd, False)
            end = socket.socket(fileno=fd)
        except OSError as error:
            raise IngestError(f"--control-fd {fd} is no channel: {error.strerror}") from error
        if end.family != socket.AF_UNIX or end.type != socket.SOCK_STREAM:
            end.close()
            raise IngestError(f"--control-fd {fd} is no channel: `ingest up` sets this flag")
        return await cls.open(end)

    async def receive(self) -> Message | None:
        """Return the next message; None if the other end is gone, or is not one of ours."""
        try:
            line = await self._reader.readuntil(b"\n")
            message = orjson.loads(line)
            if not isinstance(message, dict):
                raise ValueError("the message is no JSON object")
        except (asyncio.IncompleteReadError, OSError):
            return None
        except (ValueError, asyncio.LimitOverrunError) as error:
            get_logger("control").error("control_broken", why=str(error))
            return None
        return message

    def send(self, message: Message) -> bool:
        """Send a message soon; return False if the other end is gone, or does not read.

        Raises ValueError if it is longer than LINE_BYTES_MAX.
        """
        line = orjson.dumps(message) + b"\n"
        if len(line) > LINE_BYTES_MAX:
            raise ValueError(f"a message of {len(line)} bytes")
        transport = self._writer.transport
        waiting = transport.get_write_buffer_size() + len(line)
        if transport.is_closing() or waiting > WAITING_BYTES_MAX:
            return False
        self._writer.write(line)
        return True

    async def close(self) -> None:
        """Send what waits, for a moment at most, and close this end. Repeatable."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S_MAX):
                self._writer.close()
                await self._writer.wait_closed()
        self._writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, IngestError | OSError):
            self.send({FAILED: str(error)})
        await self.close()


class Child:
    """A process that has been started. `on_status` gets what it says of itself once a second.

    `on_news` is called when it is ready, `on_ended` with it when it has ended. `ready` and `ended`
    are events. `promised` are the readings that a gateway has answered at its last status, and that
    the stream does not have yet. `lost` are those that it lost, None if it gave no last account.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        channel: ControlChannel,
        on_status: Callable[[Mapping[str, Any]], None],
        on_news: Callable[[], None],
        on_ended: Callable[[Child], None],
    ) -> None:
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.heard_s = monotonic_s()
        self.promised = 0
        self.lost: int | None = None
        self.is_configured = False
        self._words = ""  # why it failed
        self._process = process
        self._channel = channel
        self._on_status = on_status
        self._on_news = on_news
        self._on_ended = on_ended
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls,
        words: Sequence[str],
        fds: Sequence[int],
        on_status: Callable[[Mapping[str, Any]], None],
        on_news: Callable[[], None],
        on_ended: Callable[[Child], None],
        *,
        program: Sequence[str],
    ) -> Child:
        """Start `program words`, which inherits `fds`. Raises OSError.

        It imports its modules while it waits for its configuration. If it is cancelled, no process
        is left: nothing is awaited once there is one.
        """
        ours, theirs = socket.socketpair()  # no child inherits an end that is not passed to it
        with theirs:
            channel = await ControlChannel.open(ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(*program, *words, "--control-fd", str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    env=_environment(),
                    pass_fds=(theirs.fileno(), *fds),
                    start_new_session=True,
                )
            except (OSError, asyncio.CancelledError):
                await channel.close()
                raise
        return cls(process, channel, on_status, on_news, on_ended)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """Why it has ended: what it has said, or its exit code."""
        code = self._process.returncode or 0
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return self._words or f"it {ended}"

    def configure(self, configuration: Message) -> None:
        """Let it begin."""
        self.is_configured = True
        self.tell(configuration)

    def drain(self) -> None:
        """Let it finish what it has, refuse what is new, and end."""
        if self.is_configured:
            self.tell({"do": "drain"})
        else:  # it has nothing
            self.kill()

    def tell(self, message: Message) -> None:
        """Send it a message. If it is gone or frozen, nothing happens."""
        self._channel.send(message)

    def kill(self) -> None:
        """End it at once: what it has not answered is lost for its client, and nothing else."""
        if self._process.returncode is None:
            self._process.kill()

    async def until(self, *events: asyncio.Event, within_s: float | None = None) -> bool:
        """Wait for its end or one of the events; return False if the time is over before."""
        return await first_of(*(each.wait() for each in (self.ended, *events)), within_s=within_s)

    async def _watch(self) -> None:
        listening = asyncio.create_task(self._listen())
        await self._process.wait()
        try:
            await listening  # what it said last
        except Exception as error:  # without its status it counted as frozen, and was killed
            get_logger("up").error("control_broken", why=repr(error))
        await self._channel.close()
        self.ended.set()
        self._on_ended(self)

    async def _listen(self) -> None:
        while (message := await self._channel.receive()) is not None:
            self.heard_s = monotonic_s()
            if isinstance(status := message.get("status"), dict):
                self.promised = _promised(status)
                self._on_status(status)
            if isinstance(drained := message.get("drained"), dict):
                self.lost = int(drained["lost"])
            if FAILED in message:
                self._words = str(message[FAILED])
            if message.get("ready"):
                self.ready.set()
                self._on_news()
        if self._process.returncode is None:  # it is ending, or it cannot be led any more
            waiting = asyncio.get_running_loop().call_later(DEAF_S_MAX, self.kill)
            await self._process.wait()
            waiting.cancel()


def _promised(status: Mapping[str, Any]) -> int:
    try:
        return int(status["gauges"]["buffer"]["rows"]) if status["role"] == "gateway" else 0
    except (KeyError, TypeError, ValueError):
        return 0


def _environment() -> dict[str, str]:
    """Return our environment without the settings, and with the place of our package.

    Words of commands stay: a child says them, too.
    """
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(ENV_PREFIX) or name in WORD_VARIABLES
    }
    ours = str(Path(ingest.__file__).parents[1])
    paths = [ours, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


async def lock_of_children(
    path: Path, signals: Mapping[float, signal.Signals], tell: Callable[[int, signal.Signals], None]
) -> Lock | None:
    """Take the lock that children of an earlier process may still have.

    They are sent `signals`, each after so many seconds. Before each signal `tell` is called with
    the process id. Returns None if one of them does not end. Raises OSError.
    """
    since_s, left = monotonic_s(), dict(signals)
    while (lock := Lock.try_take(path, create=True)) is None:
        waited_s = monotonic_s() - since_s
        for after_s in [each for each in left if each <= waited_s]:
            number = left.pop(after_s)
            for pid in holders(path):
                tell(pid, number)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if waited_s > max(signals) + KILL_S_MAX:
            return None
        await asyncio.sleep(LOOK_S)
    return lock


async def family_lock(path: Path) -> Lock:
    """Take the lock for the children of this process: pass its `fileno` to each of them.

    Those of an earlier process have PATIENCE_S to end, and are killed then. Raises StartError if
    they do not end, or the file cannot be made.
    """

    def tell(pid: int, _number: signal.Signals) -> None:
        get_logger("up").warning("orphan_killed", pid=pid)

    try:
        lock = await lock_of_children(path, {PATIENCE_S: signal.SIGKILL}, tell)
    except OSError as error:
        raise StartError(f"cannot lock {path}: {error.strerror}") from error
    if lock is None:
        raise StartError(
            f"processes of an earlier `ingest up` do not end (pid "
            f"{', '.join(map(str, holders(path))) or 'unknown'}): stop them, or choose another "
            "folder with --state-dir"
        )
    return lock


def holders(path: Path) -> list[int]:
    """Return the other processes of this user that have the file open."""
    real = os.path.realpath(path)
    folders = Path("/proc").glob("[0-9]*/fd")
    pids = [int(each.parent.name) for each in folders if _has_open(each, real)]
    return [each for each in pids if each != os.getpid()]


def _has_open(folder: Path, real: str) -> bool:
    with contextlib.suppress(OSError):  # the process has ended, or is somebody else's
        for each in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has been closed
                if os.readlink(each) == real:
                    return True
    return False
