"""`ingest.Pipeline` in a loop of others: puts, their errors, the end, and what it leaves alone."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.process_collector import ProcessCollector

import ingest
from ingest import Drained, Kept, Pipeline
from ingest.model.ports import Stored
from ingest.sinks.memory_table import MemoryTable
from tests.support.constants import constants
from tests.support.documents import REPOSITORY

NOW = 1_764_000_000
BODIES = {
    "application/json": b'[{"device_id":"d","metric":"m","ts":1764000000,"value":1}]',
    "application/x-ndjson": b'{"device_id":"d","metric":"m","ts":1764000000,"value":1}\n',
    "application/senml+json": b'[{"bn":"d/","n":"m","t":1764000000,"v":1}]',
}


def readings(count: int, device: str = "d") -> list[dict[str, Any]]:
    """Return readings of one device."""
    return [
        {"device_id": device, "metric": "m", "ts": NOW + at, "value": float(at)}
        for at in range(count)
    ]


@pytest.fixture
async def pipeline() -> AsyncIterator[Pipeline]:
    """Give a pipeline in memory that has been entered."""
    async with Pipeline.in_memory() as made:
        yield made


def metrics(pipeline: Pipeline) -> str:
    """Return the text of its metrics in a registry of the program."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(pipeline.collector)
    return generate_latest(registry).decode()


