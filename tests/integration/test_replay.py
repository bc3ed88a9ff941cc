"""Replay with a real PostgreSQL, automatic and by hand: each letter is stored once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import orjson
import pytest

from ingest.app.writing import WritingHalf, make_sink
from ingest.buffers.memory import MemoryBuffer
from ingest.config.settings import Settings
from ingest.dead_letters.auto_replay import BlockSender, Replayer
from ingest.dead_letters.folder.segments import live_letters, segments, try_replay_lock
from ingest.dead_letters.folder.store import hold_replay_lock
from ingest.dead_letters.format import BadLine
from ingest.dead_letters.manual_replay import Item, ManualReplay, item_of_fields, item_of_letter
from ingest.formats.post import Rules
from ingest.model.errors import ReplayStopped
from ingest.model.ledger import Gauges, Ledger
from ingest.model.letter import EXHAUSTED, INVALID, LINE, REFUSED, Letter
from ingest.model.reading import Reading
from ingest.model.verdict import LETTERS_FULL
from ingest.system.clock import monotonic_s
from tests.support.blocks import block_of, make_reading
from tests.support.letters import START_US, LetterFiles, drained, folder_queue, invalid, keep, read

SETTINGS = Settings(
    database_unsafe=True,  # the tests' server does not fsync
    dlq_replay_rows_per_s=100_000,
    batch_linger_s=0.001,
    wait_s_max=0.1,
)
REFUSE_B = """create function refuse() returns trigger language plpgsql as $$ begin
    if new.metric = 'b' then insert into gone values (1); end if; return new; end $$;
create trigger refuse before insert on readings for each row execute function refuse()"""
RULES = Rules(post_rows_max=5_000, ts_min_us=0, ts_ahead_us_max=86_400_000_000)


class Half:
    """The real second half of the service, with a folder of dead letters."""

    def __init__(
        self, url: str, folder: Path, settings: Settings = SETTINGS, *, dlq_bytes_max: int = 1 << 30
    ) -> None:
        self.ledger = Ledger()
        self.buffer = MemoryBuffer(rows_max=10_000, bytes_max=1 << 24, put_wait_s_max=0.1)
        self.letters = folder_queue(
            folder, bytes_max=dlq_bytes_max, segment_bytes=dlq_bytes_max // 16, keep_days=0
        )
        self.up = True
        self.stopping = asyncio.Event()
        self.halted = asyncio.Event()
        half = WritingHalf(settings, outlet=self.buffer, ledger=self.ledger, halted=self.halted)
        self.sink = make_sink(url, settings)
        half.sinks.append(self.sink)
        (self.writer,) = half.make_writers(self.letters)
        self.database_state = half.database_state
        self.replayer = Replayer(
            self.letters.backend.replay_source(0.01),
            BlockSender(
                inlet=self.buffer,
                outlet_stats=self.buffer.stats,
                ledger=self.ledger,
                database_up=lambda: self.up and self.database_state.is_open,
                letters_full=lambda: self.database_state.hold_reason == LETTERS_FULL,
            ),
            post_rows_max=settings.post_rows_max,
            rows_per_s=settings.dlq_replay_rows_per_s,
            pause_s=0.01,
        )
        self.ledger.gauges = Gauges(
            self.buffer.stats, self.letters.stats, lambda: self.up, lambda: None
        )


@asynccontextmanager
async def running(path: Half, *, writing: bool = True) -> AsyncIterator[None]:
    """Run writer and replay; stop both by their events, in bounded time."""
    await path.letters.open()
    tasks = [
        asyncio.create_task(path.replayer.run(path.stopping)),
        asyncio.create_task(path.letters.tidy(path.stopping)),
    ]
    if writing:
        tasks.append(asyncio.create_task(path.writer.run()))
    try:
        yield
    finally:
        path.stopping.set()
        async with asyncio.timeout(5):
            await tasks[0]
        path.buffer.shut_inlet()
        path.halted.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
        await path.letters.close()


async def until_live(folder: Path, count: int) -> None:
    """Wait until so many letters are live."""
    async with asyncio.timeout(15):
        while len(read(folder)) != count:  # noqa: ASYNC110  other processes may mark them
            await asyncio.sleep(0.02)


async def rows(connection: asyncpg.Connection) -> int:
    """Count the table's rows."""
    count: int = await connection.fetchval("select count(*) from readings")
    return count


