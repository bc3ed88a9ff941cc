"""Requests to a real port over fakes, as rows of data: what is sent, what is answered and kept."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.receiver import OTHER, SECRET, Receiver, Reply, in_force, running_receiver


class Row(NamedTuple):
    """A request and what comes of it.

    Unless its row says more, a refused one (4xx, 5xx) keeps nothing. `says` is in the answer.
    `kept` is the number of readings, or each of them as (device, metric, value), perhaps with the
    time in microseconds before these. `letters` are members of the dead letters. `counts` are by
    how much counters of the ledger grow. `given` are attributes of parts of the receiver while it
    is sent. `then` are the statuses of further answers.
    """

    sent: bytes
    status: int
    code: str = ""
    says: str = ""
    kept: int | Sequence[tuple[Any, ...]] | None = None
    letters: Sequence[Mapping[str, Any]] | None = None
    document: Any = None
    headers: Mapping[str, str | None] = {}
    counts: Mapping[tuple[str, Any], int] = {}
    given: Mapping[tuple[str, str], Any] = {}
    then: Sequence[int] = ()


class Group(NamedTuple):
    """Rows that are sent one after another to one receiver, with its settings."""

    rows: Sequence[Row]
    settings: Mapping[str, Any] = {}
    tokens: Sequence[bytes] | None = None
    sources: str = ""


def request(
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    *,
    method: str = "POST",
    host: str = "door",
    packed: bool = False,
) -> bytes:
    """Return a request; `packed` with gzip. Headers may have raw bytes (Latin-1)."""
    named = list(headers.items() if isinstance(headers, Mapping) else headers)
    if packed and body is not None:
        body, named = gzip.compress(body), [*named, ("Content-Encoding", "gzip")]
    if body is not None:
        named.append(("Content-Length", str(len(body))))
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *map(": ".join, named), "", ""]
    return "\r\n".join(lines).encode("latin-1") + (body or b"")


async def faults(group: Group, folder: Path) -> list[str]:
    """Send the rows of a group; return what is not as they say."""
    settings = dict(group.settings)
    if group.sources:
        file = folder / "sources.toml"
        file.write_text(group.sources)
        settings["sources_file"] = str(file)
    tokens = None if group.tokens is None else in_force(*group.tokens)
    async with running_receiver(tokens, **settings) as receiver:
        return [each for row in group.rows for each in await _faults(receiver, row)]


async def _faults(receiver: Receiver, row: Row) -> list[str]:
    kept, letters = len(receiver.inlet.readings), len(receiver.dead_letters.letters)
    before = {name: _count(receiver, name) for name in row.counts}
    reply, *others = await _replies(receiver, row)
    readings = receiver.inlet.readings[kept:]
    new = receiver.dead_letters.letters[letters:]
    wanted = 0 if row.kept is None and row.status >= 400 else row.kept
    wanted_letters = [] if row.letters is None and row.status >= 400 else row.letters
    found = [
        ("status", reply.status, row.status),
        ("code", row.code and code_of(reply), row.code),
        ("body", row.says in reply.body.decode() or reply.body, True),
        ("document", row.document and reply.document, row.document),
        ("headers", {each: reply.headers.get(each) for each in row.headers}, row.headers),
        ("counts", {n: _count(receiver, n) - before[n] for n in row.counts}, row.counts),
        ("further answers", [each.status for each in others], [*row.then]),
        ("waits", _lacks_wait(row, reply), False),
        ("token told", any(each.encode() in reply.body for each in (SECRET, OTHER)), False),
    ]
    if isinstance(wanted, int):
        found.append(("kept", len(readings), wanted))
    elif wanted is not None:
        found.append(("kept", [tuple(each)[-len(wanted[0]) :] for each in readings], [*wanted]))
    if wanted_letters is not None:
        found.append(("number of dead letters", len(new), len(wanted_letters)))
        for letter, members in zip(new, wanted_letters, strict=False):
            found.append(("dead letter", {n: getattr(letter, n) for n in members}, members))
    first = row.sent.partition(b"\r\n")[0].decode("latin-1")
    return [
        f"{first:.90}: {what}: {now!r:.400}, not {then!r:.400}"
        for what, now, then in found
        if now != then
    ]


async def _replies(receiver: Receiver, row: Row) -> list[Reply]:
    client = await receiver.connect()
    with pytest.MonkeyPatch.context() as patch:
        for (part, name), value in row.given.items():
            patch.setattr(getattr(receiver, part), name, value)
        await client.send(row.sent)
        bodiless = row.sent.startswith(b"HEAD")
        replies = [await client.reply(head_only=bodiless) for _ in range(1 + len(row.then))]
    await client.close()
    return replies


def _lacks_wait(row: Row, reply: Reply) -> bool:
    told = {**reply.headers, **row.headers}
    return row.status in {429, 503} and bool(row.code) and "retry-after" not in told


def _count(receiver: Receiver, name: tuple[str, Any]) -> int:
    counter, key = name
    value = getattr(receiver.ledger, counter)
    return int(value.get(key, 0) if key else value)


def code_of(reply: Reply) -> str:
    """Return the code of a refusal, in the form of its page."""
    return str(reply.document.get("problem") or reply.document.get("code"))
