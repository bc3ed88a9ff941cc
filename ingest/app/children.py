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
from typing import Any, NamedTuple

from ingest.app.child import Child
from ingest.model.errors import StartError
from ingest.system.backoff import Backoff
from ingest.system.clock import monotonic_s, sleep_unless
from ingest.system.control import Message
from ingest.system.logs import get_logger

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


class Told(NamedTuple):
    """Who is told of the processes: what one says of itself, and that one has ended, by its pid."""

    status: Callable[[str, Mapping[str, Any]], None]
    gone: Callable[[str, int], None]


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Do all of it side by side. The first error ends the others, and is raised."""
    tasks = [asyncio.create_task(each) for each in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for each in done:
            each.result()
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Slot:
    """The place `instance`, such as `gateway-1`. `child` is its process, also one that has ended.

    `make` starts a child that waits for its configuration, which `configuration` returns, as it is
    then. `make` gets what is to be called when the child is ready, or has ended.
    """

    def __init__(
        self,
        instance: str,
        make: Callable[[Callable[[], None]], Awaitable[Child]],
        configuration: Callable[[], Message],
        times: ChildTimes,
    ) -> None:
        self.instance = instance
        self.child: Child | None = None
        self._make = make
        self._configuration = configuration
        self._times = times
        self._wanted: asyncio.Future[bool] | None = None  # of who waits for a restart
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()  # `run` does not run
        self._idle.set()
        self._log = get_logger("up")

    async def prepare(self) -> None:
        """Start the first child, which waits for its configuration. Raises StartError."""
        try:
            self.child = await self._make(self._news.set)
        except OSError as error:
            raise StartError(f"cannot start {self.instance}: {error}") from error

    async def start(self) -> None:
        """Configure the first child, and wait until it is ready. Raises StartError."""
        child = self.child
        assert child is not None, "it is prepared"
        if (why := await self._not_ready(child)) and not self._stopping.is_set():
            child.kill()  # it may be frozen, and nobody waits for its account
            raise StartError(f"{self.instance} {why}")

    async def _not_ready(self, child: Child) -> str:
        """Configure a child; return why it is not ready, "" if it is."""
        child.configure(self._configuration())
        within_s = self._times.ready_s_max
        if not await child.until(child.ready, self._stopping, within_s=within_s):
            return f"is not ready after {within_s:g} s (pid {child.pid}); its log lines may say why"
        return f"did not start: {child.last_words}" if child.ended.is_set() else ""

    async def run(self) -> None:
        """Keep a child in the slot until `drain` is called."""
        self._idle.clear()
        try:
            await self._run()
        finally:
            self._idle.set()

    async def _run(self) -> None:
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
            before_s = monotonic_s()
            await sleep_unless(self._news, TICK_S)
            late_s = monotonic_s() - before_s - TICK_S
            if late_s > LATE_S:
                child.heard_s += late_s
        return False

    async def _leave(self) -> None:
        """End the child: it finishes what it has. A kept connection ends with its next answer.

        A frozen one is killed.
        """
        child = self.child
        if child is None:
            return
        child.tell({"do": "step_down"})
        ends_s = monotonic_s() + self._times.leave_s_max
        while not await child.until(self._stopping, within_s=TICK_S):
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
        why = await self._not_ready(child)
        if self._stopping.is_set():
            return False  # `drain` ends it
        if why:
            self._log.error("child_not_ready", instance=self.instance, pid=child.pid, why=why)
            child.kill()
            await child.until(self._stopping, within_s=KILL_S_MAX)
            return False
        self._log.info("child_replaced", instance=self.instance, pid=child.pid)
        return True

    async def restart(self) -> bool:
        """End the child, and start the next one; return whether that one is ready."""
        if self._stopping.is_set():
            return False
        wanted = self._wanted = asyncio.get_running_loop().create_future()
        self._news.set()
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((wanted, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        return wanted.done() and bool(wanted.result())

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
        await self._idle.wait()

    def _kill(self, child: Child) -> None:
        self._log.warning("child_killed", instance=self.instance, pid=child.pid)
        child.kill()


class Children:
    """The slots of all gateways and writers.

    `configuration(role, instance, listen_fd)` is what a new child gets. `family_fd` is inherited by
    each of them. `lost` is what they have told as lost. `unclean` counts those that ended without
    a last account.
    """

    def __init__(
        self,
        configuration: Callable[[str, str, int | None], Message],
        told: Told,
        *,
        program: Sequence[str],
        family_fd: int,
        times: ChildTimes,
    ) -> None:
        self._configuration = configuration
        self._told = told
        self._program = program
        self._family_fd = family_fd
        self._times = times
        self.gateways: list[Slot] = []
        self.writers: list[Slot] = []
        self.lost = self.unclean = 0
        self._draining = False
        self._log = get_logger("up")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All of them, in the order of a restart."""
        return (*self.gateways, *self.writers)

    def add_gateway(self, listen_fd: int) -> None:
        """Add a slot whose children accept at this socket."""
        self.gateways.append(self._slot(GATEWAY, len(self.gateways) + 1, listen_fd))

    def add_writer(self) -> None:
        """Add a slot of a writer."""
        self.writers.append(self._slot(WRITER, len(self.writers) + 1, None))

    def _slot(self, role: str, number: int, listen_fd: int | None) -> Slot:
        instance = f"{role}-{number}"
        fds = [self._family_fd, *([] if listen_fd is None else [listen_fd])]

        def on_status(blob: Mapping[str, Any]) -> None:
            self._told.status(instance, blob)

        async def make(on_news: Callable[[], None]) -> Child:
            def ended(child: Child) -> None:
                self._count(instance, child)
                self._told.gone(instance, child.pid)
                on_news()

            return await Child.start([role], fds, on_status, on_news, ended, program=self._program)

        def configuration() -> Message:
            return self._configuration(role, instance, listen_fd)

        return Slot(instance, make, configuration, self._times)

    async def start(self, slots: Sequence[Slot], *needed: asyncio.Event) -> None:
        """Start a child in each slot; they begin when what they need is there.

        Raises StartError if one of them does not become ready.
        """
        for each in slots:
            await each.prepare()
        for event in needed:
            await event.wait()
        await together(*(each.start() for each in slots))

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
        await asyncio.gather(*(each.drain(within_s, halted) for each in self.gateways))
        await stored()
        await asyncio.gather(*(each.drain(within_s, halted) for each in self.writers))
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