class SlowTable(MemoryTable):
    """Stores nothing until `free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Event()

    async def write(self, tuples: Any, rows: int, *, idempotent: bool) -> Stored:
        """Wait, then store."""
        await self.free.wait()
        return await super().write(tuples, rows, idempotent=idempotent)


@pytest.fixture
async def slow() -> AsyncIterator[tuple[Pipeline, SlowTable]]:
    """Give a pipeline whose table stores nothing until it is let; little fits in before."""
    made, table = Pipeline.in_memory(**SMALL), SlowTable()
    made._memory = table
    with constants(put_wait_s_max=0.01):
        await made.__aenter__()
    yield made, table
    table.free.set()
    await made.close()


SMALL: dict[str, Any] = {
    "post_rows_max": 100,
    "batch_rows": 100,
    "batch_rows_max": 100,
    "buffer_rows_max": 200,
    "buffer_bytes_max": "256KiB",
    "journal_bytes_max": "256KiB",
    "drain_s_max": 60,
}


# Puts


@pytest.mark.parametrize("ack", ["durable", "buffered", "committed"])
async def test_put_is_kept_and_then_stored(ack: Any) -> None:
    """Many readings, or a single one; each is stored once."""
    async with Pipeline.in_memory() as pipeline:
        assert await pipeline.put(readings(3), ack=ack) == Kept(3, 0, ack, [])
        assert await pipeline.put(readings(1, "single")[0], ack=ack) == Kept(1, 0, ack, [])
        assert await pipeline.put((each for each in readings(2, "made")), ack=ack) == Kept(
            2, 0, ack, []
        )
        if ack == "committed":
            assert len(pipeline.stored) == 6
        assert await pipeline.close() == Drained(committed=6, dead_lettered=0, held=0, lost=0)
    assert {each.device_id for each in pipeline.stored} == {"d", "single", "made"}
    assert 'ingest_http_requests_total{code="' in metrics(pipeline)


@pytest.mark.parametrize("content_type", BODIES)
async def test_body_is_kept_as_if_it_was_posted(pipeline: Pipeline, content_type: str) -> None:
    """In each format; a body in steps too."""
    body = BODIES[content_type]
    assert (await pipeline.put_body(body, content_type, ack="committed")).accepted == 1
    (stored,) = pipeline.stored
    assert stored == (NOW * 1_000_000, "d", "m", 1.0)
    if content_type == "application/x-ndjson":
        large = await pipeline.put_body(bytearray(body * 1_000), content_type)
        assert large == Kept(1_000, 0, "durable", [])


async def test_invalid_readings_are_named_and_kept_as_dead_letters(pipeline: Pipeline) -> None:
    """They can be listed, and discarded."""
    kept = await pipeline.put([*readings(2), {"device_id": "d", "metric": "", "value": 1}])
    assert kept[:3] == (2, 1, "durable")
    assert [(each["index"], each["code"]) for each in kept.errors] == [(2, "name_empty")]
    found = await pipeline.dead_letters.listed(ingest.Selection(code="name_empty"))
    assert [each["original"] for each in found["letters"]] == [
        '{"device_id": "d", "metric": "", "value": 1}'
    ]
    assert (await pipeline.dead_letters.replay())["refused"] == {"name_empty": 1}
    assert await pipeline.dead_letters.discard(ingest.Selection()) == {"discarded": 1}
    assert await pipeline.close() == Drained(committed=2, dead_lettered=1, held=0, lost=0)


@pytest.mark.parametrize(
    ("put", "code", "says"),
    [
        (lambda it: it.put([]), "empty", "no items"),
        (lambda it: it.put([{"value": 1}]), "all_invalid", "first: device_id is missing"),
        (lambda it: it.put([7]), "all_invalid", "first: item is a number"),
        (
            lambda it: it.put({**readings(1)[0], "value": float("nan")}),
            "all_invalid",
            "first: value is NaN",
        ),
        (lambda it: it.put(readings(101)), "too_many_readings", "100"),
        (lambda it: it.put(readings(1), ack="fast"), "ack_unavailable", "ack=fast"),
        (lambda it: it.put_body(b"[", "application/json"), "not_json", "not valid JSON"),
        (lambda it: it.put_body(b"[]", "text/csv"), "unsupported_media_type", "text/csv"),
        (lambda it: it.put_body(b" " * 2_000_000), "body_too_large", "at most"),
    ],
)
async def test_put_that_cannot_be_kept_is_refused_and_counted_once(
    put: Callable[[Pipeline], Coroutine[Any, Any, Kept]], code: str, says: str
) -> None:
    """Nothing of it is kept; the code and the text say why."""
    async with Pipeline.in_memory(**SMALL) as pipeline:
        with pytest.raises(ingest.Refused, match=says) as refused:
            await put(pipeline)
        assert refused.value.code == code
        counted = f'ingest_posts_refused_total{{code="{code}"}} 1.0'
        assert (counted in metrics(pipeline)) == (code != "unsupported_media_type")
        assert sum(await pipeline.close()) == 0


async def test_full_buffer_says_when_to_come_again(slow: tuple[Pipeline, SlowTable]) -> None:
    """The journal is full too. What was kept before is stored, or stays in the journal."""
    pipeline, table = slow
    kept = 0
    with pytest.raises(ingest.BufferFull) as full:  # noqa: PT012  each put is the same
        while True:
            kept += (await pipeline.put(readings(100, f"d{kept}"))).accepted
    assert full.value.retry_after_s > 0
    assert kept > 200
    table.free.set()
    done = await pipeline.close()
    assert (done.committed + done.held, done.lost) == (kept, 0)


async def test_puts_all_the_time_let_others_run() -> None:
    """`buffered` puts with room wait for nothing else; a large one is decoded in steps."""
    rounds = 0

    async def other() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async with Pipeline.in_memory(**LARGE) as pipeline:
        for at in range(1_000):
            await pipeline.put(readings(1, f"d{at}"), ack="buffered")
        assert rounds >= 7  # a round has some 120 small puts
        before = rounds
        assert (await pipeline.put(readings(100_000))).accepted == 100_000
        assert rounds - before >= 40  # a round has a millisecond of its steps
        assert (await pipeline.close()).committed == 101_000
    task.cancel()


LARGE: dict[str, Any] = {
    "post_rows_max": 100_000,
    "batch_rows_max": 100_000,
    "buffer_bytes_max": "256MiB",
    "body_bytes_max": 1024,  # of put_body
}


# The end


async def test_close_waits_for_puts_and_takes_no_new_one(slow: tuple[Pipeline, SlowTable]) -> None:
    """What waits for the disk or for the table gets its result; close may be called again."""
    pipeline, table = slow
    waiting = asyncio.create_task(pipeline.put(readings(1), ack="committed"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(pipeline.close())
    while pipeline.state()["state"] != "draining":  # noqa: ASYNC110
        await asyncio.sleep(0)
    with pytest.raises(ingest.Stopping):
        await pipeline.put(readings(1))
    table.free.set()
    assert await waiting == Kept(1, 0, "committed", [])
    assert await closing == await pipeline.close() == Drained(1, 0, 0, 0)
    with pytest.raises(ingest.Stopping):
        await pipeline.put(readings(1))


async def test_cancelled_put_is_kept_or_not_but_never_in_part(
    slow: tuple[Pipeline, SlowTable],
) -> None:
    """The balance is right after it."""
    pipeline, table = slow
    puts = [asyncio.create_task(pipeline.put(readings(1, ack), ack=ack)) for ack in ACKS]
    await asyncio.sleep(0)
    for each in puts:
        each.cancel()
    assert {type(each) for each in await asyncio.gather(*puts, return_exceptions=True)} == {
        asyncio.CancelledError
    }
    table.free.set()
    done = await pipeline.close()
    assert (done.committed, done.lost) == (len(pipeline.stored), 0)
    assert pipeline.core.ledger.imbalance == 0


ACKS: tuple[Any, ...] = ("durable", "committed")


async def test_part_that_dies_drains_and_refuses(pipeline: Pipeline) -> None:
    """What was acknowledged is kept; the program hears of it at its next put."""

    async def fail() -> None:
        raise ZeroDivisionError

    await pipeline.put(readings(2))
    pipeline.core.tasks.spawn(fail())
    await asyncio.sleep(0)
    with pytest.raises(ingest.Broken):
        await pipeline.put(readings(1))
    assert await pipeline.close() == Drained(2, 0, 0, 0)


# What it leaves alone


async def test_program_is_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    """Threads, tasks, signals, logging, garbage collector, interpreter: all as they were."""

    def seen() -> list[Any]:
        root = logging.getLogger()
        threads = {each.name for each in threading.enumerate()}
        return [
            {each for each in threads if not each.startswith("uvloop_")},  # those of the loop
            len(asyncio.all_tasks()),
            *(root.handlers[:], root.level, gc.get_threshold(), gc.isenabled()),
            *(sys.getswitchinterval(), signal.getsignal(signal.SIGTERM)),
        ]

    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(0.003)
    try:
        before = seen()
        async with Pipeline.in_memory() as pipeline:
            folder = pipeline.core.token_file.path.parent
            await pipeline.put(readings(5_000))
        while seen() != before:  # noqa: ASYNC110  threads end a moment later
            await asyncio.sleep(0.01)
        assert not folder.exists()
    finally:
        sys.setswitchinterval(usual_s)
    assert capfd.readouterr() == ("", "")


async def test_lines_are_records_of_the_program(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Below the logger `ingest`; nothing is written by itself."""
    assert await put_to_nobody(tmp_path) == Drained(committed=0, dead_lettered=0, held=3, lost=0)
    (record,) = [each for each in caplog.records if "database_never_seen" in each.getMessage()]
    assert record.name == "ingest.service"
    assert record.levelno == logging.WARNING
    assert capfd.readouterr().out == ""


