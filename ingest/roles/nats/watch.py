"""Watches the stream for a role: whether it is as it must be, and whether the broker is there.

    every 1 s  the stream and its consumer: settings, copies, how far they are, what was removed
    every 8 s, and at each connect
               the monitor ports: whether each server syncs to its disk, and is well

Promises: a difference is in `faults` within 10 s, and gone from there when it is corrected. Nothing
of the stream is changed. But if the stream gives places again, the writers get all its messages
again, since their consumer may have passed these places. That is tried until it succeeds. Several
roles may do this: a reading that is written twice is stored once.
A client cannot see whether a server syncs, and by default it does so every two minutes: a power cut
then loses all messages since. So the monitor ports are asked, with http.client, which ignores the
proxies of the environment.
Does not: take the role out of service. The role reads the attributes, and decides.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ingest.model.errors import BrokerAway, BrokerRefused
from ingest.roles.nats import streams
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.stream_state import (
    PublishedPlaces,
    RemovalCheck,
    StreamState,
    mark_of,
    state_of,
)
from ingest.roles.nats.streams import StreamFault, WantedStream
from ingest.system import clock
from ingest.system.logs import get_logger
from ingest.system.state_folder import MarkFile, StreamMark
from ingest.system.waiting import first_of, unless

EVERY_S = 1.0  # the mark is so old at most
MONITOR_S = 8.0
AGAIN_S = 1.0  # after a look without an answer, or one that has found something
UNANSWERED_S = 2.0
GIVE_AGAIN_S = 10.0  # after a try that has failed
ANSWER_S_MAX = 3.0
ANSWER_BYTES_MAX = 8 * 1024**2
VERSION_MIN = (2, 15, 1)  # the first one that syncs a block which a purge has rewritten (#8629)
_OF_THE_DISK = ("write error", "no space left", "read-only file system", "input/output error")
NOT_KNOWN = StreamFault(
    "the server",
    "whether it syncs each message to the disk is not known: set broker_monitor_url, or "
    "broker_unsafe if you are sure",
)

SILENT = "its monitor port does not answer"

_log = get_logger("broker")


class ServerLook(NamedTuple):
    """What the monitor port of one server says."""

    where: str
    silent: str = ""  # why it does not answer
    unsafe: str | None = None  # why a power cut loses messages; "" if none does; None: not known
    illness: str = ""  # what it says of its health, if that is not good
    disk: str = ""  # the same, if it is its disk that has failed

    def after(self, before: ServerLook | None) -> ServerLook:
        """Return this look; if the server is silent, how it syncs is known from before."""
        if before is None or self.unsafe is not None:
            return self
        return self._replace(unsafe=before.unsafe)

    def faults(self) -> Iterator[StreamFault]:
        """Yield why messages may not be on the disk when they are acknowledged."""
        if self.unsafe:
            yield StreamFault(self.where, self.unsafe)

    def degraded(self) -> Iterator[StreamFault]:
        """Yield what else is wrong."""
        if self.silent:
            yield StreamFault(self.where, f"{SILENT}: {self.silent}")
        if self.disk:
            yield StreamFault(self.where, f"{self.disk}: free some space, and restart nats-server")
        elif self.illness:
            yield StreamFault(self.where, f"it is not well: {self.illness}")


def monitor_faults(urls: tuple[str, ...]) -> list[StreamFault]:
    """Return why messages may not be on the disk when they are acknowledged."""
    looks = [look_at(each) for each in urls]
    silent = [fault for each in looks if each.silent for fault in each.degraded()]
    unsafe = [fault for each in looks for fault in each.faults()]
    return [*silent, *unsafe] if urls else [NOT_KNOWN]


def look_at(url: str) -> ServerLook:
    """Ask one server how it syncs, and how it is. Blocks."""
    # Without the path: that of an embedded server is a secret.
    where = f"the server with the monitor port {urlsplit(url).netloc}"
    try:
        unsafe, illness = _unsafe(url), _illness(url)
    except (OSError, HTTPException, ValueError) as error:
        return ServerLook(where, silent=str(error) or type(error).__name__)
    disk = illness if any(each in illness for each in _OF_THE_DISK) else ""
    return ServerLook(where, unsafe=unsafe, illness=illness, disk=disk)


def _unsafe(url: str) -> str:
    said = ask(url, "/varz")
    config = (said.get("jetstream") or {}).get("config") or {}
    if not config:
        return "JetStream is off"
    if config.get("sync_always") is not True:
        return (
            "it does not sync each message to the disk (sync_interval: always in its block "
            "jetstream), so a power cut loses acknowledged readings"
        )
    version = str(said.get("version"))
    if (*map(int, re.findall(r"\d+", version)[:3]),) < VERSION_MIN:
        return (
            f"it is nats-server {version}, which does not sync what a purge rewrites, so a power "
            f"cut loses acknowledged readings: install {'.'.join(map(str, VERSION_MIN))} or later"
        )
    return ""


def _illness(url: str) -> str:
    said = ask(url, "/healthz", also=(500, 503))
    if said.get("status") == "ok":
        return ""
    return str(said.get("error") or said.get("status"))


def ask(url: str, path: str, *, also: tuple[int, ...] = ()) -> dict[str, Any]:
    """Return the JSON of one page. Raises OSError, HTTPException, and ValueError.

    A status other than 200 is an OSError, unless it is one of `also`.
    """
    status, text = _get(url, path, ANSWER_S_MAX)
    if status not in {200, *also}:
        raise OSError(f"status {status}")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def is_answering(url: str, within_s: float) -> bool:
    """Whether the process answers at all, whatever it says; a frozen one does not."""
    try:
        _get(url, "/", within_s)
    except (OSError, HTTPException):
        return False
    return True


def _get(url: str, path: str, within_s: float) -> tuple[int, bytes]:
    """Return the status and the body of one page. Raises OSError, and HTTPException."""
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=within_s)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        response = connection.getresponse()
        return response.status, response.read(ANSWER_BYTES_MAX)
    finally:
        connection.close()


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
        self._stream_due.set()
        self._servers_due.set()

    def _went(self) -> None:
        if self.away_since_s is None:
            self.away_since_s = clock.monotonic_s()

    async def look(self) -> bool:
        """Look at the stream, and note what it must have; return whether all is well."""
        began_s = clock.monotonic_s()
        published = self._published()  # before the look: the stream has these
        try:
            found = await streams.look(self._connection, self._wanted.names)
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
        self._stream_faults = streams.altered(found, self._wanted)
        self._stream_degraded = streams.degraded(found, self._wanted)
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
            await streams.give_again(self._connection, self.state.first)
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
        looks = await asyncio.gather(*(asyncio.to_thread(look_at, each) for each in urls))
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
