"""Whether a commit is kept, asked of a real PostgreSQL by the sink and by doctor.

The server of the other tests does not fsync. This file has a server of its own, and two tests start
one each.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
import structlog

from ingest.app.database import make_sink
from ingest.cli.doctor.checks import database_checks
from ingest.config.settings import Settings
from ingest.embedded.postgres import EmbeddedPostgres
from ingest.model.causes import NOT_DURABLE, Verdict, WriteFailed
from ingest.sinks.postgres import checked_connection, durability, schema
from ingest.sinks.postgres.durability import examine
from ingest.sinks.postgres.schema import TABLE
from ingest.system.logs import Occasionally
from tests.support.commands import Here
from tests.support.letters import LetterFiles, drained, keep, read
from tests.support.rows import encode, readings
from tests.support.sink_ways import open_failure


class Kept(NamedTuple):
    """A durable server with the table, and a connection of its administrator."""

    url: str
    line: asyncpg.Connection[Any]


@pytest.fixture(scope="module")
def durable_url(open_tmp: Path, data_template: Path) -> Iterator[str]:
    """Run a server that is durable, with a role that may write later."""
    folder = open_tmp / "durable"
    folder.mkdir(mode=0o755)
    words = ["cp", "-a", "--sparse=always", str(data_template), str(folder / "data")]
    subprocess.run(words, check=True)
    server = EmbeddedPostgres(folder, settings={"shared_buffers": "8MB"})

    async def start() -> str:
        await server.start()
        url = server.url
        line = await asyncpg.connect(url)
        await line.execute("create role writer login")
        await line.close()
        return url

    with asyncio.Runner() as runner:
        yield runner.run(start())
        runner.run(server.stop())


@pytest.fixture
async def kept(durable_url: str) -> AsyncIterator[Kept]:
    """Give that server with a fresh table."""
    line = await asyncpg.connect(durable_url)
    try:
        await line.execute("drop schema public cascade; create schema public")
        await schema.apply(line, role="writer")
        yield Kept(durable_url, line)
    finally:
        await line.close()


async def doctor(url: str, **settings: Any) -> dict[str, tuple[str, str]]:
    """Return what doctor finds: state and sentence by name."""
    connection = await asyncpg.connect(url)
    try:
        found = await examine(connection)
        checks = database_checks(found, Settings(**settings), service_runs=False)
        return {each.name: (each.state, each.detail) for each in checks}
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("sql", "undo", "name"),
    [
        (
            "alter role writer set synchronous_commit = off",
            "alter role writer reset synchronous_commit",
            "synchronous_commit",
        ),
        (
            "alter database postgres set synchronous_commit = off",
            "alter database postgres reset synchronous_commit",
            "synchronous_commit",
        ),
        ("alter table readings set unlogged", "alter table readings set logged", "table readings"),
    ],
    ids=["role", "database", "table"],
)
async def test_sink_holds_while_a_commit_is_not_kept_and_doctor_says_the_same(
    kept: Kept, sql: str, undo: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings count as the sink's role and database have them. Once fixed, writing goes on."""
    url = kept.url.replace("postgres@", "writer@")
    sink = make_sink(url, Settings())
    await sink.open()
    await sink.close()
    await kept.line.execute(sql)
    failed = await open_failure(sink)
    assert (failed.verdict, failed.reason) == (Verdict.HOLD, NOT_DURABLE)
    assert f"{name} is " in failed.message
    assert failed.message.endswith("--database-unsafe true")
    state, detail = (await doctor(url))[name]
    assert state == "FAIL"
    assert detail.partition(":")[0] in {"off", "unlogged"}
    state, detail = (await doctor(url, database_unsafe=True))[name]
    assert state == "warn"
    monkeypatch.setattr(checked_connection, "_occasionally", Occasionally(3600.0))
    with structlog.testing.capture_logs() as lines:
        unsafe = make_sink(url, Settings(database_unsafe=True))
        assert (await unsafe.write(encode(readings(3)), 3, idempotent=False)).committed == 3
        await unsafe.close()
    (warning,) = [each for each in lines if each["event"] == "database_not_durable"]
    assert warning["log_level"] == "warning"
    assert warning["why"].startswith(f"{name} is ")
    await kept.line.execute(undo)
    assert (await sink.write(encode(readings(3)), 3, idempotent=True)).duplicate == 3
    await sink.close()
    assert (await doctor(url))[name][0] == "ok"


