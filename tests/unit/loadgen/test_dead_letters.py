"""Dead letters that loadgen reads are those of the service's own reader."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ingest.dead_letters.folder.segments import live_letters, mark_done
from ingest.dead_letters.format import encode_line
from ingest.dead_letters.identity import letter_id
from ingest.dead_letters.store import LiveLetter
from ingest.model.reading import Letter, Reading
from loadgen.proof import letter_sources
from loadgen.proof.letter_sources import Files, Local, Program

PREFIX = "verify-1a2b3c4d-"
FIRST = "dlq-20260101T000000000000Z-1-00000000.jsonl"
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
    found = Files(tmp_path).read(PREFIX)
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
    done = LiveLetter(path, offsets[1], 0, letter_id(LETTERS[1]), 0, LETTERS[1], b"")
    wrong = LiveLetter(path, offsets[2], 0, letter_id(LETTERS[3]), 0, LETTERS[3], b"")
    mark_done([done, wrong], "replayed")
    cursor = path.with_name(FIRST + ".cursor")
    with cursor.open("ab") as file:
        file.write(b'{"torn')
    found = Files(tmp_path).read(PREFIX)
    assert [each.id for each in found.letters] == [
        letter_id(LETTERS[number]) for number in (0, 2, 3)
    ]
    assert [each.id for each in live_letters(tmp_path)][:3] == [each.id for each in found.letters]


def test_altered_and_torn_lines_are_counted_and_not_used(tmp_path: Path) -> None:
    """A line with a wrong checksum is no dead letter."""
    lines = [_line(each) for each in LETTERS[:4]]
    lines[1] = lines[1].replace(b"0001", b"0009")
    (tmp_path / FIRST).write_bytes(b"".join(lines)[:-9])
    found = Files(tmp_path).read(PREFIX)
    assert [each.reason for each in found.letters] == ["invalid", "drained"]
    assert (found.altered, found.torn) == (1, 1)


# Letters that a program prints


def _prints(data: bytes, *, code: int = 0, said: str = "") -> Program:
    """Return a program that prints these bytes, and says something on the standard error."""
    script = f"import sys; sys.stdout.buffer.write({data!r}); print({said!r}, file=sys.stderr)"
    return Program((sys.executable, "-c", f"{script}; sys.exit({code})"))


def test_letters_of_a_program_are_checked_like_those_of_a_file() -> None:
    """Each line has its checksum; an id counts once, a torn or altered line not at all."""
    lines = [_line(each) for each in LETTERS]
    altered = lines[1].replace(b"0001", b"0009")
    found = _prints(b"".join([*lines, lines[0], altered])[:-9] + b"x" * 9).read(PREFIX)
    assert [each.id for each in found.letters] == [letter_id(each) for each in LETTERS[:4]]
    assert found.letters[0].original == (LETTERS[0].original or b"").decode()
    assert found.letters[1].place == f"line 2 of {sys.executable}"
    assert (found.coming_back, found.again, found.torn) == (2, 1, 1)
    found = _prints(altered, said="skipped: 3 altered; unreadable: x").read(PREFIX)
    assert (found.letters, found.altered) == ([], 1 + 3), "its own, and those that it left out"


def test_state_folder_with_a_broker_has_letters_in_files_and_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While letters move from the files into the stream, one may be in both: it counts once."""
    monkeypatch.setenv("INGEST_BROKER_URL", "nats://another")
    data = b"".join(map(_line, LETTERS[1:4]))
    script = (
        f"import os, sys; assert 'INGEST_BROKER_URL' not in os.environ; "
        f"assert sys.argv[1:] == ['--store', 'stream', '--state-dir', {str(tmp_path)!r}]; "
        f"sys.stdout.buffer.write({data!r})"
    )
    monkeypatch.setattr(letter_sources, "DLQ_LIST", (sys.executable, "-c", script))
    (tmp_path / "dead-letters").mkdir()
    _write(tmp_path / "dead-letters", FIRST, LETTERS[:2])
    assert len(Local(tmp_path).read(PREFIX).letters) == 2
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "server.json").touch()
    found = Local(tmp_path).read(PREFIX)
    assert {each.id for each in found.letters} == {letter_id(each) for each in LETTERS[:4]}
    assert found.again == 1
    (tmp_path / "dead-letters" / FIRST).unlink()
    (tmp_path / "dead-letters").rmdir()
    assert len(Local(tmp_path).read(PREFIX).letters) == 3
