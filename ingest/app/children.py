"""All processes of `ingest up`: their slots, their restart, their last accounts.

Promises: a restart never has two slots without a ready child at the same time. If a successor does
not become ready, the rest keeps its processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

from ingest.app.child import Child
from ingest.app.slot import Slot, SlotTimes
from ingest.system.control import Message
from ingest.system.logs import get_logger

ACCOUNTS = ("committed", "dead_lettered", "held", "lost")  # of the last line
GATEWAY, WRITER = "gateway", "writer"


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


class Children:
    """The slots of all gateways and writers.

    `configuration(role, instance, listen_fd)` is what a new child gets. `family_fd` is inherited by
    each of them. `unclean` counts those that ended without a last account.
    """

    def __init__(
        self,
        configuration: Callable[[str, str, int | None], Message],
        told: Told,
        *,
        program: Sequence[str],
        family_fd: int,
        times: SlotTimes,
    ) -> None:
        self._configuration = configuration
        self._told = told
        self._program = program
        self._family_fd = family_fd
        self._times = times
        self.gateways: list[Slot] = []
        self.writers: list[Slot] = []
        self.sums = dict.fromkeys(ACCOUNTS, 0)
        self.unclean = 0
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
            return await Child.start([role], fds, on_status, on_news, program=self._program)

        def configuration() -> Message:
            return self._configuration(role, instance, listen_fd)

        def ended(child: Child) -> None:
            self._count(instance, child)
            self._told.gone(instance, child.pid)

        return Slot(instance, make, configuration, ended, self._times)

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
            if each.instance == instance:
                each.tell(message)

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
        """Add the account of a child that has ended, or that of its last status."""
        account = child.drained
        if account is None:
            self.unclean += child.is_configured
            # About right: what it did after its last status is not known.
            account = {"committed": child.last.committed, "dead_lettered": child.last.dead_lettered}
            if self._draining:  # it did not come to its end: what it had promised is gone
                account["lost"] = child.last.promised
        for each in ACCOUNTS:
            count = account.get(each, 0)
            self.sums[each] += count if isinstance(count, int) else 0
        if account.get("lost"):
            self._log.critical("child_lost", instance=instance, readings=account["lost"])
