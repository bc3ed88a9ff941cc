"""One process of `ingest up`: how it is started, what it says, and how it ends.

Promises: it gets its configuration by its channel alone: nothing secret is in its environment or on
its command line. Its terminal's Ctrl-C does not reach it: only the supervisor stops it.
Does not: decide when it is started or ended; children.py does.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ingest
from ingest.config.values import ENV_PREFIX
from ingest.roles.supervisor.control import FAILED, ControlChannel, Message, control_pair
from ingest.system.clock import monotonic_s
from ingest.system.logs import get_logger
from ingest.system.waiting import first_of

PROGRAM = (sys.executable, "-P", "-m", "ingest")
DEAF_S_MAX = 5.0  # from the end of its channel to its own end


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
        ours, theirs = control_pair()
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
    """Return our environment without the settings, and with the place of our package."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(ENV_PREFIX)}
    ours = str(Path(ingest.__file__).parents[1])
    paths = [ours, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
