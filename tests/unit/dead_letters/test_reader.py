"""Reading a folder: damage is skipped and counted, and never taken for a letter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ingest.dead_letters.folder.segments import (
    cursor_path,
    first_letters,
    live_letters,
    mark_done,
    read_marks,
    segments,
)
from ingest.dead_letters.store import Selection, Tally, device_of
from ingest.model.reading import DRAINED, EXHAUSTED, Letter
from tests.support.letters import START_US, LetterFiles, drained, invalid, keep, mark, read


def folder_of(folder: Path, letters: list[Letter]) -> Path:
    """Write letters into a fresh folder and return its only segment."""
    store = LetterFiles(folder)
    keep(store, letters)
    store.close()
    (segment,) = segments(folder)
    return segment


def test_reader_every_prefix_of_a_file_gives_its_whole_lines(tmp_path: Path) -> None:
    """Of a file that was cut at any place, the whole lines are read and nothing else."""
    letters = [*drained(3), invalid(b'{"ts":"x"}')]
    segment = folder_of(tmp_path, letters)
    data = segment.read_bytes()
    for end in range(len(data) + 1):
        segment.write_bytes(data[:end])
        tally = Tally()
        found = [live.letter for live in live_letters(tmp_path, tally=tally)]
        assert found == letters[: data[:end].count(b"\n")]
        assert (tally.torn, tally.altered) == (int(data[end - 1 : end] not in (b"", b"\n")), 0)


def test_reader_every_flipped_byte_costs_its_line_at_most(tmp_path: Path) -> None:
    """An altered byte hides the lines that it touches; the others are read as they were."""
    letters = drained(3)
    segment = folder_of(tmp_path, letters)
    data = segment.read_bytes()
    for place in range(len(data)):
        for flip in (0x01, 0x80, data[place] ^ 0x0A):
            if flip == 0:
                continue
            segment.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            tally = Tally()
            found = [live.letter for live in live_letters(tmp_path, tally=tally)]
            assert set(found) <= set(letters)
            assert len(found) >= (1 if data[place : place + 1] == b"\n" else 2)
            assert tally.damaged


def test_reader_every_prefix_of_a_cursor_leaves_letters_live(tmp_path: Path) -> None:
    """A cut record of the cursor marks nothing; the record after it begins on a new line."""
    letters = drained(4)
    segment = folder_of(tmp_path, letters)
    lines = list(live_letters(tmp_path))
    mark_done(lines[:1], "replayed")
    first = cursor_path(segment).read_bytes()
    mark_done(lines[1:3], "replayed")
    data = cursor_path(segment).read_bytes()
    for end in range(len(data) + 1):
        cursor_path(segment).write_bytes(data[:end])
        done = (0 if end < len(first) else 1) + (0 if end < len(data) else 2)
        assert read(tmp_path) == letters[done:]
    cursor_path(segment).write_bytes(data[:-5])
    mark_done(lines[3:], "replayed")
    assert read(tmp_path) == letters[1:3]


def test_reader_every_flipped_byte_of_a_cursor_never_hides_a_live_letter(tmp_path: Path) -> None:
    """An altered record is ignored: what it marked is live again, nothing else is done."""
    letters = drained(3)
    segment = folder_of(tmp_path, letters)
    line = next(iter(live_letters(tmp_path)))
    mark_done([line], "replayed")
    data = cursor_path(segment).read_bytes()
    for place in range(len(data)):
        cursor_path(segment).write_bytes(
            data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :]
        )
        assert read(tmp_path)[-2:] == letters[1:]


def test_reader_mark_of_another_line_does_not_count(tmp_path: Path) -> None:
    """A mark counts only where the id at its offset is the one that was marked."""
    letters = drained(2)
    segment = folder_of(tmp_path, letters)
    line = next(iter(live_letters(tmp_path)))
    mark_done([line._replace(id="0" * 32)], "replayed")
    assert len(read_marks(segment)[0]) == 1
    assert read(tmp_path) == letters


def test_reader_pipe_link_and_folder_of_a_segments_name_are_skipped(tmp_path: Path) -> None:
    """A pipe, a link or a folder with the name of a segment is skipped and counted."""
    letters = drained(1)
    segment = folder_of(tmp_path, letters)
    os.mkfifo(tmp_path / "dlq-20200101T000000000000Z-1-aa.jsonl")
    (tmp_path / "dlq-20200101T000000000000Z-1-bb.jsonl").symlink_to(segment)
    (tmp_path / "dlq-20200101T000000000000Z-1-cc.jsonl").mkdir()
    (tmp_path / "notes.txt").write_text("not ours")
    tally = Tally()
    assert [live.letter for live in live_letters(tmp_path, tally=tally)] == letters
    assert len(tally.unreadable) == 3
    store = LetterFiles(tmp_path)
    assert store.totals().live == 1
    store.close()


def test_reader_endless_line_takes_little_memory_and_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line longer than any letter is skipped; the lines behind it are read."""
    letters = drained(2)
    segment = folder_of(tmp_path, letters)
    monkeypatch.setattr("ingest.dead_letters.folder.segments.LINE_BYTES_MAX", 1_000)
    data = segment.read_bytes()
    segment.write_bytes(b"x" * 5_500 + b"\n" + data + b"y" * 3_000)
    tally = Tally()
    assert [live.letter for live in live_letters(tmp_path, tally=tally)] == letters
    assert (tally.altered, tally.torn) == (1, 1)


