"""What a gateway and a writer have in common: who they are, their broker, their begin and end.

A role runs alone, with its own settings and admin port. Or `ingest up` leads it: then everything
comes by the control channel, and its status goes there once a second.
Promises: if the supervisor is gone, the role stops in order.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from ingest.app.broker import configured_address, configured_monitors, wanted_stream
from ingest.app.broker_state import BrokerState
from ingest.app.status import StatusSource, status_message
from ingest.app.tasks import EXIT_BROKEN, EXIT_LOST, EXIT_OK, TASKS_S_MAX, Tasks
from ingest.broker.connection import BrokerConnection
from ingest.broker.envelope import Address
from ingest.broker.removals import PublishedPlaces
from ingest.broker.roles import STATUS
from ingest.broker.watch import StreamWatch
from ingest.config.folders import state_dir
from ingest.config.settings import Settings
from ingest.model.errors import NotKept, StartError
from ingest.model.ledger import Ledger
from ingest.system import signals as app_signals
from ingest.system.control import ControlChannel
from ingest.system.logs import get_logger
from ingest.system.notify import Notifier
from ingest.system.stream_mark import MarkFile


class Place(NamedTuple):
    """Where a role runs. `instance` is its name among all processes.

    Without a `channel` it runs alone: then a gateway opens its own socket, and `notifier` reports
    to the process manager.
    """

    settings: Settings
    instance: str
    broker: Address
    monitors: tuple[str, ...]
    database_url: str = ""
    listening: socket.socket | None = None
    channel: ControlChannel | None = None
    notifier: Notifier = Notifier()


def alone(settings: Settings, role: str) -> Place:
    """Return the place of a role that nobody leads. Raises StartError, and ConfigError."""
    broker = configured_address(settings)
    if broker is None:
        raise StartError(
            f"a {role} needs a broker: set broker_url. `ingest up` runs an embedded one, with all "
            "roles"
        )
    if role == "writer" and not settings.database_url:
        raise StartError(
            "a writer needs a database: set database_url. `ingest up` runs an embedded one"
        )
    monitors = configured_monitors(settings)
    instance = f"{role}-{socket.gethostname()}-{os.getpid()}"  # in containers each pid is 1
    return Place(
        settings,
        instance,
        broker,
        monitors,
        settings.database_url,
        notifier=Notifier.from_environment(),
    )


async def led(channel: ControlChannel) -> Place:
    """Return the place that the supervisor sends first. Raises StartError if it is gone."""
    told = await channel.receive()
    if told is None:
        raise StartError("the supervisor is gone")
    broker = {name: told["broker"][name] for name in Address._fields}
    broker["servers"] = tuple(broker["servers"])
    fd = told["listen_fd"]
    return Place(
        settings=Settings(**told["settings"]),
        instance=told["instance"],
        broker=Address(**broker),
        monitors=tuple(told["broker"]["monitors"]),
        database_url=told["database_url"],
        listening=None if fd is None else socket.socket(fileno=fd),
        channel=channel,
    )


class Role:
    """One process of a role: its connection to the broker, its tasks, its signals.

    For a role that publishes: `unanswered_s` and `published` of StreamWatch, `refused` and
    `acknowledged_s` of BrokerState.
    """

    def __init__(
        self,
        place: Place,
        role: str,
        *,
        unanswered_s: Callable[[], float] | None = None,
        published: Callable[[], PublishedPlaces] = PublishedPlaces,
        refused: Callable[[], NotKept | None] = lambda: None,
        acknowledged_s: Callable[[], float] = lambda: -math.inf,
    ) -> None:

        def unkept_s() -> float:
            """Return it also between two tries: the last message was not kept."""
            assert unanswered_s is not None
            return unanswered_s() if refused() is None else math.inf

        self.place = place
        self.stopping = asyncio.Event()  # the drain begins
        self.halted = asyncio.Event()  # the drain ends: what is left stays as it is
        self.steps_down = False  # a successor has the socket
        self.drained = asyncio.Event()  # the supervisor has said so: all processes stop
        self.tasks = Tasks(self.stopping, role)
        self.ledger = Ledger()
        self.connection = BrokerConnection(lambda: place.broker, role)
        at = "" if place.broker.ours else ",".join(sorted(place.broker.servers))
        self.mark = MarkFile(state_dir(place.settings), at)
        self.watch = StreamWatch(
            self.connection,
            # A missing consumer of a forwarder is no reason to refuse posts: the purge tells of it.
            wanted_stream(place.settings)._replace(forwards=()),
            monitors=lambda: place.monitors,
            unsafe=place.settings.broker_unsafe,
            unanswered_s=None if unanswered_s is None else unkept_s,
            published=published,
            mark=self.mark,
        )
        self.broker_state = BrokerState(
            self.watch,
            unanswered_s=unanswered_s or float,
            refused=refused,
            acknowledged_s=acknowledged_s,
        )
        self._cut = asyncio.Event()  # the connection to the broker ends
        self._connected: asyncio.Task[None] | None = None
        self.on_status: Callable[[dict[str, Any]], None] = lambda _status: None  # if it runs alone
        self._status: StatusSource | None = None
        self._actions: Mapping[str, Callable[[dict[str, Any]], None]] = {}

    async def run(
        self,
        start: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], Coroutine[Any, Any, int]],
        status: StatusSource,
        *,
        actions: Mapping[str, Callable[[dict[str, Any]], None]],
        in_words: Callable[[], str],
    ) -> int:
        """Start, wait until somebody stops it, stop; return what `stop` returns.

        `actions` are what the supervisor may ask for, by name; `in_words` is the state as a text.
        """
        self._actions, self._status = actions, status
        async with self.place.notifier.reporting(in_words):
            return await self._run(start, stop, status)

    async def _run(
        self,
        start: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], Coroutine[Any, Any, int]],
        status: StatusSource,
    ) -> int:
        app_signals.handle(self.stopping, self.halted)
        told: set[asyncio.Task[None]] = set()
        send = self._tell_others
        if (channel := self.place.channel) is not None:
            told.add(asyncio.create_task(self._obey(channel)))
            send = self._tell_supervisor
        told.add(asyncio.create_task(status.run(send, self._cut)))
        self._connected = asyncio.create_task(self._stay_connected())
        self.tasks.spawn(self.watch.run(self.stopping))
        starting = asyncio.create_task(start())
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting  # raises its error, if it has one
                await stopping
            self.place.notifier.stopping()
            return await stop()
        finally:
            self.stopping.set()
            self.halted.set()
            for each in (starting, stopping):
                each.cancel()
            await asyncio.wait((starting, stopping))
            await self.tasks.wait(TASKS_S_MAX)
            self._cut.set()
            await self._connected
            for task in told:
                task.cancel()
            if told:
                await asyncio.wait(told)

    async def _stay_connected(self) -> None:
        """Keep the connection. An unexpected error stops the role: it could not go on."""
        try:
            await self.connection.run(self._cut)
        except Exception:
            get_logger("broker").critical("task_died", task="connection", exc_info=True)
            self.tasks.broken = True
            self.stopping.set()

    async def flush(self) -> None:
        """Send what was said last to the broker, and end the connection. Nothing is counted after.

        Who runs alone tells the others its last status.
        """
        if self.place.channel is None and self._status is not None:
            self._tell_others(self._status.status(final=True))
        self._cut.set()
        if self._connected is not None:
            await self._connected

    def listening(self) -> None:
        """Tell the process manager that the ports listen: it need not wait for the broker."""
        self.place.notifier.ready()

    def ready(self) -> None:
        """Tell the supervisor that the role works."""
        if self.place.channel is not None:
            self.place.channel.send({"ready": True})

    def account(self, status: StatusSource, **sums: int) -> int:
        """Give the last account; return the exit code. `sums` has `lost`."""
        app_signals.ignore()  # before the message: its reader may send another signal
        if self.place.channel is not None:
            self.place.channel.send({"status": status.status(final=True)})
            self.place.channel.send({"drained": sums})
        if sums["lost"]:
            return EXIT_LOST
        return EXIT_BROKEN if self.tasks.broken else EXIT_OK

    def _tell_supervisor(self, status: dict[str, Any]) -> None:
        if self.place.channel is not None:
            self.place.channel.send({"status": status})

    def _tell_others(self, status: dict[str, Any]) -> None:
        self.connection.send(STATUS, status_message(self.place.instance, status))
        self.on_status(status)

    async def _obey(self, channel: ControlChannel) -> None:
        """Do what the supervisor says. Without it this process has no work."""
        while (message := await channel.receive()) is not None:
            do = str(message.get("do"))
            if do == "step_down":
                self.steps_down = True
                self.stopping.set()
            elif do == "drain":
                # A second word hastens the stop. One that steps down hears this for the first time.
                if self.drained.is_set():
                    self.halted.set()
                self.drained.set()
                self.stopping.set()
            elif do in self._actions:
                self._actions[do](message)
        self.stopping.set()
