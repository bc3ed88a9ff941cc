"""Watches the stream for a role: whether it is as it must be, and whether the broker is there.

    every 1 s  the stream and its consumer: settings, copies, how far they are, what was removed
    every 8 s  the monitor ports: whether each server syncs to its disk, and is well

Promises: a difference is in `faults` within 10 s, and gone from there when it is corrected. Nothing
of the stream is changed. But if the stream gives places again, the writers get all its messages
again, since their consumer may have passed these places. That is tried until it succeeds. Several
roles may do this: a reading that is written twice is stored once.
Does not: take the role out of service. The role reads the attributes, and decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ingest.broker import manage, monitor
from ingest.broker.connection import BrokerConnection
from ingest.broker.manage import StreamFault
from ingest.broker.monitor import NOT_KNOWN, ServerLook
from ingest.broker.removals import PublishedPlaces, RemovalCheck, mark_of
from ingest.broker.stream_state import StreamState, state_of
from ingest.broker.streams import WantedStream
from ingest.model.errors import BrokerAway, BrokerRefused
from ingest.system import clock
from ingest.system.logs import get_logger
from ingest.system.stream_mark import MarkFile, StreamMark
from ingest.system.waiting import first_of, unless

EVERY_S = 1.0  # the mark is so old at most
MONITOR_S = 8.0
AGAIN_S = 1.0  # after a look without an answer, or one that has found something
UNANSWERED_S = 2.0
GIVE_AGAIN_S = 10.0  # after a try that has failed

_log = get_logger("broker")


class StreamWatch:
    """`monitors` are asked for before each look: an embedded server can change its port.

    `unsafe`: how the servers sync does not matter. A role that publishes says how long its oldest
    message has had no answer, and the places of its messages. The first look is compared with the
    `mark` that was noted before, and what was `published` is noted.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        wanted: WantedStream,
        *,
        monitors: Callable[[], tuple[str, ...]],
        unsafe: bool,
        unanswered_s: Callable[[], float] | None = None,
        published: Callable[[], PublishedPlaces] = PublishedPlaces,
        mark: MarkFile,
    ) -> None:
        self.checked = False  # the stream and the servers were looked at, at least once
        self.faults: tuple[StreamFault, ...] = ()  # the promise cannot be kept: take no posts
        self.degraded: tuple[StreamFault, ...] = ()  # it can; an operator should see to it
        self.state: StreamState | None = None  # as last seen
        self.looked_s = 0.0  # when that was
        self.removed = 0  # messages that somebody removed before they were done, so far
        self._connection = connection
        self._wanted = wanted
        self._monitors = monitors
        self._unsafe = unsafe
        self._unanswered_s = unanswered_s
        self._published = published
        self._mark = mark
        self._noted = mark.read()
        self._removals = RemovalCheck(self._noted)
        self._stream_faults: list[StreamFault] | None = None  # None: not looked yet
        self._stream_degraded: list[StreamFault] = []
        self._servers: dict[str, ServerLook] | None = None  # the last answer of each monitor port
        self._reconnected = False
        self._give_again_s: float | None = None  # when that is due
        # When (on the monotonic clock) the broker stopped answering; None if it answers.
        self.away_since_s: float | None = clock.monotonic_s()
        self._stream_due = asyncio.Event()
        self._servers_due = asyncio.Event()
        connection.watch(self._came, self._went)

    @property
    def disk_failed(self) -> str:
        """What a server says of its disk, if nothing can be published because of it."""
        said = {each.disk for each in (self._servers or {}).values()}
        if self._unanswered_s is None:
            return min(said) if said and all(said) else ""
        return max(said, default="") if self._unanswered_s() >= UNANSWERED_S else ""

    async def run(self, stopping: asyncio.Event) -> None:
        """Look again and again until the event is set."""
        stream = self._watch(stopping, self.look, EVERY_S, self._stream_due)
        # A silent server must not delay the other looks.
        servers = self._watch(stopping, self._look_at_servers, MONITOR_S, self._servers_due)
        await asyncio.gather(stream, servers)

    def look_soon(self) -> None:
        """Look at once, because something is strange."""
        self._stream_due.set()
        self._servers_due.set()

    async def _watch(
        self,
        stopping: asyncio.Event,
        look: Callable[[], Coroutine[Any, Any, bool]],
        every_s: float,
        due: asyncio.Event,
    ) -> None:
        while not stopping.is_set():
            due.clear()
            is_well = self._connection.up and await unless(stopping, look())
            await first_of(stopping.wait(), due.wait(), within_s=every_s if is_well else AGAIN_S)

    def _came(self) -> None:
        self._reconnected = True
        self.look_soon()

    def _went(self) -> None:
        if self.away_since_s is None:
            self.away_since_s = clock.monotonic_s()

    async def look(self) -> bool:
        """Look at the stream, and note what it must have; return whether all is well."""
        began_s = clock.monotonic_s()
        published = self._published()  # before the look: the stream has these
        try:
            found = await manage.look(self._connection, self._wanted.names)
        except BrokerAway:
            if self.away_since_s is None:
                self.away_since_s = began_s
            return False
        except BrokerRefused as error:
            self._stream_faults = [StreamFault("the stream", str(error))]
            self._judge()
            return False
        self.away_since_s = None
        self.state, self.looked_s = state_of(found), began_s
        # Whether a place was given again is known by answers that came before this one.
        await self._see_removals(self._published()._replace(to=published.to))
        # What is wrong with the consumer of a forwarder is no reason to take no posts.
        self._stream_faults = manage.altered(found, self._wanted._replace(forwards=()))
        others = [
            each for each in manage.altered(found, self._wanted) if each not in self._stream_faults
        ]
        self._stream_degraded = [*others, *manage.degraded(found, self._wanted)]
        self._judge()
        return not self._stream_faults and not self._removals.suspects

    async def _see_removals(self, published: PublishedPlaces) -> None:
        """Tell what was removed, and note what the stream must have from now on."""
        reconnected, self._reconnected = self._reconnected, False
        found = self._removals.see(self.state, published, reconnected=reconnected)
        if found is not None and found.ends_early:
            self._give_again_s = clock.monotonic_s()
        await self._give_again()  # before it is noted: a kill must not end it
        if self._removals.suspects:
            self._reconnected = reconnected  # for the second look
        elif found is not None:
            self.removed += found.messages
            _log.critical("stream_messages_removed", what=found.what, not_done=found.messages)
            # Of a stream that is gone nothing is noted: that was told.
            await self._note(mark_of(self.state) if self.state else StreamMark(), anew=True)
        elif published.to and self.state is not None:
            # The stream may be another one than that of the last message.
            acknowledged_to = min(published.to, self.state.last)
            await self._note(mark_of(self.state)._replace(acknowledged_to=acknowledged_to))

    async def _give_again(self) -> None:
        """Let the writers get all messages again, if that is due."""
        due_s = self._give_again_s
        if self.state is None or due_s is None or clock.monotonic_s() < due_s:
            return
        try:
            await manage.give_again(self._connection, self.state.first)
        except (BrokerAway, BrokerRefused) as error:
            self._give_again_s = clock.monotonic_s() + GIVE_AGAIN_S
            _log.error("stream_not_given_again", why=str(error))
        else:
            self._give_again_s = None

    async def _note(self, mark: StreamMark, *, anew: bool = False) -> None:
        # How far the stream was purged is known to whoever does it.
        mark = mark._replace(purged_to=-1)
        if anew or mark != self._noted:
            self._noted = mark
            await self._mark.note(mark, anew=anew)

    async def _look_at_servers(self) -> bool:
        """Ask all monitor ports at once; return whether all is well."""
        urls = self._monitors()
        looks = await asyncio.gather(*(asyncio.to_thread(monitor.look_at, each) for each in urls))
        before = self._servers or {}
        # What a silent one has said before is still known.
        self._servers = {
            url: look.after(before.get(url)) for url, look in zip(urls, looks, strict=True)
        }
        self._judge()
        return not any(each.unsafe or each.silent for each in looks)

    def _judge(self) -> None:
        """Put together what the looks have found, once there was one of each kind."""
        if self._stream_faults is None or self._servers is None:
            return
        servers = self._servers.values()
        faults, degraded = list(self._stream_faults), list(self._stream_degraded)
        for each in servers:
            faults += () if self._unsafe else each.faults()
            degraded += each.degraded()
        # Of several servers one may be silent from the start, if another one has answered.
        if not self._unsafe and all(each.unsafe is None for each in servers):
            faults.append(NOT_KNOWN)
        self._set_faults(faults, degraded)
        self.checked = not self._removals.suspects or self.checked

    def _set_faults(self, faults: list[StreamFault], degraded: list[StreamFault]) -> None:
        if tuple(faults) != self.faults:
            if faults:
                _log.error("stream_altered", faults=[str(each) for each in faults])
            else:
                _log.info("stream_fits_again")
        if tuple(degraded) != self.degraded and degraded:
            _log.warning("stream_degraded", faults=[str(each) for each in degraded])
        self.faults, self.degraded = tuple(faults), tuple(degraded)
