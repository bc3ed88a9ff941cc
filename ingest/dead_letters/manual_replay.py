"""The replay by hand: validates dead letters again and writes them to the table with a sink.

Promises: `done` is awaited with the letters of a batch after its commit. So a replay that was
interrupted can continue, and a replay that is run twice changes nothing. Letters that are refused
again are counted with their reason and are not changed. Values of one moment that a declared table
takes become one row again, although each is a letter of its own.
Does not: touch any file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
from msgspec import structs

from ingest.access.tokens import allowed
from ingest.dead_letters.format import (
    BadLine,
    devices_in,
    id_in,
    original_in,
    reading_object,
    time_in,
)
from ingest.dead_letters.store import LiveLetter
from ingest.formats.lines.body import decode_item
from ingest.formats.lines.careful import LINE_BYTES_MAX
from ingest.formats.lines.keys import Naming
from ingest.formats.mapped import body as mapped_body
from ingest.formats.mapped.documents import UNREADABLE
from ingest.formats.mapped.source import IN
from ingest.formats.media_types import DECODE_ITEM
from ingest.formats.post import Decoded, Post, Rules
from ingest.formats.timestamp import UNITS
from ingest.model.block import Refusal
from ingest.model.causes import OF_ONE_ROW, Verdict, WriteFailed
from ingest.model.errors import Refused, ReplayStopped
from ingest.model.moments import COLUMNS_MAX, decode_readings
from ingest.model.placed_rows import place_readings
from ingest.model.ports import Sink, Stored
from ingest.model.reading import INVALID, JSON, LINE, MAPPED, Letter, Reading
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.waiting import backoff_s

BATCH_ROWS = 1_000
TRIES_MAX = 5
REFUSALS_TOLD_MAX = 20
UNKNOWN_FORMAT = "unknown_format"
# Codes of a mapped document that came as JSON, and is none. A form never gets them.
CAME_AS_JSON = frozenset({UNREADABLE, "not_json"})


class Item(NamedTuple):
    """A letter as an item of a post: its bytes, and what that post said of them.

    `letter` has no reading: a reading is bytes here, too. `place` tells a user where it came from.
    `source` is the live letter, if it was one.
    """

    id: str
    place: str
    letter: Letter
    source: LiveLetter | None = None


class RefusedItem(NamedTuple):
    """Why an item was refused again."""

    id: str
    place: str
    code: str
    message: str


@dataclass
class Summary:
    """The result of a replay: `letters` were stored, as `new` and `duplicate` rows."""

    letters: int = 0
    rows: int = 0
    new: int = 0
    duplicate: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # by code
    refusals: list[RefusedItem] = field(default_factory=list)  # the first of them

    def refuse(self, refusal: RefusedItem) -> None:
        """Count an item that was refused again."""
        self.refused[refusal.code] = self.refused.get(refusal.code, 0) + 1
        if len(self.refusals) < REFUSALS_TOLD_MAX:
            self.refusals.append(refusal)


def item_of_letter(live: LiveLetter) -> Item:
    """Return the item of a live letter."""
    letter = live.letter
    if letter.reading is not None:
        letter = _of_reading(orjson.dumps(reading_object(letter.reading)), letter.received_us)
    return Item(live.id, live.path.name, letter, live)


def item_of_fields(fields: dict[str, Any], place: str) -> Item:
    """Return the item of a parsed line, which somebody may have edited. Raises BadLine."""
    try:
        id_, received_us = id_in(fields), time_in(fields["received_at"])
        precision = _precision_in(fields)
        if fields.get("reading") is not None:
            return Item(id_, place, _of_reading(orjson.dumps(fields["reading"]), received_us))
        original, devices = original_in(fields), devices_in(fields)
    except KeyError as error:
        raise BadLine(f"the field {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise BadLine(str(error)) from error
    if original is None:
        raise BadLine("there is neither a reading nor an original")
    code, source, device, prefix, context = (
        str(fields.get(name) or "") for name in ("code", "source", "device", "prefix", "context")
    )
    letter = Letter(
        INVALID,
        code,
        "",
        received_us,
        original=original,
        precision=precision,
        format=fields.get("format", JSON),
        source=source,
        ignore_unknown=fields.get("ignore_unknown") is True,
        device=device,
        prefix=prefix,
        context=context,
        devices=devices,
    )
    return Item(id_, place, letter)


def _of_reading(original: bytes, received_us: int) -> Letter:
    """Return the letter of an item that is a valid reading; any device may have sent it."""
    return Letter(INVALID, "", "", received_us, original=original, precision="us")


def _precision_in(fields: dict[str, Any]) -> str | None:
    precision = fields.get("precision")
    if precision is None or (isinstance(precision, str) and precision in UNITS):
        return precision
    raise ValueError(f"the precision {precision!r:.80} is none of {', '.join(UNITS)}")


class ManualReplay:
    """One replay. Without a `sink` it is a dry run, which does everything but write.

    `done` gets the items of each batch after its commit. `rows_per_s` bounds the speed. With
    `any_device` it does not matter for which devices the sender of an item may speak.
    """

    def __init__(
        self,
        *,
        sink: Sink | None,
        rules: Rules,
        done: Callable[[Sequence[Item]], Awaitable[None]],
        rows_per_s: int | None = None,
        ignore_unknown: bool = False,
        any_device: bool = False,
    ) -> None:
        self._any_device = any_device
        self._sink = sink
        self._rules = rules
        self._done = done
        self._rows_per_s = rows_per_s
        self._ignore_unknown = ignore_unknown
        self.summary = Summary()

    async def run(self, items: Iterable[Item]) -> None:
        """Replay all items; `summary` is correct even if this ends early.

        Raises ReplayStopped if the database cannot store them now.
        """
        batch_rows = min(BATCH_ROWS, self._rows_per_s or BATCH_ROWS)
        batch: list[tuple[Item, list[Reading]]] = []
        rows = 0
        for item in items:
            decoded = self._decode(item)
            if decoded is None or decoded.block is None:
                continue
            readings = list(decode_readings(decoded.block.tuples))
            over = rows - batch_rows
            if over >= COLUMNS_MAX or (over >= 0 and not _may_share(batch[-1][1][-1], readings[0])):
                await self._write(batch, rows)
                batch, rows = [], 0
            batch.append((item, readings))
            rows += len(readings)
        if batch:
            await self._write(batch, rows)

    def _decode(self, item: Item) -> Decoded | None:
        """Validate as the receiver does; None if any reading of it is refused."""
        # The time of receipt is used for a missing `ts`, so it must be the old one. The limit for
        # times in the future counts from now. A sender may have said when it received the item.
        letter, now_us = item.letter, unix_us()
        received_us = min(letter.received_us, now_us)
        ts_ahead_us_max = self._rules.ts_ahead_us_max + now_us - received_us
        post = Post(
            letter.precision,
            self._ignore_unknown or letter.ignore_unknown,
            received_us,
            monotonic_s(),
            self._rules._replace(ts_ahead_us_max=ts_ahead_us_max),
            None if self._any_device or not letter.devices else allowed(letter.devices),
            letter.device,
        )
        try:
            decoded = _DECODERS.get(letter.format, _unknown)(letter, post)
        except Refused as refused:
            self.summary.refuse(RefusedItem(item.id, item.place, refused.code, refused.detail))
            return None
        if not decoded.errors:
            return decoded
        fault = decoded.errors[0]
        message = f"{fault.field}: {fault.message}" if fault.field else fault.message
        self.summary.refuse(RefusedItem(item.id, item.place, fault.code, message))
        return None

    async def _write(self, batch: list[tuple[Item, list[Reading]]], rows: int) -> None:
        began_s = monotonic_s()
        bad: list[Refusal] = []
        stored = Stored(0, 0)
        owned = [(index, each) for index, (_, readings) in enumerate(batch) for each in readings]
        tuples, order = place_readings([each for _, each in owned], self._rules.tables)
        if self._sink is not None:
            stored, bad = await _store(self._sink, [tuples], rows)
        refused = {owned[order[each.row]][0]: each for each in reversed(bad)}
        stored_items: list[Item] = []
        for index, (item, _) in enumerate(batch):
            if (fault := refused.get(index)) is not None:
                code, message = fault.sqlstate, fault.message
                self.summary.refuse(RefusedItem(item.id, item.place, code, message))
            else:
                stored_items.append(item)
        await self._done(stored_items)
        self.summary.letters += len(stored_items)
        self.summary.rows += rows - len(bad)
        self.summary.new += stored.committed
        self.summary.duplicate += stored.duplicate
        if self._rows_per_s and self._sink is not None:
            await asyncio.sleep(max(0.0, began_s + rows / self._rows_per_s - monotonic_s()))


# Decoders of a letter's original bytes, by format. Each raises Refused.


def _listed(letter: Letter, post: Post) -> Decoded:
    """Decode an item of a format that formats/media_types.py lists."""
    return DECODE_ITEM[letter.format](letter.original or b"", post)


def _line(letter: Letter, post: Post) -> Decoded:
    rules = post.rules
    naming = Naming(rules.device_tags, letter.device, letter.prefix, rules.line_escapes)
    return decode_item(letter.original or b"", _long_post(post), naming)


def _mapped(letter: Letter, post: Post) -> Decoded:
    """Decode a document with the mapping of its source as it is now.

    What came as JSON is read as JSON, and never as a form.
    """
    name = letter.source.removeprefix(IN)
    source = post.rules.sources.get(name)
    if source is None:
        raise Refused(
            "not_found",
            f"the file of sources has no source {name!r:.80} now"
            if post.rules.sources
            else "no file of sources is given: add --sources-file FILE (INGEST_SOURCES_FILE), "
            "the one that the service uses",
        )
    is_json = letter.code in CAME_AS_JSON
    roots = mapped_body.roots_of(letter.context)
    return mapped_body.decode_item(
        letter.original or b"", source, roots, _long_post(post), is_json=is_json
    )


def _unknown(letter: Letter, post: Post) -> Decoded:
    message = f"this version cannot decode the format {letter.format!r:.80}"
    raise Refused(UNKNOWN_FORMAT, message)


_DECODERS: dict[str, Callable[[Letter, Post], Decoded]] = {
    **dict.fromkeys(DECODE_ITEM, _listed),
    LINE: _line,
    MAPPED: _mapped,
}


def _long_post(post: Post) -> Post:
    """Return a post that may have all readings of one line, or of one document."""
    return structs.replace(post, rules=post.rules._replace(post_rows_max=LINE_BYTES_MAX))


def _may_share(one: Reading, other: Reading) -> bool:
    """Whether two readings may stand in one row of a declared table."""
    return (one.ts_us, one.device_id) == (other.ts_us, other.device_id)


async def _store(sink: Sink, tuples: list[bytes], rows: int) -> tuple[Stored, list[Refusal]]:
    """Write one batch and return the rows that the database refuses. Raises ReplayStopped."""
    bad: list[Refusal] = []

    async def set_aside(refused: list[Refusal]) -> None:
        bad[:] = refused

    isolate = False
    tries = 0
    while True:
        try:
            if isolate:
                # A row that is refused stays a dead letter, whoever is at fault.
                stored = await sink.write_isolating(tuples, rows, set_aside, at_fault=True)
                return stored, bad
            return await sink.write(tuples, rows, idempotent=True), bad
        except WriteFailed as failed:
            bad.clear()
            tries += 1
            of_one_row = failed.verdict in OF_ONE_ROW or failed.may_be_row
            if (of_one_row or failed.verdict is Verdict.DUPLICATE) and not isolate:
                isolate = True
                continue
            if failed.verdict is not Verdict.RETRY or tries >= TRIES_MAX:
                code = f" (SQLSTATE {failed.sqlstate})" if failed.sqlstate else ""
                raise ReplayStopped(f"the database: {failed.message}{code}") from failed
            await asyncio.sleep(backoff_s(tries, first_s=0.1, cap_s=5.0))