async def test_unlogged_part_of_the_table_is_named(kept: Kept) -> None:
    """A partition, a child or a chunk that a crash empties is as bad as the whole table."""
    await kept.line.execute(
        "alter table readings rename to plain; create table readings (like plain including all) "
        "partition by range (ts); create unlogged table part partition of readings default"
    )
    with pytest.raises(WriteFailed, match=r"table part is unlogged: .*alter table part set logged"):
        await make_sink(kept.url, Settings()).open()


async def test_open_connection_notices_a_change_within_the_period_of_checks(kept: Kept) -> None:
    """After `schema_check_s` it is noticed before the next write, without a new connection."""
    sink = make_sink(kept.url, Settings())
    await sink.open()
    await kept.line.execute("alter table readings set unlogged")
    sink.tables[None].checked_s = float("-inf")  # as after schema_check_s
    with pytest.raises(WriteFailed, match="table readings is unlogged"):
        await sink.write(encode(readings(1)), 1, idempotent=False)
    assert await kept.line.fetchval("select count(*) from readings") == 0


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
async def test_server_started_without_it_is_refused(made: Path, name: str) -> None:
    """These two settings are the server's own. Each one alone is enough, and is named."""
    server = EmbeddedPostgres(made, settings={"shared_buffers": "8MB", name: "off"})
    await server.start()
    url = server.url
    try:
        connection = await asyncpg.connect(url)
        found = await durability.findings(connection)
        await connection.close()
    finally:
        await server.stop()
    assert [each.name for each in found if each.refuses] == [name]
    fault = durability.fault(found)
    assert fault is not None
    assert fault.startswith(f"{name} is off: ")
    assert fault.endswith(f"(set {name} = on)")


@pytest.mark.parametrize(
    ("value", "standbys", "warns", "refuses"),
    [
        ("off", "", True, True),
        ("off", "one", True, True),
        ("local", "", False, False),
        ("local", "one", True, False),
        ("remote_write", "", False, False),
        ("remote_write", "one", True, False),
        ("on", "one", False, False),
        ("remote_apply", "one", False, False),
    ],
)
async def test_every_value_of_synchronous_commit_is_judged(
    readings_url: str, value: str, standbys: str, warns: bool, refuses: bool
) -> None:
    """All but `off` wait for the primary's disk. Less than a standby's disk is a warning."""
    connection = await asyncpg.connect(readings_url)
    found = await connection.fetchrow(durability._QUESTION, TABLE)
    await connection.close()
    assert found is not None
    row = dict(found) | {"synchronous_commit": value, "standbys": standbys}
    judged = {each.name: each for each in durability._judge(row)}["synchronous_commit"]
    assert (bool(judged.risk), judged.refuses) == (warns, refuses)


async def test_replay_by_hand_marks_nothing_done_that_a_crash_could_take_back(
    here: Here, readings_url: str, tmp_path: Path
) -> None:
    """A dead letter that is done is removed, so the replay needs a database that keeps commits."""
    folder = tmp_path / "dead-letters"
    store = LetterFiles(folder)
    keep(store, drained(2))
    store.close()
    words = ("dlq", "replay", "--state-dir", tmp_path, "--database-url", readings_url)
    done = await here(*words)
    assert done.code == 1
    assert "fsync is off" in done.stdout + done.stderr
    assert "--database-unsafe true" in done.stdout + done.stderr
    assert len(read(folder)) == 2
    assert (await here(*words, "--database-unsafe", "true")).code == 0
    assert read(folder) == []