AWAY = "postgresql://nobody@127.0.0.1:1/none"
UNSAFE: dict[str, Any] = {"journal_unsafe": True, "database_unsafe": True}


async def put_to_nobody(folder: Path) -> Drained:
    """Put readings while the database is away."""
    async with Pipeline(AWAY, state_dir=folder, **UNSAFE) as pipeline:
        assert (await pipeline.put(readings(3))).accepted == 3
        return await pipeline.close()


async def test_folder_is_of_one_pipeline(tmp_path: Path) -> None:
    """Also in the same process. It is free after the end."""
    async with Pipeline(AWAY, state_dir=tmp_path, **UNSAFE) as pipeline:
        with pytest.raises(ingest.StartError, match="already uses the state folder"):
            await Pipeline(AWAY, state_dir=tmp_path, **UNSAFE).__aenter__()
        with pytest.raises(RuntimeError, match="entered once"):
            await pipeline.__aenter__()
    async with Pipeline(AWAY, state_dir=tmp_path, **UNSAFE):
        pass


async def test_start_that_failed_can_be_tried_again(tmp_path: Path) -> None:
    """Until one succeeds nothing can be put, and there is nothing to close."""
    pipeline = Pipeline(AWAY, state_dir=tmp_path, **UNSAFE)
    async with Pipeline(AWAY, state_dir=tmp_path, **UNSAFE):
        with pytest.raises(ingest.StartError):
            await pipeline.__aenter__()
    with pytest.raises(RuntimeError, match="enter the pipeline first"):
        await pipeline.put(readings(1))
    with pytest.raises(RuntimeError, match="was not entered"):
        await pipeline.close()
    async with pipeline:
        assert (await pipeline.put(readings(1))).accepted == 1
        assert pipeline.state()["next"].endswith("start the program again.")


