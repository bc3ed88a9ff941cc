"""A small service with the HTTP, the table and the dead letters of the real one, and with cheats.

With `cheat=""` it keeps every promise of a post, by an INSERT a post. Its cheats show that
`loadgen verify` finds broken promises, over HTTP and in a real database.
"""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg
from aiohttp import web

from ingest.dead_letters.format import encode_line
from ingest.dead_letters.identity import letter_id
from ingest.formats.json_post import decode
from ingest.formats.post import ItemError, Post, Rules
from ingest.model.letter import Letter
from ingest.model.reading import Reading
from ingest.model.rows import decode_rows
from ingest.system.clock import unix_us

BUSY_POSTS = 40
EVERY = 10_000  # the share of readings that a cheat concerns
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RULES = Rules(5_000, 946_684_800_000_000, 86_400_000_000)
_INSERT = (
    "insert into readings (ts, device_id, metric, value) "
    "select * from unnest($1::timestamptz[], $2::text[], $3::text[], $4::float8[])"
)

CHEATS = {
    "drops": "one reading in 10,000 is acknowledged and thrown away",
    "acks early": "acknowledges before it has written; a kill loses what waits",
    "writes twice": "one reading in 10,000 is written twice",
    "alters": "the last bit of one value in 10,000 is another",
    "stores refused": "a post is answered 422, and stored",
    "dead-letters too": "one reading in 10,000 is stored and dead-lettered",
    "loses letters": "invalid items are answered as dead-lettered, and are not",
    "invents": "stores a reading that nobody sent",
    "promises less": "answers ack=committed with ack=buffered",
    "hides invalid": "invalid items are not named in the answer",
    "reports a wrong balance": "/metrics does not add up",
    "admits a loss": "/metrics says that a reading was dropped",
    "counts too little": "accepts more than it counts as accepted",
}


