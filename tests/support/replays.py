"""Replays of dead letters: one by hand, as `ingest dlq replay` does it; all without pauses."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from ingest.dead_letters.folder.segments import live_letters, mark_done
from ingest.dead_letters.folder.store import hold_replay_lock
from ingest.dead_letters.manual_replay import Item, ManualReplay, Summary, item_of_letter
from ingest.formats.post import Rules
from ingest.model.errors import IngestError, ReplayStopped
from ingest.model.ports import Sink

RULES = Rules(post_rows_max=5_000, ts_min_us=0, ts_ahead_us_max=86_400_000_000)
LOCK_S_MAX = 0.02


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses of replays, between blocks and between tries; they clean up each time."""
    monkeypatch.setattr("ingest.dead_letters.auto_replay.UNLOCKED_S_MIN", 0.0005)
    monkeypatch.setattr("ingest.dead_letters.folder.store.ANEW_S", 0.0)
    monkeypatch.setattr("ingest.dead_letters.queue.TIDY_S", 0.005)
    monkeypatch.setattr("ingest.dead_letters.manual_replay.backoff_s", lambda *_, **__: 0.0)


async def replay_by_hand(folder: Path, sink: Sink) -> Summary:
    """Replay all live letters of a folder, or as many as the table takes; its figures must fit.

    It replays none while the service's own replay waits for the outcome of a block.
    """

    async def done(items: Sequence[Item]) -> None:
        lines = [each.source for each in items if each.source is not None]
        mark_done(lines, "replayed")

    by_hand = ManualReplay(sink=sink, rules=RULES, done=done)
    summary = by_hand.summary
    try:
        lock = await hold_replay_lock(folder, wait_s_max=LOCK_S_MAX)
    except IngestError:
        return summary
    with lock:
        items = [item_of_letter(each) for each in live_letters(folder)]
        with contextlib.suppress(ReplayStopped):
            await by_hand.run(items)
            assert summary.letters + sum(summary.refused.values()) == len(items)
    assert summary.rows == summary.new + summary.duplicate
    await sink.close()
    return summary