def test_run_that_ends_in_the_middle_of_the_end_frees_the_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`asyncio.run` cancels all tasks. The next run of the same program finds what was kept."""

    async def left(rounds: int) -> None:
        pipeline = await Pipeline(AWAY, state_dir=tmp_path, **UNSAFE).__aenter__()
        await pipeline.put(readings(1, f"d{rounds}"))
        closing = asyncio.create_task(pipeline.close())
        for _ in range(rounds):
            await asyncio.sleep(0)
        assert not closing.cancelled()

    for rounds in range(40):
        asyncio.run(left(rounds))

    async def found() -> None:
        async with Pipeline(AWAY, state_dir=tmp_path, **UNSAFE) as pipeline:
            while pipeline.core.ledger.recovered < 40:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(found(), 10))
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_pipeline_belongs_to_one_event_loop(pipeline: Pipeline) -> None:
    """From another thread puts go through this loop."""
    loop = asyncio.get_running_loop()

    def elsewhere() -> int:
        with pytest.raises(RuntimeError, match="in that event loop"):
            asyncio.run(pipeline.put(readings(1)))
        return asyncio.run_coroutine_threadsafe(pipeline.put(readings(1)), loop).result(5).accepted

    assert await asyncio.to_thread(elsewhere) == 1
    with pytest.raises(RuntimeError, match="enter the pipeline first"):
        await Pipeline.in_memory().put(readings(1))


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_either_loop_does(factory: Any) -> None:
    """asyncio's own or uvloop."""

    async def put() -> int:
        async with Pipeline.in_memory() as pipeline:
            await pipeline.put(readings(600))
        return len(pipeline.stored)

    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(put()) == 600


# Settings, names


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"batch_row": 1}, "there is no setting 'batch_row'; did you mean batch_row"),
        ({"batch_rows": "many"}, "setting batch_rows .*'many' is not a whole number"),
        ({"post_rows_max": 10, "batch_rows_max": 5}, "must not exceed"),
        ({"listen": "127.0.0.1:0"}, "setting listen: a pipeline has no ports"),
        ({"state_dir": ""}, "setting state_dir: it is empty"),
        ({"database_url": ""}, "needs the URL of a database"),
        ({"database_url": None}, "None is not text"),
        ({"database_url": "mysql://"}, "does not begin with postgresql"),
    ],
)
def test_wrong_setting_is_named(settings: dict[str, Any], why: str) -> None:
    """At once, and not at the start."""
    url = settings.pop("database_url", AWAY)
    with pytest.raises(ingest.ConfigError, match=why):
        Pipeline(url, **{"state_dir": "x", **settings})


def test_environment_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are those that the program gives, typed or as text."""
    monkeypatch.setenv("INGEST_BATCH_ROWS", "nonsense")
    made = Pipeline(AWAY, state_dir="x", drain_s_max=30, buffer_bytes_max="32MiB", writers="3")
    settings = made._settings
    assert (settings.batch_rows, settings.drain_s_max) == (100, 30.0)
    assert (settings.buffer_bytes_max, settings.writers) == (32 * 1024**2, 3)


async def test_metrics_fit_into_the_registry_of_the_program(pipeline: Pipeline) -> None:
    """No name is there twice."""
    await pipeline.put(readings(7))
    text = metrics(pipeline)
    assert "\ningest_readings_accepted_total 7.0\n" in text
    names = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert not pipeline.release_hold()


def test_import_of_the_package_loads_no_library() -> None:
    """Its names are loaded at their first use; others are not there."""
    code = (
        "import sys, ingest\n"
        "heavy = {'asyncio', 'aiohttp', 'asyncpg', 'msgspec', 'orjson'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "names = {each: getattr(ingest, each) for each in ingest.__all__}\n"
        "assert names['Pipeline'].__name__ == 'Pipeline' and not hasattr(ingest, 'pipe')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
