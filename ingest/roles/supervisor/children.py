"""All processes of `ingest up`: each has a slot, which keeps a process in it; restart and stop.

Promises: a process that has ended, or sends no status any more, is replaced, and not more and more
often if it keeps ending. A slot has one process at a time. A gateway's listening socket is that of
the slot: while no process has it, connections wait in the kernel. A restart ends one process after
the other; if the next one does not get ready, the rest keeps its processes.
Does not: know what a process does. Both roles are led by the same messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ingest.model.errors import StartError
from ingest.roles.supervisor.child import Child, Message
from ingest.system.clock import monotonic_s, sleep_unless
from ingest.system.logs import get_logger
from ingest.system.waiting import Backoff, together, unless

GATEWAY, WRITER = "gateway", "writer"
TICK_S = 1.0
RESTART_S_MIN, RESTART_S_MAX = 0.1, 10.0
HURRY_S = 2.0  # after a second signal
KILL_S_MAX = 5.0  # after SIGKILL
LATE_S = 1.0  # if a tick comes so late, we were frozen ourselves: then no child is to blame


class ChildTimes(NamedTuple):
    """How long a child may take: to be ready, between two statuses, and to end at a restart."""

    ready_s_max: float = 30.0
    silent_s_max: float = 10.0
    leave_s_max: float = 60.0


class Slot:
    """The place `instance` of a role, such as `gateway-1`.

    `child` is its process, also one that has ended.
    `make` starts a child that waits for its configuration, which `configuration` returns, as it is
    then. `make` gets what is to be called when the child is ready, or has ended.
    """

    def __init__(
        self,
        role: str,
        instance: str,
        make: Callable[[Callable[[], None]], Awaitable[Child]],
        configuration: Callable[[], Message],
        *,
        times: ChildTimes,
    ) -> None:
        self.role, self.instance = role, instance
        self.child: Child | None = None
        self._make = make
        self._configuration = configuration
        self._times = times
        self._wanted: asyncio.Future[bool] | None = None  # of who waits for a restart
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        self.running: asyncio.Task[None] | None = None  # of `run`
        self._log = get_logger("up")

    async def prepare(self) -> None:
        """Start the first child, which waits for its configuration. Raises StartError."""
        try:
            self.child = await self._make(self._news.set)
        except OSError as error:
            raise StartError(f"cannot start {self.instance}: {error}") from error

    async def start(self) -> None:
        """Configure the child, and wait until it is ready, or `drain` is called.

        Raises StartError if it does not get ready; then it is killed.
        """
        child = self.child
        assert child is not None, "it is prepared"
        child.configure(self._configuration())
        within_s = self._times.ready_s_max
        if not await child.until(child.ready, self._stopping, within_s=within_s):
            why = f"is not ready after {within_s:g} s (pid {child.pid}); its log lines may say why"
        elif child.ended.is_set() and not self._stopping.is_set():
            why = f"did not start: {child.last_words}"
        else:
            return
        child.kill()  # it may be frozen, and nobody waits for its account
        raise StartError(f"{self.instance} {why}")

    async def run(self) -> None:
        """Keep a child in the slot until `drain` is called."""
        backoff = Backoff(RESTART_S_MIN, RESTART_S_MAX)
        while await self._needs_another():
            wanted, self._wanted = self._wanted, None
            if wanted is not None:
                await self._leave()
            else:
                pause_s = backoff.next_s()
                why = self.child.last_words if self.child is not None else "it did not start"
                self._log.error(
                    "child_ended", instance=self.instance, why=why, restart_in_s=round(pause_s, 1)
                )
                if await sleep_unless(self._stopping, pause_s):
                    return
            is_ready = not self._stopping.is_set() and await self._replace()
            if wanted is not None and not wanted.done():
                wanted.set_result(is_ready)

    async def _needs_another(self) -> bool:
        """Wait until the slot needs another child, which it has not; False: at the stop.

        A frozen child is killed.
        """
        while not self._stopping.is_set():
            child = self.child
            if child is None or child.ended.is_set() or self._wanted is not None:
                return True
            if monotonic_s() - child.heard_s > self._times.silent_s_max:
                self._log.error("child_frozen", instance=self.instance, pid=child.pid)
                child.kill()
                await child.until(self._stopping, within_s=KILL_S_MAX)
                continue
            self._news.clear()
            await self._tick(child, self._news)
        return False

    async def _tick(self, child: Child, event: asyncio.Event) -> bool:
        """Wait TICK_S; return True if the child has ended or the event has come before.

        If this process itself was frozen, the child could not be heard.
        """
        before_s = monotonic_s()
        came = await child.until(event, within_s=TICK_S)
        late_s = monotonic_s() - before_s - TICK_S
        if late_s > LATE_S:
            child.heard_s += late_s
        return came

    async def _leave(self) -> None:
        """End the child: it finishes what it has. A kept connection ends with its next answer.

        A frozen one is killed.
        """
        child = self.child
        if child is None:
            return
        child.tell({"do": "step_down"})
        ends_s = monotonic_s() + self._times.leave_s_max
        while not await self._tick(child, self._stopping):
            if monotonic_s() > min(ends_s, child.heard_s + self._times.silent_s_max):
                self._kill(child)
                await child.ended.wait()

    async def _replace(self) -> bool:
        """Start a child; return whether it is ready in time."""
        try:
            child = self.child = await self._make(self._news.set)
        except OSError as error:
            self._log.error("child_not_started", instance=self.instance, why=str(error))
            return False
        try:
            await self.start()
        except StartError as error:
            self._log.error(
                "child_not_ready", instance=self.instance, pid=child.pid, why=str(error)
            )
            await child.until(self._stopping, within_s=KILL_S_MAX)
            return False
        if not self._stopping.is_set():  # else `drain` ends it
            self._log.info("child_replaced", instance=self.instance, pid=child.pid)
        return not self._stopping.is_set()

    async def restart(self) -> bool:
        """End the child, and start the next one; return whether that one is ready."""
        if self._stopping.is_set():
            return False
        wanted = self._wanted = asyncio.get_running_loop().create_future()
        self._news.set()
        return bool(await unless(self._stopping, wanted))

    async def drain(self, within_s: float, halted: asyncio.Event) -> None:
        """Let the child finish and end; kill it after the time.

        If `halted` it is told again, which shortens its end, and it is killed soon.
        """
        await self._end_run()
        child = self.child
        if child is not None:
            child.drain()
            await child.until(halted, within_s=within_s)
            if halted.is_set():
                child.drain()
                await child.until(within_s=HURRY_S)
            if not child.ended.is_set():
                self._kill(child)
        await self.close()

    async def close(self) -> None:
        """Kill what is left, and wait for its end. Repeatable."""
        await self._end_run()
        if self.child is not None:
            self.child.kill()
            await self.child.until(within_s=KILL_S_MAX)

    async def _end_run(self) -> None:
        """Start no child any more."""
        self._stopping.set()
        self._news.set()
        if self.running is not None:
            await asyncio.wait([self.running])

    def _kill(self, child: Child) -> None:
        self._log.warning("child_killed", instance=self.instance, pid=child.pid)
        child.kill()


class Children:
    """The slots of all gateways and writers.

    `configuration(role, instance, listen_fd)` is what a new child gets. `on_status` gets what one
    says of itself, `on_gone` the process id of one that has ended, both with its instance.
    `slots` are in the order of a restart. `lost` is what
    the children have told as lost. `unclean` counts those that ended without a last account.
    """

    def __init__(
        self,
        configuration: Callable[[str, str, int | None], Message],
        on_status: Callable[[str, Mapping[str, Any]], None],
        on_gone: Callable[[str, int], None],
        *,
        program: Sequence[str],
        times: ChildTimes,
    ) -> None:
        self._configuration = configuration
        self._on_status = on_status
        self._on_gone = on_gone
        self._program = program
        self._times = times
        self.slots: list[Slot] = []
        self.lost = self.unclean = 0
        self._draining = False
        self._log = get_logger("up")

    def of(self, role: str) -> list[Slot]:
        """Return the slots of a role."""
        return [each for each in self.slots if each.role == role]

    def add(self, role: str, family_fd: int, listen_fd: int | None = None) -> None:
        """Add a slot. Its children inherit `family_fd`; those of a gateway accept at a socket."""
        instance = f"{role}-{len(self.of(role)) + 1}"
        fds = [family_fd, *([] if listen_fd is None else [listen_fd])]

        async def make(on_news: Callable[[], None]) -> Child:
            def ended(child: Child) -> None:
                self._count(instance, child)
                self._on_gone(instance, child.pid)
                on_news()

            on_status = partial(self._on_status, instance)
            return await Child.start([role], fds, on_status, on_news, ended, program=self._program)

        configuration = partial(self._configuration, role, instance, listen_fd)
        self.slots.append(Slot(role, instance, make, configuration, times=self._times))

    async def start(self, role: str, needed: Awaitable[None]) -> None:
        """Start a child in each slot of a role; they begin when `needed` is done.

        Raises StartError if one of them does not become ready.
        """
        for each in self.of(role):
            await each.prepare()
        await needed
        await together(*(each.start() for each in self.of(role)))

    def keep(self, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        """Keep a child in each slot until `drain` or `close`, each in a task that `spawn` makes."""
        for each in self.slots:
            each.running = spawn(each.run())

    async def restart(self, stopping: asyncio.Event) -> bool:
        """Replace one child after the other, until one cannot be; return whether all were."""
        self._log.info("restart_begun")
        for each in self.slots:
            if not await each.restart():
                if not stopping.is_set():
                    self._log.error("restart_stopped", instance=each.instance)
                return False
        self._log.info("restart_done")
        return True

    def tell(self, instance: str, message: Message) -> None:
        """Send a message to the child that has this place."""
        for each in self.slots:
            if each.instance == instance and each.child is not None:
                each.child.tell(message)

    async def drain(
        self, within_s: float, halted: asyncio.Event, stored: Callable[[], Awaitable[None]]
    ) -> bool:
        """Let gateways end, wait for `stored`, let writers end.

        Return whether each has given its last account.
        """
        before, self._draining = self.unclean, True
        await asyncio.gather(*(each.drain(within_s, halted) for each in self.of(GATEWAY)))
        await stored()
        await asyncio.gather(*(each.drain(within_s, halted) for each in self.of(WRITER)))
        return self.unclean == before

    async def close(self) -> None:
        """Kill what is left. Repeatable."""
        await asyncio.gather(*(each.close() for each in self.slots))

    def _count(self, instance: str, child: Child) -> None:
        """Take the account of a child that has ended."""
        lost = child.lost
        if lost is None:
            self.unclean += child.is_configured
            # If all end, it did not come to its end: what it had promised is gone.
            lost = child.promised if self._draining else 0
        self.lost += lost
        if lost:
            self._log.critical("child_lost", instance=instance, readings=lost)
