"""Dead letters as text for a terminal: one line each, in full, or counted.

Text of devices is shown with its control characters escaped, because they could control the
terminal.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import orjson

from ingest.dead_letters.format import reading_object
from ingest.dead_letters.manual_replay import Summary
from ingest.dead_letters.store import LetterStore, LiveLetter, Selection, Tally, device_of, once
from ingest.system.clock import rfc3339_or_us, unix_us
from ingest.system.words import counted

ID_CHARACTERS = 12  # enough to name a letter among millions
COLUMNS = (
    f"{'ID':12}  {'FAILED AT':20}  {'REASON':19}  {'CODE':22}  {'SENDER':16}  {'DEVICE':16}  WHAT"
)


def escaped(text: str) -> str:
    """Return text with escapes for all characters that are not printable."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def when(us: int) -> str:
    """Return Unix microseconds as RFC 3339 in whole seconds, or as a number outside its years."""
    found = rfc3339_or_us(us - us % 1_000_000)
    return found if isinstance(found, str) else str(us)


def size(size_bytes: float) -> str:
    """Return a number of bytes for a person."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


def one_line(live: LiveLetter, width: int) -> str:
    """Return a letter as one line of COLUMNS, cut to `width` characters."""
    letter = live.letter
    if letter.reading is not None:
        what = f"{letter.reading.metric}={letter.reading.value!r} at {when(letter.reading.ts_us)}"
    else:
        what = (letter.original or b"")[:1_000].decode(errors="backslashreplace")
    line = escaped(
        f"{live.id[:ID_CHARACTERS]}  {when(live.failed_us):20}  {letter.reason:19}  "
        f"{letter.code:22}  {_cut(escaped(letter.sender or '-'), 16):16}  "
        f"{_cut(escaped(device_of(letter) or '-'), 16):16}  {what}"
    )
    return _cut(line, width)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 2] + ".."


def in_full(live: LiveLetter) -> str:
    """Return all fields of a letter, one line each."""
    letter = live.letter
    rows: list[tuple[str, object]] = [
        ("id", live.id),
        ("reason", letter.reason),
        ("code", letter.code or "-"),
        ("message", letter.message or "-"),
        ("attempts", letter.attempts),
        ("received at", when(letter.received_us)),
        ("failed at", when(live.failed_us)),
        ("item of post", letter.item),
        ("field", letter.field),
        ("precision", letter.precision),
    ]
    if letter.original is not None:
        rows += [
            ("format", letter.format),
            ("posted to", letter.source),
            ("unknown", "ignore" if letter.ignore_unknown else None),
            ("sender", letter.sender or "-"),
            ("may speak for", ", ".join(letter.devices) or None),
        ]
    if letter.reading is not None:
        rows.append(("reading", orjson.dumps(reading_object(letter.reading)).decode()))
    if letter.original is not None:
        try:
            rows.append(("original", letter.original.decode()))
        except UnicodeDecodeError:
            shown = letter.original.decode(errors="backslashreplace")
            rows.append(("original", f"{shown}  (not UTF-8)"))
    rows.append(live.found_at)
    return "\n".join(
        f"{name:13} {escaped(str(value))}" for name, value in rows if value is not None
    )


async def count(store: LetterStore, tally: Tally) -> dict[str, Any]:
    """Return the figures of a store. `stream` is there only if the letters are in a stream."""
    kinds: Counter[tuple[str, str]] = Counter()
    oldest_us = math.inf
    async for live in once(store.oldest(Selection(), tally)):
        kinds[live.letter.reason, live.letter.code] += 1
        oldest_us = min(live.failed_us, oldest_us)
    extent = await store.extent()
    return {
        "live": kinds.total(),
        "by": [
            {"reason": reason, "code": code, "letters": letters_of_kind}
            for (reason, code), letters_of_kind in kinds.most_common()
        ],
        "oldest": when(int(oldest_us)) if kinds else None,
        "oldest_age_s": max(0.0, (unix_us() - oldest_us) / 1e6) if kinds else None,
        "files": extent.files,
        "bytes": extent.size_bytes,
        "altered": tally.altered,
        "torn": tally.torn,
        "unreadable": tally.unreadable,
        **({"stream": extent.stream} if extent.stream else {}),
    }


def figures(counted: dict[str, Any], tally: Tally) -> str:
    """Return what `count` has found as text."""
    lines = [f"{'dead letters':16} {counted['live']}"]
    lines += [
        escaped(f"  {each['letters']:>12}  {each['reason']:19}  {each['code']}".rstrip())
        for each in counted["by"]
    ]
    if counted["oldest"] is not None:
        lines.append(f"{'oldest':16} {counted['oldest']} ({counted['oldest_age_s']:.0f} s ago)")
    if stream := counted.get("stream"):
        lines.append(f"{'stream':16} {stream}, {size(counted['bytes'])}")
    else:
        lines.append(f"{'files':16} {counted['files']}, {size(counted['bytes'])}")
    if damage := damaged(tally):
        lines.append(f"{'skipped':16} {damage}")
    return "\n".join(lines)


def damaged(tally: Tally) -> str:
    """Return a text about what was skipped while reading; empty if nothing was."""
    parts = []
    if tally.altered:
        parts.append(f"{tally.altered} altered")
    if tally.torn:
        parts.append(f"{tally.torn} cut off (not acknowledged, or still being written)")
    parts += [f"unreadable: {each}" for each in tally.unreadable]
    return "; ".join(parts)


def replayed_json(summary: Summary, tally: Tally, *, dry_run: bool) -> dict[str, Any]:
    """Return the result of a replay as a JSON object. `refused` are numbers by code.

    `not_allowed_left` letters were not tried.
    """
    return {
        "dry_run": dry_run,
        "replayed": summary.letters,
        "readings": summary.rows,
        "new": summary.new,
        "duplicate": summary.duplicate,
        "refused": dict(summary.refused),
        "not_allowed_left": tally.not_allowed,
        "refusals": [
            {"id": each.id, "place": each.place, "code": each.code, "message": each.message}
            for each in summary.refusals
        ],
    }


def replayed(summary: Summary, *, dry_run: bool) -> str:
    """Return the result of a replay, with the reasons of letters that are still refused."""
    verb = "would be replayed" if dry_run else "replayed"
    line = f"{counted(summary.letters, 'dead letter')} {verb}: {counted(summary.rows, 'reading')}"
    if not dry_run:
        line += f", {summary.new} new, {counted(summary.duplicate, 'duplicate')}"
    lines = [line, f"{sum(summary.refused.values())} still refused"]
    lines += [f"  {count:>12}  {code}" for code, count in sorted(summary.refused.items())]
    lines += [
        f"  {each.id[:ID_CHARACTERS]}  {each.place}  {each.code}: {escaped(each.message)}"
        for each in summary.refusals
    ]
    if sum(summary.refused.values()) > len(summary.refusals):
        lines.append("  (only the first ones are shown)")
    return "\n".join(lines)
