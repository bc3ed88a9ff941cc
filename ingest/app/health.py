"""Whether this process can take readings now: /readyz, and the receiver's admission.

Promises: one state at a time, and one cause: why posts are refused or readings not stored, since
when, and what to do. While the database is away, posts are accepted as long as the buffer has
space. With the journal and a configured database, posts are taken right after a start if this
state folder has seen a good check of this database. If it has not, they are taken as soon as it is
clear that the database is away. A refusal, such as a wrong password, says that a setting is wrong:
then posts have to wait.
Does not: find out itself what is wrong. Each part says it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson

from ingest.app import space
from ingest.app.metrics_and_causes import cause_of, next_step, rank_of
from ingest.dead_letters import queue
from ingest.model.causes import UNREACHABLE, Trouble
from ingest.model.codes import PROBLEMS
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger, Metrics, figures_of
from ingest.model.ports import BufferStats, Database, JournalStats
from ingest.sinks.postgres.connection import identity
from ingest.sinks.postgres.schema import READINGS, TargetTable
from ingest.system.clock import monotonic_s, rfc3339, sleep_unless, unix_us
from ingest.system.logs import Occasionally, get_logger
from ingest.system.state_folder import EMBEDDED, StateFolder

LATELY_S = 60.0
SAMPLE_S = 5.0
LOG_S = 60.0  # between two lines that say the same
TICK_S = 1.0
REFUSING = frozenset({"starting", "draining", "disk_low"})
UNREADY = REFUSING | {"full", "broker_away"}
WORST_FIRST = (*("draining", "starting", "disk_low", "broker_away", "full", "on_hold"), "slowed")
DRAINING = Trouble("draining", cause_of("draining").words, state="draining")
UNCHECKED = "no connection to the database since the start; the journal keeps the readings"
UNTAKEN = "posts are not taken until the table has been checked"

_log = get_logger("receiver")


class Judged(ABC):
    """A state, its cause, and since when. `advice` are the words of the next steps.

    They have a text for each of causes.FIELDS.
    """

    def __init__(self, advice: Mapping[str, str], first: Trouble) -> None:
        self._advice = advice
        self._draining = False
        self._now = first
        self._since_us = self._cause_since_us = unix_us()

    @abstractmethod
    def judge(self) -> Trouble:
        """Return the state, one of STATES, its cause, and the reason as words."""

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """Return what else the document of /readyz says now."""

    def draining(self) -> None:
        """Note that all ends: no post is accepted."""
        self._draining = True

    def look(self) -> Trouble:
        """Judge again, or say that all ends."""
        was = self._now
        now = self._now = DRAINING if self._draining else self.judge()
        if now.state != was.state:
            self._since_us = unix_us()
        if now.cause != was.cause:
            self._cause_since_us = unix_us()
        return now

    def state(self) -> str:
        """Return the state now, one of STATES."""
        return self.look().state

    def in_words(self) -> str:
        """Return the state and its reason as a text for a process manager."""
        now = self.look()
        return ": ".join(filter(None, (now.state, now.words)))

    def readyz(self) -> tuple[int, bytes]:
        """Return the HTTP status and the JSON document of /readyz for the admin port."""
        document = self._document()
        if self._now.details:
            document["reason"] += f": {self._now.details}"
        document["next"] = next_step(self._now.cause, self._advice)
        return _answer(document)

    def readyz_for_devices(self) -> tuple[int, bytes]:
        """Return the same for the data port, without commands, paths and senders."""
        return _answer(self._document())

    def _document(self) -> dict[str, Any]:
        cause, words, _, state = self.look()
        return {
            "state": state,
            "reason": words,
            "since": rfc3339(self._since_us),
            "refusing": state in UNREADY,
            "cause": cause,
            "cause_since": rfc3339(self._cause_since_us) if cause else None,
            "runbook": cause_of(cause).runbook if cause else "",
            **self.figures(),
        }


def _answer(document: Mapping[str, Any]) -> tuple[int, bytes]:
    return 503 if document["refusing"] else 200, orjson.dumps(document)


class Health(Judged):
    """The state of the service; implements ports.Admission.

    `disk` is that of the state folder; None: there is none. `url_fault` returns what is wrong with
    the file of the database's URL, or nothing. `parts` say what else is wrong; those that decide
    the state come first, in this order. `untaken` says what a start waits for. `refused` returns
    the problem code with which a part refuses every post, if it does.
    """

    def __init__(
        self,
        *,
        buffer: Callable[[], BufferStats],
        database_state: Database,
        url_fault: Callable[[], str] = str,
        disk: space.DiskSpace | None,
        untaken: str = UNTAKEN,
        dead_letters: Callable[[], DeadLetterStats] = DeadLetterStats,
        parts: Sequence[Callable[[], Trouble]] = (),
        refused: Callable[[], str | None] = lambda: None,
        ledger: Ledger,
        fill: space.Fill,
        advice: Mapping[str, str],
    ) -> None:
        super().__init__(advice, Trouble(state="starting"))
        self._buffer = buffer
        self._space = space.BufferSpace()
        self._database_state = database_state
        self._url_fault = url_fault
        self._disk = disk
        self._untaken = untaken
        self._dead_letters = dead_letters
        self._parts: tuple[Callable[[], Trouble], ...] = (
            *parts,
            lambda: queue.trouble(dead_letters()),
        )
        self._refused = refused
        self._posts_refused = Lately("posts_refused", ledger.posts_refused)
        self._connections_closed = Lately("connections_closed", ledger.connections_closed)
        self.fill = fill
        self.starting = True  # the table has not been checked yet
        self._unchecked = False  # posts are accepted, but the table has not been checked yet
        self._other = Trouble()  # the most important one that does not decide the state
        self._log = get_logger("health")

    def gauges(
        self,
        *parts: tuple[Metrics[Any], Callable[[], Any]],
        journal: Callable[[], JournalStats] = JournalStats,
    ) -> Gauges:
        """Return the gauges of the process: its state, and what its parts know."""
        database = self._database_state
        return Gauges(
            buffer=self._buffer,
            dead_letters=self._dead_letters,
            database_up=lambda: database.up and not (self.starting or self._unchecked),
            hold_reason=lambda: database.hold_reason,
            journal=journal,
            state=self.state,
            figures=figures_of((space.METRICS, lambda: self.fill), *parts),
        )

    def started(self) -> None:
        """Note that the table has been checked: posts are accepted."""
        self.starting = self._unchecked = False

    def taking_unchecked(self) -> None:
        """Accept posts before the table has been checked: the journal keeps them."""
        self._unchecked = self.starting or self._unchecked
        self.starting = False

    def refusal(self) -> str | None:
        """Return the problem code for every post now, or None if posts are accepted."""
        if self._draining:
            return "draining"
        if self.starting:
            return "starting"
        return "disk_low" if self._disk is not None and self._disk.refuses else self._refused()

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until `stop` is set."""
        while True:
            self.tick()
            if await sleep_unless(stop, TICK_S):
                return

    def tick(self) -> None:
        """Check disk and buffer; cheap."""
        stats = self._buffer()
        if self._disk is not None:
            self._disk.look()
        self._space.look(stats)
        self.look()
        free_bytes = None if self._disk is None else self._disk.free_bytes
        self.fill.tick(stats, self._dead_letters(), free_bytes)
        self._posts_refused.tick()
        self._connections_closed.tick()

    def figures(self) -> dict[str, Any]:
        """Return when what is full, and what was refused lately."""
        return {
            "full_in_s": self.fill.full_in_s(),
            "refused_60s": self._posts_refused.grown(),
            "closed_60s": self._connections_closed.grown(),
        }

    def look(self) -> Trouble:
        """Judge again, and log a change between taking posts and refusing them; see Judged."""
        was = self._now.state
        _, reason, _, state = now = super().look()
        if state == was:
            return now
        if state in UNREADY - {"starting", "draining"}:
            self._log.error("state", state=state, was=was, reason=reason)
        elif state in UNREADY or was in UNREADY:
            self._log.info("state", state=state, was=was, reason=reason)
        return now

    def judge(self) -> Trouble:
        """Return the worst state that a part asks for, and the most important cause."""
        stats = self._buffer()
        found = self._found(stats)
        states = {each.state for each in found}
        state = next((each for each in WORST_FIRST if each in states), "accepting")
        told = next((each for each in found if each.cause), Trouble())
        if state == "starting":
            words = [self._untaken, self._of_database().words]
        elif state in {"full", "slowed"}:  # with the figures of the state
            words = [space.load_words(stats), self._of_database().words]
        else:
            words = [told.words]
        return told._replace(words="; ".join(filter(None, words)), state=state)

    def _found(self, stats: BufferStats) -> list[Trouble]:
        """Return what all parts say now, the most important one first."""
        found = [each() for each in self._parts]
        self._note(each for each in found if not each.state)
        deciding = [each for each in found if each.state]
        if self.starting:
            start = Trouble("starting", self._untaken, state="starting")
            return [*deciding, self._of_database(), start]
        disk = self._disk.trouble() if self._disk is not None else Trouble()
        return [disk, *deciding, self._of_database(), self._space.trouble(stats), self._other]

    def _note(self, others: Iterable[Trouble]) -> None:
        """Keep the most important one, and log it when it changes."""
        was, self._other = self._other, min(others, key=lambda each: rank_of(each.cause))
        cause, words, details, _ = self._other
        if cause and cause != was.cause:
            self._log.warning("trouble", cause=cause, was=was.cause, words=words, details=details)
        elif cause != was.cause:
            self._log.info("trouble", cause="", was=was.cause, words="", details="")

    def _of_database(self) -> Trouble:
        """Return why nothing is written, or nothing; before the first check nobody has answered."""
        is_held = self._database_state.hold_reason is not None
        cause = self._database_state.cause or (UNREACHABLE if self._unchecked else "")
        if not cause:
            if self._other.cause != space.WRITES_FAIL:
                return Trouble()
            return self._other._replace(words=f"{self._other.words}; readings are kept")
        words = cause_of(cause).words
        if self._unchecked and cause == UNREACHABLE:
            words = UNCHECKED
        elif is_held:
            words = f"writes are paused: {words}"
        elif not self.starting:
            words = f"{words}; readings are kept"
        fault = self._url_fault() if "{fix_url}" in cause_of(cause).next_step else ""
        return Trouble(
            cause, "; ".join(filter(None, (words, fault))), state="on_hold" if is_held else ""
        )