def write(folder: Path, letters: Sequence[Letter]) -> None:
    """Write letters as an earlier process."""
    store = LetterFiles(folder)
    keep(store, letters)
    store.close()


async def test_auto_replay_brings_in_what_dead_processes_left(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """Drained and exhausted letters of all files are stored once; others stay; the balance is 0."""
    write(tmp_path, drained(700))
    write(tmp_path, [*drained(600, reason=EXHAUSTED), invalid(b"{}")])
    path = Half(readings_url, tmp_path)
    async with running(path):
        await until_live(tmp_path, 1)
        own = drained(5)
        await path.letters.append(own)
        await until_live(tmp_path, 1)
        assert [each.reason for each in read(tmp_path)] == [INVALID]
    assert await rows(readings_connection) == 1_305
    ledger = path.ledger
    assert (ledger.replayed, ledger.committed, ledger.imbalance) == (1_305, 1_305, 0)


async def test_auto_replay_passes_over_what_no_row_can_hold(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """A valid line without a reading, or with an impossible ts, does not stop the replay."""
    odd = drained(2)
    odd[0] = odd[0]._replace(reading=None, original=b"{}")
    name = "d" * 300
    odd[1] = odd[1]._replace(reading=Reading(1_700_000_000_000_000, name, "m", 1.0))
    write(tmp_path, [*odd, *drained(20)])
    path = Half(readings_url, tmp_path)
    async with running(path):
        await until_live(tmp_path, 2)
    assert await rows(readings_connection) == 20
    assert path.ledger.imbalance == 0


async def test_auto_replay_value_is_bit_exact(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """The stored reading equals the one that was dead-lettered."""
    (letter,) = drained(1)
    assert letter.reading is not None
    reading = letter.reading._replace(device_id="d\u00e4 \u2028", value=0.1 + 0.2)
    write(tmp_path, [letter._replace(reading=reading)])
    async with running(Half(readings_url, tmp_path)):
        await until_live(tmp_path, 0)
    (row,) = await readings_connection.fetch("select *, extract(epoch from ts) as s from readings")
    assert (row["device_id"], row["metric"], row["value"]) == tuple(reading[1:])
    assert int(row["s"] * 1_000_000) == reading.ts_us


async def test_auto_replay_row_refused_now_becomes_a_letter_of_that_reason(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """A row that is refused at its replay is live once, with the new reason."""
    await readings_connection.execute("alter table readings add check (device_id <> 'bad')")
    (bad,) = drained(1, device="bad")
    write(tmp_path, [*drained(20), bad, *drained(20)])
    path = Half(readings_url, tmp_path)
    async with running(path):
        await until_live(tmp_path, 1)
        (letter,) = read(tmp_path)
        assert (letter.reason, letter.code, letter.reading) == (REFUSED, "23514", bad.reading)
        assert letter.received_us <= bad.received_us
    assert await rows(readings_connection) == 40
    assert path.ledger.imbalance == 0


async def test_auto_replay_waits_for_database_room_and_hand(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """The replay waits for live readings, for the database and for a replay by hand."""
    write(tmp_path, drained(10))
    path = Half(readings_url, tmp_path)
    path.up = False
    async with running(path):
        await asyncio.sleep(0.15)
        assert path.ledger.replayed == 0
        lock = try_replay_lock(tmp_path)
        assert lock is not None
        path.up = True
        await asyncio.sleep(0.15)
        assert path.ledger.replayed == 0
        lock.close()
        await until_live(tmp_path, 0)
    assert await rows(readings_connection) == 10


async def test_auto_replay_leaves_half_of_the_buffer_to_live_readings(
    tmp_path: Path, readings_url: str
) -> None:
    """While the buffer is half full nothing is replayed."""
    write(tmp_path, drained(10))
    path = Half(readings_url, tmp_path)
    live = block_of(make_reading() for _ in range(5_000))
    (await path.buffer.reserve(live.rows, len(live.tuples))).put(live)
    async with running(path, writing=False):
        await asyncio.sleep(0.15)
        assert path.ledger.replayed == 0
        path.buffer.settle(path.buffer.take(5_000))
        async with asyncio.timeout(5):
            await path.buffer.wait_rows(10)
    assert path.ledger.replayed == 10
    assert len(read(tmp_path)) == 10


async def test_auto_replay_stops_at_once_and_marks_nothing_undecided(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """After a stop with a block in the buffer, its lines are live; the next run stores them."""
    write(tmp_path, drained(10))
    path = Half(readings_url, tmp_path)
    async with running(path, writing=False):
        async with asyncio.timeout(5):
            await path.buffer.wait_rows(10)
        began_s = monotonic_s()
    assert monotonic_s() - began_s < 2
    assert len(read(tmp_path)) == 10
    async with running(Half(readings_url, tmp_path)):
        await until_live(tmp_path, 0)
    assert await rows(readings_connection) == 10


async def test_auto_replay_what_fails_again_stays_and_holds_nobody_up(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """After a block failed again, letters behind it are stored first, and it is tried later."""
    await readings_connection.execute(
        "create table gate (open boolean); insert into gate values (false);"
        "create function closed() returns trigger language plpgsql as $$ begin "
        "if new.device_id = 'stuck' and not (select open from gate) then "
        "raise exception using errcode = '40001'; end if; return new; end $$;"
        "create trigger closed before insert on readings for each row execute function closed()"
    )
    write(tmp_path, drained(3, device="stuck", reason=EXHAUSTED))
    write(tmp_path, drained(3))
    settings = replace(SETTINGS, dlq_replay_rows_per_s=1_000, retries_max=0)
    path = Half(readings_url, tmp_path, settings)
    async with running(path):
        await until_live(tmp_path, 3)
        assert {each.reason for each in read(tmp_path)} == {EXHAUSTED}
        assert len(segments(tmp_path)) == 2  # still the old lines: no new ones were written
        await readings_connection.execute("update gate set open = true")
        await until_live(tmp_path, 0)
    assert await rows(readings_connection) == 6
    assert path.ledger.imbalance == 0


async def test_auto_replay_is_not_locked_out_by_the_hold_that_it_would_end(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """If letters for the replay fill the folder, there is still space for refused rows."""
    await readings_connection.execute("alter table readings add check (device_id <> 'bad')")
    write(tmp_path, drained(200, reason=EXHAUSTED))
    full_bytes = sum(path.stat().st_size for path in tmp_path.iterdir())
    path = Half(readings_url, tmp_path, dlq_bytes_max=full_bytes)
    bad = [letter.reading for letter in drained(60, device="bad")]
    block = block_of(reading for reading in bad if reading is not None)
    (await path.buffer.reserve(block.rows, len(block.tuples))).put(block)
    path.ledger.received += block.rows
    path.up = False  # the replay must not come first by chance
    async with running(path):
        await until_live(tmp_path, 260)
        path.up = True
        await until_live(tmp_path, 60)
        assert {each.reason for each in read(tmp_path)} == {REFUSED}
        assert path.database_state.hold_reason is None
    assert await rows(readings_connection) == 200
    assert path.ledger.imbalance == 0


async def test_auto_replay_goes_on_after_a_hold_because_nothing_more_could_be_set_aside(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """The batch is kept; after the database accepts it, all letters are replayed."""
    await readings_connection.execute(
        "create table gate (open boolean); insert into gate values (false);"
        "create function closed() returns trigger language plpgsql as $$ begin "
        "if not (select open from gate) then "
        "raise exception using errcode = '40001'; end if; return new; end $$;"
        "create trigger closed before insert on readings for each row execute function closed()"
    )
    write(tmp_path, drained(200, reason=EXHAUSTED))
    full_bytes = sum(path.stat().st_size for path in tmp_path.iterdir())
    settings = replace(SETTINGS, retries_max=0)
    path = Half(readings_url, tmp_path, settings, dlq_bytes_max=full_bytes)
    block = block_of(make_reading() for _ in range(50))
    (await path.buffer.reserve(block.rows, len(block.tuples))).put(block)
    path.ledger.received += block.rows
    async with running(path):
        async with asyncio.timeout(15):
            assert await path.database_state.wait_hold() == "dead_letters_full"
        await asyncio.sleep(0.2)  # probes fail
        assert path.database_state.hold_reason == "dead_letters_full"
        assert len(read(tmp_path)) == 200
        await readings_connection.execute("update gate set open = true")
        await until_live(tmp_path, 0)
        assert path.database_state.hold_reason is None
    assert await rows(readings_connection) == 250
    assert path.ledger.imbalance == 0


async def test_auto_replay_keeps_its_speed(tmp_path: Path, readings_url: str) -> None:
    """The replay sends at most `dlq_replay_rows_per_s`."""
    write(tmp_path, drained(60))
    settings = replace(SETTINGS, dlq_replay_rows_per_s=20)
    path = Half(readings_url, tmp_path, settings)
    async with running(path):
        await asyncio.sleep(0.5)
        assert 0 < path.ledger.replayed <= 20


async def test_auto_replay_lets_a_replay_by_hand_in_between(
    tmp_path: Path, readings_url: str
) -> None:
    """During a long automatic replay, a replay by hand soon gets the lock."""
    write(tmp_path, drained(4_000))
    path = Half(readings_url, tmp_path)
    async with running(path):
        async with asyncio.timeout(5):
            while path.ledger.replayed == 0:  # noqa: ASYNC110  a counter has no event
                await asyncio.sleep(0.001)
        lock = await hold_replay_lock(tmp_path)
        replayed = path.ledger.replayed
        await asyncio.sleep(0.1)
        assert path.ledger.replayed == replayed < 4_000
        lock.close()
        await until_live(tmp_path, 0)


async def test_auto_replay_clears_away_what_is_finished(
    tmp_path: Path, readings_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files in which every line is done are removed, here at once (`dlq_keep_days` 0)."""
    monkeypatch.setattr("ingest.dead_letters.queue.TIDY_S", 0.05)
    write(tmp_path, drained(3))
    write(tmp_path, [invalid(b"1")])
    async with running(Half(readings_url, tmp_path)):
        async with asyncio.timeout(5):
            while len(segments(tmp_path)) == 2:  # noqa: ASYNC110  a folder has no event
                await asyncio.sleep(0.01)
    assert len(read(tmp_path)) == 1


async def test_auto_replay_without_room_in_time_tries_again(
    tmp_path: Path, readings_url: str
) -> None:
    """The replay goes on after a full buffer, and ends in order with a shut one."""
    write(tmp_path, drained(500))
    path = Half(readings_url, tmp_path)
    large = await path.buffer.reserve(9_900, 1)  # reserved and not held: only reserve sees it
    async with running(path, writing=False):
        await asyncio.sleep(0.3)
        assert path.ledger.replayed == 0
        large.release()
        async with asyncio.timeout(5):
            await path.buffer.wait_rows(500)
    assert path.ledger.replayed == 500


async def test_auto_replay_goes_on_after_the_disk_failed(tmp_path: Path, readings_url: str) -> None:
    """If the cursor cannot be written, the replay goes on; later the lines are marked."""
    write(tmp_path, drained(3))
    path = Half(readings_url, tmp_path)
    (segment,) = segments(tmp_path)
    cursor = segment.with_name(segment.name + ".cursor")
    cursor.mkdir()
    async with running(path):
        async with asyncio.timeout(5):
            while path.ledger.replayed == 0:  # noqa: ASYNC110  a counter has no event
                await asyncio.sleep(0.01)
        cursor.rmdir()
        await until_live(tmp_path, 0)


# By hand


def into(done: list[Item]) -> Callable[[Sequence[Item]], Awaitable[None]]:
    """Return what notes items in a list."""

    async def note(items: Sequence[Item]) -> None:
        done.extend(items)

    return note


async def by_hand(
    items: Sequence[Item], url: str | None, *, rows_per_s: int | None = None, rules: Rules = RULES
) -> tuple[ManualReplay, list[Item]]:
    """Replay items into a database (None: a dry run); return the replay and the done items."""
    done: list[Item] = []
    sink = make_sink(url, SETTINGS) if url is not None else None
    replay = ManualReplay(sink=sink, rules=rules, done=into(done), rows_per_s=rows_per_s)
    try:
        await replay.run(items)
    finally:
        if sink is not None:
            await sink.close()
    return replay, done


def items_of(folder: Path, letters: Sequence[Letter]) -> list[Item]:
    """Write letters, and return the items that are read from them."""
    write(folder, letters)
    return [item_of_letter(live) for live in live_letters(folder)]


async def test_hand_replay_twice_changes_nothing(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """Rows are new at the first replay, duplicates at the second; `done` gets each batch."""
    items = items_of(tmp_path, drained(2_500))
    first, done = await by_hand(items, readings_url)
    assert (first.summary.new, first.summary.duplicate, len(done)) == (2_500, 0, 2_500)
    second, _ = await by_hand(items, readings_url)
    assert (second.summary.new, second.summary.duplicate) == (0, 2_500)
    assert await rows(readings_connection) == 2_500


async def test_hand_replay_validates_again(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """Invalid items are reported and stay; a ts that was too far in the future may be valid now."""
    still = invalid(b'{"device_id":"d","metric":"m","ts":1,"value":"x"}')
    past = invalid(
        b'{"device_id":"d","metric":"m","ts":"2025-10-12T00:00:00Z","value":1}',
        code="ts_in_future",
        received_us=START_US,
    )
    replay, done = await by_hand(items_of(tmp_path, [still, past]), readings_url)
    assert [item.letter.original for item in done] == [past.original]
    assert replay.summary.refused == {"wrong_type": 1}
    assert "string" in replay.summary.refusals[0].message
    assert await rows(readings_connection) == 1


async def test_hand_replay_decodes_as_the_post_said(tmp_path: Path) -> None:
    """Unknown fields are ignored if the post said so. A format of later versions stays."""
    item = b'{"device_id":"d","metric":"m","ts":1760000000,"value":1,"zz":2}'
    open_ = invalid(item, received_us=START_US)._replace(ignore_unknown=True)
    later = [invalid(b"\x81\xa1a\x01")._replace(format="of_later")]
    replay, done = await by_hand(items_of(tmp_path, [open_, invalid(item + b" "), *later]), None)
    assert [each.letter.original for each in done] == [item]
    assert replay.summary.refused == {"unknown_field": 1, "unknown_format": 1}
    copied = [item_of_fields(orjson.loads(live.line), "") for live in live_letters(tmp_path)]
    _, done = await by_hand(copied, None)
    assert [each.letter.original for each in done] == [item]


async def test_hand_replay_reads_lines_as_their_post_said(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """With its precision, device and prefix; a line without a device stays, with many texts too.

    What a backslash is, the setting of today says.
    """
    hour = START_US // 3_600_000_000
    line = invalid(b"m,host=h,t=x\\\\y a=1,b=2 %d" % hour)._replace(
        format=LINE, precision="h", prefix="db"
    )
    no_device = invalid(b"m value=3 %d" % hour, code="no_device")._replace(
        format=LINE, precision="h"
    )
    text = invalid(b'm,host=h s="x"')._replace(format=LINE)
    long = invalid(b"m " + b",".join(b"f%d=1" % n for n in range(6_000)))._replace(
        format=LINE, device="gateway"
    )
    items = items_of(tmp_path, [line, no_device, text, long])
    rules = RULES._replace(line_escapes="questdb")
    replay, _ = await by_hand(items, readings_url, rules=rules)
    assert (replay.summary.letters, replay.summary.rows) == (2, 6_002)
    assert replay.summary.refused == {"no_device": 1, "empty": 1}
    found = await readings_connection.fetch(
        "select device_id, metric, value from readings where device_id = 'h' order by metric"
    )
    assert [tuple(each) for each in found] == [
        ("h", r"db.m.a,t=x\\y", 1.0),
        ("h", r"db.m.b,t=x\\y", 2.0),
    ]
    copied = [item_of_fields(orjson.loads(live.line), "") for live in live_letters(tmp_path)]
    again, _ = await by_hand(copied, None)
    assert again.summary.rows == 6_002


async def test_hand_replay_dry_run_writes_and_marks_nothing(tmp_path: Path) -> None:
    """A dry run writes nothing and marks nothing."""
    letters = [*drained(3), invalid(b'"x"'), invalid(b"]"), invalid(b"")]
    replay, _ = await by_hand(items_of(tmp_path, letters), None)
    assert (replay.summary.letters, replay.summary.rows) == (3, 3)
    assert set(replay.summary.refused) == {"not_an_object", "not_json", "empty"}


async def test_hand_replay_row_that_the_database_refuses_keeps_no_other_out(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """A letter is done only if all of its readings are stored."""
    await readings_connection.execute(REFUSE_B)
    bad = invalid(b'{"device_id":"d","ts":1760000000,"values":{"a":1,"b":1000}}')
    items = items_of(tmp_path, [*drained(1), bad, *drained(1)])
    replay, done = await by_hand(items, readings_url)
    assert len(done) == 2
    assert replay.summary.refused == {"42P01": 1}  # as from a trigger that makes partitions
    assert (replay.summary.rows, replay.summary.new) == (3, 3)
    assert await rows(readings_connection) == 3


async def test_hand_replay_item_without_ts_keeps_its_time_of_receipt(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """An item without ts keeps its time of receipt."""
    letter = invalid(b'{"device_id":"d","metric":"m","value":"5"}')
    write(tmp_path, [letter])
    (segment,) = segments(tmp_path)
    fields = json.loads(segment.read_text())
    fields["original"] = fields["original"].replace('"5"', "5")
    await by_hand([item_of_fields(fields, "line 1")], readings_url)
    seconds = await readings_connection.fetchval("select extract(epoch from ts) from readings")
    assert int(seconds * 1_000_000) == letter.received_us


async def test_hand_replay_database_away_or_on_hold_stops_and_marks_nothing(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """A replay that is stopped says why, and the letters stay live."""
    items = items_of(tmp_path, drained(3))
    with pytest.raises(ReplayStopped):
        await by_hand(items, "postgresql://nobody@127.0.0.1:1/none")
    await readings_connection.execute("alter table readings rename column value to val")
    with pytest.raises(ReplayStopped):
        await by_hand(items, readings_url)
    await readings_connection.execute("alter table readings rename column val to value")
    _, done = await by_hand(items, readings_url, rows_per_s=100)
    assert len(done) == 3


async def test_hand_replay_tries_again_what_failed_for_a_moment(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """A lock that is taken for a moment is waited for."""
    settings = Settings(command_s_max=0.3, database_unsafe=True)
    sink = make_sink(readings_url, settings)
    done: list[Item] = []
    replay = ManualReplay(sink=sink, rules=RULES, done=into(done))
    items = items_of(tmp_path, drained(3))
    await sink.open()
    async with readings_connection.transaction():
        await readings_connection.execute("lock table readings in exclusive mode")
        task = asyncio.create_task(replay.run(items))
        await asyncio.sleep(0.1)
    await task
    await sink.close()
    assert len(done) == 3


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"id": None}, "not text"),
        ({"original": None}, "neither"),
        ({"original": 5}, "not text"),
        ({"precision": "w"}, "precision"),
        ({"precision": ["s"]}, "precision"),
        ({"received_at": "now"}, "now"),
        ({"original": None, "original_base64": "!"}, "base64"),
    ],
)
def test_item_of_an_edited_line_says_what_is_wrong(
    change: dict[str, object], complaint: str
) -> None:
    """Each mistake in an edited line has an error of its own."""
    fields = {
        "v": 1,
        "id": "0" * 32,
        "received_at": "2025-01-01T00:00:00Z",
        "original": "{}",
        "precision": None,
    }
    assert item_of_fields(fields, "line 1").letter.original == b"{}"
    with pytest.raises(BadLine, match=complaint):
        item_of_fields({**fields, **change}, "line 1")
    del fields["received_at"]
    with pytest.raises(BadLine, match="received_at"):
        item_of_fields(fields, "line 1")
