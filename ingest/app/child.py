"""One process of `ingest up`: how it is started, what it says, and how it ends.

Promises: it gets its configuration by its channel alone: nothing secret is in its environment or on
its command line. Its terminal's Ctrl-C does not reach it: only the supervisor stops it.
Does not: decide when it is started or ended; slot.py does.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ingest
from ingest.config.values import ENV_PREFIX
from ingest.model.ledger import Ledger
from ingest.system.clock import monotonic_s
from ingest.system.control import FAILED, ControlChannel, Message, control_pair

PROGRAM = (sys.executable, "-P", "-m", "ingest")
DEAF_S_MAX = 5.0  # from the end of its channel to its own end


class LastStatus(NamedTuple):
    """What a process had done at its last status, in readings.

    `promised`: a gateway has answered them, and the stream does not have them yet.
    """

    promised: int
    committed: int
    dead_lettered: int


class Child:
    """A process that has been started. `on_status` gets what it says of itself once a second.

    `ready` and `ended` are events. After `ended`: `code` is its exit code (negative: a signal),
    `drained` is its last account, or None if it gave none, and `words` say why it failed.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        channel: ControlChannel,
        on_status: Callable[[Mapping[str, Any]], None],
        on_news: Callable[[], None],
    ) -> None:
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.heard_s = monotonic_s()
        self.code: int | None = None
        self.drained: Mapping[str, Any] | None = None
        self.words = ""
        self.is_configured = False
        self.last = LastStatus(0, 0, 0)
        self._process = process
        self._channel = channel
        self._on_status = on_status
        self._on_news = on_news
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls,
        words: Sequence[str],
        fds: Sequence[int],
        on_status: Callable[[Mapping[str, Any]], None],
        on_news: Callable[[], None],
        *,
        program: Sequence[str] = PROGRAM,
    ) -> Child:
        """Start `program words`, which inherits `fds`. Raises OSError.

        It imports its modules while it waits for its configuration.
        """
        ours, theirs = control_pair()
        with theirs:
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
                ours.close()
                raise
        return cls(process, await ControlChannel.open(ours), on_status, on_news)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def configure(self, configuration: Message) -> None:
        """Let it begin."""
        self.is_configured = True
        self.tell(configuration)

    def step_down(self) -> None:
        """Let it finish what it has, and end: its successor has the socket."""
        self.tell({"do": "step_down"})

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
        waits = [asyncio.create_task(each.wait()) for each in (self.ended, *events)]
        try:
            done, _ = await asyncio.wait(
                waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for each in waits:
                each.cancel()
        return bool(done)

    async def end(self, within_s: float) -> bool:
        """Wait for its end, and kill it after the time; return whether it ended by itself."""
        in_time = await self.until(within_s=within_s)
        if not in_time:
            self.kill()
            await self.ended.wait()
        return in_time

    async def _watch(self) -> None:
        listening = asyncio.create_task(self._listen())
        self.code = await self._process.wait()
        await listening  # what it said last
        await self._channel.close()
        self.ended.set()
        self._on_news()

    async def _listen(self) -> None:
        while (message := await self._channel.receive()) is not None:
            self.heard_s = monotonic_s()
            if isinstance(status := message.get("status"), dict):
                self.last = _last(status)
                self._on_status(status)
            if isinstance(drained := message.get("drained"), dict):
                self.drained = drained
            if FAILED in message:
                self.words = str(message[FAILED])
            if message.get("ready"):
                self.ready.set()
                self._on_news()
        if self._process.returncode is None:  # it is ending, or it cannot be led any more
            waiting = asyncio.get_running_loop().call_later(DEAF_S_MAX, self.kill)
            await self._process.wait()
            waiting.cancel()


def _last(status: Mapping[str, Any]) -> LastStatus:
    try:
        rows = status["gauges"]["buffer"]["rows"] if status["role"] == "gateway" else 0
        ledger = Ledger.from_snapshot(status["counters"])
        committed = ledger.committed + ledger.duplicate
        return LastStatus(int(rows), committed, sum(ledger.dead_lettered.values()))
    except (KeyError, TypeError, ValueError):
        return LastStatus(0, 0, 0)


def _environment() -> dict[str, str]:
    """Return our environment without the settings, and with the place of our package."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(ENV_PREFIX)}
    ours = str(Path(ingest.__file__).parents[1])
    paths = [ours, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