class CheatingService:
    """`async with CheatingService(url, dlq_dir, "drops") as service:`; `kill` and `start` it."""

    def __init__(self, database_url: str, dlq_dir: Path, cheat: str = "") -> None:
        assert cheat in {"", *CHEATS}
        self.port = 0
        self.posts = 0
        self.busy = asyncio.Event()  # set after its first BUSY_POSTS posts
        self._database_url = database_url
        self._path = dlq_dir / "dlq-20260101T000000000000Z-1-00000000.jsonl"
        self._cheat = cheat
        self._connection: asyncpg.Connection | None = None
        self._writing = asyncio.Lock()
        self._waiting: list[Reading] = []
        self._writer: asyncio.Task[None] | None = None
        self._runner: web.ServerRunner | None = None
        self._cheated = self._run = 0
        self._received = self._committed = self._letters = self._rejected = 0

    async def __aenter__(self) -> Self:
        self._connection = await asyncpg.connect(self._database_url)
        if self._cheat == "writes twice":
            await self._connection.execute("alter table readings drop constraint readings_pkey")
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.kill()
        assert self._connection is not None, "entered"
        await self._connection.close()

    @property
    def url(self) -> str:
        """The URL of its posts and of its metrics."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen (again, on the same port), with the counters of a new run."""
        self._run += 1
        self._received = self._committed = self._letters = self._rejected = 0
        self._runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = int(self._runner.addresses[0][1])
        self._writer = asyncio.create_task(self._write_late())

    async def kill(self) -> None:
        """Cut all connections and forget readings that wait, as SIGKILL does."""
        if self._writer is not None and self._runner is not None:
            self._writer.cancel()
            self._waiting.clear()
            await self._runner.cleanup()
            self._writer = self._runner = None

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/metrics":
            return web.Response(text=self._metrics())
        decoded = decode(await request.read(), Post(None, False, unix_us(), 0.0, _RULES))
        self.posts += 1
        if self.posts == BUSY_POSTS:
            self.busy.set()
        rows = list(decode_rows(decoded.block.tuples)) if decoded.block is not None else []
        self._received += len(rows) + len(decoded.errors)
        if not rows:
            self._rejected += len(decoded.errors)
            return web.json_response({"code": "all_invalid"}, status=422)
        if self._cheat == "stores refused" and self.posts % 100 == 50 and not decoded.errors:
            await self._store(rows)
            return web.json_response({"code": "dead_letters_full"}, status=422)
        self._dead_letter(decoded.errors)
        if self._cheat == "acks early":
            self._waiting += rows
        else:
            await self._store(self._cheated_with(rows))
        return self._answer(len(rows), decoded.errors)

    def _answer(self, accepted: int, errors: list[ItemError]) -> web.Response:
        dead_lettered, less = len(errors), self._cheat == "promises less"
        if self._cheat == "hides invalid" and errors:
            accepted, dead_lettered, errors = accepted + dead_lettered, 0, []
        document = {
            "accepted": accepted,
            "dead_lettered": dead_lettered,
            "ack": "buffered" if less else "committed",
            "errors": [
                {"index": each.item, "code": each.code, "message": each.message} for each in errors
            ],
        }
        return web.json_response(document, status=202 if less else 200)

    def _cheated_with(self, rows: list[Reading]) -> list[Reading]:
        """Return the rows to store instead of those received."""
        rows = list(dict.fromkeys(rows))
        self._cheated += len(rows)
        if self._cheated < EVERY:
            return rows
        self._cheated -= EVERY
        row, rest = rows[0], rows[1:]
        match self._cheat:
            case "drops":
                self._committed += 1
                return rest
            case "writes twice":
                return [row, *rows]
            case "alters":
                return [row._replace(value=math.nextafter(row.value, 0)), *rest]
            case "dead-letters too":
                self._append(Letter("refused_by_database", "23514", "", row.ts_us, row))
            case "invents":
                return [*rows, row._replace(metric="unheard")]
        return rows

    async def _store(self, rows: list[Reading]) -> None:
        assert self._connection is not None, "entered"
        times = [_EPOCH + timedelta(microseconds=row.ts_us) for row in rows]
        columns = (times, *zip(*((row[1], row[2], row[3]) for row in rows), strict=True))
        conflict = "" if self._cheat == "writes twice" else " on conflict do nothing"
        async with self._writing:
            if self._cheat == "writes twice":  # the cheat must not fall on a repeated reading
                known = "delete from readings where (ts, device_id, metric, value) in ("
                known += "select * from unnest($1::timestamptz[], $2::text[], $3::text[], "
                await self._connection.execute(f"{known} $4::float8[]))", *columns)
            done = await self._connection.execute(_INSERT + conflict, *columns)
        stored = int(done.split()[-1])
        self._committed += stored

    async def _write_late(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            if self._waiting:
                rows, self._waiting = self._waiting, []
                await self._store(rows)

    def _dead_letter(self, errors: list[ItemError]) -> None:
        self._letters += len(errors)
        for each in errors if self._cheat != "loses letters" else ():
            self._append(
                Letter("invalid", each.code, each.message, unix_us(), original=each.original)
            )

    def _append(self, letter: Letter) -> None:
        with self._path.open("ab") as file:
            file.write(encode_line(letter, id_=letter_id(letter), failed_us=unix_us()))

    def _metrics(self) -> str:
        """Return metrics with a balance of 0, unless the cheat changes it."""
        held = len(self._waiting)
        went = self._committed + self._rejected + self._letters + held
        left = 3 if self._cheat == "reports a wrong balance" else 0
        accepted = self._received // 2 if self._cheat == "counts too little" else self._received
        return "\n".join(
            (
                f"ingest_readings_received_total {self._received}",
                f"ingest_readings_accepted_total {accepted}",
                f"ingest_readings_committed_total {self._committed}",
                f"ingest_readings_duplicate_total {self._received - went - left}",
                f'ingest_readings_rejected_total{{code="all_invalid"}} {self._rejected}',
                f'ingest_readings_dead_lettered_total{{reason="invalid"}} {self._letters}',
                f"ingest_readings_dropped_total {int(self._cheat == 'admits a loss')}",
                f"ingest_readings_held {held}",
                "ingest_ledger_imbalance_rows 0",
                f"process_start_time_seconds {self._run}",
            )
        )
