"""Dead letters that loadgen reads are those of the service's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.dead_letters.format import encode_line
from ingest.dead_letters.identity import letter_id
from ingest.dead_letters.marks import Mark, mark_done
from ingest.dead_letters.reader import live_letters
from ingest.model.letter import Letter
from ingest.model.reading import Reading
from loadgen.proof.dead_letters import DeadLettersError, read_letters

PREFIX = "verify-1a2b3c4d-"
FIRST = "dlq-20260101T000000000000Z-1-00000000.jsonl"
SECOND = "dlq-20260102T000000000000Z-1-00000000.jsonl"
LETTERS = [
    Letter("invalid", "wrong_type", "m", 5, original=b'{"device_id":"%bbad-7"}' % PREFIX.encode()),
    Letter("refused_by_database", "23514", "m", 5, Reading(1, f"{PREFIX}0001", "x", 5e-324)),
    Letter("drained", "", "m", 5, Reading(1_764_000_000_123_456, f"{PREFIX}0002", "x", -0.1)),
    Letter("retries_exhausted", "", "m", 5, Reading(2, f"{PREFIX}0003", "é", 1.7e308)),
    Letter("drained", "", "m", 5, Reading(1, "verify-other000-1", "x", 1.0)),
]


def _line(letter: Letter) -> bytes:
    return encode_line(letter, id_=letter_id(letter), failed_us=9)


def _write(folder: Path, name: str, letters: list[Letter]) -> list[int]:
    offsets, data = [], b""
    for letter in letters:
        offsets.append(len(data))
        data += _line(letter)
    (folder / name).write_bytes(data)
    return offsets


def test_letters_are_those_of_the_run_exactly(tmp_path: Path) -> None:
    """Reason, code, row and original are exact; letters of other runs are left out."""
    _write(tmp_path, FIRST, LETTERS)
    found = read_letters(tmp_path, PREFIX)
    assert [(each.reason, each.code, each.row) for each in found.letters] == [
        (each.reason, each.code, each.reading) for each in LETTERS[:4]
    ]
    assert found.letters[0].original == (LETTERS[0].original or b"").decode()
    assert found.coming_back == 2
    theirs = [each.id for each in live_letters(tmp_path)]
    assert [each.id for each in found.letters] == theirs[:4]


def test_letters_that_are_done_do_not_count(tmp_path: Path) -> None:
    """A done mark counts only for the line with its id, and only in whole records."""
    offsets = _write(tmp_path, FIRST, LETTERS)
    path = tmp_path / FIRST
    done = Mark(offsets[1], letter_id(LETTERS[1]), "refused_by_database")
    wrong = Mark(offsets[2], letter_id(LETTERS[3]), "drained")
    mark_done([(path, done), (path, wrong)], "replayed")
    cursor = path.with_name(FIRST + ".cursor")
    with cursor.open("ab") as file:
        file.write(b'{"torn')
    found = read_letters(tmp_path, PREFIX)
    assert [each.id for each in found.letters] == [
        letter_id(LETTERS[number]) for number in (0, 2, 3)
    ]
    assert [each.id for each in live_letters(tmp_path)][:3] == [each.id for each in found.letters]


def test_id_counts_once_over_all_segments(tmp_path: Path) -> None:
    """A letter that is in two segments counts once."""
    _write(tmp_path, FIRST, LETTERS[:3])
    _write(tmp_path, SECOND, LETTERS[1:4])
    found = read_letters(tmp_path, PREFIX)
    assert (len(found.letters), found.again) == (4, 2)


def test_altered_and_torn_lines_are_counted_and_not_used(tmp_path: Path) -> None:
    """A line with a wrong checksum is no dead letter."""
    lines = [_line(each) for each in LETTERS[:4]]
    lines[1] = lines[1].replace(b"0001", b"0009")
    (tmp_path / FIRST).write_bytes(b"".join(lines)[:-9])
    found = read_letters(tmp_path, PREFIX)
    assert [each.reason for each in found.letters] == ["invalid", "drained"]
    assert (found.altered, found.torn) == (1, 1)


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    """Files that are no segments are ignored, such as an edited copy."""
    (tmp_path / "edited.jsonl").write_bytes(_line(LETTERS[0]))
    (tmp_path / "replay.lock").touch()
    assert read_letters(tmp_path, PREFIX).letters == []


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_folder_that_is_none_is_an_error(tmp_path: Path, kind: str) -> None:
    """A wrong --dlq-dir is an error, not an empty folder."""
    folder = tmp_path / "no"
    if kind == "file":
        folder.touch()
    with pytest.raises(DeadLettersError, match=r"cannot read the dead-letter folder .*/no"):
        read_letters(folder, PREFIX)


def test_segment_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """An unreadable segment is an error, since its letters are not known."""
    (tmp_path / FIRST).mkdir()
    with pytest.raises(DeadLettersError, match=FIRST):
        read_letters(tmp_path, PREFIX)
