"""Values of one moment are letters of their own, and a replay makes one row of them again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import AsyncMock

from ingest.buffers.memory import MemoryBuffer
from ingest.dead_letters.auto_replay import Replayer
from ingest.dead_letters.folder.segments import live_letters
from ingest.dead_letters.manual_replay import BATCH_ROWS, ManualReplay, item_of_letter
from ingest.model.block import Outcome, Refusal
from ingest.model.ledger import Ledger
from ingest.model.moments import COLUMNS_MAX, decode_readings, runs
from ingest.model.ports import Stored
from ingest.model.reading import EXHAUSTED, REFUSED, Letter, Reading
from ingest.model.tables import ColumnTable, Tables
from ingest.system.clock import unix_us
from tests.support.fake_sink import FakeSink
from tests.support.letters import START_US, folder_queue, invalid, read, write
from tests.support.replay_rig import RULES

COLUMNS = ("temperature", "humidity", "co2")
TABLES = Tables([ColumnTable("climate", "", COLUMNS, (START_US,) * 3)])
Rows = list[tuple[str, int, int]]


def moment(number: int, *metrics: str, reason: str = REFUSED) -> list[Letter]:
    """Return a letter for each value of one moment; those below 0 are before `since`."""
    return [
        Letter(reason, "", "no", unix_us(), Reading(START_US + number, "d", each, number + 0.5))
        for each in metrics
    ]


def rows_of(tuples: bytes) -> Rows:
    """Return of each run its table, and how many rows and readings it has."""
    return [
        (run.form.table if run.form else "readings", len(run.counts()), sum(run.counts()))
        for run in runs(tuples)
    ]


class Sink(FakeSink):
    """A table in memory that keeps the tuples of each batch, too."""

    def __init__(self, refused: Reading | None = None) -> None:
        super().__init__(refuse=lambda each: ("23514", "no") if each == refused else None)
        self.batches: list[Rows] = []

    async def write(self, tuples: Sequence[bytes], rows: int, *, idempotent: bool) -> Stored:
        """Keep the tuples, and write."""
        self.batches.append(rows_of(b"".join(tuples)))
        return await super().write(tuples, rows, idempotent=idempotent)


async def by_hand(folder: Path, letters: Sequence[Letter], sink: Sink) -> list[Letter]:
    """Replay letters by hand; return those that are done."""
    write(folder, letters)
    done = AsyncMock()
    replay = ManualReplay(sink=sink, rules=RULES._replace(tables=TABLES), done=done)
    await replay.run([item_of_letter(each) for each in live_letters(folder)])
    return [each.letter for (items,), _ in done.call_args_list for each in items]


async def test_letters_of_a_moment_are_one_row_again(tmp_path: Path) -> None:
    """By hand. What was before `since`, and what no table takes, is a row of `readings`."""
    letters = [
        *moment(1, *COLUMNS),
        *moment(-1, *COLUMNS),
        *moment(2, "co2", "noise", "humidity"),
        invalid(b'{"device_id":"d","ts":1760000001,"values":{"temperature":1,"humidity":2}}'),
    ]
    sink = Sink()
    assert len(await by_hand(tmp_path, letters, sink)) == len(letters)
    assert sink.batches == [[("readings", 4, 4), ("climate", 3, 7)]]
    assert {each.reading for each in letters if each.reading} < sink.table.keys()


async def test_the_letter_of_a_refused_reading_stays(tmp_path: Path) -> None:
    """Although it has another place in the batch than among the letters."""
    letters = [*moment(1, *COLUMNS), *moment(2, "noise"), *moment(3, "humidity", "co2")]
    sink = Sink(refused=letters[4].reading)
    done = await by_hand(tmp_path, letters, sink)
    assert sink.batches == [[("readings", 1, 1), ("climate", 2, 5)]]
    assert len(done) == 5
    assert set(sink.table) == {each.reading for each in [*letters[:4], letters[5]]}


async def test_a_batch_does_not_end_within_a_moment(tmp_path: Path) -> None:
    """It waits for its last letter; one device with one time for all does not fill the memory."""
    moments = [moment(number, *COLUMNS) for number in range(BATCH_ROWS // 3 + 5)]
    sink = Sink()
    await by_hand(tmp_path / "many", [each for letters in moments for each in letters], sink)
    assert sink.batches == [[("climate", 334, 1_002)], [("climate", 4, 12)]]
    sink = Sink()
    await by_hand(tmp_path / "one", moment(1, *map(str, range(2_500))), sink)
    most = BATCH_ROWS + COLUMNS_MAX
    assert sink.batches == [[("readings", rows, rows)] for rows in (most, most, 2_500 - 2 * most)]


async def test_automatic_replay_makes_rows_again(tmp_path: Path) -> None:
    """What finds no partition now stays a letter, whatever place it has in the block."""
    letters = [
        *moment(1, "noise", reason=EXHAUSTED),
        *moment(2, *COLUMNS, reason=EXHAUSTED),
        *moment(3, "humidity", "noise", "co2", reason=EXHAUSTED),
    ]
    write(tmp_path, letters)
    queue, stopping = folder_queue(tmp_path), asyncio.Event()
    buffer = MemoryBuffer(rows_max=1_000, bytes_max=1 << 20, put_wait_s_max=0.1)
    replayer = Replayer(
        queue.backend.replay_source(0.01),
        inlet=buffer,
        outlet_stats=buffer.stats,
        ledger=Ledger(),
        database_up=lambda: True,
        tables=TABLES,
        post_rows_max=100,
        rows_per_s=100_000,
        pause_s=60,
    )
    await queue.open()
    task = asyncio.create_task(replayer.run(stopping))
    await buffer.wait_rows(1)
    (block,) = buffer.take(1_000)
    assert rows_of(block.tuples) == [("readings", 2, 2), ("climate", 2, 5)]
    readings = list(decode_readings(block.tuples))
    late = [row for row, each in enumerate(readings) if each.ts_us == START_US + 2]
    assert block.ack is not None
    block.ack.resolve(Outcome(tuple(Refusal(row, "23514", "", no_partition=True) for row in late)))
    buffer.settle([block])
    stopping.set()
    await task
    await queue.close()
    assert [each.reading for each in read(tmp_path)] == [readings[row] for row in late]
