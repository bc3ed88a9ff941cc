"""The pipeline as a library, in the event loop of its caller.

    async with ingest.Pipeline("postgresql://..", state_dir="/var/lib/app/readings") as pipeline:
        await pipeline.put([{"device_id": "a", "metric": "t", "value": 1.5}])

A put goes the way of a post to /v1/readings, without HTTP. docs/use/library.md says how to use it.
Promises: what `put` has returned for is kept, as safely as `ack` says. If it raises, nothing of it
is, but for a commit that was not known in time. A caller that puts all the time lets others run.
Does not: read the environment or a file of settings; listen, handle signals, configure logs, or
change the garbage collector.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, Self, cast

import orjson

from ingest.access.tokens import ANYBODY
from ingest.admin.dashboard.letters import Letters
from ingest.app.annexes import check_settings
from ingest.app.database import make_replay_sink
from ingest.app.metrics_and_causes import advice, library_metrics
from ingest.app.pipeline.core import Core, Drained
from ingest.app.process import Tasks, refuse_left_stream
from ingest.config.loading import load
from ingest.config.settings import Settings
from ingest.dead_letters.store import Selection  # noqa: F401  a name of the library
from ingest.formats import objects
from ingest.formats.media_types import Format, format_of
from ingest.http.clients import Client
from ingest.http.request_and_answer import NO_PLACE, Answer, HeldPlace, Reply, Request
from ingest.model.errors import (
    Broken,
    BufferFull,
    ConfigError,
    IngestError,
    Refused,
    StartError,
    Stopping,
)
from ingest.model.reading import INVALID, JSON, Letter, Reading
from ingest.receiver.endpoint import Endpoint
from ingest.receiver.pages.json import Readings
from ingest.receiver.posts import Plan
from ingest.receiver.senders import Account, KnownSender, Rates
from ingest.sinks.memory_table import MemoryTable
from ingest.system import logs
from ingest.system.clock import monotonic_s
from ingest.system.state_folder import StateFolder

Ack = Literal["durable", "buffered", "committed"]
PUT = "put"  # the label of its metrics, and its sender
ITEM_BYTES = 64  # what an object counts as in its round of the event loop
AGAIN_S = 1.0  # after which a put that found no room may come again, if nothing else is said
# The items are the one element of such a body: no bound of bytes counts them.
OBJECTS = Format(JSON, lambda body, post: objects.begin(cast("Any", body)[0], post))
NOBODY = Client("", "")
# Settings of the ports and the logs of a process.
OF_PROCESS = frozenset(
    {
        *("listen", "admin_listen", "admin_token", "admin_token_file", "log_level", "log_format"),
        *("tls_cert_file", "tls_key_file"),
    }
)


class Kept(NamedTuple):
    """What became of a put: so many readings are accepted, so many items are dead letters.

    `errors` has the first of these, each with `index`, `code`, `message`, and mostly `field`.
    """

    accepted: int
    dead_lettered: int
    ack: str
    errors: list[dict[str, Any]]


class Waiting:
    """Who waits for the answer of a page. To the page it is the connection of a request."""

    place: HeldPlace = NO_PLACE

    def __init__(self) -> None:
        self._answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def reply(self, answer: Answer) -> None:
        """Let the wait end, unless it was cancelled."""
        if not self._answered.done():
            self._answered.set_result(answer)

    async def answer(self, reply: Reply) -> Answer:
        """Return the answer, whichever way the page gives it."""
        if reply is None:
            return await self._answered
        return reply if isinstance(reply, Answer) else await reply


def _error_of(refused: Refused) -> IngestError:
    if refused.code in ("buffer_full", "dead_letters_full"):
        return BufferFull(refused.retry_after_s or AGAIN_S, refused.detail)
    return Stopping("the pipeline is closing") if refused.code == "draining" else refused


class Pipeline:
    """Readings of this program into PostgreSQL, in batches, losing none.

    Enter it in the event loop that uses it, and after any fork: once, or again if that failed. Then
    it has `collector`, for the program's own registry of Prometheus, and `dead_letters`: see
    Letters. `settings` are those of `ingest serve` by name, as text or typed. Raises ConfigError.
    """

    core: Core
    dead_letters: Letters

    def __init__(self, database_url: str, *, state_dir: str | Path, **settings: Any) -> None:
        if of_process := OF_PROCESS & settings.keys():
            raise ConfigError(f"setting {min(of_process)}: a pipeline has no ports and no logs")
        if not str(state_dir):
            raise ConfigError("setting state_dir: it is empty; a pipeline needs a folder")
        named = {"database_url": database_url, "state_dir": state_dir, **settings}
        flags = {
            name: str(each) if isinstance(each, Path) else each for name, each in named.items()
        }
        self._settings = load(environ={}, flags=flags).settings
        if not self._settings.database_url:
            raise ConfigError("setting database_url: a pipeline needs the URL of a database")
        self._memory: MemoryTable | None = None
        self._end: asyncio.Task[Drained] | None = None  # from the start on

    @classmethod
    def in_memory(cls, **settings: Any) -> Self:
        """Return a pipeline for tests: its folder is temporary, and its table is `stored`."""
        usual = {"journal_unsafe": True, "writers": 1, "batch_linger_s": 0}
        made = cls("postgresql:///in-memory", state_dir="temporary", **{**usual, **settings})
        made._memory = MemoryTable()
        return made

    @property
    def stored(self) -> list[Reading]:
        """The readings in the table of a pipeline in memory."""
        assert self._memory is not None, "only of Pipeline.in_memory()"
        return [*self._memory.rows]

    # Start and end

    async def __aenter__(self) -> Self:
        """Lock the folder, open the journal, try the database once. Raises StartError.

        If the database is away, readings are taken into the journal.
        """
        if self._end is not None:
            raise RuntimeError("a pipeline is entered once: this one was; make another one")
        logs.is_of_program = True
        check_settings(self._settings)
        async with AsyncExitStack() as until_end:
            settings = self._settings
            if self._memory is not None:
                temporary = until_end.enter_context(TemporaryDirectory(prefix="ingest-"))
                settings = replace(settings, state_dir=temporary)
            folder = StateFolder.open(Path(settings.state_dir))
            until_end.enter_context(folder.lock())
            refuse_left_stream(folder, "ingest.Pipeline")
            self._make_parts(settings, folder)
            until_end.push_async_callback(self.core.close)
            await self._open()
            self._end = asyncio.create_task(self._drained(until_end.pop_all()))
        return self

    def _make_parts(self, settings: Settings, folder: StateFolder) -> None:
        fix_url = "Correct the URL of the database in the program, and start the program again."
        words = {**advice(settings, "the program"), "fix_url": fix_url}
        core = self.core = Core(settings, folder, Tasks("pipeline"), words, lambda _line: None)
        posts = core.endpoint.posts
        self._page = Readings(posts, PUT)
        account = Account("", Rates(), core.ledger.sent_by(PUT))
        self._sender = KnownSender(ANYBODY, account, connections_max=0)
        self.collector = library_metrics(core.ledger)
        name, known = "iot-ingest replay", core.writing.known
        self.dead_letters = Letters(
            core.dead_letters.letters,
            posts.rules,
            lambda: self._memory or make_replay_sink(core.reread, settings, name=name, known=known),
        )
        if self._memory is not None:
            core.writing.sinks.append(self._memory)

    async def _open(self) -> None:
        core = self.core
        await core.open()
        await core.connect(core.reread, letters=core.dead_letters, on_checked=lambda _url: None)
        if core.health.starting:  # it has answered with a refusal, or there is no journal
            raise StartError(f"the database cannot be used: {core.writing.database_state.message}")

    async def __aexit__(self, *_error: object) -> None:
        """Close; see `close`."""
        await self.close()

    async def close(self) -> Drained:
        """Write what is left, or leave it in the journal; at most `drain_s_max`. Repeatable."""
        if self._end is None:
            raise RuntimeError("the pipeline was not entered")
        self.core.tasks.stopping.set()
        return await asyncio.shield(self._end)

    async def _drained(self, until_end: AsyncExitStack) -> Drained:
        """Wait for `close`, or until a task has died; drain, and close everything."""
        async with until_end:
            await self.core.tasks.stopping.wait()
            return await self.core.drain()

    # Readings

    async def put(
        self, readings: Mapping[str, Any] | Iterable[Mapping[str, Any]], *, ack: Ack = "durable"
    ) -> Kept:
        """Keep readings: mappings with the fields of an item. Do not change them meanwhile.

        Invalid ones become dead letters, and are named in `errors`. Raises BufferFull, Stopping,
        Broken, Refused: then nothing of them is kept. If it is cancelled, they may be kept. A call
        may have `post_rows_max` readings.
        """
        items = [readings] if isinstance(readings, Mapping) else list(readings)
        return await self._put((items,), ack, OBJECTS, len(items) * ITEM_BYTES)

    async def put_body(
        self,
        body: bytes | bytearray | memoryview,
        content_type: str = "application/json",
        *,
        ack: Ack = "durable",
    ) -> Kept:
        """Keep the readings of a body as devices post it: JSON, NDJSON, MessagePack, SenML.

        It must not be compressed. Raises what `put` raises.
        """
        return await self._put(bytes(body), ack, format_of(content_type), len(body))

    def _head(self, ack: str, form: Format) -> Any:
        letter = Letter(INVALID, "", "", 0, format=form.name)
        said = self._sender, ack, False, None, False, "", letter, form.decode, ("", "")
        return SimpleNamespace(plan=Plan(*said))

    async def _put(self, body: Any, ack: str, form: Format, size_bytes: int) -> Kept:
        posts, received_s = self.endpoint.posts, monotonic_s()
        core, waiting = self.core, Waiting()
        if core.tasks.broken:
            raise Broken("a part of the pipeline has died: the log says which")
        try:
            request = Request(self._head(posts.ack_of(ack), form), NOBODY, waiting, body)
            await posts.plain_bodies.loop_share.wait(size_bytes)
            request.in_round = True
            reply = self._page.take(request, "", received_s)
            answer = await waiting.answer(reply)
            if reply is not None:
                core.ledger.requests_answered(PUT, answer.status, [monotonic_s() - received_s])
        except Refused as refused:
            core.refused_posts.refused(None, refused)
            raise _error_of(refused) from None
        said = orjson.loads(answer.body)
        if "code" in said:  # the disk has failed
            raise _error_of(Refused(said["code"], said["detail"]))
        return Kept(said["accepted"], said["dead_lettered"], said["ack"], said["errors"])

    @property
    def endpoint(self) -> Endpoint:
        """The receiver. Raises RuntimeError in another loop, and before the pipeline is entered."""
        if self._end is None or self._end.get_loop() is not asyncio.get_running_loop():
            raise RuntimeError(
                "enter the pipeline first (`async with`, or `ingest.web.context` in an app), "
                "and use it in that event loop"
            )
        return self.core.endpoint

    # What it says of itself

    def state(self) -> dict[str, Any]:
        """Return the document of /readyz: `state`, `refusing`, `cause`, `reason`, `next`, .."""
        document: dict[str, Any] = orjson.loads(self.core.health.readyz()[1])
        return document

    def release_hold(self, *, dead_letter: bool = False) -> bool:
        """Try to write now; return False if nothing is on hold.

        With `dead_letter` the rows that the database refuses become dead letters.
        """
        return self.core.writing.release_hold(dead_letter)
