"""One place of a process in `ingest up`, such as `gateway-1`: a child has it, then its successor.

Promises: a child that has ended, or sends no status any more, is replaced, and not more and more
often if it keeps ending. A successor has the same listening socket. It is ready before its
predecessor steps down, so at each moment somebody accepts, or the kernel keeps the queue.
Does not: know what a child does. Both roles are led by the same messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from ingest.app.child import Child
from ingest.model.errors import StartError
from ingest.system.clock import monotonic_s, sleep_unless
from ingest.system.control import Message
from ingest.system.logs import get_logger

TICK_S = 1.0
RESTART_S_MIN, RESTART_S_MAX = 0.1, 10.0
STEADY_S = 60.0  # after so long the next pause is the short one again
HURRY_S = 2.0  # after a second signal
KILL_S_MAX = 5.0  # after SIGKILL
LATE_S = 1.0  # if a tick comes so late, we were frozen ourselves: then no child is to blame


class SlotTimes(NamedTuple):
    """How long a child may take: to be ready, between two statuses, and to step down."""

    ready_s_max: float = 30.0
    silent_s_max: float = 10.0
    leave_s_max: float = 60.0


class Slot:
    """The place `instance`. `make` starts a child that waits for its configuration.

    `configuration` returns that, as it is now. `ended` is called with each child that has ended.
    """

    def __init__(
        self,
        instance: str,
        make: Callable[[Callable[[], None]], Awaitable[Child]],
        configuration: Callable[[], Message],
        ended: Callable[[Child], None],
        times: SlotTimes,
    ) -> None:
        self.instance = instance
        self.child: Child | None = None  # the one that is ready
        self.restarts = 0
        self._make = make
        self._configuration = configuration
        self._ended = ended
        self._times = times
        self._all: set[Child] = set()  # that run: it, its successor, its predecessors
        self._next: Child | None = None  # started, and not ready yet
        self._wanted: list[asyncio.Future[bool]] = []  # those who wait for a restart
        self._seeing_off: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()  # `run` does not run
        self._idle.set()
        self._log = get_logger("up")

    # Start

    async def prepare(self) -> None:
        """Start the first child, which waits for its configuration. Raises StartError."""
        try:
            self._next = await self._started()
        except OSError as error:
            raise StartError(f"cannot start {self.instance}: {error}") from error

    async def start(self) -> None:
        """Configure the first child, and wait until it is ready. Raises StartError."""
        child = self._next
        assert child is not None, "it is prepared"
        child.configure(self._configuration())
        in_time = await child.until(child.ready, self._stopping, within_s=self._times.ready_s_max)
        if not in_time:
            raise StartError(
                f"{self.instance} is not ready after {self._times.ready_s_max:g} s (pid "
                f"{child.pid}); its log lines may say why"
            )
        if child.ended.is_set() and not self._stopping.is_set():
            raise StartError(f"{self.instance} did not start: {_last_words(child)}")
        self.child, self._next = child, None

    async def _started(self) -> Child:
        child = await self._make(self._news.set)
        self._all.add(child)
        waiting = asyncio.create_task(self._forget(child))
        self._seeing_off.add(waiting)
        waiting.add_done_callback(self._seeing_off.discard)
        return child

    async def _forget(self, child: Child) -> None:
        await child.ended.wait()
        self._all.discard(child)
        self._ended(child)

    # While it runs

    async def run(self) -> None:
        """Keep a child in the slot until `drain` is called."""
        self._idle.clear()
        try:
            await self._run()
        finally:
            self._idle.set()

    async def _run(self) -> None:
        pause_s, since_s = RESTART_S_MIN, monotonic_s()
        while (trouble := await self._trouble()) is not None:
            if monotonic_s() - since_s > STEADY_S:
                pause_s = RESTART_S_MIN
            old = self.child
            if trouble == "ended":
                self._log.error(
                    "child_ended",
                    instance=self.instance,
                    why=_last_words(old) if old else "it did not start",
                    restart_in_s=round(pause_s, 1),
                )
            elif trouble == "frozen" and old is not None:
                self._log.error("child_frozen", instance=self.instance, pid=old.pid)
            if trouble != "wanted" and await sleep_unless(self._stopping, pause_s):
                return
            wanted, self._wanted = self._wanted, []
            done = await self._replace()
            if not wanted or not done:
                pause_s = min(2 * pause_s, RESTART_S_MAX)
            since_s = monotonic_s()
            for each in wanted:
                if not each.done():
                    each.set_result(done)

    async def _trouble(self) -> str | None:
        """Wait until the slot needs another child; return why, or None at the stop."""
        while not self._stopping.is_set():
            child = self.child
            if child is None or child.ended.is_set():
                return "ended"
            if self._wanted:
                return "wanted"
            if self._is_silent(child):
                return "frozen"
            self._news.clear()
            before_s = monotonic_s()
            await sleep_unless(self._news, TICK_S)
            late_s = monotonic_s() - before_s - TICK_S
            if late_s > LATE_S:
                child.heard_s += late_s
        return None

    def _is_silent(self, child: Child) -> bool:
        return monotonic_s() - child.heard_s > self._times.silent_s_max

    async def restart(self) -> bool:
        """Replace the child; return whether its successor is ready and it has ended."""
        if self._stopping.is_set():
            return False
        wanted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._wanted.append(wanted)
        self._news.set()
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((wanted, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if not wanted.done() or not wanted.result():
            return False
        while len(self._all) > 1 and not self._stopping.is_set():
            await sleep_unless(self._stopping, 0.01)
        return True

    async def _replace(self) -> bool:
        """Put a successor into the slot; return False if none is ready in time."""
        old = self.child
        new = await self._successor()
        if new is None:
            if old is not None and self._is_silent(old):
                old.kill()  # perhaps it has what its successor needs
            return False
        self.child = new
        self.restarts += 1
        self._log.info("child_replaced", instance=self.instance, pid=new.pid)
        if old is not None and not old.ended.is_set():
            # A frozen one that has come back meanwhile steps down as any other.
            if self._is_silent(old):
                old.kill()
            else:
                old.step_down()
                self._see_off(old)
        return True

    async def _successor(self) -> Child | None:
        """Return a child that is ready; None if it ended, took too long, or we stop."""
        try:
            child = self._next = await self._started()
        except OSError as error:
            self._log.error("child_not_started", instance=self.instance, why=str(error))
            return None
        child.configure(self._configuration())
        in_time = await child.until(child.ready, self._stopping, within_s=self._times.ready_s_max)
        if self._stopping.is_set():
            return None  # `drain` ends it
        self._next = None
        if in_time and child.ready.is_set() and not child.ended.is_set():
            return child
        why = _last_words(child) if in_time else f"no answer in {self._times.ready_s_max:g} s"
        self._log.error("child_not_ready", instance=self.instance, pid=child.pid, why=why)
        child.kill()
        return None

    def _see_off(self, child: Child) -> None:
        task = asyncio.create_task(self._kill_late(child))
        self._seeing_off.add(task)
        task.add_done_callback(self._seeing_off.discard)

    async def _kill_late(self, child: Child) -> None:
        if not await child.end(self._times.leave_s_max):
            self._log.warning("child_killed", instance=self.instance, pid=child.pid)

    # Stop

    async def drain(self, within_s: float, halted: asyncio.Event) -> None:
        """Let all its children finish and end; kill them after the time.

        If `halted` they are told again, which shortens their end, and are killed soon.
        """
        self._stopping.set()
        self._news.set()
        await self._idle.wait()  # it starts no child any more
        children = list(self._all)
        for each in children:
            each.drain()
        deadline_s = monotonic_s() + within_s
        for each in children:
            await each.until(halted, within_s=max(0.0, deadline_s - monotonic_s()))
            if halted.is_set():
                each.drain()
                await each.until(within_s=HURRY_S)
            if not each.ended.is_set():
                self._log.warning("child_killed", instance=self.instance, pid=each.pid)
                each.kill()
        await self.close()

    async def close(self) -> None:
        """Kill what is left, and wait for its end. Repeatable."""
        self._stopping.set()
        self._news.set()
        await self._idle.wait()
        for each in list(self._all):
            each.kill()
        if self._seeing_off:
            await asyncio.wait(self._seeing_off, timeout=KILL_S_MAX)

    def tell(self, message: Message) -> None:
        """Send a message to the child that is ready."""
        if self.child is not None:
            self.child.tell(message)


def _last_words(child: Child) -> str:
    if child.words:
        return child.words
    code = child.code or 0
    return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
