"""The dead letters of one run, read without the service's code.

A letter is a line of JSON with a checksum, in a file as well as in a stream. A folder has segments
(`dlq-*.jsonl`), and for some segments a cursor file that lists the lines that are done.
Promises: only live lines with a right checksum count, an id counts once. Takes no lock and changes
nothing. All functions here block.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

Row = tuple[int, str, str, float]  # ts in Unix microseconds, device_id, metric, value

COMES_BACK = frozenset({"retries_exhausted", "drained"})  # the service itself replays these

_SEGMENT = re.compile(r"dlq-[0-9TZ]+-\d+-[0-9a-f]+\.jsonl")
_BASE64 = re.compile(rb'"original_base64":"([A-Za-z0-9+/=]+)"')
_SUM = re.compile(rb',"sum":"([0-9a-f]{8})"\}\n\Z')
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DeadLettersError(Exception):
    """The folder cannot be read; the text says which and why."""


class Letter(NamedTuple):
    """An open dead letter: a reading, or the text of an invalid item. `place` is for messages.

    The characters of an `original` that is no text are its bytes.
    """

    id: str
    reason: str
    code: str
    row: Row | None
    original: str | None
    place: str


@dataclass
class RunLetters:
    """The letters of one run, and the number of lines that are torn, altered, or repeat an id."""

    letters: list[Letter] = field(default_factory=list)
    torn: int = 0
    altered: int = 0
    again: int = 0

    @property
    def coming_back(self) -> int:
        """Letters that the service will replay by itself."""
        return sum(letter.reason in COMES_BACK for letter in self.letters)


class LetterReader:
    """Takes lines of dead letters, and keeps the letters of one run in `found`."""

    def __init__(self, prefix: str) -> None:
        self.found = RunLetters()
        self._ids: set[str] = set()
        self._mark = prefix.encode()

    def take(self, line: bytes, place: str, done_id: str | None = None) -> None:
        """Take the next line. `done_id`: the letter of this place with this id is done."""
        found = self.found
        if not line.endswith(b"\n"):
            found.torn += 1
            return
        if self._mark not in line and not self._is_in_base64(line):
            return
        fields = _unsealed(line)
        if fields is None:
            found.altered += 1
        elif done_id is None or done_id != fields.get("id"):
            letter = _letter(fields, place)
            if letter is None:
                found.altered += 1
            elif letter.id in self._ids:
                found.again += 1
            else:
                self._ids.add(letter.id)
                found.letters.append(letter)

    def _is_in_base64(self, line: bytes) -> bool:
        """Whether the mark is in an original that is no text."""
        found = _BASE64.search(line)
        return found is not None and self._mark in b64decode(found[1])


def read_folder(folder: Path, reader: LetterReader) -> None:
    """Give all lines of a folder to the reader. Raises DeadLettersError."""
    for segment in _segments(folder):
        done = _done(segment)
        offset = 0
        try:
            with segment.open("rb") as file:
                for line in file:
                    reader.take(line, f"{segment.name} at byte {offset}", done.get(offset))
                    offset += len(line)
        except FileNotFoundError:
            continue  # the segment was done, and removed since it was listed
        except OSError as error:
            raise DeadLettersError(f"cannot read {segment}: {error.strerror}") from error


def _segments(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DeadLettersError(
            f"cannot read the dead-letter folder {folder}: {error.strerror}"
        ) from error
    return [folder / name for name in sorted(names) if _SEGMENT.fullmatch(name)]


def _done(segment: Path) -> dict[int, str]:
    """Return offset and id of the lines that are done, by the cursor file."""
    done: dict[int, str] = {}
    cursor = segment.with_name(segment.name + ".cursor")
    try:
        with cursor.open("rb") as file:
            for line in file:
                fields = _unsealed(line)
                if fields is not None:
                    done.update((int(at), str(id_)) for at, id_, _ in fields["done"])
    except FileNotFoundError:
        pass
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DeadLettersError(f"cannot read {cursor}: {error}") from error
    return done


def _unsealed(line: bytes) -> dict[str, Any] | None:
    """Return a line's JSON object if its checksum is right, else None."""
    match = _SUM.search(line)
    if match is None or int(match[1], 16) != crc32(line[: match.start()]):
        return None
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _letter(fields: dict[str, Any], place: str) -> Letter | None:
    try:
        row: Row | None = None
        reading = fields["reading"]
        if reading is not None:
            moment = datetime.fromisoformat(reading["ts"]) - _EPOCH
            ts_us = moment // timedelta(microseconds=1)
            row = (ts_us, reading["device_id"], reading["metric"], float(reading["value"]))
        original = fields.get("original")
        if "original_base64" in fields:
            original = b64decode(fields["original_base64"]).decode("latin-1")
        return Letter(fields["id"], fields["reason"], fields["code"], row, original, place)
    except (KeyError, TypeError, ValueError):
        return None
