"""Automatic replay with a real PostgreSQL, of files and of a stream: each letter is stored once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from ingest.config.declared_tables import make_tables
from ingest.dead_letters.folder.segments import segments, try_replay_lock
from ingest.dead_letters.folder.store import hold_replay_lock
from ingest.model.reading import EXHAUSTED, INVALID, REFUSED, Reading
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.system.clock import monotonic_s, rfc3339
from tests.support.brokers import until
from tests.support.journals import block_of, make_reading
from tests.support.letters import START_US, drained, invalid, read
from tests.support.replay_rig import (
    SETTINGS,
    InFolder,
    InStream,
    change,
    rows,
    running,
    stream_with_short_waits,
    until_live,
    until_replayed,
)
from tests.support.rows import apply_tables

Place = InFolder | InStream
GATE = """create table gate (open boolean); insert into gate values (false);
create function closed() returns trigger language plpgsql as $$ begin
    if {} and not (select open from gate) then raise exception using errcode = '40001'; end if;
    return new; end $$;
create trigger closed before insert on readings for each row execute function closed()"""
OPEN = "update gate set open = true"


@pytest.fixture
def folder(tmp_path: Path, readings_url: str) -> InFolder:
    """Give dead letters in files."""
    return InFolder(tmp_path, readings_url)


@pytest.fixture(params=["folder", "stream"])
async def place(
    request: pytest.FixtureRequest, folder: InFolder, nats: EmbeddedBroker
) -> AsyncIterator[Place]:
    """Give dead letters in files, and in a stream whose one message is given again soon."""
    if request.param == "folder":
        yield folder
        return
    async with stream_with_short_waits(nats, folder.url) as made:
        yield made


# Files and stream


async def test_replay_brings_in_what_dead_processes_left(
    place: Place, readings_connection: asyncpg.Connection
) -> None:
    """Drained and exhausted letters are stored once, later ones too; others stay."""
    await place.write(drained(700))
    await place.write([*drained(600, reason=EXHAUSTED), invalid(b"{}")])
    async with place.running() as half:
        await until_live(place, 1)
        await half.letters.append(drained(5))
        await until_replayed(half, lambda sent: sent == 1_305)
        await until_live(place, 1)
        assert half.ledger.committed == 1_305
    assert [each.reason for each in await place.read()] == [INVALID]
    assert await rows(readings_connection) == 1_305


async def test_what_no_row_can_hold_is_passed_over(
    place: Place, readings_connection: asyncpg.Connection
) -> None:
    """A valid line without a reading, or with an impossible name, does not stop the replay."""
    odd = drained(2)
    odd[0] = odd[0]._replace(reading=None, original=b"{}")
    odd[1] = odd[1]._replace(reading=Reading(1_700_000_000_000_000, "d" * 300, "m", 1.0))
    await place.write([*odd, *drained(20)])
    async with place.running():
        await until_live(place, 2)
        await place.write(drained(5))
        await until_live(place, 2)
    assert await rows(readings_connection) == 25


async def test_row_refused_now_becomes_a_letter_of_that_reason(
    place: Place, readings_connection: asyncpg.Connection
) -> None:
    """It is live once, with the new reason."""
    await readings_connection.execute("alter table readings add check (device_id <> 'bad')")
    (bad,) = drained(1, device="bad")
    await place.write([*drained(20), bad, *drained(20)])
    async with place.running():
        await until_live(place, 1)
        (letter,) = await place.read()
        assert (letter.reason, letter.code, letter.reading) == (REFUSED, "23514", bad.reading)
        assert letter.received_us <= bad.received_us
    assert await rows(readings_connection) == 40


async def test_moments_are_rows_again_and_a_refused_one_is_a_letter_for_each_value(
    place: Place, readings_connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """What was before `since` stays in `readings`."""
    file = tmp_path / "tables.toml"
    columns = ("temperature", "humidity", "co2")
    file.write_text(f"""[[table]]
