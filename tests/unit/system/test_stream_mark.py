"""The mark of what the stream must have: one small file that several processes write."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.system.state_folder import MarkFile, StreamMark

MARK = StreamMark("monday", purged_to=20, done_to=50, acknowledged_to=100)


async def test_numbers_of_one_stream_only_grow(tmp_path: Path) -> None:
    """Whatever the order. After a loss, and with another stream, they begin anew."""
    kept = MarkFile(tmp_path)
    assert kept.read() == StreamMark()
    await kept.note(MARK)
    await kept.note(StreamMark("monday", done_to=60, acknowledged_to=90))
    assert MarkFile(tmp_path).read() == StreamMark("monday", 20, 60, 100)
    await kept.note(StreamMark("monday", -1, 60, 70), anew=True)
    assert kept.read() == StreamMark("monday", -1, 60, 70)
    assert MarkFile(tmp_path, "nats://other:4222").read() == StreamMark(), "of another broker"
    await kept.note(StreamMark("tuesday", acknowledged_to=3))
    assert kept.read() == StreamMark("tuesday", acknowledged_to=3)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        bytes(512),
        b"[" * 100_000,
        b'["tuesday",1,"2",3]',
        b"[1,2,3,4]",
        b"\xff" * 512,
        b"[]",
        b'["x",1,2,3,4,5,6]',
    ],
)
async def test_damaged_mark_says_nothing(damaged: bytes, tmp_path: Path) -> None:
    """It is written anew."""
    kept = MarkFile(tmp_path)
    await kept.note(MARK)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damaged)
    assert kept.read() == StreamMark()
    await kept.note(MARK)
    assert kept.read() == MARK


async def test_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """A gateway in a container may have none. One that is only missing is made."""
    (tmp_path / "file").touch()
    kept = MarkFile(tmp_path / "file" / "missing")
    await kept.note(MARK)
    assert kept.read() == StreamMark()
    kept = MarkFile(tmp_path / "missing")
    await kept.note(MARK)
    assert kept.read() == MARK