class Lately:
    """How much some counters, by label, have grown in the last minute; a log line a minute a label.

    It compares them second by second, so a refused post costs nothing here, however many there are.
    Does not: log who sent what. receiver/senders.py keeps that, for those who may see it.
    """

    def __init__(self, event: str, counts: Mapping[str, int]) -> None:
        self._event = event
        self._counts = counts
        self._before: deque[tuple[float, dict[str, int]]] = deque([(monotonic_s(), dict(counts))])
        self._logged: dict[str, int] = {}
        self._occasionally = Occasionally(LOG_S)

    def tick(self) -> None:
        """Log what is due; remember the counters, at most once in SAMPLE_S."""
        now_s = monotonic_s()
        if now_s - self._before[-1][0] >= SAMPLE_S:
            self._before.append((now_s, dict(self._counts)))
        while len(self._before) > 1 and now_s - self._before[1][0] >= LATELY_S:
            self._before.popleft()
        for label, count in _growth(self._counts, self._logged).items():
            if self._occasionally.due(label) is not None:
                self._logged[label] = self._counts[label]
                _log_growth(self._event, label, count)

    def grown(self) -> dict[str, int]:
        """Return by how much each label has grown; labels that have not are left out."""
        return _growth(self._counts, self._before[0][1])


def _log_growth(event: str, cause: str, count: int) -> None:
    """Log it. What the client must correct is only information; the rest is a warning.

    So is a wrong token: many clients drop their readings then, and nobody hears of it. And
    `not_kept`: its lines are lost, though the post got a 2xx.
    """
    status = PROBLEMS[cause].status if cause in PROBLEMS else 0
    if event == "connections_closed":
        _log.warning("connections_closed", cause=cause, count=count)
    elif status >= 500 or cause in ("unauthorized", "not_kept"):
        _log.warning("posts_refused", code=cause, status=status, count=count)
    else:
        _log.info("posts_refused", code=cause, status=status, count=count)


