"""Records a state folder of the real service of a checkout, as a SIGKILL leaves it.

record_up.py has the command. It writes the folder `state-NAME` and, beside it, `state-NAME.json`:
the acknowledged readings, and the service's own list of its dead letters. state-fd6d781 was made by
an earlier script: its version had no line protocol, no tokens, and one post in each frame.

The folder has a journal of several segments with written readings, readings that are not written,
and a torn tail; dead letters of each reason, some of them marked as done, with a torn line and a
torn mark; the lock and the files of the killed process; two tokens, one of them has ended. It has
no data of PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.path.recorded.exchange import Case, exchange
from tests.path.recorded.record import databases
from tests.path.recorded.service import Running, command, run_sql
from tests.support.locks import table_locked

FIRST_US = 1_750_000_000_000_000
REFUSED_VALUE = 666.0
QUICK: dict[str, Any] = {
    "wait_s_max": 0.2,
    "schema_check_s": 0.2,
    "command_s_max": 1,
    "drain_s_max": 2,
    "journal_segment_bytes": 4_096,
    "dlq_segment_bytes": 4_096,
    "dlq_auto_replay": False,
}
SETS_ASIDE: dict[str, Any] = {**QUICK, "retries_max": 0}
DRAINS: dict[str, Any] = {**QUICK, "buffer": "memory", "retries_max": 1_000}
Row = list[Any]  # ts in Unix microseconds, device, metric, value
_numbers = itertools.count()


def rows(device: str, count: int, value: float | None = None) -> list[Row]:
    """Return readings that no other call returns; times and values are those of each recording."""
    numbers = itertools.islice(_numbers, count)
    return [[FIRST_US + n * 1_000, device, "m", n / 3 if value is None else value] for n in numbers]


class Forwarder:
    """A TCP port that forwards to the database, until it is cut."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        asked = parse_qs(parts.query)
        self._socket = f"{asked['host'][0]}/.s.PGSQL.{asked['port'][0]}"
        self._database = parts.path
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.url = ""

    async def __aenter__(self) -> Forwarder:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{port}{self._database}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Refuse new connections, and cut the open ones."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        its_reader, its_writer = await asyncio.open_unix_connection(self._socket)
        self._writers += [writer, its_writer]
        await asyncio.gather(_pass_on(reader, its_writer), _pass_on(its_reader, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


class Recording:
    """One recording: the posts, and their outcomes."""

    def __init__(
        self, checkout: Path, state_dir: Path, forwarder: Forwarder, direct_url: str
    ) -> None:
        self._checkout = checkout
        self._state_dir = state_dir
        self._forwarder = forwarder
        self._direct_url = direct_url
        self.elsewhere: list[Row] = []  # in the table of the recording; must not be recovered
        self.journal: list[Row] = []  # acknowledged, and only in the journal
        self.recovered = 0  # rows of these posts; an equal reading counts twice
        self.returning: list[Row] = []  # dead letters that the service replays
        self.refused: list[Row] = []  # dead letters that are replayed by hand
        self.invalid = 0
        self.token = ""

    def _service(self, settings: dict[str, Any]) -> Running:
        return Running(self._checkout, self._state_dir, self._forwarder.url, settings)

    async def run(self) -> None:
        """Run and kill three services on the state folder."""
        async with self._service(SETS_ASIDE) as service:
            await service.wait_state("accepting")
            await self._set_aside(service)
            await self._mark()
            service.signal(signal.SIGTERM)
            assert service.ended() == 0, service.log.read_text()
        async with self._service(DRAINS) as service:
            await service.wait_state("accepting")
            await self._drain(service)
        async with self._service(QUICK) as service:
            await service.wait_state("accepting")
            await self._keep_in_journal(service)
        await self._make_tokens()

    async def _set_aside(self, service: Running) -> None:
        refuse = f"alter table readings add constraint sane check (value <> {REFUSED_VALUE})"
        await run_sql(self._direct_url, refuse)
        for _ in range(3):
            self.elsewhere += await post(service, rows("written", 20))
        for _ in range(4):
            refused = [rows(device, 3, REFUSED_VALUE) for device in ("replayed", "refused")]
            self.elsewhere += refused[0]
            self.refused += refused[1]
            good = rows("written", 2)
            self.elsewhere += good
            await post(service, [*refused[0], *good, *refused[1]])
        bad: list[Any] = [5, None, {"device_id": "bad"}, {"device_id": "\u00fc", "values": {}}]
        bad += [{"device_id": "bad", "metric": "m", "ts": ts, "value": 1} for ts in ("x", 5, None)]
        for each in bad:
            self.elsewhere += await post(service, rows("written", 1), each)
            self.invalid += 1
        (row,) = rows("written", 1, 0.5)
        lines = f"m,device={row[1]} value={row[3]} {row[0]}000\nm,device=bad value=x {row[0]}000\n"
        await post_lines(service, lines)
        self.elsewhere.append(row)
        self.invalid += 1
        await service.wait_quiet()
        async with table_locked(self._direct_url):
            self.returning += await post(service, rows("exhausted", 5))
            self.elsewhere += await post(service, rows("replayed", 5))
            await service.wait_quiet()

    async def _mark(self) -> None:
        """Replay the dead letters of one device, and discard some."""
        await run_sql(self._direct_url, "alter table readings drop constraint sane")
        for words in (
            ("replay", "--where", "device=replayed", "--database-unsafe", "true"),
            ("discard", "--where", "code=ts_too_old", "--yes"),
        ):
            done = await command(self._checkout, "dlq", *words, "--state-dir", self._state_dir)
            assert done.code == 0, done
        self.invalid -= 1

    async def _drain(self, service: Running) -> None:
        async with table_locked(self._direct_url):
            self.returning += await post(service, rows("drained", 8), ack="buffered")
            service.signal(signal.SIGTERM)
            assert await asyncio.to_thread(service.ended) == 0, service.log.read_text()

    async def _keep_in_journal(self, service: Running) -> None:
        for count in (15, 15):
            self.elsewhere += await post(service, rows("written", count))
        await service.wait_quiet()
        await asyncio.sleep(
            0.5
        )  # until the list of done blocks is written, for which no answer waits
        self._forwarder.cut()
        again = rows("again", 10)
        for sent in (*(rows("journal", 30) for _ in range(5)), again, again):
            await post(service, sent)
            self.recovered += len(sent)
            self.journal += [] if sent is again and again[0] in self.journal else sent
        for number in range(10):
            bad = [{"device_id": "late", "value": number}] if number < 2 else []
            self.journal += await post(service, rows("single", 1), *bad)
            self.invalid += len(bad)
            self.recovered += 1
        together = [post(service, rows("together", 1)) for _ in range(20)]
        for sent in await asyncio.gather(*together):  # some share a frame
            self.journal += sent
            self.recovered += 1
        service.kill()

    async def _make_tokens(self) -> None:
        where = ("--state-dir", self._state_dir)
        for name in ("ended", "fleet"):
            done = await command(self._checkout, "token", "new", name, *where)
            assert done.code == 0, done
            self.token = done.stdout.split()[-1]
        done = await command(self._checkout, "token", "disable", "ended", *where)
        assert done.code == 0, done


async def post(service: Running, sent: list[Row], *bad: Any, ack: str = "durable") -> list[Row]:
    """Post readings and invalid items; return the readings after they are acknowledged."""
    names = ("ts", "device_id", "metric", "value")
    body = json.dumps([*(dict(zip(names, row, strict=True)) for row in sent), *bad])
    head = f"POST /v1/readings?precision=us&ack={ack} HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n\r\n"
    got, then = await exchange(service.address("data"), Case("post", "", "data", [head + body]))
    assert got, then
    assert got[0][0] == "HTTP/1.1 202 Accepted", got
    told = got[0][-1]
    assert (told["accepted"], told["dead_lettered"]) == (len(sent), len(bad)), told
    return sent


async def post_lines(service: Running, lines: str) -> None:
    """Post line protocol of which a part is invalid."""
    head = f"POST /write HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(lines)}\r\n\r\n"
    got, then = await exchange(service.address("data"), Case("lines", "", "data", [head + lines]))
    assert got, then
    assert got[0][0].startswith("HTTP/1.1 20"), got


def tear(state_dir: Path) -> None:
    """Add the traces of a power cut: half a frame, half a dead letter, half a mark."""
    segment = max((state_dir / "journal").glob("*.log"))
    _append(segment, segment.read_bytes()[32:100])
    letters = max((state_dir / "dead-letters").glob("*.jsonl"))
    _append(letters, letters.read_bytes().splitlines()[-1][:150])
    marks = min((state_dir / "dead-letters").glob("*.cursor"))
    _append(marks, marks.read_bytes()[:50])


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


async def listed_letters(checkout: Path, state_dir: Path) -> dict[str, Any]:
    """Return the output of `ingest dlq` for a state folder, without dates of today."""
    flags = ("--json", "--state-dir", state_dir)
    stats = json.loads((await command(checkout, "dlq", "stats", *flags)).stdout)
    del stats["oldest_age_s"]
    listed = (await command(checkout, "dlq", "list", *flags)).stdout.splitlines()
    letters = [json.loads(line) for line in listed]
    return {"stats": stats, "list": [[each["id"], each["reason"]] for each in letters]}


async def record(checkout: Path, folder: Path, to: Path) -> dict[str, Any]:
    """Record into the folder `to`; return the content of the JSON file."""
    state_dir = folder / "state"
    async with databases(checkout, folder, "state") as urls, Forwarder(urls["state"]) as forwarder:
        recording = Recording(checkout, state_dir, forwarder, urls["state"])
        await recording.run()
    tear(state_dir)
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(state_dir, to)
    listed = await listed_letters(checkout, state_dir)
    return {
        "dead_letters": listed,
        "invalid": recording.invalid,
        "recovered": recording.recovered,
        "journal": recording.journal,
        "returning": recording.returning,
        "refused": recording.refused,
        "elsewhere": recording.elsewhere,
        "token": recording.token,
    }


def text_of(expected: dict[str, Any]) -> str:
    """Return the JSON, with a line for each innermost list."""

    def shown(value: Any) -> Iterable[str]:
        if isinstance(value, list) and value and isinstance(value[0], list):
            yield "[\n" + ",\n".join(json.dumps(each) for each in value) + "]"
        elif isinstance(value, dict):
            parts = (f"{json.dumps(name)}: {''.join(shown(each))}" for name, each in value.items())
            yield "{\n" + ",\n".join(parts) + "}"
        else:
            yield json.dumps(value)

    return "".join(shown(expected)) + "\n"