name = "climate"
metrics = {json.dumps(columns)}
since = {rfc3339(START_US)}""")
    settings = replace(SETTINGS, tables_file=str(file))
    await apply_tables(readings_connection, make_tables(settings))
    await readings_connection.execute("alter table climate add check (temperature < 50)")
    letters = [
        letter._replace(reading=Reading(START_US + second * 1_000_000, "d", metric, value))
        for second, value in ((-1, 1.0), (1, 2.0), (2, 99.0), (3, 4.0))
        for metric, letter in zip((*columns, "noise"), drained(4), strict=True)
    ]
    await place.write(letters)
    async with place.running(settings) as half:
        await until_live(place, 3)
        left = await place.read()
        assert half.ledger.committed == len(letters) - 3
    hot = [each.reading for each in letters if each.reading and each.reading.value == 99]
    assert {(each.reading, each.reason) for each in left} == {(each, REFUSED) for each in hot[:3]}
    found = await readings_connection.fetch("select * from climate order by ts")
    assert [tuple(row)[2:] for row in found] == [(2, 2, 2), (4, 4, 4)]
    assert await rows(readings_connection) == 3 + 4


async def test_letters_that_fail_again_stay_once_and_hold_nobody_up(
    place: Place, readings_connection: asyncpg.Connection
) -> None:
    """Letters behind them are stored first; they are not appended a second time."""
    await readings_connection.execute(GATE.format("new.device_id = 'stuck'"))
    if isinstance(place, InStream):
        await change(place.admin, duplicate_window=100_000_000)
    stuck = drained(3, device="stuck", reason=EXHAUSTED)
    await place.write(stuck)
    await place.write([*drained(200), *drained(120, reason=EXHAUSTED)])
    block = 3 if isinstance(place, InFolder) else 100  # of these letters; a file has its own
    async with place.running(replace(SETTINGS, retries_max=0)) as half:
        await until_live(place, block)
        await until(lambda: half.ledger.dead_lettered[EXHAUSTED] >= 3 * block)
        left = await place.read()
        assert len(left) == block
        assert sum(each.reading in [one.reading for one in stuck] for each in left) == 3
        await readings_connection.execute(OPEN)
        await until_live(place, 0)
    assert await rows(readings_connection) == 323


async def test_replay_waits_for_the_database_and_for_room(
    place: Place, readings_connection: asyncpg.Connection
) -> None:
    """It goes on after a full buffer."""
    await place.write(drained(300))
    async with place.running() as half:
        half.up = False
        large = await half.buffer.reserve(9_950, 1)  # reserved and not held: only reserve sees it
        for _ in range(2):
            await asyncio.sleep(0.15)
            assert half.ledger.replayed == 0
            half.up = True
        large.release()
        await until_live(place, 0)
    assert await rows(readings_connection) == 300


async def test_replay_stops_at_once_and_marks_nothing_undecided(
    place: Place, readings_connection: asyncpg.Connection
) -> None:
    """After a stop with a block in the buffer, its letters are live; the next run stores them."""
    await place.write(drained(10))
    async with place.running(writing=False) as half:
        async with asyncio.timeout(5):
            await half.buffer.wait_rows(10)
        began_s = monotonic_s()
    assert monotonic_s() - began_s < 2
    assert len(await place.read()) == 10
    async with place.running():
        await until_live(place, 0)
    assert await rows(readings_connection) == 10


# Files


async def test_value_is_bit_exact(
    folder: InFolder, readings_connection: asyncpg.Connection
) -> None:
    """The stored reading equals the one that was dead-lettered."""
    (letter,) = drained(1)
    assert letter.reading is not None
    reading = letter.reading._replace(device_id="d\u00e4 \u2028", value=0.1 + 0.2)
    await folder.write([letter._replace(reading=reading)])
    async with folder.running():
        await until_live(folder, 0)
    (row,) = await readings_connection.fetch("select *, extract(epoch from ts) as s from readings")
    assert (row["device_id"], row["metric"], row["value"]) == tuple(reading[1:])
    assert int(row["s"] * 1_000_000) == reading.ts_us


async def test_replay_leaves_half_of_the_buffer_to_live_readings(folder: InFolder) -> None:
    """While the buffer is half full nothing is replayed."""
    await folder.write(drained(10))
    half = folder.half()
    await half.post(block_of(make_reading() for _ in range(5_000)))
    async with running(half, writing=False):
        await asyncio.sleep(0.15)
        assert half.ledger.replayed == 0
        half.buffer.settle(half.buffer.take(5_000))
        await until_replayed(half, lambda sent: sent == 10)


async def test_replay_is_not_locked_out_by_the_hold_that_it_would_end(
    folder: InFolder, readings_connection: asyncpg.Connection
) -> None:
    """If letters for the replay fill the folder, there is still space for refused rows."""
    await readings_connection.execute("alter table readings add check (device_id <> 'bad')")
    await folder.write(drained(200, reason=EXHAUSTED))
    half = folder.half(bytes_max=sum(path.stat().st_size for path in folder.folder.iterdir()))
    bad = [letter.reading for letter in drained(60, device="bad")]
    await half.post(block_of(reading for reading in bad if reading is not None))
    half.up = False  # the replay must not come first by chance
    async with running(half):
        await until_live(folder, 260)
        half.up = True
        await until_live(folder, 60)
        assert {each.reason for each in read(folder.folder)} == {REFUSED}
        assert half.database_state.hold_reason is None
    assert await rows(readings_connection) == 200


async def test_replay_goes_on_after_a_hold_because_nothing_more_could_be_set_aside(
    folder: InFolder, readings_connection: asyncpg.Connection
) -> None:
    """The batch is kept; after the database accepts it, all letters are replayed."""
    await readings_connection.execute(GATE.format("true"))
    await folder.write(drained(200, reason=EXHAUSTED))
    full_bytes = sum(path.stat().st_size for path in folder.folder.iterdir())
    half = folder.half(replace(SETTINGS, retries_max=0), bytes_max=full_bytes)
    await half.post(block_of(make_reading() for _ in range(50)))
    async with running(half):
        async with asyncio.timeout(15):
            assert await half.database_state.wait_hold() == "dead_letters_full"
        await asyncio.sleep(0.2)  # probes fail
        assert half.database_state.hold_reason == "dead_letters_full"
        assert len(read(folder.folder)) == 200
        await readings_connection.execute(OPEN)
        await until_live(folder, 0)
        assert half.database_state.hold_reason is None
    assert await rows(readings_connection) == 250


async def test_replay_keeps_its_speed(folder: InFolder) -> None:
    """The replay sends at most `dlq_replay_rows_per_s`."""
    await folder.write(drained(60))
    async with folder.running(replace(SETTINGS, dlq_replay_rows_per_s=20)) as half:
        await asyncio.sleep(0.5)
        assert 0 < half.ledger.replayed <= 20


async def test_replay_waits_for_one_by_hand_and_lets_it_in_between(folder: InFolder) -> None:
    """During a long automatic replay, a replay by hand soon gets the lock."""
    await folder.write(drained(1_000))
    lock = try_replay_lock(folder.folder)
    assert lock is not None
    async with folder.running() as half:
        await asyncio.sleep(0.15)
        assert half.ledger.replayed == 0
        lock.close()
        await until_replayed(half, bool)
        lock = await hold_replay_lock(folder.folder)
        replayed = half.ledger.replayed
        await asyncio.sleep(0.1)
        assert half.ledger.replayed == replayed < 1_000
        lock.close()
        await until_live(folder, 0)


async def test_operator_gets_the_lock_while_the_database_is_away(folder: InFolder) -> None:
    """Also if a block waits to be written: the letters may be discarded meanwhile."""
    await folder.write(drained(20))
    async with folder.running(writing=False) as half:
        await until_replayed(half, bool)
        half.up = False
        async with asyncio.timeout(5):
            lock = await hold_replay_lock(folder.folder)
        lock.close()
        assert len(await folder.read()) == 20


async def test_last_line_counts_each_dead_letter_once(
    folder: InFolder, readings_connection: asyncpg.Connection
) -> None:
    """However often it was sent again, and failed again."""
    await readings_connection.execute(GATE.format("true"))
    async with folder.running(replace(SETTINGS, retries_max=0)) as half:
        await half.post(block_of(make_reading() for _ in range(2)))
        await until_replayed(half, lambda sent: sent >= 6)
        assert sum(half.ledger.dead_lettered.values()) >= 6
        assert half.ledger.set_aside <= 2
        await readings_connection.execute(OPEN)
        await until_live(folder, 0)
        assert (half.ledger.committed, half.ledger.set_aside) == (2, 0)


async def test_replay_clears_away_what_is_finished(
    folder: InFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files in which every line is done are removed, here at once (`dlq_keep_days` 0)."""
    monkeypatch.setattr("ingest.dead_letters.queue.TIDY_S", 0.05)
    await folder.write(drained(3))
    await folder.write([invalid(b"1")])
    async with folder.running(), asyncio.timeout(5):
        while len(segments(folder.folder)) == 2:  # noqa: ASYNC110  a folder has no event
            await asyncio.sleep(0.01)
    assert len(read(folder.folder)) == 1


async def test_replay_goes_on_after_the_disk_failed(folder: InFolder) -> None:
    """If the cursor cannot be written, the replay goes on; later the lines are marked."""
    await folder.write(drained(3))
    (segment,) = segments(folder.folder)
    cursor = segment.with_name(segment.name + ".cursor")
    cursor.mkdir()
    async with folder.running() as half:
        await until_replayed(half, bool)
        cursor.rmdir()
        await until_live(folder, 0)