def _growth(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {
        label: count - before.get(label, 0)
        for label, count in now.items()
        if count > before.get(label, 0)
    }


_NOT_REACHED, _AFTER = "(not reached yet)", ", after "  # of what a state folder remembers


class FirstContact:
    """Calls `taking` when posts are taken before the tables have been checked, if they `may_take`.

    The state folder keeps for which database readings wait: no start may take another one for it.
    `is_embedded`: it is the one of this state folder, whatever its URL is now.
    """

    def __init__(
        self,
        taking: Callable[[], None],
        folder: StateFolder,
        *,
        may_take: bool,
        is_embedded: bool = False,
        target: TargetTable = READINGS,
    ) -> None:
        self._taking = taking
        self._folder = folder
        self._may_take = may_take
        self._is_embedded = is_embedded
        self._target = target
        self._known = False
        self._remembered = self._unseen = self._seen = ""
        self._occasionally = Occasionally(LOG_S)
        self._log = get_logger("service")

    def _name(self, url: str) -> str:
        """Return the database and the table, if that is not the default, for the state folder."""
        target, database = self._target, EMBEDDED if self._is_embedded else identity(url)
        ours = f" {target.name} ({target.column_list})"
        return database if target == READINGS else database + ours

    def begin(self, url: str) -> None:
        """The first connection to this database is about to be made."""
        self._remembered, name = self._folder.remembered_database(), self._name(url)
        self._unseen = f"{name} {_NOT_REACHED}"
        last, _, before = self._remembered.partition(_AFTER)  # readings may wait for both
        self._seen = last if _NOT_REACHED not in last else before
        self._known = self._may_take and self._seen == name
        if last not in ("", name, self._unseen):
            self._log.warning("database_changed", was=self._remembered, now=name)
        if self._known:
            self._taking()

    def note(self) -> None:
        """Readings may wait for this database from now on."""
        if self._may_take and not self._known:
            self._remember(self._unseen + (_AFTER + self._seen if self._seen else ""))

    def away(self, why: str) -> None:
        """No server can be used now, and the table has not been checked yet."""
        if not self._may_take or self._known:
            return
        self.note()
        self._taking()
        if self._occasionally.due("never seen") is not None:
            self._log.warning(
                "database_never_seen",
                why=f"{why}; this state folder has never seen this database, so check "
                "database_url; posts are taken into the journal meanwhile",
            )

    def checked(self, url: str) -> None:
        """The table of this database is right. Blocks for two fsyncs if that is new."""
        self._remember(self._name(url))

    def _remember(self, name: str) -> None:
        if name == self._remembered:
            return
        try:
            self._folder.remember_database(name)
        except OSError as error:
            self._log.warning("database_not_remembered", why=str(error))
        self._remembered = name  # a disk that fails is not asked at each connect
