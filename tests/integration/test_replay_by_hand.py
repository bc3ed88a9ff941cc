"""Replay by hand with a real PostgreSQL: what is good now is stored, and the rest says why not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import asyncpg
import orjson
import pytest

from ingest.app.database import make_sink
from ingest.config.settings import Settings
from ingest.dead_letters.folder.segments import live_letters, segments
from ingest.dead_letters.format import BadLine
from ingest.dead_letters.manual_replay import Item, ManualReplay, item_of_fields, item_of_letter
from ingest.formats.post import Rules
from ingest.model.errors import ReplayStopped
from ingest.model.reading import LINE, Letter, Reading
from ingest.model.tables import ColumnTable, Tables
from tests.support.letters import START_US, drained, invalid, write
from tests.support.replay_rig import RULES, SETTINGS, rows
from tests.support.rows import apply_tables

REFUSE_B = """create function refuse() returns trigger language plpgsql as $$ begin
    if new.metric = 'b' then insert into gone values (1); end if; return new; end $$;
create trigger refuse before insert on readings for each row execute function refuse()"""


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


async def test_replay_twice_changes_nothing(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """Rows are new at the first replay, duplicates at the second; `done` gets each batch."""
    items = items_of(tmp_path, drained(2_500))
    first, done = await by_hand(items, readings_url)
    assert (first.summary.new, first.summary.duplicate, len(done)) == (2_500, 0, 2_500)
    second, _ = await by_hand(items, readings_url)
    assert (second.summary.new, second.summary.duplicate) == (0, 2_500)
    assert await rows(readings_connection) == 2_500


async def test_replay_validates_again(
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


async def test_replay_decodes_as_the_post_said(tmp_path: Path) -> None:
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


async def test_replay_reads_lines_as_their_post_said(
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


async def test_replay_dry_run_writes_and_marks_nothing(tmp_path: Path) -> None:
    """A dry run writes nothing and marks nothing."""
    letters = [*drained(3), invalid(b'"x"'), invalid(b"]"), invalid(b"")]
    replay, _ = await by_hand(items_of(tmp_path, letters), None)
    assert (replay.summary.letters, replay.summary.rows) == (3, 3)
    assert set(replay.summary.refused) == {"not_an_object", "not_json", "empty"}


async def test_replay_row_that_the_database_refuses_keeps_no_other_out(
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


async def test_replay_makes_one_row_of_the_letters_of_a_moment(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """A second replay changes nothing. If one value of it is refused now, all of them stay."""
    columns = ("temperature", "humidity", "co2")
    tables = Tables([ColumnTable("climate", "", columns, (START_US,) * 3)])
    await apply_tables(readings_connection, tables)
    letters = [
        letter._replace(reading=Reading(START_US + at, "d", metric, at + 0.5))
        for at in (-1, 1, 2)
        for metric, letter in zip((*columns, "noise"), drained(4), strict=True)
    ]
    rules, items = RULES._replace(tables=tables), items_of(tmp_path, letters)
    refused = "alter table climate add constraint hot check (temperature < 2) not valid"
    await readings_connection.execute(refused)
    replay, done = await by_hand(items, readings_url, rules=rules)
    assert (len(done), replay.summary.refused) == (9, {"23514": 3})
    await readings_connection.execute("alter table climate drop constraint hot")
    for _ in range(2):
        replay, done = await by_hand(items, readings_url, rules=rules)
        assert (len(done), replay.summary.refused) == (12, {})
    assert (replay.summary.new, replay.summary.duplicate) == (0, 12)
    found = await readings_connection.fetch("select * from climate order by ts")
    assert [tuple(row)[2:] for row in found] == [(1.5,) * 3, (2.5,) * 3]
    assert await rows(readings_connection) == 3 + 3


async def test_replay_item_without_ts_keeps_its_time_of_receipt(
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


async def test_replay_database_away_or_on_hold_stops_and_marks_nothing(
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


async def test_replay_tries_again_what_failed_for_a_moment(
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