def test_where_each_condition_selects(tmp_path: Path) -> None:
    """All conditions must be met."""
    first = invalid(b'{"ts":1,"device_id":"a"}', code="wrong_type")
    second = invalid(b'{"ts":2,"device_id":"b"}', code="ts_too_old")
    third = drained(1, device="a")[0]
    folder_of(tmp_path, [first, second, third])

    def found(where: Selection) -> list[Letter]:
        return [live.letter for live in live_letters(tmp_path, where=where)]

    assert found(Selection(reasons=("drained", "retries_exhausted"))) == [third]
    assert found(Selection(code="ts_too_old")) == [second]
    assert found(Selection(device="a")) == [first, third]
    assert found(Selection(device="a", code="wrong_type")) == [first]
    assert found(Selection(since_us=START_US)) == [first, second, third]
    assert found(Selection(since_us=2**62)) == []


@pytest.mark.parametrize("code", ["", 'qu"ote', "caf\xe9", "back\\slash", "line\n", "\udcff"])
def test_any_code_can_be_looked_for(tmp_path: Path, code: str) -> None:
    """A code is found exactly, although lines are sorted out by their bytes first."""
    wanted = invalid(b"1", code=code)
    folder_of(tmp_path, [wanted, invalid(b'{"code":"","x":"other"}', code="other")])
    codes = [live.letter.code for live in live_letters(tmp_path, where=Selection(code=code))]
    assert codes == ([code] if code.isprintable() or code == "line\n" else [])


def test_what_another_code_says_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines with another code are not parsed, so a discard by code is fast."""
    folder_of(tmp_path, [invalid(b"%d" % number, code="many") for number in range(20)])
    parsed: list[bytes] = []
    monkeypatch.setattr("ingest.dead_letters.store.decode_line", parsed.append)
    assert list(live_letters(tmp_path, where=Selection(code="few"))) == []
    assert parsed == []


@pytest.mark.parametrize("original", [b"", b"{", b"[1]", b'{"device_id":5}', b"\xff"])
def test_device_of_an_unreadable_item_is_unknown(original: bytes) -> None:
    """The device of any bytes is None or a text; it never raises."""
    assert device_of(invalid(original)) is None


def test_first_letters_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Read in parts, a segment gives every wanted letter once, and then nothing more."""
    letters = [*drained(3), invalid(b"1"), *drained(2, reason=EXHAUSTED), invalid(b"2")]
    segment = folder_of(tmp_path, letters)
    where = Selection(reasons=(DRAINED, EXHAUSTED))
    found: list[Letter] = []
    start = 0
    for expected in (2, 2, 1, 0):
        some, start = first_letters(segment, start=start, where=where, count_max=2)
        assert len(some) == expected
        found += [live.letter for live in some]
    assert found == [*letters[:3], *letters[4:6]]
    assert start == segment.stat().st_size


def test_reader_same_letter_in_two_segments_comes_twice(tmp_path: Path) -> None:
    """Two processes may write one letter; each line is marked for itself."""
    letters = drained(2)
    one, other = LetterFiles(tmp_path), LetterFiles(tmp_path)
    keep(one, letters)
    keep(other, letters)
    assert read(tmp_path) == letters * 2
    mark(one, lambda live: live.path == segments(tmp_path)[0])
    assert read(tmp_path) == letters
    one.close()
    other.close()


def test_reader_unreadable_cursor_leaves_all_letters_live(tmp_path: Path) -> None:
    """If the cursor cannot be read, all letters are live: sending one twice is harmless."""
    letters = drained(2)
    segment = folder_of(tmp_path, letters)
    cursor_path(segment).mkdir()
    tally = Tally()
    assert [live.letter for live in live_letters(tmp_path, tally=tally)] == letters
    assert tally.unreadable == [f"{segment.name}.cursor: not a regular file"]
    store = LetterFiles(tmp_path, keep_days=0)
    assert store.totals().live == 2
    assert store.tidy() == []
    store.close()
