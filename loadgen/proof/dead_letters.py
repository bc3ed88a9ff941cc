"""The dead letters of one run, read from the service's folder without the service's code.

A folder has segments (`dlq-*.jsonl`, a letter a line, each with a checksum), and for some segments
a cursor file that lists the lines that are done. Promises: only live lines with a right checksum
count, an id counts once. Takes no lock and changes nothing. All functions here block.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

Row = tuple[int, str, str, float]  # ts in Unix microseconds, device_id, metric, value

COMES_BACK = frozenset({"retries_exhausted", "drained"})  # the service itself replays these

_SEGMENT = re.compile(r"dlq-[0-9TZ]+-\d+-[0-9a-f]+\.jsonl")
_SUM = re.compile(rb',"sum":"([0-9a-f]{8})"\}\n\Z')
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DeadLettersError(Exception):
    """The folder cannot be read; the text says which and why."""


class Letter(NamedTuple):
    """An open dead letter: a reading, or the text of an invalid item. `place` is for messages."""

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


def read_letters(folder: Path, prefix: str) -> RunLetters:
    """Return the live letters about devices whose names begin with `prefix`.

    Raises DeadLettersError. Memory: some 600 bytes a letter of the run, however large the folder.
    """
    found = RunLetters()
    ids: set[str] = set()
    mark = prefix.encode()
    for segment in _segments(folder):
        done = _done(segment)
        try:
            for offset, line in _lines(segment, found):
                if mark not in line:
                    continue
                fields = _unsealed(line)
                if fields is None:
                    found.altered += 1
                elif done.get(offset) != fields.get("id"):
                    letter = _letter(fields, f"{segment.name} at byte {offset}")
                    if letter is None:
                        found.altered += 1
                    elif letter.id in ids:
                        found.again += 1
                    else:
                        ids.add(letter.id)
                        found.letters.append(letter)
        except FileNotFoundError:
            continue  # the segment was done, and removed since it was listed
        except OSError as error:
            raise DeadLettersError(f"cannot read {segment}: {error.strerror}") from error
    return found


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


def _lines(segment: Path, found: RunLetters) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with segment.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                found.torn += 1
                return
            yield offset, line
            offset += len(line)


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
        return Letter(
            fields["id"], fields["reason"], fields["code"], row, fields.get("original"), place
        )
    except (KeyError, TypeError, ValueError):
        return None
