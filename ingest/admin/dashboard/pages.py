"""The dashboard: its routes on the admin port, and the tick that updates it every second.

    /            the page (or the log-in)           /history, /feed      data of the curves
    /devices/..  devices, readings                  /dead-letters[/..]   list, replay, discard
    /runbook     the runbook, as a page

It reads the ledger, the dead-letter files, and samples that the tail has kept. The path never waits
for it. The guard decides who may see and act.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from socket import gethostname
from typing import Any

import orjson

from ingest import __version__
from ingest.admin.dashboard.assets import (
    CSRF_PLACE,
    NO_STORE,
    RUNBOOK,
    assets,
    html,
    page,
    runbook,
)
from ingest.admin.dashboard.devices import DevicePages, Devices
from ingest.admin.dashboard.history import COLUMNS, LEVELS, SECONDS_KEPT, Feed, History
from ingest.admin.dashboard.letters import ACT_LETTERS_MAX, LISTED_MAX, Letters
from ingest.admin.dashboard.query import CONDITIONS, device, number, parameters, wanted, where
from ingest.admin.dashboard.tail import Observed, TailSample
from ingest.admin.guard import KEY_PATH, Guard
from ingest.dead_letters.store import Selection
from ingest.http.bodies import Bodies
from ingest.http.request_and_answer import JSON, Answer, Request
from ingest.http.routes import POST, READ, Route
from ingest.model.errors import Refused
from ingest.model.ports import STATES
from ingest.sinks.postgres.lookup import Lookup
from ingest.system.clock import rfc3339_s, sleep_unless, unix_us
from ingest.system.logs import Occasionally, get_logger

LATE_S = 0.05  # a tick comes this long after the full second, so that it is never before it
FOLLOWED_SENT_MAX = 20
WRONG_TOKEN_S = 0.3  # makes guessing slow
LOG_IN_BYTES_MAX, LOG_IN_S_MAX = 1024, 2.0  # everybody may send one
GET = ("GET",)

Look = Callable[[Request, str], Awaitable[Answer]]
Action = Callable[[Selection, int], Awaitable[dict[str, Any]]]


class Dashboard:
    """The dashboard of one service. `close` ends all streams; it comes before the port's close.

    `settings` are those that the page shows, by name. `lookup` returns None until there is a
    database.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        observed: Observed,
        letters: Letters,
        guard: Guard,
        bodies: Bodies,
        *,
        lookup: Callable[[], Lookup | None],
    ) -> None:
        self._settings = settings
        self._observed = observed
        self._letters = letters
        self._guard = guard
        self._bodies = bodies
        self._log_in_bodies = Bodies(
            body_bytes_max=LOG_IN_BYTES_MAX,
            body_s_max=LOG_IN_S_MAX,
            all_bytes_max=100 * LOG_IN_BYTES_MAX,
        )
        self._started_us = unix_us()
        self.listen = ""  # the address of the data port, when it is known
        self.tail = observed.tail
        self.devices = Devices()
        self.history = History(observed.ledger, look=self._look_at)
        self._device_pages = DevicePages(self.devices, lookup)
        self.feed = Feed()
        self._sample = TailSample([], [], 0, [], False)
        self._log = get_logger("dashboard")
        self._occasionally = Occasionally(60.0)
        self._log_in = page("login")

    def _look_at(self) -> tuple[str, int]:
        """Return the state, and how bad it is: an index into LEVELS.

        Who starts or stops on purpose is in no trouble, unless something keeps it from that.
        """
        status, ready = self._observed.readyz()
        document = orjson.loads(ready)
        if document.get("refusing", status != 200):
            state = document["state"]
            planned = state in {"starting", "draining"} and document.get("cause", "") in {state, ""}
            return state, 3 if planned else 2
        gauges = self._observed.ledger.gauges
        away = gauges is not None and gauges.database_up() is False
        waiting = document["state"] != "accepting" or away or document.get("cause")
        return document["state"], int(bool(waiting))

    @property
    def pages(self) -> dict[str, Route]:
        """The routes, by path."""
        looks: dict[str, Look] = {
            "/history": self._history,
            "/feed": self._feed,
            "/devices": self._device_pages.report,
            "/devices/list": self._device_pages.listed,
            "/devices/newest": self._device_pages.newest,
            "/devices/readings": self._device_pages.readings,
            "/dead-letters": self._dead_letters,
            "/dead-letters/count": self._count,
            "/runbook.md": runbook,
        }
        return {
            "/": Route(READ, partial(self._front, page("index"))),
            "/runbook": Route(READ, partial(self._front, page("runbook"))),
            "/login": Route(("GET", "POST"), self._logged_in),
            KEY_PATH: Route(GET, self._by_key),
            **{path: Route(READ, asset.handle) for path, asset in assets().items()},
            **{path: Route(GET, partial(self._look, look)) for path, look in looks.items()},
            "/dead-letters/replay": Route(POST, partial(self._act, self._letters.replay)),
            "/dead-letters/discard": Route(POST, partial(self._act, self._letters.discard)),
        }

    # The tick

    async def run(
        self,
        stop: asyncio.Event,
        *,
        late_s: float = LATE_S,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Tick `late_s` after every full second until `stop` is set. A tick that fails is a gap.

        `before` is called before each tick.
        """
        while True:
            now_s = unix_us() / 1e6 - late_s
            if await sleep_unless(stop, 1.0 - now_s % 1.0):
                return
            try:
                before()
                await self.tick()
            except Exception:  # an error of the page must not stop the service
                left_out = self._occasionally.due("tick")
                if left_out is not None:
                    self._log.error("tick_failed", exc_info=True, similar_suppressed=left_out)

    async def tick(self) -> None:
        """Add a row to the history, take the sample of the tail, and send an event to the pages."""
        if not self.history.sample():
            return
        self._sample = self.tail.take()
        self.devices.rejected(self._sample.rejected)
        self.devices.rejected_sampled |= self._sample.rejected_sampled
        if self.devices.is_due():
            self.devices.look()
        if self.feed.clients:
            self.feed.send(self._event())

    def _event(self) -> bytes:
        m = self._observed.ledger
        figures: dict[str, Any] = {
            "received": m.received,
            "committed": m.committed,
            "duplicate": m.duplicate,
            "rejected": sum(m.rejected.values()),
            "dead": m.dead_lettered,
            "recovered": m.recovered,
            "replayed": m.replayed,
            "dropped": m.dropped,
        }
        if m.gauges is not None:
            letters = m.gauges.dead_letters()
            figures["dlq"] = [letters.size_bytes, round(letters.oldest_age_s)]
            figures["db_up"] = m.gauges.database_up()
            if self._settings["buffer"] == "journal":
                figures["damaged"] = m.gauges.journal().damaged
            if parts := m.gauges.figures():
                figures["broker"] = parts
                figures["published"], figures["delivered"] = m.published, m.delivered
        return orjson.dumps(
            {
                "t": self.history.second,
                "v": self.history.newest(),
                "ready": orjson.Fragment(self._observed.readyz()[1]),
                "level": LEVELS[self._look_at()[1]],
                "said": self._observed.message()[:500],
                "sum": figures,
            }
        )

    # Looking

    async def _look(self, look: Look, request: Request, query: str, _received_s: float) -> Answer:
        self._guard.check_look(request.headers)
        return await look(request, query)

    async def _front(
        self, text: bytes, request: Request, _query: str, _received_s: float
    ) -> Answer:
        if not self._guard.may_look(request.headers):
            return html(request.headers, self._log_in, status=401)
        # An empty token tells the page that this browser may only look.
        csrf = self._guard.csrf if self._guard.may_act(request.headers) else ""
        return html(request.headers, text.replace(CSRF_PLACE, csrf.encode()))

    async def _history(self, _request: Request, query: str) -> Answer:
        given = parameters(query, "since")
        first, columns = self.history.since(int(number(given, "since", 0, 0, 1e12)))
        document = {
            "version": __version__,
            "started": rfc3339_s(self._started_us),
            "host": gethostname(),
            "listen": self.listen,
            "runbook": RUNBOOK.is_file(),
            "seconds_kept": SECONDS_KEPT,
            "states": STATES,
            "levels": LEVELS,
            "order": COLUMNS,
            **self._settings,
            "first": first,
            "columns": columns,
        }
        return Answer(200, orjson.dumps(document), JSON, headers=NO_STORE)

    async def _feed(self, request: Request, query: str) -> Answer:
        given = parameters(query, "tail", "device_id")
        followed = device(given) if given.get("device_id") else None
        with self._watching(followed, tail=given.get("tail") == "true"):
            first = self._event() if self.history.second else b""
            return await self.feed.stream(request, first, lambda: self._tail_event(given, followed))

    @contextlib.contextmanager
    def _watching(self, followed: str | None, *, tail: bool) -> Iterator[None]:
        if followed is not None and not self.tail.follow(followed):
            raise Refused("busy", "too many devices are followed already", retry_after_s=5)
        self.tail.watched += tail
        try:
            yield
        finally:
            self.tail.watched -= tail
            if followed is not None:
                self.tail.unfollow(followed)

    def _tail_event(self, given: dict[str, str], followed: str | None) -> bytes:
        if given.get("tail") != "true":
            return b""
        readings = self._sample.sampled
        if followed is not None:
            readings = [each for each in self._sample.followed if each.device_id == followed]
            readings = readings[-FOLLOWED_SENT_MAX:]
        lines = [[each.ts_us, each.device_id, each.metric, each.value] for each in readings]
        document = {"posts": self._sample.posts, "readings": lines}
        return b"event: tail\ndata: " + orjson.dumps(document) + b"\n\n"

    async def _dead_letters(self, _request: Request, query: str) -> Answer:
        given = parameters(query, "id", "limit", *CONDITIONS)
        if id_ := given.get("id"):
            document = await self._letters.in_full(id_)
        else:
            count = int(number(given, "limit", 50, 1, LISTED_MAX))
            document = await self._letters.listed(where(given), count)
        return Answer(200, orjson.dumps(document), JSON, headers=NO_STORE)

    async def _count(self, _request: Request, query: str) -> Answer:
        given = parameters(query, *CONDITIONS)
        document = await self._letters.counted(where(given))
        return Answer(200, orjson.dumps(document), JSON, headers=NO_STORE)

    # Acting

    async def _act(
        self, action: Action, request: Request, _query: str, _received_s: float
    ) -> Answer:
        self._guard.check_act(request.headers)
        async with self._bodies.received(request) as body:
            letters = wanted(body, ACT_LETTERS_MAX)
        return Answer(200, orjson.dumps(await action(*letters)))

    async def _logged_in(self, request: Request, _query: str, _at_s: float) -> Answer:
        self._guard.check_host(request.headers)
        if request.method == "GET":
            return html(request.headers, self._log_in)
        async with self._log_in_bodies.received(request) as body:
            form = body.decode("utf-8", "replace")
        token = parameters(form, "token").get("token", "").strip()
        cookie = self._guard.log_in(token)
        if not cookie:
            await asyncio.sleep(WRONG_TOKEN_S)
            text = self._log_in.replace(b"hidden data-wrong", b"data-wrong")
            return html(request.headers, text, status=401)
        return self._to_the_page(cookie)

    async def _by_key(self, request: Request, query: str, _at_s: float) -> Answer:
        """Log the browser in that comes first; another one is sent to the page to look."""
        self._guard.check_host(request.headers)
        key = parameters(query, "key").get("key", "")
        return self._to_the_page(self._guard.cookie_line() if self._guard.use_key(key) else b"")

    def _to_the_page(self, cookie: bytes) -> Answer:
        return Answer(303, b"", JSON, headers=b"Location: /\r\n" + NO_STORE + cookie)

    def close(self) -> None:
        """End all streams."""
        self.feed.close()
